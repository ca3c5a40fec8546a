import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, readdir, stat, writeFile } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { createOpenAccess } from '../../registry/access/open-access.ts';
import type { PullEvent } from '../../runtime/images/progress.ts';
import { type Digest, digestOf, hexOf } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { type FixtureRegistry, startFixtureRegistry } from '../fixtures/fixture-registry.ts';
import { buildImage, buildLayer, type Image, type ImageLayer } from '../fixtures/images.ts';
import { tarOf } from '../fixtures/tar.ts';
import { type ImagesRig, openImagesRig } from './images-rig.ts';
import { startMemoryRegistry } from './registry-memory.ts';

let rig: ImagesRig;
let registry: FixtureRegistry;

beforeEach(async () => {
  rig = await openImagesRig();
  registry = await startFixtureRegistry();
});
afterEach(async () => {
  await registry[Symbol.asyncDispose]();
  await rig[Symbol.asyncDispose]();
});

/** A layer with one file of random bytes, so that it does not compress. */
function layer(name: string, sizeBytes = 1000): ImageLayer {
  return buildLayer([{ name, content: randomBytes(sizeBytes) }]);
}

const base = () => layer('base', 200_000);

function serve(name: string, image: Image): string {
  registry.add(name, '1', image);
  return `${registry.host}/${name}:1`;
}

async function pulled(name: string, image: Image): Promise<string> {
  const reference = serve(name, image);
  await rig.images.pull(reference);
  return reference;
}

/** Everything below the state directory's stores, by name. */
async function bytesHere(): Promise<{ readonly blobs: number; readonly layers: number; readonly ingests: number }> {
  await rig.images.settled();
  const count = async (...path: string[]) => {
    await mkdir(join(rig.root, ...path), { recursive: true });
    return (await readdir(join(rig.root, ...path), { withFileTypes: true })).filter((entry) => entry.isFile()).length;
  };
  return {
    blobs: await count('content', 'blobs', 'sha256'),
    layers: await count('layers'),
    ingests: await count('content', 'ingest'),
  };
}

const NOTHING = { blobs: 0, layers: 0, ingests: 0 };
const digestOfImage = (image: Image): Digest => digestOf(image.config);

