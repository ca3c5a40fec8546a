/**
 * What a container has mounted, from -v, --mount, --tmpfs, --volumes-from and the image's VOLUME: Docker's grammar, and
 * which of them wins. Pure.
 */
import { posix } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import { checkSubpath } from '../volumes/names.ts';
import type { MountPoint } from './container.ts';
import type { ContainerConfig, HostConfig, MountRequest } from './request.ts';

/** A volume that the container shall have; whether it exists is not known here. */
export interface WantedVolume {
  /** '' = anonymous. */
  readonly name: string;
  readonly driver: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly options: Readonly<Record<string, string>>;
  /** An empty one begins with what the image has there. */
  readonly copy: boolean;
  readonly subpath: string;
  readonly destination: string;
  readonly mode: string;
  readonly writable: boolean;
}

export interface MountPlan {
  /** Binds, tmpfs, and what --volumes-from brings. */
  readonly mounts: readonly MountPoint[];
  readonly volumes: readonly WantedVolume[];
}

/** A mount, or a volume that becomes one. */
type Planned =
  | { readonly kind: 'mount'; readonly mount: MountPoint }
  | { readonly kind: 'volume'; readonly volume: WantedVolume };

const OPTIONS = /^(?:rw|ro|z|Z|(?:r?(?:private|shared|slave))|(?:r?bind)|nocopy|consistent|cached|delegated)$/;

/**
 * `mountsOf`: the mounts of another container, by its name. What is asked for by -v and --mount wins over --volumes-from,
 * and all of these over the image's volumes. @throws AppError 'invalid' with Docker's words; what mountsOf throws
 */
export function planMounts(
  config: Pick<ContainerConfig, 'Volumes'>,
  hostConfig: HostConfig,
  mountsOf: (container: string) => readonly MountPoint[],
): MountPlan {
  const asked = [
    ...hostConfig.Binds.map((bind) => parseBind(bind, hostConfig.VolumeDriver)),
    ...hostConfig.Mounts.map(fromMount),
  ];
  const taken = new Set<string>();
  for (const destination of [...asked.map(destinationOf), ...Object.keys(hostConfig.Tmpfs).map(cleanTarget)]) {
    if (taken.has(destination)) invalid(`Duplicate mount point: ${destination}`);
    taken.add(destination);
  }
  const inherited = hostConfig.VolumesFrom.flatMap((text) => inherit(text, mountsOf)).filter(
    ({ destination }) => !taken.has(destination),
  );
  // A later container's mount replaces an earlier one's.
  const mounts = [...new Map(inherited.map((mount) => [mount.destination, mount])).values()];
  for (const { destination } of mounts) taken.add(destination);
  const anonymous = [...new Set(config.Volumes.map(cleanTarget))]
    .filter((destination) => !taken.has(destination))
    .map((destination) => ({
      ...PLAIN_VOLUME,
      driver: hostConfig.VolumeDriver,
      destination,
    }));
  return {
    mounts: [...asked.flatMap((one) => (one.kind === 'mount' ? [one.mount] : [])), ...mounts],
    volumes: [...asked.flatMap((one) => (one.kind === 'volume' ? [one.volume] : [])), ...anonymous],
  };
}

const PLAIN_VOLUME = {
  name: '',
  driver: '',
  labels: {},
  options: {},
  copy: true,
  subpath: '',
  mode: '',
  writable: true,
} as const;

function destinationOf(planned: Planned): string {
  return planned.kind === 'mount' ? planned.mount.destination : planned.volume.destination;
}

