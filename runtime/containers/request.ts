/**
 * What a client asks for when it creates, updates or execs: Docker's Config, HostConfig and NetworkingConfig, parsed
 * once and trusted after. Field names, units (bytes, nanoseconds, nano-CPUs) and zero values are Docker's own, so that
 * `inspect` can answer with them; absent and null lists are empty ones.
 *
 * Fields that Docker defines and this engine does not have are refused by name, never ignored. Fields that Docker does
 * not define are ignored, as Docker does: clients send their own bookkeeping along. Pure.
 * https://docs.docker.com/reference/api/engine/version/v1.51/#tag/Container/operation/ContainerCreate
 */
import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';

const text = z
  .string()
  .nullish()
  .transform((value) => value ?? '');
const flag = z
  .boolean()
  .nullish()
  .transform((value) => value ?? false);
const whole = z
  .number()
  .int()
  .nullish()
  .transform((value) => value ?? 0);
const optionalWhole = z.number().int().nullish();
const words = z
  .array(z.string())
  .nullish()
  .transform((value): readonly string[] => value ?? []);
/** A word or a list of words, as Docker's strslice; null = not said, which is not the same as empty. */
const command = z
  .union([z.string(), z.array(z.string())])
  .nullish()
  .transform((value): readonly string[] | null => (typeof value === 'string' ? [value] : (value ?? null)));
const stringMap = z
  .record(z.string(), z.string())
  .nullish()
  .transform((value): Readonly<Record<string, string>> => value ?? {});
/** A set written as a map to empty objects. */
const nameSet = z
  .record(z.string(), z.unknown())
  .nullish()
  .transform((value): readonly string[] => Object.keys(value ?? {}));

function list<T extends z.ZodType>(item: T) {
  return z
    .array(item)
    .nullish()
    .transform((value): readonly z.output<T>[] => value ?? []);
}

/** Durations are nanoseconds; 0 = the default. Test: [] inherit, ['NONE'], ['CMD', …], ['CMD-SHELL', command]. */
const healthcheck = z.object({
  Test: words,
  Interval: whole,
  Timeout: whole,
  StartPeriod: whole,
  StartInterval: whole,
  Retries: whole,
});
export type Healthcheck = Readonly<z.output<typeof healthcheck>>;

const containerConfig = z.object({
  Hostname: text,
  Domainname: text,
  User: text,
  AttachStdin: flag,
  AttachStdout: flag,
  AttachStderr: flag,
  ExposedPorts: nameSet,
  Tty: flag,
  OpenStdin: flag,
  StdinOnce: flag,
  Env: words,
  Cmd: command,
  Healthcheck: healthcheck.nullish().transform((value) => value ?? undefined),
  ArgsEscaped: flag,
  Image: text,
  Volumes: nameSet,
  WorkingDir: text,
  Entrypoint: command,
  NetworkDisabled: flag,
  MacAddress: text,
  OnBuild: words,
  Labels: stringMap,
  StopSignal: text,
  /** Seconds; undefined = Docker's default of 10. */
  StopTimeout: optionalWhole.transform((value) => value ?? undefined),
  Shell: words,
});
/** Docker's Config. Lists that are sets in Docker's JSON (ExposedPorts, Volumes) are lists of names here. */
export type ContainerConfig = Readonly<z.output<typeof containerConfig>>;

const restartPolicy = z
  .object({ Name: z.enum(['', 'no', 'always', 'unless-stopped', 'on-failure']).nullish(), MaximumRetryCount: whole })
  .nullish()
  .transform((value) => ({ Name: value?.Name || 'no', MaximumRetryCount: value?.MaximumRetryCount ?? 0 }) as const);
export type RestartPolicy = z.output<typeof restartPolicy>;

const PROPAGATIONS = ['', 'private', 'rprivate', 'shared', 'rshared', 'slave', 'rslave'] as const;
const mount = z.object({
  Type: z.enum(['bind', 'volume', 'tmpfs', 'npipe', 'cluster', 'image']),
  Source: text,
  Target: z.string().min(1),
  ReadOnly: flag,
  Consistency: text,
  BindOptions: z
    .object({
      Propagation: z
        .enum(PROPAGATIONS)
        .nullish()
        .transform((value) => value ?? ''),
      NonRecursive: flag,
      CreateMountpoint: flag,
      ReadOnlyNonRecursive: flag,
      ReadOnlyForceRecursive: flag,
    })
    .nullish(),
  VolumeOptions: z
    .object({
      NoCopy: flag,
      Labels: stringMap,
      Subpath: text,
      DriverConfig: z.object({ Name: text, Options: stringMap }).nullish(),
    })
    .nullish(),
  TmpfsOptions: z.object({ SizeBytes: whole, Mode: whole, Options: list(z.array(z.string())) }).nullish(),
  ImageOptions: z.object({ Subpath: text }).nullish(),
});
export type MountRequest = Readonly<z.output<typeof mount>>;