describe('pull', () => {
  it('brings an image whole and names it', async () => {
    const image = buildImage({ layers: [base(), layer('top')], config: { Cmd: ['sh'], Labels: { a: 'b' } } });
    const reference = serve('app', image);
    const events: PullEvent[] = [];
    const result = await rig.images.pull(reference, { onProgress: (event) => events.push(event) });
    expect(result).toMatchObject({ id: digestOfImage(image), reference, isNew: true });

    const resolved = await rig.images.resolve(reference);
    expect(resolved.chain).toHaveLength(2);
    expect(resolved.config.config.Cmd).toEqual(['sh']);
    for (const id of resolved.chain) expect(await rig.layers.get(id)).toBeDefined();
    for (const [digest, bytes] of image.blobs) expect(await buffer(await rig.blobs.open(digest))).toEqual(bytes);

    const [summary] = await rig.images.list();
    const digest = image.manifestDescriptor.digest;
    expect(summary).toMatchObject({
      id: digestOfImage(image),
      repoTags: [reference],
      repoDigests: [`${registry.host}/app@${digest}`],
      labels: { a: 'b' },
      sharedBytes: 0,
    });
    const statuses = events.map((event) => (event.kind === 'layer' ? event.status : event.kind));
    expect(statuses.slice(0, 4)).toEqual(['resolving', 'pulling', 'pulling-fs-layer', 'pulling-fs-layer']);
    expect(statuses.filter((status) => status === 'pull-complete')).toHaveLength(2);
    expect(events.slice(-2)).toEqual([
      { kind: 'digest', digest },
      { kind: 'done', reference, isNew: true },
    ]);
    expect(rig.events).toContainEqual(expect.objectContaining({ action: 'pull', id: reference }));
  });

  it('fetches only the manifest when nothing has changed', async () => {
    const image = buildImage({ layers: [base()] });
    const reference = await pulled('app', image);
    registry.requests.length = 0;
    expect(await rig.images.pull(reference)).toMatchObject({ isNew: false });
    expect(registry.requests.filter((line) => line.includes('/blobs/'))).toEqual([]);
  });

  it('downloads of a second image only its own layers', async () => {
    const shared = base();
    await pulled('one', buildImage({ layers: [shared, layer('one')] }));
    const before = registry.sent.get(shared.descriptor.digest);
    const events: PullEvent[] = [];
    const second = serve('two', buildImage({ layers: [shared, layer('two')] }));
    await rig.images.pull(second, { onProgress: (event) => events.push(event) });
    expect(registry.sent.get(shared.descriptor.digest)).toBe(before);
    expect(events).toContainEqual(
      expect.objectContaining({ digest: shared.descriptor.digest, status: 'already-exists' }),
    );
    const usage = await rig.images.usage();
    expect(usage.logicalBytes - usage.actualBytes).toBe((await rig.images.list())[0]?.sharedBytes);
  });

  it('shares transfers between concurrent pulls, and one cancel stops nobody else', async () => {
    const shared = layer('shared', 3_000_000);
    const one = serve('one', buildImage({ layers: [shared] }));
    const two = serve('two', buildImage({ layers: [shared], config: { Cmd: ['two'] } }));
    const arrived = Promise.withResolvers<void>();
    const go = Promise.withResolvers<void>();
    registry.onBlob = async ({ digest }) => {
      if (digest === shared.descriptor.digest) {
        arrived.resolve();
        await go.promise;
      }
      return false;
    };
    const cancel = new AbortController();
    const first = rig.images.pull(one, { signal: cancel.signal });
    await arrived.promise;
    const joined = Promise.withResolvers<void>();
    const second = rig.images.pull(two, {
      onProgress: (event) => event.kind === 'layer' && event.status === 'downloading' && joined.resolve(),
    });
    await joined.promise;
    cancel.abort(new Error('client is gone'));
    await expect(first).rejects.toThrow('client is gone');
    go.resolve();
    await second;
    expect(registry.sent.get(shared.descriptor.digest)).toBe(shared.blob.length);
    expect((await rig.images.list()).map((image) => image.repoTags)).toEqual([[two]]);
  });

  describe('of a layer that another registry is sending, too', () => {
    const shared = layer('shared', 3_000_000);
    let good: string;
    let bad: string;
    let other: FixtureRegistry;

    /** `bad` is being pulled when this resolves, from a registry that answers the layer like that. */
    async function begin(answer: (response: ServerResponse) => void): Promise<{ readonly pull: Promise<unknown> }> {
      other = await startFixtureRegistry();
      good = serve('good', buildImage({ layers: [shared] }));
      other.add('bad', '1', buildImage({ layers: [shared], config: { Cmd: ['bad'] } }));
      bad = `${other.host}/bad:1`;
      const arrived = Promise.withResolvers<void>();
      other.onBlob = ({ digest }, response) => {
        if (digest !== shared.descriptor.digest) return false;
        answer(response);
        arrived.resolve();
        return true;
      };
      const pull = rig.images.pull(bad);
      pull.catch(() => {});
      await arrived.promise;
      return { pull };
    }
    afterEach(() => other[Symbol.asyncDispose]());
    const length = { 'content-length': shared.blob.length };

    it('goes on from the good one when the other is slow, and helps the other pull', async () => {
      const half = shared.blob.length >> 1;
      const slow = await begin((response) => response.writeHead(200, length).write(shared.blob.subarray(0, half)));
      await rig.images.pull(good);
      await slow.pull;
      expect(registry.sent.get(shared.descriptor.digest)).toBeLessThanOrEqual(shared.blob.length - half + 300_000);
      expect(await rig.images.list()).toHaveLength(2);
    });

    it('is not failed by one that fails', async () => {
      const refused = await begin((response) => response.writeHead(403).end());
      await rig.images.pull(good);
      await refused.pull.catch(() => {});
    });

    it('is not failed by one that sends other bytes', async () => {
      const joined = Promise.withResolvers<void>();
      const wrong = await begin((response) => {
        response.writeHead(200, length).write(Buffer.alloc(1_000_000));
        void joined.promise.then(() => response.end(Buffer.alloc(shared.blob.length - 1_000_000)));
      });
      await rig.images.pull(good, {
        onProgress: (event) => event.kind === 'layer' && event.status === 'downloading' && joined.resolve(),
      });
      await expect(wrong.pull).rejects.toMatchObject({ kind: 'integrity' });
      expect((await rig.images.list()).map((image) => image.repoTags)).toEqual([[good]]);
    });

    it('leaves threads and slots to others while it stands still', async () => {
      const many = Array.from({ length: 8 }, (_, i) => layer(`still-${i}`, 1000));
      other = await startFixtureRegistry();
      other.add('still', '1', buildImage({ layers: many }));
      const blobs = new Set(many.map(({ descriptor }) => descriptor.digest));
      other.onBlob = ({ digest, bytes }, response) => {
        if (!blobs.has(digest)) return false;
        response.writeHead(200, { 'content-length': bytes.length }).write(bytes.subarray(0, 10));
        return true;
      };
      const cancel = new AbortController();
      const still = rig.images.pull(`${other.host}/still:1`, { signal: cancel.signal });
      still.catch(() => {});
      await pulled('quick', buildImage({ layers: [layer('a'), layer('b')] }));
      cancel.abort(new Error('enough'));
      await expect(still).rejects.toThrow('enough');
    });
  });

  it('resumes by range after a cancel, and after a restart', async () => {
    const big = layer('big', 4_000_000);
    const reference = serve('app', buildImage({ layers: [layer('small'), big] }));
    const half = Math.floor(big.blob.length / 2);
    registry.onBlob = ({ digest, bytes }, response) => {
      if (digest !== big.descriptor.digest) return false;
      response.writeHead(200, { 'content-length': bytes.length });
      response.write(bytes.subarray(0, half));
      return true;
    };
    const cancel = new AbortController();
    const pull = rig.images.pull(reference, { signal: cancel.signal });
    pull.catch(() => {});
    const arrived = async () => (await rig.blobs.ingestInfo(hexOf(big.descriptor.digest)))?.offset;
    await vi.waitFor(async () => expect(await arrived()).toBeGreaterThan(500_000), { timeout: 20_000, interval: 10 });
    cancel.abort(new Error('enough'));
    await expect(pull).rejects.toThrow('enough');
    expect(await rig.images.list()).toEqual([]);
    await rig.reopen();
    // The small layer may have been cut short, too.
    const ingest = await rig.blobs.ingestInfo(hexOf(big.descriptor.digest));
    expect(ingest?.offset).toBeGreaterThan(500_000);

    registry.onBlob = undefined;
    await rig.images.pull(reference);
    expect(registry.sent.get(big.descriptor.digest)).toBe(big.blob.length - (ingest?.offset ?? 0));
    expect((await bytesHere()).ingests).toBe(0);
  });

  it('keeps finished downloads when one layer fails, and nothing that is half (CVE-2021-20291)', async () => {
    const good = layer('good', 50_000);
    const bad = layer('bad', 50_000);
    const image = buildImage({ layers: [good, bad] });
    const reference = serve('app', image);
    const done = Promise.withResolvers<void>();
    registry.onBlob = async ({ digest, bytes }, response) => {
      if (digest !== bad.descriptor.digest) return false;
      await done.promise;
      response.writeHead(200, { 'content-length': bytes.length });
      response.end(Buffer.alloc(bytes.length, 7));
      return true;
    };
    const pull = rig.images.pull(reference, {
      onProgress: (event) => {
        if (event.kind === 'layer' && event.digest === good.descriptor.digest && event.status === 'pull-complete')
          done.resolve();
      },
    });
    await expect(pull).rejects.toMatchObject({
      kind: 'integrity',
      message: expect.stringContaining(bad.descriptor.digest),
    });
    expect(await rig.images.list()).toEqual([]);
    expect(await bytesHere()).toEqual({ blobs: 1, layers: 1, ingests: 0 });

    registry.onBlob = undefined;
    await rig.images.pull(reference);
    expect(registry.sent.get(good.descriptor.digest)).toBe(good.blob.length);
  });

  it('chooses the platform from an index, and refuses what is not there', async () => {
    const here = buildImage({ layers: [layer('here')] });
    const other = buildImage({ layers: [layer('other')], architecture: 's390x' });
    registry.add('app', 'here', here);
    registry.add('app', 'other', other);
    const entry = (image: Image) => {
      const { architecture, os } = JSON.parse(image.config.toString());
      return { ...image.manifestDescriptor, platform: { architecture, os } };
    };
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [entry(other), entry(here)] }));
    const index = registry.addManifest('app', 'multi', { mediaType: MEDIA_TYPES.ociIndex, bytes });
    const reference = `${registry.host}/app:multi`;

    expect(await rig.images.pull(reference)).toMatchObject({ id: digestOfImage(here), digest: index });
    expect((await rig.images.list())[0]?.repoDigests).toEqual([`${registry.host}/app@${index}`]);
    expect(await rig.images.pull(reference, { platform: 'linux/s390x' })).toMatchObject({ id: digestOfImage(other) });
    await expect(rig.images.pull(reference, { platform: 'linux/riscv64' })).rejects.toMatchObject({
      kind: 'not-found',
      message: 'no matching manifest for linux/riscv64 in the manifest list entries',
    });
  });
});

