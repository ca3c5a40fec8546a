/**
 * config.json, the whole of what a container may be and do, as a pure function of what was asked for and what the host
 * is. Defaults are Docker's, which people rely on for their safety: capabilities, system calls, masked paths, devices.
 *
 * A request that cannot be fulfilled is an error here, never a container that is silently less confined or limited.
 * https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config.md
 */
import { AppError } from '../../shared/errors.ts';
import type { CgroupMode } from '../kernel/cgroups.ts';
import { capabilitiesOf } from './capabilities.ts';
import type { DeviceEdits } from './cdi.ts';
import type { MountPoint } from './container.ts';
import { maskedPaths, READONLY_PATHS } from './guarded-paths.ts';
import { commandOf, variableName } from './image-defaults.ts';
import {
  type NamespaceModes,
  type NamespaceSource,
  namespaceModesOf,
  namespacesOf,
  type OciNamespace,
} from './namespaces.ts';
import type { ContainerConfig, ExecRequest, HostConfig } from './request.ts';
import { type OciSeccomp, parseSeccompProfile, resolveSeccomp } from './seccomp.ts';
import { DEFAULT_SECCOMP_PROFILE } from './seccomp-default.ts';
import { securityOptionsOf } from './security-options.ts';
import { mountsOf, type OciMount } from './spec-mounts.ts';
import { type DeviceNumbers, type OciResources, resourcesOf } from './spec-resources.ts';
import type { ResolvedUser } from './users.ts';

/** A device node of the host that the container gets. */
export interface SpecDevice extends DeviceNumbers {
  /** Inside the container. */
  readonly path: string;
  readonly type: 'b' | 'c';
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Letters of `rwm`. */
  readonly access: string;
}

/** What the host is; see HostFacts and OciRuntime.namespaces(). */
export interface SpecHost {
  readonly kernel: string;
  readonly architecture: NodeJS.Architecture;
  readonly cgroupMode: CgroupMode;
  readonly capabilityMask: string;
  readonly hasSeccomp: boolean;
  readonly thermalThrottlePaths: readonly string[];
  /** Namespace types that the runtime makes. */
  readonly runtimeNamespaces: readonly string[];
  /** A profile that is loaded and that containers get unless told otherwise. */
  readonly apparmorProfile?: string | undefined;
}

/** Host paths. */
export interface SpecPaths {
  readonly rootfs: string;
  readonly resolvConf: string;
  readonly hostname: string;
  readonly hosts: string;
  /** A program that reaps and forwards signals, called as `init -- command`; for --init. */
  readonly init?: string | undefined;
}

export interface SpecInput {
  readonly id: string;
  /** Merged over the image's, see mergeImageConfig. */
  readonly config: ContainerConfig;
  readonly hostConfig: HostConfig;
  /** Binds; a tmpfs is taken from hostConfig. */
  readonly mounts: readonly MountPoint[];
  /** Sources of binds that are no directories; none by default. */
  readonly fileSources?: ReadonlySet<string> | undefined;
  readonly user: ResolvedUser;
  readonly host: SpecHost;
  readonly paths: SpecPaths;
  /** Where cgroups of containers go unless the request names a parent, for example `/berth_ab12cd`. */
  readonly cgroupParent: string;
  readonly network: NamespaceSource;
  /** Namespaces of other containers; required by the mode `container:…`. */
  readonly joinedPid?: string | undefined;
  readonly joinedIpc?: string | undefined;
  /** /dev/shm on the host: of the container that it joins, or its own that others may join. */
  readonly sharedMemory?: string | undefined;
  /** Those asked for, or all of the host's for a privileged container. */
  readonly devices?: readonly SpecDevice[] | undefined;
  /** What devices by CDI add; their nodes are in `devices`. */
  readonly deviceEdits?: Pick<DeviceEdits, 'env' | 'mounts' | 'hooks' | 'additionalGids'> | undefined;
  /** Numbers of the block devices that limits name, by path. */
  readonly blockDevices?: Readonly<Record<string, DeviceNumbers>> | undefined;
}

export interface OciProcess {
  readonly terminal?: true;
  readonly consoleSize?: { readonly height: number; readonly width: number };
  readonly user: { readonly uid: number; readonly gid: number; readonly additionalGids: readonly number[] };
  readonly args: readonly string[];
  readonly env: readonly string[];
  readonly cwd: string;
  readonly capabilities: Readonly<Record<'bounding' | 'effective' | 'permitted', readonly string[]>>;
  /** 2^64 - 1 = unlimited, hence bigint. */
  readonly rlimits?: readonly { readonly type: string; readonly hard: bigint; readonly soft: bigint }[];
  readonly noNewPrivileges?: true;
  readonly oomScoreAdj?: number;
  readonly apparmorProfile?: string;
}

