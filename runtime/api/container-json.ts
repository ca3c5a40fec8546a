/** Containers in Docker's JSON, with the fields that old API versions need. Pure. */
import type { Descriptor } from '../../shared/oci.ts';
import {
  type Connection,
  type ContainerConfig,
  type ContainerDetails,
  type ContainerRecord,
  type ContainerSize,
  type ContainerSummary,
  type Endpoint,
  type ExecDetails,
  endedOf,
  exitCodeOf,
  type HostConfig,
  hostLinks,
  isAlive,
  type MountPoint,
  resting,
  type StatsSample,
} from '../engine.ts';
import { goTime } from './context.ts';

/** Go's nil slices and maps are null in JSON, and clients tell them from empty ones. */
function orNull<T extends readonly unknown[]>(list: T): T | null {
  return list.length === 0 ? null : list;
}
function mapOrNull<T extends object>(map: T): T | null {
  return Object.keys(map).length === 0 ? null : map;
}
function setOrNull(names: readonly string[]): Record<string, object> | null {
  return names.length === 0 ? null : Object.fromEntries(names.map((name) => [name, {}]));
}

/** The command that runs: entrypoint, then arguments. */
function commandOf({ Entrypoint, Cmd }: ContainerConfig): readonly string[] {
  return [...(Entrypoint ?? []), ...(Cmd ?? [])];
}

/** API version from which a list tells annotations. */
const ANNOTATIONS_SINCE = 46;

/** For whom it is. */
interface JsonForm {
  readonly apiMinor: number;
  /** What the image's manifest is, while there is the image. */
  readonly manifest?: Descriptor | undefined;
}

export function containerSummaryJson(
  summary: ContainerSummary,
  { apiMinor, manifest }: JsonForm,
): Record<string, unknown> {
  const { record, linkNames, statusText, health, size } = summary;
  const { NetworkMode, Annotations } = record.hostConfig;
  const isAnnotated = apiMinor >= ANNOTATIONS_SINCE && Object.keys(Annotations).length > 0;
  const [path = '', ...args] = commandOf(record.config);
  return {
    Id: record.id,
    Names: [record.name, ...linkNames].map((name) => `/${name}`).sort(),
    Image: record.imageName,
    ImageID: record.imageId,
    Command: [path, ...args.map((word) => (word.includes(' ') ? `'${word}'` : word))].join(' '),
    Created: Math.floor(record.createdAt.getTime() / 1000),
    Ports: portListJson(summary),
    ...sizeJson(size),
    Labels: record.config.Labels,
    State: record.state.status,
    Status: statusText,
    HostConfig: { NetworkMode, ...(isAnnotated && { Annotations }) },
    ...(health && { Health: { Status: health.status, FailingStreak: health.failingStreak } }),
    NetworkSettings: { Networks: networksJson(summary) },
    Mounts: record.mounts.filter(isListed).map(mountJson),
    ...manifestJson(record, manifest),
  };
}

function manifestJson(record: ContainerRecord, manifest: Descriptor | undefined): Record<string, unknown> {
  return manifest === undefined ? {} : { ImageManifestDescriptor: { ...manifest, platform: record.platform } };
}

export function containerDetailsJson(details: ContainerDetails, form: JsonForm): Record<string, unknown> {
  const { record, paths, size } = details;
  const [path = '', ...args] = commandOf(record.config);
  return {
    Id: record.id,
    Created: goTime(record.createdAt),
    Path: path,
    Args: args,
    State: stateJson(details),
    Image: record.imageId,
    ResolvConfPath: paths.resolvConf,
    HostnamePath: paths.hostname,
    HostsPath: paths.hosts,
    LogPath: paths.log,
    Name: `/${record.name}`,
    RestartCount: record.restartCount,
    Driver: 'overlayfs',
    Platform: record.platform.os,
    MountLabel: '',
    ProcessLabel: '',
    AppArmorProfile: '',
    ExecIDs: orNull(details.execIds),
    HostConfig: hostConfigJson(record.hostConfig, record.name),
    GraphDriver: { Data: null, Name: 'overlayfs' },
    Storage: { RootFS: { Snapshot: { Name: 'overlayfs' } } },
    ...sizeJson(size),
    Mounts: record.mounts.filter(isListed).map(mountJson),
    Config: configJson(record.config),
    NetworkSettings: networkSettingsJson(details, form),
    ...manifestJson(record, form.manifest),
  };
}

function sizeJson(size: ContainerSize | undefined): Record<string, number> {
  return size === undefined ? {} : { SizeRw: size.writableBytes, SizeRootFs: size.totalBytes };
}

