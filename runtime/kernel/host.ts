/**
 * What this machine can do. `inspectHost` looks (it changes nothing), `judgeHost` says what that means for the engine
 * and how to mend what is missing: `info` prints it, and whatever needs a container that cannot run fails with it.
 */
import { constants } from 'node:fs';
import { access, readFile } from 'node:fs/promises';
import { AppError, isKind } from '../../shared/errors.ts';
import { ownPrivilege, type Privilege } from '../../shared/privilege.ts';
import { type CgroupLayout, cgroupLayout } from './cgroups.ts';
import { runCommand } from './command.ts';
import { parseMountinfo } from './mount.ts';
import type { RuntimeName } from './oci-runtime.ts';
import { isAtLeast } from './versions.ts';

/** A host program that the engine starts; `version` is undefined when it does not say. */
export interface HostProgram {
  readonly path: string;
  readonly version: string | undefined;
}

export const HOST_PROGRAMS = [
  'crun',
  'runc',
  'conmon',
  'socat',
  'ip',
  'nft',
  'aardvark-dns',
  'mount',
  'umount',
  'perl',
  'tar',
  'catatonit',
  'tini-static',
  'docker-init',
] as const;
export type HostProgramName = (typeof HOST_PROGRAMS)[number];

export interface HostFacts {
  /** uname -r */
  readonly kernel: string;
  readonly architecture: NodeJS.Architecture;
  readonly privilege: Privilege;
  readonly cpuCount: number;
  readonly memoryBytes: number;
  /** In /proc/filesystems now, a module that mounting will load, or neither. */
  readonly filesystems: { readonly erofs: FilesystemSupport; readonly overlay: FilesystemSupport };
  readonly cgroups: CgroupLayout & {
    /** Controllers that containers can be limited by. */
    readonly controllers: readonly string[];
    /** Controllers that the v2 tree keeps to itself on a hybrid host. */
    readonly strayControllers: readonly string[];
    readonly isWritable: boolean;
    /** Swap can be limited, too: kernels are built without, or booted with swapaccount=0. */
    readonly limitsSwap: boolean;
  };
  readonly hasSeccomp: boolean;
  readonly hasApparmor: boolean;
  readonly hasUserNamespaces: boolean;
  /** Capabilities that the engine can give away: CapBnd, hexadecimal. */
  readonly capabilityMask: string;
  /** Files that tell one processor's load to another container; masked in each. */
  readonly thermalThrottlePaths: readonly string[];
  readonly programs: Readonly<Partial<Record<HostProgramName, HostProgram>>>;
}
export type FilesystemSupport = 'present' | 'loadable' | 'absent';

export interface Finding {
  /** What it is about, for example `conmon`. */
  readonly subject: string;
  /** error: no container runs. warning: something works worse or not at all. note: good to know. */
  readonly severity: 'ok' | 'note' | 'warning' | 'error';
  readonly state: string;
  /** What the administrator can do. */
  readonly mend?: string | undefined;
}

export interface InspectOptions {
  readonly kernel: string;
  readonly architecture: NodeJS.Architecture;
  readonly cpuCount: number;
  readonly memoryBytes: number;
}

/** Options are what the process knows of itself: os.release(), process.arch and so on. */
export async function inspectHost(options: InspectOptions): Promise<HostFacts> {
  const [erofs, overlay, cgroups, hasSeccomp, apparmor, userNamespaces, status, thermalThrottlePaths, programs] =
    await Promise.all([
      filesystemSupport('erofs'),
      filesystemSupport('overlay'),
      inspectCgroups(),
      exists('/proc/sys/kernel/seccomp/actions_avail'),
      textOf('/sys/module/apparmor/parameters/enabled'),
      textOf('/proc/sys/user/max_user_namespaces'),
      textOf('/proc/self/status'),
      findThermalThrottle(options.cpuCount),
      findPrograms(),
    ]);
  return {
    kernel: options.kernel,
    architecture: options.architecture,
    privilege: ownPrivilege(),
    cpuCount: options.cpuCount,
    memoryBytes: options.memoryBytes,
    filesystems: { erofs, overlay },
    cgroups,
    hasSeccomp,
    hasApparmor: apparmor.trim() === 'Y',
    hasUserNamespaces: Number(userNamespaces) > 0,
    capabilityMask: /^CapBnd:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0',
    thermalThrottlePaths,
    programs,
  };
}

