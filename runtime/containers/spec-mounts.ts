/**
 * The mounts of config.json: the kernel's filesystems as Docker sets them up, the files that the engine writes, and
 * what the user asked for, which wins where they meet. Pure.
 */
import { posix } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import { isAtLeast } from '../kernel/versions.ts';
import type { MountPoint } from './container.ts';
import type { HostConfig } from './request.ts';

export interface OciMount {
  readonly destination: string;
  readonly type: string;
  readonly source: string;
  readonly options: readonly string[];
}

export interface MountsInput {
  readonly hostConfig: HostConfig;
  readonly mounts: readonly MountPoint[];
  /** Sources that are no directories. */
  readonly fileSources: ReadonlySet<string>;
  readonly paths: {
    readonly resolvConf: string;
    readonly hostname: string;
    readonly hosts: string;
    readonly init?: string | undefined;
  };
  readonly kernel: string;
  /** `host`, `none`, or private by any other word. */
  readonly ipc: string;
  /** Where /dev/shm is on the host, when others have it, too. */
  readonly sharedMemory?: string | undefined;
  readonly initPath: string | undefined;
  readonly writableCgroups: boolean;
}

export interface SpecMounts {
  /** In the order in which they must be made. */
  readonly list: readonly OciMount[];
  readonly rootfsPropagation: string | undefined;
}

const SHM_BYTES = 64 * 1024 * 1024;

export function mountsOf(input: MountsInput): SpecMounts {
  const { hostConfig, paths, initPath } = input;
  const asked = [...tmpfsOf(hostConfig), ...bindsOf(input)];
  for (const mount of asked) {
    if (mount.destination === '/') throw new AppError('invalid', "invalid mount config: destination can't be '/'");
    refuseOverProc(mount);
  }
  const destinations = new Set(asked.map(({ destination }) => destination));
  const hasOwnDev = destinations.has('/dev');
  const system = kernelMounts(input).filter(
    ({ destination }) => !destinations.has(destination) && !(hasOwnDev && destination.startsWith('/dev/')),
  );
  const files = [
    ['/etc/resolv.conf', paths.resolvConf],
    ['/etc/hostname', paths.hostname],
    ['/etc/hosts', paths.hosts],
  ].map(([destination = '', source = '']) => fileMount(destination, source, hostConfig.ReadonlyRootfs));
  const init = initPath === undefined || paths.init === undefined ? [] : [initMount(initPath, paths.init)];
  const user = [...init, ...asked, ...files.filter(({ destination }) => !destinations.has(destination))];
  return { list: [...system, ...user.sort(byDepth)], rootfsPropagation: propagationOf(asked) };
}

/** Files that tell a container of its own limits instead of the host's, as lxcfs makes them, and runc allows. */
const PROC_FILES = new Set(
  'cpuinfo diskstats meminfo stat swaps uptime loadavg slabinfo net/dev sys/kernel/ns_last_pid sys/crypto/fips_enabled'
    .split(' ')
    .map((name) => `/proc/${name}`),
);

/**
 * CVE-2019-16884: what pretends to be /proc, also by a VOLUME of an image, would take the runtime's own writes there.
 * The host's /proc is no pretence.
 */
function refuseOverProc({ destination, source }: OciMount): void {
  const path = posix.normalize(`${destination}/`).slice(0, -1);
  if (path !== '/proc' && !path.startsWith('/proc/')) return;
  if (PROC_FILES.has(path) || (path === '/proc' && source === '/proc')) return;
  throw new AppError(
    'invalid',
    `invalid mount config: ${JSON.stringify(destination)} cannot be mounted because it is inside /proc`,
  );
}

/** Parents before what lies in them; the order of equals stays. */
function byDepth(a: OciMount, b: OciMount): number {
  return a.destination.split('/').length - b.destination.split('/').length;
}

function kernelMounts({ hostConfig, ipc, sharedMemory, writableCgroups }: MountsInput): readonly OciMount[] {
  const guarded = ['nosuid', 'noexec', 'nodev'];
  const readOnly = hostConfig.Privileged ? [] : ['ro'];
  const list: OciMount[] = [
    { destination: '/proc', type: 'proc', source: 'proc', options: guarded },
    {
      destination: '/dev',
      type: 'tmpfs',
      source: 'tmpfs',
      options: ['nosuid', 'strictatime', 'mode=755', 'size=65536k'],
    },
    {
      destination: '/dev/pts',
      type: 'devpts',
      source: 'devpts',
      options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5'],
    },
    { destination: '/sys', type: 'sysfs', source: 'sysfs', options: [...guarded, ...readOnly] },
    {
      destination: '/sys/fs/cgroup',
      type: 'cgroup',
      source: 'cgroup',
      options: [...(writableCgroups ? [] : readOnly), ...guarded],
    },
  ];
  if (ipc === 'host') {
    // The segments of the namespace that is used, not an empty directory beside them.
    list.push({ destination: '/dev/mqueue', type: 'bind', source: '/dev/mqueue', options: ['rbind', ...guarded] });
    list.push({ destination: '/dev/shm', type: 'bind', source: '/dev/shm', options: ['rbind', ...guarded] });
    return list;
  }
  list.push({ destination: '/dev/mqueue', type: 'mqueue', source: 'mqueue', options: guarded });
  if (sharedMemory !== undefined)
    list.push({ destination: '/dev/shm', type: 'bind', source: sharedMemory, options: ['rbind', ...guarded] });
  else if (ipc !== 'none')
    list.push({
      destination: '/dev/shm',
      type: 'tmpfs',
      source: 'shm',
      options: [...guarded, 'mode=1777', `size=${hostConfig.ShmSize || SHM_BYTES}`],
    });
  return list;
}