export interface OciSpec {
  readonly ociVersion: string;
  readonly process: OciProcess;
  readonly root: { readonly path: string; readonly readonly?: true };
  readonly hostname?: string;
  readonly mounts: readonly OciMount[];
  readonly hooks?: DeviceEdits['hooks'];
  readonly annotations?: Readonly<Record<string, string>>;
  readonly linux: {
    readonly sysctl: Readonly<Record<string, string>>;
    readonly resources: OciResources;
    readonly cgroupsPath: string;
    readonly namespaces: readonly OciNamespace[];
    readonly devices?: readonly Readonly<Record<string, string | number>>[];
    readonly seccomp?: OciSeccomp;
    readonly rootfsPropagation?: string;
    readonly maskedPaths?: readonly string[];
    readonly readonlyPaths?: readonly string[];
  };
}

const DEFAULT_PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
const INIT_PATH = '/sbin/docker-init';

const RLIMITS = new Set(
  'as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack'.split(' '),
);
const RLIMIT_UNLIMITED = 2n ** 64n - 1n;

/** @throws AppError 'invalid', 'unsupported', both naming the field */
export function specOf(input: SpecInput): OciSpec {
  const { hostConfig, host, paths } = input;
  const modes = namespaceModesOf({ ...input, cgroupMode: host.cgroupMode });
  const security = securityOptionsOf(hostConfig.SecurityOpt);
  const process = processOf(withEdits(input));
  const masked = hostConfig.MaskedPaths ?? maskedPaths(host.thermalThrottlePaths);
  const mounts = mountsOf({
    hostConfig,
    mounts: input.mounts,
    fileSources: input.fileSources ?? new Set(),
    paths,
    kernel: host.kernel,
    ipc: hostConfig.IpcMode,
    sharedMemory: input.sharedMemory,
    initPath: hostConfig.Init === true ? INIT_PATH : undefined,
    writableCgroups: security.writableCgroups,
  });
  const seccomp = seccompOf(security.seccomp, input, process.capabilities.bounding);
  return {
    ociVersion: '1.0.2',
    process,
    root: { path: paths.rootfs, ...(hostConfig.ReadonlyRootfs ? { readonly: true } : {}) },
    ...(modes.uts.kind === 'host' ? {} : { hostname: input.config.Hostname }),
    mounts: [...mounts.list, ...(input.deviceEdits?.mounts ?? [])],
    ...(input.deviceEdits === undefined ? {} : { hooks: input.deviceEdits.hooks }),
    ...(Object.keys(hostConfig.Annotations).length > 0 ? { annotations: hostConfig.Annotations } : {}),
    linux: {
      sysctl: sysctlsOf(input, modes),
      resources: resourcesOf({
        hostConfig,
        cgroupMode: host.cgroupMode,
        devices: input.devices ?? [],
        blockDevices: input.blockDevices ?? {},
      }),
      cgroupsPath: `${cleanParent(hostConfig.CgroupParent || input.cgroupParent)}/${input.id}`,
      namespaces: namespacesOf(modes, host.runtimeNamespaces),
      ...((input.devices ?? []).length > 0 ? { devices: (input.devices ?? []).map(ociDevice) } : {}),
      ...(seccomp === undefined ? {} : { seccomp }),
      ...(mounts.rootfsPropagation === undefined ? {} : { rootfsPropagation: mounts.rootfsPropagation }),
      ...(hostConfig.Privileged
        ? {}
        : { maskedPaths: masked, readonlyPaths: hostConfig.ReadonlyPaths ?? READONLY_PATHS }),
    },
  };
}

/** What a device needs wins over what the user and the image say. */
function withEdits(input: SpecInput): SpecInput {
  const { deviceEdits: edits, config, user } = input;
  if (edits === undefined) return input;
  return {
    ...input,
    config: { ...config, Env: [...config.Env, ...edits.env] },
    user: { ...user, additionalGids: [...user.additionalGids, ...edits.additionalGids] },
  };
}