describe('bad input', () => {
  const app = () => `${registry.host}/app:1`;
  const manifest = (value: unknown, mediaType: string = MEDIA_TYPES.ociManifest) =>
    registry.addManifest('app', '1', { mediaType, bytes: Buffer.from(JSON.stringify(value)) });

  interface Case {
    readonly name: string;
    readonly prepare: () => void;
    readonly kind: string;
    readonly says: RegExp;
  }
  const good = () => buildImage({ layers: [layer('a')] });
  const parsed = (image: Image) => JSON.parse(image.manifest.toString());
  const cases: readonly Case[] = [
    { name: 'a missing image', prepare: () => {}, kind: 'not-found', says: /failed to resolve reference ".*app:1"/ },
    {
      name: 'a layer with another diffID',
      prepare: () => {
        const image = buildImage({ layers: [{ ...layer('a'), diffId: digestOf('other') }] });
        serve('app', image);
      },
      kind: 'integrity',
      says: /cannot pull .*app:1: layer [0-9a-f]{12}: .*/,
    },
    {
      name: 'a truncated layer',
      prepare: () => {
        const whole = layer('a', 100_000);
        const blob = whole.blob.subarray(0, whole.blob.length >> 1);
        const descriptor = { ...whole.descriptor, size: blob.length, digest: digestOf(blob) };
        serve('app', buildImage({ layers: [{ diffId: whole.diffId, blob, descriptor }] }));
      },
      kind: 'integrity',
      says: /layer [0-9a-f]{12}/,
    },
    {
      name: 'a layer with a path out of it (CVE-2014-9356)',
      prepare: () => serve('app', buildImage({ layers: [buildLayer([{ name: '../../etc/evil', content: 'x' }])] })),
      kind: 'invalid',
      says: /evil/,
    },
    {
      name: 'an unknown layer type',
      prepare: () => {
        const image = good();
        serve('app', image);
        const [first] = parsed(image).layers;
        manifest({ ...parsed(image), layers: [{ ...first, mediaType: 'application/x-wasm' }] });
      },
      kind: 'unsupported',
      says: /application\/x-wasm/,
    },
    {
      name: 'an artifact that is no image',
      prepare: () => {
        const image = good();
        serve('app', image);
        manifest({ ...parsed(image), config: { ...parsed(image).config, mediaType: MEDIA_TYPES.ociEmpty } });
      },
      kind: 'unsupported',
      says: /not an image/,
    },
    {
      name: 'a manifest of schema 1',
      prepare: () => manifest({ schemaVersion: 1 }, 'application/vnd.docker.distribution.manifest.v1+prettyjws'),
      kind: 'unsupported',
      says: /schema 1/,
    },
    {
      name: 'a manifest over 4 MiB',
      prepare: () => manifest({ ...parsed(good()), annotations: { a: 'x'.repeat(5 << 20) } }),
      kind: 'too-large',
      says: /manifest/,
    },
    {
      name: 'a manifest that is also an index (CVE-2021-41190)',
      prepare: () => manifest({ ...parsed(good()), manifests: [] }),
      kind: 'invalid',
      says: /a manifest and of an index/,
    },
    {
      name: 'a config that is not JSON',
      prepare: () => {
        const config = Buffer.from('nonsense');
        const image = { ...good(), config };
        const descriptor = { mediaType: MEDIA_TYPES.ociConfig, digest: digestOf(config), size: config.length };
        registry.add('app', '1', { ...image, blobs: new Map([...image.blobs, [descriptor.digest, config]]) });
        manifest({ ...parsed(image), config: descriptor });
      },
      kind: 'invalid',
      says: /image config.*JSON/,
    },
    {
      name: 'a config with unexpected types (CVE-2021-21285)',
      prepare: () => serve('app', buildImage({ layers: [layer('a')], rawConfig: { config: { Env: 'PATH' } } })),
      kind: 'invalid',
      says: /config\.Env/,
    },
    {
      name: 'a config that names more layers than the manifest',
      prepare: () =>
        serve('app', buildImage({ layers: [], rawConfig: { rootfs: { type: 'layers', diff_ids: [digestOf('x')] } } })),
      kind: 'invalid',
      says: /names 1 layers, its manifest 0/,
    },
    {
      name: 'a layer whose size is not what the manifest says',
      prepare: () => {
        const image = good();
        serve('app', image);
        const [first] = parsed(image).layers;
        manifest({ ...parsed(image), layers: [{ ...first, size: first.size - 10 }] });
      },
      kind: 'integrity',
      says: /layer [0-9a-f]{12}/,
    },
    {
      name: 'a layer digest that is a path (CVE-2024-3727)',
      prepare: () => {
        const image = good();
        serve('app', image);
        const [first] = parsed(image).layers;
        manifest({ ...parsed(image), layers: [{ ...first, digest: 'sha256:../../../../etc/passwd' }] });
      },
      kind: 'invalid',
      says: /digest/,
    },
    {
      // No digest is that of what contains it, so only a registry that serves wrong bytes can close the circle.
      name: 'a cyclic index',
      prepare: () => {
        const index = (digest: string, size: number) =>
          JSON.stringify({ schemaVersion: 2, manifests: [{ mediaType: MEDIA_TYPES.ociIndex, digest, size }] });
        const inner = digestOf('the outer one, as the inner one claims');
        const size = Buffer.byteLength(index(inner, 100));
        const outer = manifest(JSON.parse(index(inner, size)), MEDIA_TYPES.ociIndex);
        registry.addManifest('app', inner, {
          mediaType: MEDIA_TYPES.ociIndex,
          bytes: Buffer.from(index(outer, size)),
        });
      },
      kind: 'integrity',
      says: /manifest|digest/,
    },
    {
      name: 'an index in an index in an index…',
      prepare: () => {
        let inner = manifest({ ...parsed(good()) });
        let size = Buffer.byteLength(JSON.stringify(parsed(good())));
        for (let depth = 0; depth < 8; depth++) {
          const value = { schemaVersion: 2, manifests: [{ mediaType: MEDIA_TYPES.ociIndex, digest: inner, size }] };
          inner = manifest(value, MEDIA_TYPES.ociIndex);
          size = Buffer.byteLength(JSON.stringify(value));
        }
      },
      kind: 'invalid',
      says: /nested more than/,
    },
  ];
  it.each(cases)('$name', async ({ prepare, kind, says }) => {
    prepare();
    const events: PullEvent[] = [];
    const pull = rig.images.pull(app(), { onProgress: (event) => events.push(event) });
    await expect(pull).rejects.toMatchObject({ kind, message: expect.stringMatching(says) });
    expect(await rig.images.list()).toEqual([]);
    expect(await bytesHere()).toMatchObject({ layers: 0 });
    await rig.images.prune();
    expect(await bytesHere()).toEqual(NOTHING);
  });

  it('a registry that hangs up in mid-blob', async () => {
    const image = buildImage({ layers: [layer('a', 500_000)] });
    const reference = serve('app', image);
    registry.onBlob = ({ digest, bytes }, response) => {
      if (digest !== image.layers[0]?.descriptor.digest) return false;
      response.writeHead(200, { 'content-length': bytes.length });
      response.write(bytes.subarray(0, 1000), () => response.destroy());
      return true;
    };
    await expect(rig.images.pull(reference)).rejects.toMatchObject({ kind: 'unavailable' });
    expect(await bytesHere()).toMatchObject({ layers: 0 });
    registry.onBlob = undefined;
    await rig.images.pull(reference);
  });
});