function stateJson({ record: { state }, health }: ContainerDetails): Record<string, unknown> {
  const { status } = state;
  const alive = isAlive(state);
  const ended = endedOf(state);
  const rest = alive ? undefined : resting(state);
  return {
    Status: status,
    Running: alive || status === 'restarting',
    Paused: status === 'paused',
    Restarting: status === 'restarting',
    OOMKilled: ended?.oomKilled ?? false,
    Dead: status === 'dead',
    Pid: alive ? state.pid : 0,
    ExitCode: exitCodeOf(state),
    Error: status === 'dead' ? state.error : (rest?.failure?.message ?? ''),
    StartedAt: goTime(alive ? state.startedAt : ended?.startedAt),
    FinishedAt: goTime(ended?.finishedAt),
    ...(health && {
      Health: {
        Status: health.status,
        FailingStreak: health.failingStreak,
        Log: health.log.map(({ start, end, exitCode, output }) => ({
          Start: goTime(start),
          End: goTime(end),
          ExitCode: exitCode,
          Output: output,
        })),
      },
    }),
  };
}

function configJson(config: ContainerConfig): Record<string, unknown> {
  return {
    Hostname: config.Hostname,
    Domainname: config.Domainname,
    User: config.User,
    AttachStdin: config.AttachStdin,
    AttachStdout: config.AttachStdout,
    AttachStderr: config.AttachStderr,
    ...(config.ExposedPorts.length > 0 && { ExposedPorts: setOrNull(config.ExposedPorts) }),
    Tty: config.Tty,
    OpenStdin: config.OpenStdin,
    StdinOnce: config.StdinOnce,
    Env: config.Env,
    Cmd: config.Cmd,
    ...(config.Healthcheck && { Healthcheck: config.Healthcheck }),
    ...(config.ArgsEscaped && { ArgsEscaped: true }),
    Image: config.Image,
    Volumes: setOrNull(config.Volumes),
    WorkingDir: config.WorkingDir,
    Entrypoint: config.Entrypoint,
    ...(config.NetworkDisabled && { NetworkDisabled: true }),
    OnBuild: orNull(config.OnBuild),
    Labels: config.Labels,
    ...(config.StopSignal !== '' && { StopSignal: config.StopSignal }),
    ...(config.StopTimeout !== undefined && { StopTimeout: config.StopTimeout }),
    ...(config.Shell.length > 0 && { Shell: config.Shell }),
  };
}

function hostConfigJson(host: HostConfig, name: string): Record<string, unknown> {
  return {
    ...host,
    Binds: orNull(host.Binds),
    VolumesFrom: orNull(host.VolumesFrom),
    // Docker leaves these out unless they are used.
    Mounts: host.Mounts.length === 0 ? undefined : host.Mounts,
    Annotations: mapOrNull(host.Annotations) ?? undefined,
    Sysctls: mapOrNull(host.Sysctls) ?? undefined,
    StorageOpt: mapOrNull(host.StorageOpt) ?? undefined,
    Tmpfs: mapOrNull(host.Tmpfs) ?? undefined,
    KernelMemoryTCP: undefined,
    CapAdd: orNull(host.CapAdd),
    CapDrop: orNull(host.CapDrop),
    Dns: orNull(host.Dns),
    DnsOptions: orNull(host.DnsOptions),
    DnsSearch: orNull(host.DnsSearch),
    ExtraHosts: orNull(host.ExtraHosts),
    GroupAdd: orNull(host.GroupAdd),
    // Links of other networks are theirs.
    Links: orNull(hostLinks(host).map(({ target, alias }) => `/${target}:/${name}/${alias}`)),
    SecurityOpt: orNull(host.SecurityOpt),
    BlkioWeightDevice: orNull(host.BlkioWeightDevice),
    BlkioDeviceReadBps: orNull(host.BlkioDeviceReadBps),
    BlkioDeviceWriteBps: orNull(host.BlkioDeviceWriteBps),
    BlkioDeviceReadIOps: orNull(host.BlkioDeviceReadIOps),
    BlkioDeviceWriteIOps: orNull(host.BlkioDeviceWriteIOps),
    Devices: orNull(host.Devices),
    DeviceCgroupRules: orNull(host.DeviceCgroupRules),
    DeviceRequests: orNull(host.DeviceRequests),
    MemorySwappiness: host.MemorySwappiness ?? null,
    PidsLimit: host.PidsLimit ?? null,
    Ulimits: orNull(host.Ulimits),
    MaskedPaths: host.MaskedPaths ?? null,
    ReadonlyPaths: host.ReadonlyPaths ?? null,
  };
}