/** The runtime to use when nobody chose one. */
export function preferredRuntime({ programs }: Pick<HostFacts, 'programs'>): RuntimeName | undefined {
  if (programs.crun !== undefined) return 'crun';
  return programs.runc === undefined ? undefined : 'runc';
}

/** How layer images get mounted. */
export function imageMounting({ kernel, filesystems, programs }: HostFacts): 'file' | 'loop' | 'none' {
  if (filesystems.erofs === 'absent') return 'none';
  return isAtLeast(kernel, '6.12') && programs.perl !== undefined ? 'file' : 'loop';
}

/** How layers are shown to containers. @throws AppError 'unsupported' for images that this kernel cannot mount */
export function chooseLayerBackend(asked: 'auto' | 'erofs' | 'directory', facts: HostFacts): 'erofs' | 'directory' {
  // Where nothing is mounted, images are only written and read, which needs nothing of the kernel.
  const canMount = facts.privilege !== 'full' || imageMounting(facts) !== 'none';
  if (asked === 'erofs' && !canMount)
    throw new AppError(
      'unsupported',
      'cannot keep layers as EROFS images: this kernel has no EROFS; run "modprobe erofs", or use --layer-backend auto',
    );
  if (asked !== 'auto') return asked;
  return canMount ? 'erofs' : 'directory';
}

/** Pure. One finding per subject, always in the same order. Without privilege nothing else of the host matters. */
export function judgeHost(facts: HostFacts): readonly Finding[] {
  if (facts.privilege !== 'full') return [judgePrivilege(facts)];
  return [
    judgePrivilege(facts),
    judgeKernel(facts),
    judgeFilesystem('overlay', facts.filesystems.overlay),
    judgeImages(facts),
    judgeCgroups(facts),
    judgeControllers(facts),
    judgeRuntime(facts),
    ...REQUIRED.map((program) => judgeProgram(facts, program)),
    facts.hasSeccomp
      ? { subject: 'seccomp', severity: 'ok', state: 'available' }
      : {
          subject: 'seccomp',
          severity: 'warning',
          state: 'the kernel has none: containers are not confined to safe system calls',
          mend: 'use a kernel with CONFIG_SECCOMP_FILTER',
        },
    { subject: 'apparmor', severity: 'ok', state: facts.hasApparmor ? 'enabled' : 'not enabled' },
    { subject: 'user namespaces', severity: 'ok', state: facts.hasUserNamespaces ? 'available' : 'not available' },
  ];
}

const NO_PRIVILEGE: Readonly<Record<Exclude<Privilege, 'full'>, Pick<Finding, 'state' | 'mend'>>> = {
  user: {
    state: 'berthd runs as an ordinary user, without CAP_SYS_ADMIN',
    mend: 'to run containers, start berthd as root of the host',
  },
  confined: {
    state: 'berthd runs as root without CAP_SYS_ADMIN, as in a container',
    mend: 'to run containers, start berthd on the host, or in a privileged container',
  },
  namespace: {
    state: 'berthd runs as root of a user namespace, which may not mount layers',
    mend: 'to run containers, start berthd as root of the host',
  },
};

function judgePrivilege({ privilege }: HostFacts): Finding {
  if (privilege === 'full') return { subject: 'privilege', severity: 'ok', state: 'root' };
  const { state, mend } = NO_PRIVILEGE[privilege];
  return {
    subject: 'privilege',
    severity: 'error',
    state: `${state}: it pulls, builds without RUN and pushes images, and runs no containers`,
    mend,
  };
}

function judgeKernel({ kernel }: HostFacts): Finding {
  if (isAtLeast(kernel, '5.10')) return { subject: 'kernel', severity: 'ok', state: kernel };
  return {
    subject: 'kernel',
    severity: 'warning',
    state: `${kernel} is older than what is tested`,
    mend: 'use 5.10 or later',
  };
}

function judgeFilesystem(name: string, support: FilesystemSupport): Finding {
  if (support !== 'absent')
    return {
      subject: name,
      severity: 'ok',
      state: support === 'present' ? 'available' : 'a module, loaded when needed',
    };
  return {
    subject: name,
    severity: 'error',
    state: 'the kernel has none, containers get no root filesystem',
    mend: `run "modprobe ${name}" on the host, or use a kernel with it`,
  };
}