describe('names', () => {
  it('finds images as Docker does', async () => {
    const image = buildImage({ layers: [layer('a')] });
    const reference = await pulled('app', image);
    const id = digestOfImage(image);
    const digest = image.manifestDescriptor.digest;
    const repository = `${registry.host}/app`;
    for (const name of [reference, `${repository}@${digest}`, `${repository}:9@${digest}`])
      expect(await rig.images.resolve(name)).toMatchObject({ id, reference: expect.stringContaining(repository) });
    for (const name of [id, id.slice(7), id.slice(7, 19), id.slice(0, 20)])
      expect(await rig.images.resolve(name)).toMatchObject({ id, reference: undefined });
    await rig.images.tag(reference, 'local/box:v1');
    expect(await rig.images.resolve('local/box:v1')).toMatchObject({ id, reference: 'local/box:v1' });
  });

  it.each([
    ['nosuch:1', 'No such image: nosuch:1'],
    ['nosuch', 'No such image: nosuch:latest'],
    [`sha256:${'0'.repeat(64)}`, `No such image: sha256:${'0'.repeat(64)}`],
    ['0'.repeat(12), `No such image: ${'0'.repeat(12)}:latest`],
  ])('says of %s: %s', async (name, message) => {
    await expect(rig.images.resolve(name)).rejects.toMatchObject({ kind: 'not-found', message });
  });

  it('moves a tag to the newer image and leaves the older one dangling', async () => {
    const reference = await pulled('app', buildImage({ layers: [layer('old')] }));
    await pulled('app', buildImage({ layers: [layer('new')] }));
    expect(await rig.images.list({ dangling: true })).toHaveLength(1);
    expect((await rig.images.list({ dangling: false })).length).toBe(2);
    expect((await rig.images.list({ references: ['*/app'] })).flatMap((image) => image.repoTags)).toEqual([reference]);
  });
});