const device = z.object({ PathOnHost: text, PathInContainer: text, CgroupPermissions: text });
const deviceRequest = z.object({
  Driver: text,
  Count: whole,
  DeviceIDs: words,
  Capabilities: list(z.array(z.string())),
  Options: stringMap,
});
export type DeviceRequest = Readonly<z.output<typeof deviceRequest>>;
const weightDevice = z.object({ Path: text, Weight: whole });
/** Rate: bytes or operations per second. */
const throttleDevice = z.object({ Path: text, Rate: whole });
const ulimit = z.object({ Name: z.string().min(1), Soft: whole, Hard: whole });
export type Ulimit = Readonly<z.output<typeof ulimit>>;
const portBinding = z.object({ HostIp: text, HostPort: text });

/** What `update` may change as well. Zero = not limited; MemorySwap and CpuQuota: -1 = unlimited. */
const resourceFields = {
  CpuShares: whole,
  Memory: whole,
  NanoCpus: whole,
  CgroupParent: text,
  BlkioWeight: whole,
  BlkioWeightDevice: list(weightDevice),
  BlkioDeviceReadBps: list(throttleDevice),
  BlkioDeviceWriteBps: list(throttleDevice),
  BlkioDeviceReadIOps: list(throttleDevice),
  BlkioDeviceWriteIOps: list(throttleDevice),
  CpuPeriod: whole,
  CpuQuota: whole,
  CpuRealtimePeriod: whole,
  CpuRealtimeRuntime: whole,
  CpusetCpus: text,
  CpusetMems: text,
  Devices: list(device),
  DeviceCgroupRules: words,
  DeviceRequests: list(deviceRequest),
  KernelMemoryTCP: whole,
  MemoryReservation: whole,
  MemorySwap: whole,
  /** undefined = the kernel's; -1 says the same. */
  MemorySwappiness: optionalWhole.transform((value) => value ?? undefined),
  OomKillDisable: flag,
  /** undefined, 0 and -1 = unlimited. */
  // Less than one is no limit, however it is written.
  PidsLimit: optionalWhole.transform((value) => (value == null ? undefined : Math.max(value, 0))),
  Ulimits: list(ulimit),
  CpuCount: whole,
  CpuPercent: whole,
  IOMaximumIOps: whole,
  IOMaximumBandwidth: whole,
};

const hostConfig = z.object({
  ...resourceFields,
  Binds: words,
  ContainerIDFile: text,
  LogConfig: z
    .object({ Type: text, Config: stringMap })
    .nullish()
    .transform((value) => ({ Type: value?.Type || 'json-file', Config: value?.Config ?? {} })),
  NetworkMode: text,
  PortBindings: z
    .record(z.string(), list(portBinding))
    .nullish()
    .transform((value) => value ?? {}),
  RestartPolicy: restartPolicy,
  AutoRemove: flag,
  VolumeDriver: text,
  VolumesFrom: words,
  Mounts: list(mount),
  ConsoleSize: z
    .tuple([z.number().int().nonnegative(), z.number().int().nonnegative()])
    .nullish()
    .transform((value) => value ?? ([0, 0] as [number, number])),
  Annotations: stringMap,
  CapAdd: words,
  CapDrop: words,
  CgroupnsMode: z
    .enum(['', 'host', 'private'])
    .nullish()
    .transform((value) => value ?? ''),
  Dns: words,
  DnsOptions: words,
  DnsSearch: words,
  ExtraHosts: words,
  GroupAdd: words,
  IpcMode: text,
  Cgroup: text,
  Links: words,
  OomScoreAdj: z
    .number()
    .int()
    .min(-1000)
    .max(1000)
    .nullish()
    .transform((value) => value ?? 0),
  PidMode: text,
  Privileged: flag,
  PublishAllPorts: flag,
  ReadonlyRootfs: flag,
  SecurityOpt: words,
  StorageOpt: stringMap,
  Tmpfs: stringMap,
  UTSMode: text,
  UsernsMode: text,
  /** 0 = Docker's default of 64 MiB. */
  ShmSize: z
    .number()
    .int()
    .nonnegative()
    .nullish()
    .transform((value) => value ?? 0),
  Sysctls: stringMap,
  Runtime: text,
  Isolation: text,
  /** undefined = Docker's defaults; an empty list masks nothing. */
  MaskedPaths: z
    .array(z.string())
    .nullish()
    .transform((value): readonly string[] | undefined => value ?? undefined),
  ReadonlyPaths: z
    .array(z.string())
    .nullish()
    .transform((value): readonly string[] | undefined => value ?? undefined),
  Init: z
    .boolean()
    .nullish()
    .transform((value) => value ?? undefined),
});
export type HostConfig = Readonly<z.output<typeof hostConfig>>;