function judgeImages(facts: HostFacts): Finding {
  const how = imageMounting(facts);
  if (how === 'file') return { subject: 'layer images', severity: 'ok', state: 'EROFS, mounted from their files' };
  if (how === 'none')
    return {
      subject: 'layer images',
      severity: 'note',
      state: 'the kernel has no EROFS: layers are unpacked to directories, which is slower',
      mend: 'run "modprobe erofs" on the host, or use kernel 5.4 or later',
    };
  return {
    subject: 'layer images',
    severity: 'note',
    state: 'EROFS, through loop devices',
    mend: facts.programs.perl === undefined ? 'install perl-base' : 'kernel 6.12 or later needs no loop devices',
  };
}

function judgeCgroups({ cgroups }: HostFacts): Finding {
  const subject = 'cgroups';
  if (cgroups.mode === 'none')
    return {
      subject,
      severity: 'error',
      state: 'none are mounted',
      mend: 'mount -t cgroup2 cgroup2 /sys/fs/cgroup',
    };
  if (!cgroups.isWritable)
    return {
      subject,
      severity: 'error',
      state: `${cgroups.mode}, read-only`,
      mend: 'in a container, run it privileged; otherwise remount /sys/fs/cgroup read-write',
    };
  const [stray] = cgroups.strayControllers;
  if (cgroups.mode === 'hybrid' && stray !== undefined)
    return {
      subject,
      severity: 'error',
      state: `hybrid, with ${cgroups.strayControllers.join(', ')} in the v2 tree, where runtimes cannot use it`,
      mend: cgroups.strayControllers
        .map((name) => `mkdir -p /sys/fs/cgroup/${name} && mount -t cgroup -o ${name} cgroup /sys/fs/cgroup/${name}`)
        .join(' && '),
    };
  return { subject, severity: 'ok', state: cgroups.mode };
}

function judgeControllers({ cgroups }: HostFacts): Finding {
  const missing = ['cpu', 'cpuset', 'memory', 'pids', 'io']
    .map((name) => (name === 'io' && cgroups.mode !== 'v2' ? 'blkio' : name))
    .filter((name) => !cgroups.controllers.includes(name));
  if (missing.length === 0) return { subject: 'resource limits', severity: 'ok', state: cgroups.controllers.join(' ') };
  return {
    subject: 'resource limits',
    severity: 'warning',
    state: `containers cannot be limited by ${missing.join(', ')}`,
    mend: 'delegate these cgroup controllers to the engine (systemd: Delegate=yes)',
  };
}

function judgeRuntime(facts: HostFacts): Finding {
  const name = preferredRuntime(facts);
  if (name === undefined)
    return { subject: 'runtime', severity: 'error', state: 'neither crun nor runc is installed', mend: 'install crun' };
  return { subject: 'runtime', severity: 'ok', state: `${name} ${facts.programs[name]?.version ?? ''}`.trim() };
}

interface Requirement {
  readonly name: HostProgramName;
  readonly severity: 'warning' | 'error';
  readonly lack: string;
  /** Its package in Debian. */
  readonly package: string;
}
const REQUIRED: readonly Requirement[] = [
  { name: 'conmon', severity: 'error', lack: 'no container can run', package: 'conmon' },
  { name: 'mount', severity: 'error', lack: 'nothing can be mounted', package: 'mount' },
  { name: 'umount', severity: 'error', lack: 'nothing can be unmounted', package: 'mount' },
  { name: 'socat', severity: 'warning', lack: 'containers get no input', package: 'socat' },
  { name: 'ip', severity: 'warning', lack: 'containers get no network', package: 'iproute2' },
  { name: 'nft', severity: 'warning', lack: 'containers get no network', package: 'nftables' },
  {
    name: 'aardvark-dns',
    severity: 'warning',
    lack: 'containers cannot find each other by name',
    package: 'aardvark-dns',
  },
  { name: 'tar', severity: 'warning', lack: 'no changes can be committed', package: 'tar' },
];

function judgeProgram({ programs }: HostFacts, { name, severity, lack, package: debian }: Requirement): Finding {
  const program = programs[name];
  if (program !== undefined) return { subject: name, severity: 'ok', state: program.version ?? program.path };
  return { subject: name, severity, state: `not installed: ${lack}`, mend: `install ${debian}` };
}