describe('rmi, prune and df', () => {
  it('frees exactly what nothing else names', async () => {
    const shared = base();
    const one = await pulled('one', buildImage({ layers: [shared, layer('one')] }));
    const two = await pulled('two', buildImage({ layers: [shared, layer('two')] }));
    const id = (await rig.images.resolve(one)).id;
    expect(await rig.images.remove(one)).toEqual(expect.arrayContaining([{ untagged: one }, { deleted: id }]));
    expect(await bytesHere()).toEqual({ blobs: 4, layers: 2, ingests: 0 });
    expect((await rig.images.resolve(two)).chain).toHaveLength(2);
    await rig.images.remove(two);
    expect(await bytesHere()).toEqual(NOTHING);
    expect((await rig.images.usage()).actualBytes).toBe(0);
  });

  it('keeps what a container uses', async () => {
    const image = buildImage({ layers: [layer('a')] });
    const reference = await pulled('app', image);
    const { id, chain } = await rig.images.resolve(reference);
    rig.users.set(id, [{ containerId: 'c'.repeat(64), running: false }]);
    for (const layerId of chain) rig.heldLayers.add(layerId);
    await expect(rig.images.remove(reference)).rejects.toMatchObject({ kind: 'conflict' });
    expect(await rig.images.prune({ dangling: false })).toMatchObject({ removals: [], reclaimedBytes: 0 });
    await rig.images.remove(reference, { force: true });
    expect(await rig.images.list()).toEqual([]);
    expect(await bytesHere()).toMatchObject({ layers: 1 });

    rig.users.clear();
    rig.heldLayers.clear();
    const { reclaimableBytes } = await rig.images.usage();
    const [layerId] = chain;
    expect(await rig.images.prune()).toEqual({ removals: [{ deleted: layerId }], reclaimedBytes: reclaimableBytes });
    expect(await bytesHere()).toEqual(NOTHING);
  });

  it('gives back the layers of an image that was removed by force with their last container', async () => {
    const shared = base();
    const kept = await pulled('kept', buildImage({ layers: [shared] }));
    const reference = await pulled('app', buildImage({ layers: [shared, layer('a')] }));
    const { chain } = await rig.images.resolve(reference);
    for (const layerId of chain) rig.heldLayers.add(layerId);
    await rig.images.remove(reference, { force: true });
    await rig.images.collectLayers(chain);
    expect(await bytesHere()).toMatchObject({ layers: 2 });
    rig.heldLayers.clear();
    await rig.images.collectLayers(chain);
    expect(await bytesHere()).toMatchObject({ layers: 1 });
    expect((await rig.images.usage()).orphans).toMatchObject({ layers: 0, blobs: 0 });
    expect((await rig.images.resolve(kept)).chain).toEqual(chain.slice(0, 1));
  });

  it('gives back a layer that was still mounted when its image went', async () => {
    const reference = await pulled('app', buildImage({ layers: [layer('a')] }));
    const { chain } = await rig.images.resolve(reference);
    const { remove } = rig.layers;
    const mounted = Promise.withResolvers<boolean>();
    const tried = Promise.withResolvers<void>();
    rig.layers.remove = () => {
      tried.resolve();
      return mounted.promise;
    };
    await rig.images.remove(reference);
    await tried.promise;
    rig.layers.remove = remove;
    // Its last container is put away while the removal still tries.
    const collected = rig.images.collectLayers(chain);
    mounted.reject(new AppError('conflict', 'it is mounted'));
    await collected;
    expect(await bytesHere()).toEqual(NOTHING);
  });

  it('prunes exactly the bytes that df and a dry run show', async () => {
    const shared = base();
    const used = await pulled('used', buildImage({ layers: [shared, layer('used')] }));
    const other = layer('other', 80_000);
    await pulled('one', buildImage({ layers: [shared, other] }));
    await pulled('two', buildImage({ layers: [shared, other, layer('two')] }));
    rig.users.set((await rig.images.resolve(used)).id, [{ containerId: 'c'.repeat(64), running: true }]);
    const before = await rig.images.usage();
    const dry = await rig.images.prune({ dangling: false, dryRun: true });
    expect(dry.reclaimedBytes).toBe(before.reclaimableBytes);
    expect(await rig.images.list()).toHaveLength(3);
    const pruned = await rig.images.prune({ dangling: false });
    expect(pruned.reclaimedBytes).toBe(before.reclaimableBytes);
    const after = await rig.images.usage();
    expect(after).toMatchObject({ reclaimableBytes: 0, actualBytes: before.actualBytes - pruned.reclaimedBytes });
    expect(before.activeCount).toBe(1);
  });

  it('removes nothing that is leased', async () => {
    const reference = await pulled('app', buildImage({ layers: [layer('a')] }));
    const image = await rig.images.resolve(reference);
    const lease = rig.images.lease();
    await lease.protectImage(image);
    expect((await rig.images.prune({ dangling: false })).removals).toEqual([]);
    await rig.images.remove(reference);
    for (const id of image.chain) expect(await rig.layers.get(id)).toBeDefined();
    await lease[Symbol.asyncDispose]();
    {
      await using late = rig.images.lease();
      await expect(late.protectImage(image)).rejects.toMatchObject({ kind: 'not-found' });
    }
    await rig.images.prune();
    expect(await bytesHere()).toEqual(NOTHING);
  });

  it('keeps the bytes of an unfinished pull for a day over restarts', async () => {
    await rig.blobs.ingest('half').then(async (ingest) => {
      await ingest.append(Readable.from([Buffer.from('half')]));
      await ingest[Symbol.asyncDispose]();
    });
    await rig.reopen();
    // What it occupies, not how long it is.
    const { blocks } = await stat(rig.blobs.ingestPathOf('half'));
    expect((await rig.images.usage()).orphans).toMatchObject({ ingests: 1, bytes: blocks * 512 });
    rig.clockMs = 25 * 3600 * 1000;
    await rig.reopen();
    expect(await bytesHere()).toEqual(NOTHING);
  });
});