const endpoint = z.object({
  IPAMConfig: z
    .object({ IPv4Address: text, IPv6Address: text, LinkLocalIPs: words })
    .nullish()
    .transform((value) => value ?? undefined),
  Links: words,
  Aliases: words,
  DriverOpts: stringMap,
  GwPriority: whole,
  MacAddress: text,
});
export type EndpointRequest = Readonly<z.output<typeof endpoint>>;
const networkingConfig = z
  .object({
    EndpointsConfig: z
      .record(
        z.string(),
        endpoint.nullish().transform((value) => value ?? endpoint.parse({})),
      )
      .nullish(),
  })
  .nullish()
  .transform((value): Readonly<Record<string, EndpointRequest>> => value?.EndpointsConfig ?? {});

const createBody = containerConfig.extend({ HostConfig: hostConfig.nullish(), NetworkingConfig: networkingConfig });

/** One parsed `POST /containers/create`. */
export interface CreateRequest {
  readonly config: ContainerConfig;
  readonly hostConfig: HostConfig;
  /** By network name. */
  readonly endpoints: Readonly<Record<string, EndpointRequest>>;
}

/** @throws AppError 'invalid' naming the field; 'unsupported' naming a field that this engine does not have */
export function parseCreateRequest(body: unknown): CreateRequest {
  const { HostConfig, NetworkingConfig, ...config } = check(createBody, body, 'create container');
  const request = { config, hostConfig: HostConfig ?? hostConfig.parse({}), endpoints: NetworkingConfig };
  refuseUnbuilt(request);
  return request;
}

/** The body of a commit: a Config, or nothing. @throws AppError 'invalid' */
export function parseCommitRequest(body: unknown): ContainerConfig | undefined {
  if (body === undefined || body === null) return undefined;
  return check(containerConfig, body, 'commit');
}

/** Everything that Docker has and we do not: the field as its users spell it, and whether a request uses it. */
const UNBUILT: readonly (readonly [field: string, used: (request: CreateRequest) => boolean])[] = [
  ['HostConfig.Cgroup', ({ hostConfig }) => hostConfig.Cgroup !== ''],
  ['HostConfig.StorageOpt (--storage-opt)', ({ hostConfig }) => Object.keys(hostConfig.StorageOpt).length > 0],
  ['HostConfig.Isolation (--isolation)', ({ hostConfig }) => !['', 'default'].includes(hostConfig.Isolation)],
  ['HostConfig.CpuCount (--cpu-count)', ({ hostConfig }) => hostConfig.CpuCount !== 0],
  ['HostConfig.CpuPercent (--cpu-percent)', ({ hostConfig }) => hostConfig.CpuPercent !== 0],
  ['HostConfig.IOMaximumIOps (--io-maxiops)', ({ hostConfig }) => hostConfig.IOMaximumIOps !== 0],
  ['HostConfig.IOMaximumBandwidth (--io-maxbandwidth)', ({ hostConfig }) => hostConfig.IOMaximumBandwidth !== 0],
  ['HostConfig.KernelMemoryTCP', ({ hostConfig }) => hostConfig.KernelMemoryTCP !== 0],
];

function refuseUnbuilt(request: CreateRequest): void {
  const { hostConfig } = request;
  for (const [field, used] of UNBUILT) if (used(request)) refuse(field);
  for (const { Type, Target } of hostConfig.Mounts)
    if (Type !== 'bind' && Type !== 'tmpfs' && Type !== 'volume')
      refuse(`a ${Type} mount at ${JSON.stringify(Target)} (--mount)`);
}