function fileMount(destination: string, source: string, readOnly: boolean): OciMount {
  return { destination, type: 'bind', source, options: ['rbind', ...(readOnly ? ['ro'] : []), 'rprivate'] };
}

function initMount(destination: string, source: string): OciMount {
  return { destination, type: 'bind', source, options: ['bind', 'ro'] };
}

function bindsOf({ hostConfig, mounts, fileSources, kernel }: MountsInput): readonly OciMount[] {
  return mounts
    .filter(({ type }) => type !== 'tmpfs')
    .map(({ source, destination, writable, propagation }) => {
      const wanted = hostConfig.Mounts.find(({ Target }) => Target === destination)?.BindOptions;
      const isRecursive = wanted?.NonRecursive !== true;
      // Read-only all the way down, where the kernel can: what is mounted below the source would stay writable.
      const isDeep = isRecursive && wanted?.ReadOnlyNonRecursive !== true && isAtLeast(kernel, '5.12');
      if (wanted?.ReadOnlyForceRecursive === true && !isDeep)
        throw new AppError(
          'unsupported',
          `cannot make ${JSON.stringify(destination)} recursively read-only: it needs Linux 5.12`,
        );
      // Nothing is mounted below a file, and older crun takes `rro` for directories only.
      const access = writable ? [] : [isDeep && !fileSources.has(source) ? 'rro' : 'ro'];
      return {
        destination,
        type: 'bind',
        source,
        // crun takes the `r` of a propagation for the bind's: one mount alone needs none.
        options: isRecursive
          ? ['rbind', ...access, propagation || 'rprivate']
          : ['bind', ...access, propagation.replace(/^r/, '') || 'private'],
      };
    });
}

/** What a mount shares with the host needs a root that shares, too. */
function propagationOf(mounts: readonly OciMount[]): string | undefined {
  const has = (words: readonly string[]) => mounts.some(({ options }) => options.some((word) => words.includes(word)));
  if (has(['shared', 'rshared'])) return 'shared';
  return has(['slave', 'rslave']) ? 'rslave' : undefined;
}

function tmpfsOf(hostConfig: HostConfig): readonly OciMount[] {
  const byPath = Object.entries(hostConfig.Tmpfs).map(([destination, options]) =>
    tmpfs(destination, options.split(',').filter(Boolean)),
  );
  const byMount = hostConfig.Mounts.filter(({ Type }) => Type === 'tmpfs').map(({ Target, ReadOnly, TmpfsOptions }) =>
    tmpfs(Target, [
      ...(ReadOnly ? ['ro'] : []),
      ...(TmpfsOptions?.SizeBytes ? [`size=${TmpfsOptions.SizeBytes}`] : []),
      ...(TmpfsOptions?.Mode ? [`mode=${TmpfsOptions.Mode.toString(8)}`] : []),
      ...(TmpfsOptions?.Options ?? []).map((pair) => pair.join('=')),
    ]),
  );
  return [...byPath, ...byMount];
}

/** Flags and what each one undoes. */
const TMPFS_FLAGS: Readonly<Record<string, string>> = {
  exec: 'noexec',
  noexec: 'exec',
  suid: 'nosuid',
  nosuid: 'suid',
  dev: 'nodev',
  nodev: 'dev',
  ro: 'rw',
  rw: 'ro',
  sync: 'async',
  async: 'sync',
  atime: 'noatime',
  noatime: 'atime',
  diratime: 'nodiratime',
  nodiratime: 'diratime',
};
const TMPFS_VALUE = /^(size|mode|uid|gid|nr_inodes|nr_blocks|mpol)=[A-Za-z0-9%:,=-]+$/;

function tmpfs(destination: string, wanted: readonly string[]): OciMount {
  const options = ['noexec', 'nosuid', 'nodev'];
  for (const option of wanted) {
    const opposite = TMPFS_FLAGS[option];
    if (opposite === undefined && !TMPFS_VALUE.test(option))
      throw new AppError('invalid', `invalid tmpfs option ${JSON.stringify(option)}`);
    const undone = options.indexOf(opposite ?? '');
    if (undone !== -1) options.splice(undone, 1);
    if (!options.includes(option)) options.push(option);
  }
  return { destination, type: 'tmpfs', source: 'tmpfs', options: [...options, 'rprivate'] };
}