describe('the policy of collection', () => {
  it('removes the oldest unused images until they fit, and tells before', async () => {
    const [shared, size] = [layer('shared', 50_000), 200_000];
    const names = ['old', 'used', 'leased', 'young'];
    for (const name of names) {
      await pulled(name, buildImage({ layers: [shared, layer(name, size)] }));
      rig.clockMs += 60_000;
    }
    const named = (name: string) => rig.images.resolve(`${registry.host}/${name}:1`);
    rig.users.set((await named('used')).id, [{ containerId: 'c'.repeat(64), running: false }]);
    await using lease = rig.images.lease();
    await lease.protectImage(await named('leased'));
    const { actualBytes } = await rig.images.usage();
    const policy = { maxAgeMs: 0, maxBytes: actualBytes - size, minFreeBytes: 0 };

    const told = await rig.images.collectByPolicy(policy, { dryRun: true });
    expect(told.removals).toContainEqual({ untagged: `${registry.host}/old:1` });
    expect((await rig.images.list()).length).toBe(names.length);
    const done = await rig.images.collectByPolicy(policy);
    expect(done).toEqual(told);
    expect((await rig.images.usage()).actualBytes).toBe(actualBytes - done.reclaimedBytes);
    await expect(named('old')).rejects.toMatchObject({ kind: 'not-found' });

    // Whatever is asked for, what is used and leased stays.
    await rig.images.collectByPolicy({ maxAgeMs: 1, maxBytes: 1, minFreeBytes: Number.MAX_SAFE_INTEGER });
    const left = (await rig.images.list()).flatMap((image) => image.repoTags).sort();
    expect(left).toEqual(['leased', 'used'].map((name) => `${registry.host}/${name}:1`));
  });
});

describe('push', () => {
  it('sends exactly the bytes that it has, once, and mounts across repositories', async () => {
    await using target = await startMemoryRegistry(createOpenAccess({ anonymousWrites: true }));
    const host = target.url.slice('http://'.length);
    const image = buildImage({ layers: [base(), layer('top')] });
    const reference = await pulled('app', image);
    await rig.images.tag(reference, `${host}/team/app:1`);
    await rig.images.tag(reference, `${host}/team/other:1`);
    const push = async (name: string) => {
      const statuses: string[] = [];
      const results = await rig.images.push(name, {
        onProgress: (event) => {
          if (event.kind === 'layer' && !statuses.includes(event.status)) statuses.push(event.status);
        },
      });
      return { statuses, results };
    };
    const { digest, size } = image.manifestDescriptor;
    const first = await push(`${host}/team/app:1`);
    expect(first.results).toEqual([{ tag: '1', digest, sizeBytes: size }]);
    expect(first.statuses).toEqual(['preparing', 'waiting', 'pushing', 'pushed']);
    expect((await push(`${host}/team/app:1`)).statuses).toEqual(['preparing', 'waiting', 'already-exists']);
    expect((await push(`${host}/team/other:1`)).statuses).toContain('mounted');

    const manifest = await fetch(`${target.url}/v2/team/other/manifests/1`, {
      headers: { accept: image.manifestDescriptor.mediaType },
    });
    expect(Buffer.from(await manifest.arrayBuffer())).toEqual(image.manifest);
    expect((await rig.images.inspect(reference)).repoDigests).toContain(`${host}/team/app@${digest}`);
    await rig.images.prune({ dangling: false });
    expect(await rig.images.pull(`${host}/team/app:1`)).toMatchObject({ digest, isNew: true });
  });

  it('says which tag there is not', async () => {
    await pulled('app', buildImage({ layers: [layer('a')] }));
    await expect(rig.images.push('nosuch/app:1')).rejects.toThrow(
      'An image does not exist locally with the tag: nosuch/app',
    );
    await expect(rig.images.push(`${registry.host}/app:2`)).rejects.toThrow(
      `tag does not exist: ${registry.host}/app:2`,
    );
  });
});