/** Zero values, and what is made of them, say nothing: clients send them with everything. */
export function saysSomething(value: unknown): boolean {
  if (typeof value === 'object' && value !== null) return Object.values(value).some(saysSomething);
  return value !== undefined && value !== null && value !== '' && value !== 0 && value !== false;
}

function refuse(field: string, advice = ''): never {
  throw new AppError('unsupported', `cannot create container: ${field} is not supported${advice}`);
}

/** What `POST /networks/{id}/connect` says of the new connection. @throws AppError 'invalid' */
export function parseEndpointRequest(body: unknown): EndpointRequest {
  return check(endpoint, body ?? {}, 'connect container');
}

const updateBody = z.object({ ...resourceFields, RestartPolicy: restartPolicy.optional() }).partial();
const policySaid = z.object({ RestartPolicy: z.object({ Name: text }).nullish() });
/** What can change after create; every other resource belongs to the container for life. */
const UPDATABLE = [
  'BlkioWeight',
  'CpuPeriod',
  'CpuQuota',
  'CpuRealtimePeriod',
  'CpuRealtimeRuntime',
  'CpuShares',
  'CpusetCpus',
  'CpusetMems',
  'Memory',
  'MemoryReservation',
  'MemorySwap',
  'NanoCpus',
  'PidsLimit',
  'RestartPolicy',
] as const;
/** Only what changes is present. */
export type UpdateRequest = Partial<Pick<HostConfig, (typeof UPDATABLE)[number]>>;

/**
 * Clients send every field, and those that their user did not name as zeros: zero changes nothing. Only of PidsLimit is
 * zero a value. @throws AppError 'invalid'; 'unsupported' naming a field that cannot change
 */
export function parseUpdateRequest(body: unknown): UpdateRequest {
  const wanted = check(updateBody, body, 'update container');
  const { RestartPolicy: policy } = policySaid.parse(body);
  const isMeant = (field: string, value: unknown): boolean => {
    if (field === 'PidsLimit') return value !== undefined;
    if (field === 'RestartPolicy') return (policy?.Name ?? '') !== '';
    return saysSomething(value);
  };
  const meant = Object.entries(wanted).filter(([field, value]) => isMeant(field, value));
  for (const [field] of meant)
    if (!UPDATABLE.some((known) => known === field))
      throw new AppError(
        'unsupported',
        `cannot update container: ${field} cannot change, make a new container instead`,
      );
  return Object.fromEntries(meant);
}

const execBody = z.object({
  AttachStdin: flag,
  AttachStdout: flag,
  AttachStderr: flag,
  DetachKeys: text,
  Tty: flag,
  Cmd: command,
  Env: words,
  User: text,
  WorkingDir: text,
  Privileged: flag,
  ConsoleSize: z.tuple([z.number().int().nonnegative(), z.number().int().nonnegative()]).nullish(),
});
/** One parsed `POST /containers/{id}/exec`; Cmd has at least one word. */
export type ExecRequest = Readonly<Omit<z.output<typeof execBody>, 'Cmd'>> & { readonly Cmd: readonly string[] };

/** @throws AppError 'invalid' with Docker's words for a missing command */
export function parseExecRequest(body: unknown): ExecRequest {
  const { Cmd, ...rest } = check(execBody, spelled(execBody, body), 'create exec');
  if (Cmd === null || Cmd.length === 0) throw new AppError('invalid', 'no exec command specified');
  return { ...rest, Cmd };
}

/** With the names of fields as the schema spells them: Go does not tell case, and docker-py says `detachKeys`. */
function spelled(schema: z.ZodObject, body: unknown): unknown {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) return body;
  const names = new Map(Object.keys(schema.shape).map((name) => [name.toLowerCase(), name]));
  return Object.fromEntries(Object.entries(body).map(([key, value]) => [names.get(key.toLowerCase()) ?? key, value]));
}

function check<T>(schema: z.ZodType<T>, body: unknown, action: string): T {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const where = issue === undefined || issue.path.length === 0 ? 'the request' : issue.path.join('.');
  throw new AppError('invalid', `cannot ${action}: ${where}: ${issue?.message ?? 'has an unexpected form'}`);
}
