/**
 * The volumes of one container: claimed when it is created, filled from its image, attached while it runs, and released
 * when it is removed.
 */
import { AppError } from '../../shared/errors.ts';
import type { Subtree } from '../layers/subtree.ts';
import type { VolumePart, Volumes } from '../volumes/volumes.ts';
import type { ContainerRecord, MountPoint, VolumeUse } from './container.ts';
import type { MountPlan, WantedVolume } from './mount-plan.ts';

export interface VolumePorts {
  readonly volumes: Volumes;
  /** What the image has at an absolute path. */
  readonly imageContent: (chain: ContainerRecord['chain'], path: string) => Promise<Subtree>;
}

/**
 * The mounts of a container to be; it refers to its volumes from now on. Nothing is left when that fails.
 * @throws AppError 'invalid', in Docker's words where a file is in the way; 'not-found' (driver)
 */
export async function claimVolumes(
  ports: VolumePorts,
  plan: MountPlan,
  { id, chain }: Pick<ContainerRecord, 'id' | 'chain'>,
): Promise<readonly MountPoint[]> {
  const mounts: MountPoint[] = [...plan.mounts];
  ports.volumes.refer(
    id,
    mounts.flatMap(({ volume }) => (volume === undefined ? [] : [volume.name])),
  );
  try {
    for (const wanted of plan.volumes) {
      const content = await ports.imageContent(chain, wanted.destination);
      if (content.kind === 'file')
        throw new AppError(
          'invalid',
          `cannot mount volume over existing file, file exists ${JSON.stringify(wanted.destination)}`,
        );
      const { name, driver, labels, options } = wanted;
      const volume = await ports.volumes.claim(id, { name, driver, labels, options });
      mounts.push(mountOf(wanted, { name: volume.name, source: volume.mountpoint }));
      if (wanted.copy && wanted.subpath === '' && content.kind === 'directory')
        await ports.volumes.seed(volume.name, content);
    }
  } catch (error) {
    await releaseVolumes(ports, { id, mounts: mounts.slice(plan.mounts.length) }, { anonymous: true });
    throw error;
  }
  return mounts;
}

function mountOf(wanted: WantedVolume, found: { readonly name: string; readonly source: string }): MountPoint {
  const { destination, mode, writable, subpath } = wanted;
  const volume = { name: found.name, isAnonymous: wanted.name === '', subpath };
  return { type: 'volume', source: found.source, destination, mode, writable, propagation: '', volume };
}

/** Those that nobody named go with it, if `anonymous` says so and no other container refers to them. */
export async function releaseVolumes(
  { volumes }: Pick<VolumePorts, 'volumes'>,
  { id, mounts }: Pick<ContainerRecord, 'id' | 'mounts'>,
  { anonymous }: { readonly anonymous: boolean },
): Promise<void> {
  const uses = mounts.flatMap(({ volume }) => (volume === undefined ? [] : [volume]));
  const remove = anonymous ? uses.filter(({ isAnonymous }) => isAnonymous).map(({ name }) => name) : [];
  await volumes.release(id, { remove });
}

/** In the order of the record's mounts that are volumes. */
export function volumeParts({ mounts }: Pick<ContainerRecord, 'mounts'>): readonly VolumePart[] {
  return mounts.filter(isVolume).map(({ volume: { name, subpath }, destination, writable }) => ({
    ...{ name, subpath, destination, writable },
  }));
}

/** The same mounts with the paths that are to be mounted now. */
export function withSources(mounts: readonly MountPoint[], sources: readonly string[]): readonly MountPoint[] {
  const left = [...sources];
  return mounts.map((mount) => (isVolume(mount) ? { ...mount, source: left.shift() ?? mount.source } : mount));
}

function isVolume(mount: MountPoint): mount is MountPoint & { readonly volume: VolumeUse } {
  return mount.volume !== undefined;
}