describe('system df of 500 images', () => {
  it('is exact and walks no directory', async () => {
    await insertImages(500);
    // Nothing of this is on disk: what is answered can only come from the rows.
    const times: number[] = [];
    let usage = await rig.images.usage();
    for (let round = 0; round < 5; round++) {
      const start = performance.now();
      usage = await rig.images.usage();
      times.push(performance.now() - start);
    }
    expect(usage).toMatchObject({
      logicalBytes: 500 * (10 + 12) * 4096,
      actualBytes: (20 * 5 + 500 * 5) * 2 * 4096 + 500 * 2 * 4096,
      reclaimableBytes: usage.actualBytes,
    });
    // On two quiet cores it takes 20 ms; the best of five leaves room for neighbours.
    expect(Math.min(...times)).toBeLessThan(150);
  });

  /** Ten layers each, five of them shared by every twentieth image. */
  async function insertImages(count: number): Promise<void> {
    await rig.database.write(async (trx) => {
      const images = new Map<Digest, unknown>();
      const layers = new Map<Digest, unknown>();
      const blobs = new Map<Digest, unknown>();
      const manifests: unknown[] = [];
      const names: unknown[] = [];
      const imageLayers: unknown[] = [];
      const manifestBlobs: unknown[] = [];
      const blob = (manifestDigest: Digest, digest: Digest) => {
        blobs.set(digest, { digest, sizeBytes: 1000, diskBytes: 4096, committedMs: 0 });
        manifestBlobs.push({ manifestDigest, blobDigest: digest });
      };
      for (let i = 0; i < count; i++) {
        const [id, manifestDigest] = [digestOf(`config${i}`), digestOf(`manifest${i}`)];
        images.set(id, { id, config: '{}', labels: '{}', createdMs: i, parentId: null, manifestDigest, taggedMs: 0 });
        manifests.push({ digest: manifestDigest, imageId: id, mediaType: MEDIA_TYPES.ociManifest, sizeBytes: 1 });
        const repository = `docker.io/library/i${i}`;
        names.push({ name: `${repository}:1`, repository, tag: '1', digest: null, imageId: id, manifestDigest });
        blob(manifestDigest, manifestDigest);
        blob(manifestDigest, id);
        for (let position = 0; position < 10; position++) {
          const diffId = digestOf(position < 5 ? `shared${i % 20}-${position}` : `own${i}-${position}`);
          const sizes = { diskBytes: 4096, apparentBytes: 3000, entryCount: 1 };
          const root = { rootMode: null, rootUid: null, rootGid: null };
          const createdAt = new Date(0).toISOString();
          layers.set(diffId, { id: diffId, diffId, backend: 'erofs', independent: 1, ...sizes, ...root, createdAt });
          imageLayers.push({ imageId: id, position, diffId, layerId: diffId });
          blob(manifestDigest, digestOf(`blob ${diffId}`));
        }
      }
      const insert = async (table: string, rows: readonly unknown[]) => {
        for (let at = 0; at < rows.length; at += 1000)
          await trx
            .insertInto(table as 'blob')
            .values(rows.slice(at, at + 1000) as never)
            .execute();
      };
      await insert('image', [...images.values()]);
      await insert('layer', [...layers.values()]);
      await insert('blob', [...blobs.values()]);
      await insert('imageManifest', manifests);
      await insert('imageName', names);
      await insert('imageLayer', imageLayers);
      await insert('manifestBlob', manifestBlobs);
    });
  }
});