async function findThermalThrottle(cpuCount: number): Promise<readonly string[]> {
  const paths = Array.from({ length: cpuCount }, (_, cpu) => `/sys/devices/system/cpu/cpu${cpu}/thermal_throttle`);
  const found = await Promise.all(paths.map((path) => exists(path)));
  return paths.filter((_, cpu) => found[cpu]);
}

async function filesystemSupport(name: string): Promise<FilesystemSupport> {
  const known = await textOf('/proc/filesystems');
  if (known.split('\n').some((line) => line.trim().split(/\s+/).at(-1) === name)) return 'present';
  try {
    const probe = await runCommand('modprobe', ['--dry-run', '--quiet', name]);
    return probe.exitCode === 0 ? 'loadable' : 'absent';
  } catch (error) {
    if (isKind(error, 'unsupported')) return 'absent';
    throw error;
  }
}

async function inspectCgroups(): Promise<HostFacts['cgroups']> {
  const layout = cgroupLayout(parseMountinfo(await readFile('/proc/self/mountinfo')));
  const v2 = layout.trees.find(({ version }) => version === 2);
  const inV2 = v2 === undefined ? [] : (await textOf(`${v2.path}/cgroup.controllers`)).split(/\s+/).filter(Boolean);
  const inV1 = layout.trees.flatMap(({ controllers }) => controllers).filter((name) => !name.startsWith('name='));
  const writable = await Promise.all(layout.trees.map(({ path }) => exists(path, constants.W_OK)));
  return {
    ...layout,
    controllers: layout.mode === 'v2' ? inV2 : inV1,
    strayControllers: layout.mode === 'hybrid' ? inV2 : [],
    isWritable: writable.every(Boolean),
    limitsSwap: await limitsSwap(layout),
  };
}

/** v2 has the file in every cgroup but the root. */
async function limitsSwap({ mode, trees }: CgroupLayout): Promise<boolean> {
  if (mode !== 'v2') {
    const memory = trees.find(({ controllers }) => controllers.includes('memory'));
    return memory !== undefined && (await exists(`${memory.path}/memory.memsw.limit_in_bytes`));
  }
  const root = trees.find(({ version }) => version === 2)?.path ?? '';
  const own = /^0::(\/.*)$/m.exec(await textOf('/proc/self/cgroup'))?.[1] ?? '/';
  return exists(`${root}${own}/memory.swap.max`);
}

/** Whether packets go from one network to another now: the engine switches it on with its first bridge, others may off. */
export async function forwardsIpv4(): Promise<boolean> {
  return (await textOf('/proc/sys/net/ipv4/ip_forward')).trim() === '1';
}

/** Beside the search path: helpers that distributions keep out of it. */
const PROGRAM_DIRECTORIES = [
  '/usr/local/sbin',
  '/usr/local/bin',
  '/usr/sbin',
  '/usr/bin',
  '/sbin',
  '/bin',
  '/usr/lib/podman',
  '/usr/libexec/podman',
];
const VERSION_FLAG: Readonly<Partial<Record<HostProgramName, string>>> = { ip: '-V', socat: '-V' };

async function findPrograms(): Promise<HostFacts['programs']> {
  const found = await Promise.all(
    HOST_PROGRAMS.map(async (name) => {
      const path = await findProgram(name);
      return path === undefined ? undefined : ([name, { path, version: await versionOf(name, path) }] as const);
    }),
  );
  return Object.fromEntries(found.filter((entry) => entry !== undefined));
}

async function findProgram(name: HostProgramName): Promise<string | undefined> {
  for (const directory of PROGRAM_DIRECTORIES) {
    const path = `${directory}/${name}`;
    if (await exists(path, constants.X_OK)) return path;
  }
  return undefined;
}

async function versionOf(name: HostProgramName, path: string): Promise<string | undefined> {
  const { stdout, stderr } = await runCommand(path, [VERSION_FLAG[name] ?? '--version']);
  return /\d+\.\d+(?:\.\d+)*/.exec(stdout || stderr)?.[0];
}

async function exists(path: string, mode: number = constants.F_OK): Promise<boolean> {
  return access(path, mode).then(
    () => true,
    () => false,
  );
}

/** Empty when there is no such file. */
async function textOf(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}