/** process.json of an exec: the container's process with what the exec asks for instead. */
export function execProcessOf(
  input: Pick<SpecInput, 'config' | 'hostConfig' | 'host' | 'paths'>,
  exec: ExecRequest,
  user: ResolvedUser,
): OciProcess {
  const { noNewPrivileges: _inherited, rlimits, apparmorProfile, ...main } = processOf({ ...input, user });
  const security = securityOptionsOf(input.hostConfig.SecurityOpt);
  const privileged = exec.Privileged || input.hostConfig.Privileged;
  const bounding = privileged
    ? capabilitiesOf({ add: [], drop: [], privileged, hostMask: input.host.capabilityMask })
    : main.capabilities.bounding;
  const { terminal: _terminal, consoleSize: _size, ...rest } = main;
  return {
    ...rest,
    ...terminalOf(exec.Tty, exec.ConsoleSize ?? [0, 0]),
    user: ociUser(user),
    args: exec.Cmd,
    env: environmentOf({
      defaults: [...main.env.filter((entry) => !entry.startsWith('HOME=')), ...(exec.Tty ? ['TERM=xterm'] : [])],
      wanted: [...input.config.Env.filter((entry) => variableName(entry) === 'HOME'), ...exec.Env],
      home: user.home,
    }),
    cwd: cwdOf(exec.WorkingDir || input.config.WorkingDir),
    capabilities: { bounding, effective: bounding, permitted: bounding },
    ...(rlimits === undefined ? {} : { rlimits }),
    ...(security.noNewPrivileges ? { noNewPrivileges: true } : {}),
    ...(apparmorProfile === undefined || privileged ? {} : { apparmorProfile }),
  };
}

declare global {
  interface JSON {
    /** ECMAScript proposal, in V8: a number of any size, written as it is. */
    rawJSON(text: string): unknown;
  }
}

/** The text of config.json or process.json. */
export function encodeSpec(spec: OciSpec | OciProcess): string {
  return JSON.stringify(spec, (_key, value: unknown) =>
    typeof value === 'bigint' ? JSON.rawJSON(String(value)) : value,
  );
}

function processOf({
  config,
  hostConfig,
  user,
  host,
  paths,
}: Pick<SpecInput, 'config' | 'hostConfig' | 'user' | 'host' | 'paths'>): OciProcess {
  const security = securityOptionsOf(hostConfig.SecurityOpt);
  const capabilities = capabilitiesOf({
    add: hostConfig.CapAdd,
    drop: hostConfig.CapDrop,
    privileged: hostConfig.Privileged,
    hostMask: host.capabilityMask,
  });
  const command = commandOf(config);
  if (command.length === 0) throw new AppError('invalid', 'no command specified');
  if (hostConfig.Init === true && paths.init === undefined)
    throw new AppError(
      'unsupported',
      'cannot use --init: no init program is installed, install catatonit or a static tini',
    );
  const apparmor = security.apparmor ?? (hostConfig.Privileged ? undefined : host.apparmorProfile);
  const rlimits = hostConfig.Ulimits.map(({ Name, Soft, Hard }) => rlimitOf(Name, Soft, Hard));
  return {
    ...terminalOf(config.Tty, hostConfig.ConsoleSize),
    user: ociUser(user),
    args: hostConfig.Init === true ? [INIT_PATH, '--', ...command] : command,
    env: environmentOf({
      defaults: [DEFAULT_PATH, `HOSTNAME=${config.Hostname}`, ...(config.Tty ? ['TERM=xterm'] : [])],
      wanted: config.Env,
      home: user.home,
    }),
    cwd: cwdOf(config.WorkingDir),
    // Inheritable and ambient stay empty (CVE-2022-24769): a file's inheritable bits must give nothing back.
    capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
    ...(rlimits.length > 0 ? { rlimits } : {}),
    ...(security.noNewPrivileges ? { noNewPrivileges: true } : {}),
    oomScoreAdj: hostConfig.OomScoreAdj,
    ...(apparmor === undefined ? {} : { apparmorProfile: apparmor }),
  };
}

function terminalOf(
  wanted: boolean,
  [height, width]: readonly [number, number],
): Pick<OciProcess, 'terminal' | 'consoleSize'> {
  if (!wanted) return {};
  return { terminal: true, ...(height > 0 && width > 0 ? { consoleSize: { height, width } } : {}) };
}

/** Numbers only, so that no runtime looks anything up in the image's own files (CVE-2026-46680, CVE-2026-30892). */
function ociUser({ uid, gid, additionalGids }: ResolvedUser): OciProcess['user'] {
  return { uid, gid, additionalGids: [...new Set([gid, ...additionalGids])] };
}

interface Environment {
  readonly defaults: readonly string[];
  readonly wanted: readonly string[];
  /** Set here since the runtime would read the image's passwd file for it, which may be a pipe (CVE-2024-9676). */
  readonly home: string;
}