describe('create, save and load', () => {
  it('makes a child, which keeps its parent until it goes', async () => {
    const reference = await pulled('app', buildImage({ layers: [layer('a')], config: { Cmd: ['sh'] } }));
    const parent = await rig.images.resolve(reference);
    const id = await rig.images.create({
      parent: parent.id,
      layer: Readable.from([tarOf([{ name: 'new', content: 'new' }])]),
      config: { Cmd: ['new'] },
      createdBy: 'sh -c new',
      comment: 'hello',
      name: 'local/made:v1',
    });
    const made = await rig.images.resolve('local/made:v1');
    expect(made).toMatchObject({ id, config: { config: { Cmd: ['new'] } } });
    expect(made.chain).toEqual([...parent.chain, made.chain[1]]);
    const history = await rig.images.history(id);
    expect(history[0]).toMatchObject({ id, createdBy: 'sh -c new', comment: 'hello', sizeBytes: 3 });
    expect(history[1]).toMatchObject({ id: parent.id, tags: [reference] });
    await expect(rig.images.remove(parent.id)).rejects.toThrow('image has dependent child images');
    await rig.images.remove(reference);
    await rig.images.remove('local/made:v1');
    expect(await rig.images.list({ all: true })).toEqual([]);
  });

  it('saves what it has and loads it again, byte for byte', async () => {
    const image = buildImage({ layers: [base(), layer('top')] });
    const reference = await pulled('app', image);
    const tar = await buffer(await rig.images.save([reference]));
    await rig.images.remove(reference);
    expect(await bytesHere()).toEqual(NOTHING);
    const loaded = await rig.images.load(Readable.from([tar]));
    expect(loaded).toEqual([{ id: digestOfImage(image), reference }]);
    for (const [digest, bytes] of image.blobs) expect(await buffer(await rig.blobs.open(digest))).toEqual(bytes);
    expect((await rig.images.usage()).orphans).toMatchObject({ layers: 0, blobs: 0, bytes: 0 });
  });

  it.each([
    ['plain', (tar: Buffer) => tar],
    ['gzip', (tar: Buffer) => gzipSync(tar, { level: 1 })],
    ['zstd', (tar: Buffer) => zstdCompressSync(tar)],
  ])('takes nothing of an archive that ends early, and goes on (%s)', async (_form, packed) => {
    const reference = await pulled('app', buildImage({ layers: [layer('a', 300_000)] }));
    const archive = packed(await buffer(await rig.images.save([reference])));
    await rig.images.remove(reference);
    for (const end of [100, 700, archive.length >> 1, archive.length - 2000])
      await expect(rig.images.load(Readable.from([archive.subarray(0, end)]))).rejects.toMatchObject({
        kind: 'invalid',
        message: expect.stringContaining('cut off'),
      });
    // Where the client goes away, too.
    const sent = [archive.subarray(0, archive.length >> 1)];
    const leaving = new Readable({
      read() {
        const next = sent.pop();
        if (next === undefined) this.destroy(Object.assign(new Error('aborted'), { code: 'ECONNRESET' }));
        else this.push(next);
      },
    });
    await expect(rig.images.load(leaving)).rejects.toThrow('aborted');
    expect(await bytesHere()).toEqual(NOTHING);
  });

  it('keeps of a layout only what its images are made of', async () => {
    const image = buildImage({ layers: [layer('a')] });
    const layout = (index: object) =>
      tarOf([
        ...[...image.blobs, [digestOf('other'), Buffer.from('other')] as const].map(([digest, content]) => ({
          name: `blobs/${digest.replace(':', '/')}`,
          content,
        })),
        { name: 'oci-layout', content: '{"imageLayoutVersion":"1.0.0"}' },
        { name: 'index.json', content: JSON.stringify(index) },
      ]);
    const manifest = {
      mediaType: MEDIA_TYPES.ociManifest,
      digest: digestOf(image.manifest),
      size: image.manifest.length,
    };
    const annotations = { 'io.containerd.image.name': 'local/app:1' };
    await rig.images.load(Readable.from([layout({ manifests: [{ ...manifest, annotations }] })]));
    expect(await bytesHere()).toEqual({ blobs: image.blobs.size, layers: 1, ingests: 0 });
    expect((await rig.images.usage()).orphans).toMatchObject({ blobs: 0, layers: 0 });
    // Nor does one that fails take away what others have.
    await expect(rig.images.load(Readable.from([layout({})]))).rejects.toThrow('unexpected form');
    expect(await bytesHere()).toEqual({ blobs: image.blobs.size, layers: 1, ingests: 0 });
  });

  it('loads a docker-archive of plain tars and links', async () => {
    const plain = tarOf([{ name: 'a', content: 'a' }]);
    const config = buildImage({ layers: [buildLayer(plain, 'none'), buildLayer(plain, 'none')] }).config;
    const archive = tarOf([
      { name: 'one/layer.tar', content: plain },
      { name: 'two/layer.tar', type: 'symlink', linkname: '../one/layer.tar' },
      { name: 'c.json', content: config },
      {
        name: 'manifest.json',
        content: JSON.stringify([
          { Config: 'c.json', RepoTags: ['old/app:1'], Layers: ['one/layer.tar', 'two/layer.tar'] },
        ]),
      },
    ]);
    expect(await rig.images.load(Readable.from([archive]))).toEqual([{ id: digestOf(config), reference: 'old/app:1' }]);
    expect((await rig.images.resolve('old/app:1')).chain).toHaveLength(2);
  });

  it.each([
    ['nothing', Buffer.alloc(0), /empty/],
    ['no list of images', tarOf([{ name: 'a', content: 'a' }]), /neither manifest.json nor index.json/],
    ['a list that is not JSON', tarOf([{ name: 'manifest.json', content: '{' }]), /not JSON/],
    [
      'a name that is not there (CVE-2014-9356)',
      tarOf([{ name: 'manifest.json', content: '[{"Config":"../../etc/passwd","Layers":[]}]' }]),
      /which it does not hold/,
    ],
    [
      'a digest that is a path (CVE-2024-3727)',
      tarOf([
        {
          name: 'index.json',
          content: `{"manifests":[{"mediaType":"${MEDIA_TYPES.ociManifest}","digest":"sha256:../../index.json","size":2}]}`,
        },
      ]),
      /which it does not hold|is sha256:/,
    ],
    [
      'a name that is a path (CVE-2014-9358)',
      tarOf([
        { name: 'c.json', content: '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}' },
        { name: 'manifest.json', content: '[{"Config":"c.json","RepoTags":["../../../etc/evil:1"],"Layers":[]}]' },
      ]),
      /invalid reference|\.\.\/|cannot/,
    ],
    ['half of an xz', Buffer.from('fd377a585a000000', 'hex'), /xz says/],
    ['half of a bzip2', Buffer.from('425a68393141592653590000', 'hex'), /bzip2 says/],
  ])('refuses an archive with %s', async (_name, bytes, says) => {
    await expect(rig.images.load(Readable.from([bytes]))).rejects.toMatchObject({
      message: expect.stringMatching(says),
    });
    expect(await bytesHere()).toEqual(NOTHING);
  });

  it.each(['bzip2', 'xz'])(
    'imports what %s has compressed, by the host’s own program (CVE-2026-41567)',
    async (form) => {
      const tar = tarOf([{ name: 'bin/sh', content: 'sh' }]);
      const packed = execFileSync(form, ['-c'], { input: tar });
      // A program of the same name comes first in the search path.
      const bin = join(rig.root, 'bin');
      await mkdir(bin);
      for (const name of ['bzip2', 'xz', 'unxz', 'bunzip2'])
        await writeFile(join(bin, name), `#!/bin/sh\ntouch ${rig.root}/taken\n`, { mode: 0o755 });
      vi.stubEnv('PATH', `${bin}:${process.env.PATH}`);
      try {
        const id = await rig.images.import(Readable.from([packed]), { name: 'fs:1' });
        expect((await rig.images.inspect(id)).config.diffIds).toEqual([digestOf(tar)]);
        expect(await readdir(rig.root)).not.toContain('taken');
      } finally {
        vi.unstubAllEnvs();
      }
    },
  );

  it('imports a filesystem', async () => {
    const tar = tarOf([{ name: 'bin/sh', content: 'sh' }]);
    const id = await rig.images.import(Readable.from([tar]), {
      name: 'fs:1',
      message: 'Imported',
      config: { Cmd: ['x'] },
    });
    const image = await rig.images.inspect('fs:1');
    expect(image).toMatchObject({ id, repoTags: ['fs:1'], comment: 'Imported', config: { config: { Cmd: ['x'] } } });
    expect(image.config.diffIds).toEqual([digestOf(tar)]);
  });
});
