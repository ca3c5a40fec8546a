import { mkdir, mkdtempDisposable } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { Mounts } from '../../../runtime/kernel/mount.ts';
import { createLayerMounts } from '../../../runtime/layers/layer-mounts.ts';
import type { Layer } from '../../../runtime/layers/layer-store.ts';
import { digestOf } from '../../../shared/digest.ts';

const layer: Layer = {
  id: digestOf('layer'),
  diffId: digestOf('layer'),
  backend: 'erofs',
  number: 1,
  diskBytes: 0,
  apparentBytes: 0,
  entryCount: 0,
  root: undefined,
  createdAt: new Date(0),
};

it('keeps the holder of a layer that is taken while it is being unmounted', async () => {
  await using place = await mkdtempDisposable(join(tmpdir(), 'berth-layer-mounts-'));
  const directory = join(place.path, 'l');
  await mkdir(directory);
  const unmounting = Promise.withResolvers<void>();
  const unmounted = Promise.withResolvers<void>();
  const mounts: Pick<Mounts, 'mountImages' | 'unmount'> = {
    mountImages: async () => {},
    async unmount() {
      unmounting.resolve();
      await unmounted.promise;
    },
  };
  const layers = createLayerMounts({ directory, mounts, pathOf: () => '/image' });
  await layers.hold('first', [layer]);
  await layers.drop('first');
  const released = layers.release(['1']);
  await unmounting.promise;
  const held = layers.hold('second', [layer]);
  unmounted.resolve();
  await Promise.all([released, held]);
  await expect(layers.release(['1'])).rejects.toMatchObject({ kind: 'conflict', detail: { holders: ['second'] } });
});
