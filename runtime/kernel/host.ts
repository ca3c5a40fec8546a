/** What this machine can do. `inspectHost` looks and changes nothing; host-findings.ts says what the facts mean. */
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
    /** Processes in the root of a v2 tree that is a container's: they keep its controllers from being handed down. */
    readonly rootProcesses: number;
    /** Swap can be limited, too: kernels are built without, or booted with swapaccount=0. */
    readonly limitsSwap: boolean;
  };
  readonly hasSeccomp: boolean;
  readonly hasApparmor: boolean;
  readonly hasUserNamespaces: boolean;
  /** Capabilities that the engine can give away: CapBnd, hexadecimal. */
  readonly capabilityMask: string;
  /** RLIMIT_MEMLOCK is unlimited, or the engine may make it so. */
  readonly canLockMemory: boolean;
  /** Files that tell one processor's load to another container; masked in each. */
  readonly thermalThrottlePaths: readonly string[];
  readonly programs: Readonly<Partial<Record<HostProgramName, HostProgram>>>;
}
export type FilesystemSupport = 'present' | 'loadable' | 'absent';

export interface InspectOptions {
  readonly kernel: string;
  readonly architecture: NodeJS.Architecture;
  readonly cpuCount: number;
  readonly memoryBytes: number;
}

/** Options are what the process knows of itself: os.release(), process.arch and so on. */
export async function inspectHost(options: InspectOptions): Promise<HostFacts> {
  const [
    erofs,
    overlay,
    cgroups,
    hasSeccomp,
    apparmor,
    userNamespaces,
    status,
    limits,
    thermalThrottlePaths,
    programs,
  ] = await Promise.all([
    filesystemSupport('erofs'),
    filesystemSupport('overlay'),
    inspectCgroups(),
    exists('/proc/sys/kernel/seccomp/actions_avail'),
    textOf('/sys/module/apparmor/parameters/enabled'),
    textOf('/proc/sys/user/max_user_namespaces'),
    textOf('/proc/self/status'),
    textOf('/proc/self/limits'),
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
    canLockMemory:
      hasSysResource(/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1]) ||
      /^Max locked memory\s+\S+\s+unlimited/m.test(limits),
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
    rootProcesses: layout.mode === 'v2' && v2 !== undefined ? await rootProcesses(v2.path) : 0,
    limitsSwap: await limitsSwap(layout),
  };
}

/** The host's own root, which has no cgroup.type, hands controllers down whatever lives in it: cgroups(7). */
async function rootProcesses(root: string): Promise<number> {
  if (!(await exists(`${root}/cgroup.type`))) return 0;
  return (await textOf(`${root}/cgroup.procs`)).split('\n').filter(Boolean).length;
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

/** CAP_SYS_RESOURCE in a mask of /proc/PID/status: capabilities(7). */
function hasSysResource(mask = '0'): boolean {
  return (BigInt(`0x${mask}`) & (1n << 24n)) !== 0n;
}

/** Empty when there is no such file. */
async function textOf(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}