/** Docker's list of mounts names binds and volumes; a tmpfs of HostConfig.Tmpfs is only there. */
function isListed({ type }: MountPoint): boolean {
  return type !== 'tmpfs';
}

function mountJson(mount: MountPoint): Record<string, unknown> {
  return {
    Type: mount.type,
    ...(mount.volume && { Name: mount.volume.name }),
    Source: mount.source,
    Destination: mount.destination,
    ...(mount.volume && { Driver: 'local' }),
    Mode: mount.mode,
    RW: mount.writable,
    Propagation: mount.propagation,
  };
}

const NO_ADDRESS = {
  EndpointID: '',
  Gateway: '',
  IPAddress: '',
  MacAddress: '',
  IPPrefixLen: 0,
  IPv6Gateway: '',
  GlobalIPv6Address: '',
  GlobalIPv6PrefixLen: 0,
} as const;

function addressJson(endpoint: Endpoint | undefined): Readonly<Record<keyof typeof NO_ADDRESS, string | number>> {
  if (endpoint === undefined) return NO_ADDRESS;
  const { id, mac, ipv4, ipv6 } = endpoint;
  return {
    EndpointID: id,
    Gateway: ipv4?.gateway ?? '',
    IPAddress: ipv4?.address ?? '',
    MacAddress: mac,
    IPPrefixLen: ipv4?.prefix ?? 0,
    IPv6Gateway: ipv6?.gateway ?? '',
    GlobalIPv6Address: ipv6?.address ?? '',
    GlobalIPv6PrefixLen: ipv6?.prefix ?? 0,
  };
}

function networksJson(
  { record, connections }: ContainerSummary,
  ownAliases: readonly string[] = [],
): Record<string, unknown> {
  const { NetworkMode } = record.hostConfig;
  if (NetworkMode === 'none' || NetworkMode === 'host')
    return { [NetworkMode]: { ...connectionJson(undefined), MacAddress: '' } };
  return Object.fromEntries(
    connections.map((connection) => {
      const { networkName } = connection;
      return [networkName, connectionJson(connection, networkName === 'bridge' ? [] : ownAliases)];
    }),
  );
}

function connectionJson(
  connection: Connection | undefined,
  ownAliases: readonly string[] = [],
): Record<string, unknown> {
  const { request, endpoint, networkId } = connection ?? {};
  return {
    IPAMConfig: request?.IPAMConfig ?? null,
    Links: orNull(request?.Links ?? []),
    Aliases: orNull([...new Set([...(request?.Aliases ?? []), ...ownAliases])]),
    DriverOpts: mapOrNull(request?.DriverOpts ?? {}),
    GwPriority: request?.GwPriority ?? 0,
    NetworkID: networkId ?? '',
    ...addressJson(endpoint),
    ...(endpoint === undefined && { MacAddress: request?.MacAddress ?? '' }),
    DNSNames: orNull(endpoint?.dnsNames ?? []),
  };
}

/** API version from which Aliases are only what a user asked for. */
const DNS_NAMES_SINCE = 45;

/** The addresses outside of Networks left Docker's API, but not the clients that read them: those of the default network. */
function networkSettingsJson(details: ContainerDetails, { apiMinor }: JsonForm): Record<string, unknown> {
  const { record, sandbox } = details;
  return {
    Bridge: '',
    SandboxID: sandbox === undefined ? '' : record.id,
    SandboxKey: sandbox?.path ?? '',
    Ports: portsJson(details),
    HairpinMode: false,
    LinkLocalIPv6Address: '',
    LinkLocalIPv6PrefixLen: 0,
    SecondaryIPAddresses: null,
    SecondaryIPv6Addresses: null,
    ...addressJson(sandbox?.endpoints.find(({ networkName }) => networkName === 'bridge')),
    // Older clients find the short id and the hostname among them.
    Networks: networksJson(details, apiMinor < DNS_NAMES_SINCE ? [record.id.slice(0, 12), record.config.Hostname] : []),
  };
}

/** By port inside: where it is published, or null when it is only exposed. */
function portsJson({ record, sandbox }: ContainerDetails): Record<string, unknown> {
  if (sandbox === undefined) return {};
  const ports = new Map<string, { HostIp: string; HostPort: string }[] | null>(
    record.config.ExposedPorts.map((port) => [port.includes('/') ? port : `${port}/tcp`, null]),
  );
  for (const { containerPort, protocol, hostAddress, hostPort } of sandbox.ports) {
    const key = `${containerPort}/${protocol}`;
    ports.set(key, [...(ports.get(key) ?? []), { HostIp: hostAddress, HostPort: String(hostPort) }]);
  }
  return Object.fromEntries(ports);
}