/** `[source:]destination[:options]`; a source that is no absolute path names a volume. @throws AppError 'invalid' */
export function parseBind(text: string, driver = ''): Planned {
  const parts = text.split(':');
  const [source, target, mode] = parts.length === 1 ? ['', parts[0], ''] : [parts[0], parts[1], parts[2] ?? ''];
  if (target === undefined || source === undefined || target === '' || parts.length > 3)
    invalid(`invalid volume specification: '${text}'`);
  if (parts.length > 1 && source === '') invalid(`invalid volume specification: '${text}'`);
  const options = (mode ?? '').split(',').filter(Boolean);
  if (options.some((option) => !OPTIONS.test(option))) invalid(`invalid mode: ${mode}`);
  if (!target.startsWith('/'))
    invalid(
      `invalid volume specification: '${text}': invalid mount config for type "${source.startsWith('/') ? 'bind' : 'volume'}": invalid mount path: '${target}' mount path must be absolute`,
    );
  const destination = cleanTarget(target);
  const writable = !options.includes('ro');
  const propagation = options.find((option) => /private|shared|slave/.test(option));
  if (source.startsWith('/')) {
    if (options.includes('nocopy')) invalid(`invalid volume specification: '${text}'`);
    return {
      kind: 'mount',
      mount: {
        type: 'bind',
        source: posix.normalize(source),
        destination,
        mode: mode ?? '',
        writable,
        propagation: propagation ?? 'rprivate',
      },
    };
  }
  if (propagation !== undefined) invalid(`invalid volume specification: '${text}'`);
  return {
    kind: 'volume',
    volume: {
      ...PLAIN_VOLUME,
      name: source,
      driver,
      copy: !options.includes('nocopy'),
      destination,
      // Docker writes the label that it would give it where SELinux is.
      mode: mode === '' ? 'z' : (mode ?? ''),
      writable,
    },
  };
}

function fromMount(request: MountRequest): Planned {
  const { Type, Source, Target, ReadOnly, BindOptions, VolumeOptions } = request;
  const destination = cleanTarget(Target);
  if (Type === 'volume') {
    if (Source.startsWith('/'))
      invalid(
        `invalid mount config for type "volume": invalid mount path: '${Source}' mount path must be a volume name`,
      );
    const { DriverConfig, Labels = {}, NoCopy = false, Subpath = '' } = VolumeOptions ?? {};
    checkSubpath(Subpath);
    return {
      kind: 'volume',
      volume: {
        name: Source,
        driver: DriverConfig?.Name ?? '',
        labels: Labels,
        options: DriverConfig?.Options ?? {},
        copy: !NoCopy,
        subpath: Subpath,
        destination,
        mode: 'z',
        writable: !ReadOnly,
      },
    };
  }
  if (Type === 'bind' && !Source.startsWith('/'))
    invalid(`invalid mount config for type "bind": invalid mount path: '${Source}' mount path must be absolute`);
  const isTmpfs = Type === 'tmpfs';
  return {
    kind: 'mount',
    mount: {
      type: isTmpfs ? 'tmpfs' : 'bind',
      source: isTmpfs ? '' : posix.normalize(Source),
      destination,
      mode: '',
      writable: !ReadOnly,
      propagation: isTmpfs ? '' : BindOptions?.Propagation || 'rprivate',
    },
  };
}

/** `container[:ro|rw]`; a tmpfs is not shared. */
function inherit(text: string, mountsOf: (container: string) => readonly MountPoint[]): readonly MountPoint[] {
  const [container = '', mode = '', ...rest] = text.split(':');
  if (container === '' || rest.length > 0) invalid(`invalid volumes-from specification: '${text}'`);
  const options = mode.split(',').filter(Boolean);
  if (options.some((option) => !/^(?:rw|ro|z|Z)$/.test(option))) invalid(`invalid mode: ${mode}`);
  return mountsOf(container)
    .filter(({ type }) => type !== 'tmpfs')
    .map((mount) => ({ ...mount, mode, writable: mount.writable && !options.includes('ro') }));
}

function cleanTarget(target: string): string {
  if (!target.startsWith('/')) invalid(`invalid mount path: '${target}' mount path must be absolute`);
  const clean = posix.normalize(target).replace(/(?<=.)\/$/, '');
  if (clean === '/') invalid("invalid specification: destination can't be '/'");
  return clean;
}

function invalid(message: string): never {
  throw new AppError('invalid', message);
}