/** An entry without `=` unsets: nothing of the engine's own environment may take its place (CVE-2026-57231). */
function environmentOf({ defaults, wanted, home }: Environment): readonly string[] {
  const variables = new Map<string, string>();
  for (const entry of [...defaults, ...wanted]) {
    if (entry.includes('\0')) throw new AppError('invalid', `invalid environment variable: ${JSON.stringify(entry)}`);
    const name = variableName(entry);
    if (name === '') continue;
    if (entry === name) variables.delete(name);
    else variables.set(name, entry);
  }
  if (!variables.has('HOME')) variables.set('HOME', `HOME=${home}`);
  return [...variables.values()];
}

function cwdOf(workingDir: string): string {
  const cwd = workingDir === '' ? '/' : workingDir;
  if (!cwd.startsWith('/'))
    throw new AppError('invalid', `the working directory '${cwd}' is invalid, it needs to be an absolute path`);
  const clean = cleanPath(cwd);
  // CVE-2024-21626: a descriptor that the runtime left open would lead out of the container.
  if (/^\/proc\/[^/]+\/(fd|cwd|root|task)(\/|$)/.test(clean))
    throw new AppError('invalid', `the working directory '${cwd}' is invalid, it lies in the files of a process`);
  return clean;
}

/** Without `.`, `..`, double and trailing slashes. */
function cleanPath(path: string): string {
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') parts.pop();
    else parts.push(part);
  }
  return `/${parts.join('/')}`;
}

function cleanParent(parent: string): string {
  const clean = cleanPath(parent);
  return clean === '/' ? '' : clean;
}

function rlimitOf(name: string, soft: number, hard: number): { type: string; hard: bigint; soft: bigint } {
  if (!RLIMITS.has(name)) throw new AppError('invalid', `invalid ulimit type: ${name}`);
  if (hard !== -1 && (soft === -1 || soft > hard))
    throw new AppError('invalid', `ulimit soft limit must be less than or equal to hard limit: ${soft} > ${hard}`);
  const limit = (value: number) => (value === -1 ? RLIMIT_UNLIMITED : BigInt(value));
  return { type: `RLIMIT_${name.toUpperCase()}`, hard: limit(hard), soft: limit(soft) };
}

const IPC_SYSCTL = /^(kernel\.(msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced)|fs\.mqueue\..+)$/;

function sysctlsOf({ config, hostConfig }: SpecInput, modes: NamespaceModes): Readonly<Record<string, string>> {
  for (const name of Object.keys(hostConfig.Sysctls)) {
    const own = name.startsWith('net.') ? modes.network : IPC_SYSCTL.test(name) ? modes.ipc : undefined;
    if (own === undefined && name !== 'kernel.domainname')
      throw new AppError('invalid', `cannot set sysctl ${JSON.stringify(name)}: it belongs to the whole host`);
    if (own?.kind === 'host')
      throw new AppError(
        'invalid',
        `sysctl ${JSON.stringify(name)} not allowed in host ${name.startsWith('net.') ? 'network' : 'ipc'} namespace`,
      );
  }
  return {
    ...(modes.network.kind === 'host'
      ? {}
      : { 'net.ipv4.ip_unprivileged_port_start': '0', 'net.ipv4.ping_group_range': '0 2147483647' }),
    ...(config.Domainname === '' || modes.uts.kind === 'host' ? {} : { 'kernel.domainname': config.Domainname }),
    ...hostConfig.Sysctls,
  };
}

function seccompOf(
  wanted: string | undefined,
  { hostConfig, host }: SpecInput,
  capabilities: readonly string[],
): OciSeccomp | undefined {
  const isCustom = wanted !== undefined && wanted !== 'builtin';
  // Whoever brings a profile means it, privileged or not.
  if (wanted === 'unconfined' || (hostConfig.Privileged && !isCustom)) return undefined;
  if (!host.hasSeccomp) {
    if (!isCustom) return undefined;
    throw new AppError('unsupported', 'cannot use a seccomp profile: the kernel has no seccomp');
  }
  const profile = isCustom ? parseSeccompProfile(wanted) : DEFAULT_SECCOMP_PROFILE;
  return resolveSeccomp(profile, { capabilities, architecture: host.architecture, kernel: host.kernel });
}

function ociDevice({
  path,
  type,
  major,
  minor,
  mode,
  uid,
  gid,
}: SpecDevice): Readonly<Record<string, string | number>> {
  return { path, type, major, minor, fileMode: mode, uid, gid };
}