function portListJson({ record, sandbox }: ContainerSummary): readonly Record<string, unknown>[] {
  if (sandbox === undefined) return [];
  const published = sandbox.ports.map(({ containerPort, protocol, hostAddress, hostPort }) => ({
    IP: hostAddress,
    PrivatePort: containerPort,
    PublicPort: hostPort,
    Type: protocol,
  }));
  const exposed = record.config.ExposedPorts.map((port) => {
    const [number = '', protocol = 'tcp'] = port.split('/');
    return { PrivatePort: Number(number), Type: protocol };
  });
  const isPublished = (port: (typeof exposed)[number]) =>
    published.some(({ PrivatePort, Type }) => PrivatePort === port.PrivatePort && Type === port.Type);
  return [...published, ...exposed.filter((port) => !isPublished(port))];
}

export function execDetailsJson(exec: ExecDetails): Record<string, unknown> {
  const { request } = exec;
  const [entrypoint = '', ...rest] = request.Cmd;
  return {
    ID: exec.id,
    Running: exec.running,
    ExitCode: exec.exitCode ?? null,
    ProcessConfig: {
      tty: request.Tty,
      entrypoint,
      arguments: rest,
      privileged: request.Privileged,
      ...(request.User !== '' && { user: request.User }),
    },
    OpenStdin: request.AttachStdin,
    OpenStderr: request.AttachStderr,
    OpenStdout: request.AttachStdout,
    CanRemove: false,
    ContainerID: exec.containerId,
    DetachKeys: request.DetachKeys,
    Pid: exec.pid,
  };
}

/** `before` is the sample that clients compute rates from; undefined in the first of a stream. */
export function statsJson(
  record: ContainerRecord,
  sample: StatsSample,
  before: StatsSample | undefined,
): Record<string, unknown> {
  const { memory, pids, networks, blockIo } = sample;
  const names = Object.entries(networks);
  return {
    id: record.id,
    name: `/${record.name}`,
    os_type: 'linux',
    read: goTime(sample.at),
    preread: goTime(before?.at),
    pids_stats: { current: pids.current, ...(pids.limit !== undefined && { limit: pids.limit }) },
    blkio_stats: {
      io_service_bytes_recursive: blockIo.map(({ major, minor, op, bytes }) => ({ major, minor, op, value: bytes })),
      io_serviced_recursive: null,
      io_queue_recursive: null,
      io_service_time_recursive: null,
      io_wait_time_recursive: null,
      io_merged_recursive: null,
      io_time_recursive: null,
      sectors_recursive: null,
    },
    num_procs: 0,
    storage_stats: {},
    cpu_stats: cpuJson(sample),
    precpu_stats: before === undefined ? NO_CPU : cpuJson(before),
    memory_stats: {
      usage: memory.usageBytes,
      ...(memory.maxUsageBytes !== undefined && { max_usage: memory.maxUsageBytes }),
      stats: memory.details,
      limit: memory.limitBytes,
    },
    ...(names.length > 0 && {
      networks: Object.fromEntries(
        names.map(([name, counters]) => [
          name,
          {
            rx_bytes: counters.rxBytes,
            rx_packets: counters.rxPackets,
            rx_errors: counters.rxErrors,
            rx_dropped: counters.rxDropped,
            tx_bytes: counters.txBytes,
            tx_packets: counters.txPackets,
            tx_errors: counters.txErrors,
            tx_dropped: counters.txDropped,
          },
        ]),
      ),
    }),
  };
}

const NO_CPU = {
  cpu_usage: { total_usage: 0, usage_in_kernelmode: 0, usage_in_usermode: 0 },
  throttling_data: { periods: 0, throttled_periods: 0, throttled_time: 0 },
} as const;

function cpuJson({ cpu }: StatsSample): Record<string, unknown> {
  return {
    cpu_usage: {
      total_usage: cpu.totalNs,
      ...(cpu.perCpuNs !== undefined && { percpu_usage: cpu.perCpuNs }),
      usage_in_kernelmode: cpu.kernelNs,
      usage_in_usermode: cpu.userNs,
    },
    system_cpu_usage: cpu.systemNs,
    online_cpus: cpu.onlineCpus,
    throttling_data: {
      periods: cpu.periods,
      throttled_periods: cpu.throttledPeriods,
      throttled_time: cpu.throttledNs,
    },
  };
}
