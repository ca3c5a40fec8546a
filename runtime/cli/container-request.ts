/**
 * The flags of `run` and `create`, and the Docker Engine API's create request that they mean. What the engine cannot do
 * it refuses by name; here is only the translation. Pure: files that flags name are read by the caller.
 */
import { type Command, Option } from 'commander';
import { AppError } from '../../shared/errors.ts';
import { parseBytes, parseDurationMs } from '../../shared/units.ts';

const collect = (value: string, earlier: readonly string[] = []): readonly string[] => [...earlier, value];

/** Flags as commander hands them over; lists are those given with `collect`. */
export interface ContainerFlags {
  readonly [flag: string]: string | boolean | readonly string[] | undefined;
}

const LIST_FLAGS: readonly (readonly [flags: string, description: string])[] = [
  ['-e, --env <NAME=VALUE>', 'set an environment variable; NAME alone copies yours'],
  ['--env-file <FILE>', 'read environment variables from a file'],
  ['-v, --volume <SOURCE:TARGET[:OPTIONS]>', 'bind mount a path'],
  ['--mount <KEY=VALUE,...>', 'attach a mount'],
  ['--tmpfs <PATH[:OPTIONS]>', 'mount a tmpfs'],
  ['-p, --publish <[IP:]HOST:CONTAINER[/PROTO]>', 'publish a port'],
  ['--expose <PORT[/PROTO]>', 'expose a port'],
  ['-l, --label <KEY=VALUE>', 'set a label'],
  ['--label-file <FILE>', 'read labels from a file'],
  ['--annotation <KEY=VALUE>', 'add an annotation for the runtime'],
  ['--add-host <NAME:IP>', 'add a line to /etc/hosts'],
  ['--dns <IP>', 'set a DNS server'],
  ['--dns-option <OPTION>', 'set a DNS option'],
  ['--dns-search <DOMAIN>', 'set a DNS search domain'],
  ['--network-alias <NAME>', 'add a name on the network'],
  ['--link <CONTAINER[:ALIAS]>', 'link to another container'],
  ['--volumes-from <CONTAINER>', 'mount the volumes of another container'],
  ['--group-add <GROUP>', 'add a supplementary group'],
  ['--cap-add <CAPABILITY>', 'add a capability'],
  ['--cap-drop <CAPABILITY>', 'drop a capability'],
  ['--security-opt <OPTION>', 'security options'],
  ['--device <HOST[:CONTAINER[:PERMISSIONS]]>', 'add a host device'],
  ['--device-cgroup-rule <RULE>', 'add a rule to the allowed devices'],
  ['--device-read-bps <PATH:RATE>', 'limit reading from a device, bytes a second'],
  ['--device-write-bps <PATH:RATE>', 'limit writing to a device, bytes a second'],
  ['--device-read-iops <PATH:RATE>', 'limit reading from a device, operations a second'],
  ['--device-write-iops <PATH:RATE>', 'limit writing to a device, operations a second'],
  ['--blkio-weight-device <PATH:WEIGHT>', 'block I/O weight of a device'],
  ['--ulimit <NAME=SOFT[:HARD]>', 'set a ulimit'],
  ['--sysctl <NAME=VALUE>', 'set a sysctl'],
  ['--log-opt <KEY=VALUE>', 'log driver option'],
  ['--storage-opt <KEY=VALUE>', 'storage driver option'],
];

const VALUE_FLAGS: readonly (readonly [flags: string, description: string])[] = [
  ['--name <NAME>', 'name of the container'],
  ['--entrypoint <COMMAND>', "replace the image's entrypoint"],
  ['--hostname <NAME>', 'host name inside'],
  ['--domainname <NAME>', 'domain name inside'],
  ['-w, --workdir <PATH>', 'working directory inside'],
  ['-u, --user <USER[:GROUP]>', 'user, by name or number'],
  ['--network <NETWORK>', 'connect to a network: none, host, container:NAME or a name'],
  ['--ip <ADDRESS>', 'IPv4 address on the network'],
  ['--ip6 <ADDRESS>', 'IPv6 address on the network'],
  ['--mac-address <ADDRESS>', 'MAC address'],
  ['--pid <MODE>', 'PID namespace: host or container:NAME'],
  ['--ipc <MODE>', 'IPC namespace: none, private, shareable, host or container:NAME'],
  ['--uts <MODE>', 'UTS namespace: host'],
  ['--userns <MODE>', 'user namespace: host'],
  ['--cgroupns <MODE>', 'cgroup namespace: host or private'],
  ['--cgroup-parent <PATH>', 'parent cgroup'],
  ['-m, --memory <BYTES>', 'memory limit'],
  ['--memory-swap <BYTES>', 'memory and swap limit, -1 = unlimited swap'],
  ['--memory-reservation <BYTES>', 'soft memory limit'],
  ['--memory-swappiness <0-100>', 'swappiness'],
  ['--kernel-memory <BYTES>', 'kernel memory limit'],
  ['--cpus <NUMBER>', 'number of CPUs'],
  ['-c, --cpu-shares <WEIGHT>', 'relative CPU weight'],
  ['--cpu-period <MICROSECONDS>', 'CFS period'],
  ['--cpu-quota <MICROSECONDS>', 'CFS quota'],
  ['--cpu-rt-period <MICROSECONDS>', 'real-time period'],
  ['--cpu-rt-runtime <MICROSECONDS>', 'real-time runtime'],
  ['--cpuset-cpus <LIST>', 'CPUs to run on'],
  ['--cpuset-mems <LIST>', 'memory nodes to use'],
  ['--pids-limit <NUMBER>', 'process limit, -1 = none'],
  ['--blkio-weight <10-1000>', 'block I/O weight'],
  ['--shm-size <BYTES>', 'size of /dev/shm'],
  ['--oom-score-adj <NUMBER>', 'OOM score adjustment'],
  ['--stop-signal <SIGNAL>', 'signal that stops it'],
  ['--stop-timeout <SECONDS>', 'seconds before it is killed'],
  ['--restart <POLICY>', 'no, on-failure[:N], always or unless-stopped'],
  ['--runtime <NAME>', 'OCI runtime'],
  ['--log-driver <NAME>', 'log driver'],
  ['--volume-driver <NAME>', 'volume driver'],
  ['--health-cmd <COMMAND>', 'health check'],
  ['--health-interval <DURATION>', 'time between checks'],
  ['--health-timeout <DURATION>', 'time that a check may take'],
  ['--health-retries <NUMBER>', 'failures before it is unhealthy'],
  ['--health-start-period <DURATION>', 'grace while it starts'],
  ['--health-start-interval <DURATION>', 'time between checks while it starts'],
  ['--gpus <REQUEST>', 'GPU devices'],
  ['--platform <OS/ARCH[/VARIANT]>', 'platform of the image'],
  ['--pull <always|missing|never>', 'when to pull the image'],
  ['--cidfile <FILE>', 'write the id to a file'],
];

const SWITCHES: readonly (readonly [flags: string, description: string])[] = [
  ['-i, --interactive', 'keep stdin open'],
  ['-t, --tty', 'give it a terminal'],
  ['--rm', 'remove it when it ends'],
  ['--init', 'run an init inside that forwards signals and reaps'],
  ['--read-only', 'mount the root filesystem read-only'],
  ['--privileged', 'all capabilities and devices'],
  ['-P, --publish-all', 'publish all exposed ports'],
  ['--oom-kill-disable', 'do not kill it when out of memory'],
  ['--no-healthcheck', "ignore the image's health check"],
];

export function addContainerFlags(command: Command): Command {
  for (const [flags, description] of LIST_FLAGS) command.addOption(new Option(flags, description).argParser(collect));
  command.addOption(new Option('-a, --attach <STREAM>', 'attach stdin, stdout or stderr').argParser(collect));
  for (const [flags, description] of [...VALUE_FLAGS, ...SWITCHES]) command.option(flags, description);
  command.addOption(new Option('--net <NETWORK>').hideHelp());
  command.option('-q, --quiet', 'no pull progress');
  // -h is --hostname here, as in docker.
  command.addOption(new Option('-h <NAME>', 'same as --hostname').hideHelp());
  return command.helpOption('--help', 'show this help');
}

export interface FlagFiles {
  /** Text of `--env-file` and `--label-file` files, and of seccomp profiles. */
  readonly read: (path: string) => string;
  /** The caller's environment, for `-e NAME`. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** What variables of these names are that the command line says nothing of. */
  readonly proxies?: Readonly<Record<string, string>>;
}

/** The engine takes a profile's text, not its path; for `systempaths=unconfined` it takes empty lists. */
function securityOf(options: readonly string[], files: FlagFiles): Record<string, unknown> {
  const isUnconfined = (option: string) => /^systempaths[=:]unconfined$/.test(option);
  const rest = options.filter((option) => !isUnconfined(option));
  const paths = rest.length === options.length ? {} : { MaskedPaths: [], ReadonlyPaths: [] };
  const profileOf = (option: string) => /^seccomp[=:](?!unconfined$|builtin$)(.+)$/.exec(option)?.[1];
  return {
    SecurityOpt: atLeastOne(
      rest.map((option) => {
        const path = profileOf(option);
        return path === undefined ? option : `seccomp=${files.read(path)}`;
      }),
    ),
    ...paths,
  };
}

/** The body of `POST /containers/create`. @throws AppError 'invalid' */
export function containerRequest(
  flags: ContainerFlags,
  image: string,
  args: readonly string[],
  files: FlagFiles,
): Record<string, unknown> {
  const many = (name: string): readonly string[] => {
    const value = flags[name];
    return Array.isArray(value) ? value : [];
  };
  const one = (name: string): string | undefined => {
    const value = flags[name];
    return typeof value === 'string' ? value : undefined;
  };
  const on = (name: string): boolean => flags[name] === true;
  const bytes = (name: string): number | undefined => {
    const value = one(name);
    return value === undefined ? undefined : value === '-1' ? -1 : parseBytes(value);
  };
  const int = (name: string): number | undefined => {
    const value = one(name);
    if (value === undefined) return undefined;
    if (!/^-?\d+$/.test(value))
      throw new AppError('invalid', `cannot use --${kebab(name)} ${JSON.stringify(value)}: want a whole number`);
    return Number(value);
  };

  const network = one('network') ?? one('net');
  const detached = on('detach');
  const attached = many('attach').map((stream) => stream.toLowerCase());
  for (const stream of attached)
    if (!['stdin', 'stdout', 'stderr'].includes(stream))
      throw new AppError('invalid', `cannot attach to ${JSON.stringify(stream)}: want stdin, stdout or stderr`);
  const attaches = (stream: string) =>
    !detached && (attached.length === 0 ? stream !== 'stdin' || on('interactive') : attached.includes(stream));
  const exposed = Object.fromEntries(many('expose').map((port) => [port.includes('/') ? port : `${port}/tcp`, {}]));
  const published = many('publish').flatMap(parsePublished);
  for (const { port } of published) exposed[port] = {};
  const bindings: Record<string, { HostIp: string; HostPort: string }[]> = {};
  for (const { port, hostIp, hostPort } of published) {
    const list = bindings[port] ?? [];
    list.push({ HostIp: hostIp, HostPort: hostPort });
    bindings[port] = list;
  }
  const endpoint = compact({
    Aliases: many('networkAlias').length > 0 ? many('networkAlias') : undefined,
    MacAddress: one('macAddress'),
    IPAMConfig: one('ip') || one('ip6') ? compact({ IPv4Address: one('ip'), IPv6Address: one('ip6') }) : undefined,
  });

  return compact({
    Image: image,
    Cmd: args.length > 0 ? args : undefined,
    Entrypoint: one('entrypoint') === undefined ? undefined : one('entrypoint') === '' ? [''] : [one('entrypoint')],
    Env: environment(many('envFile'), many('env'), files),
    Labels: labels(many('labelFile'), many('label'), files),
    Hostname: one('hostname') ?? one('h'),
    Domainname: one('domainname'),
    User: one('user'),
    WorkingDir: one('workdir'),
    Tty: on('tty'),
    OpenStdin: on('interactive'),
    StdinOnce: on('interactive') && attaches('stdin'),
    AttachStdin: attaches('stdin'),
    AttachStdout: attaches('stdout'),
    AttachStderr: attaches('stderr'),
    ExposedPorts: Object.keys(exposed).length > 0 ? exposed : undefined,
    StopSignal: one('stopSignal'),
    StopTimeout: int('stopTimeout'),
    Volumes: volumesOnly(many('volume')),
    Healthcheck: healthcheck(one, { none: flags.healthcheck === false }),
    HostConfig: compact({
      Binds: many('volume').filter((volume) => volume.includes(':')),
      Mounts: many('mount').length > 0 ? many('mount').map(parseMount) : undefined,
      Tmpfs: many('tmpfs').length > 0 ? pairs(many('tmpfs'), ':') : undefined,
      PortBindings: published.length > 0 ? bindings : undefined,
      PublishAllPorts: on('publishAll') || undefined,
      NetworkMode: network,
      AutoRemove: on('rm'),
      Init: on('init') || undefined,
      ReadonlyRootfs: on('readOnly') || undefined,
      Privileged: on('privileged') || undefined,
      CapAdd: atLeastOne(many('capAdd')),
      CapDrop: atLeastOne(many('capDrop')),
      ...securityOf(many('securityOpt'), files),
      GroupAdd: atLeastOne(many('groupAdd')),
      ExtraHosts: atLeastOne(many('addHost').map((entry) => entry.replace('=', ':'))),
      Dns: atLeastOne(many('dns')),
      DnsOptions: atLeastOne(many('dnsOption')),
      DnsSearch: atLeastOne(many('dnsSearch')),
      Links: atLeastOne(many('link')),
      VolumesFrom: atLeastOne(many('volumesFrom')),
      VolumeDriver: one('volumeDriver'),
      Devices: atLeastOne(
        many('device')
          .filter((entry) => !isCdiName(entry))
          .map(parseDevice),
      ),
      DeviceCgroupRules: atLeastOne(many('deviceCgroupRule')),
      DeviceRequests: atLeastOne([
        ...(one('gpus') === undefined ? [] : [parseGpus(one('gpus') ?? '')]),
        ...(many('device').some(isCdiName) ? [{ Driver: 'cdi', DeviceIDs: many('device').filter(isCdiName) }] : []),
      ]),
      BlkioDeviceReadBps: throttles(many('deviceReadBps'), parseBytes),
      BlkioDeviceWriteBps: throttles(many('deviceWriteBps'), parseBytes),
      BlkioDeviceReadIOps: throttles(many('deviceReadIops'), Number),
      BlkioDeviceWriteIOps: throttles(many('deviceWriteIops'), Number),
      BlkioWeightDevice: atLeastOne(
        many('blkioWeightDevice').map((entry) => ({ Path: beforeLast(entry), Weight: Number(afterLast(entry)) })),
      ),
      BlkioWeight: int('blkioWeight'),
      Ulimits: atLeastOne(many('ulimit').map(parseUlimit)),
      Sysctls: many('sysctl').length > 0 ? pairs(many('sysctl'), '=') : undefined,
      Annotations: many('annotation').length > 0 ? pairs(many('annotation'), '=') : undefined,
      StorageOpt: many('storageOpt').length > 0 ? pairs(many('storageOpt'), '=') : undefined,
      LogConfig:
        one('logDriver') === undefined && many('logOpt').length === 0
          ? undefined
          : { Type: one('logDriver') ?? '', Config: pairs(many('logOpt'), '=') },
      RestartPolicy: one('restart') === undefined ? undefined : parseRestart(one('restart') ?? ''),
      PidMode: one('pid'),
      IpcMode: one('ipc'),
      UTSMode: one('uts'),
      UsernsMode: one('userns'),
      CgroupnsMode: one('cgroupns'),
      CgroupParent: one('cgroupParent'),
      Memory: bytes('memory'),
      MemorySwap: bytes('memorySwap'),
      MemoryReservation: bytes('memoryReservation'),
      MemorySwappiness: int('memorySwappiness'),
      KernelMemory: bytes('kernelMemory'),
      NanoCpus: one('cpus') === undefined ? undefined : Math.round(Number(one('cpus')) * 1e9),
      CpuShares: int('cpuShares'),
      CpuPeriod: int('cpuPeriod'),
      CpuQuota: int('cpuQuota'),
      CpuRealtimePeriod: int('cpuRtPeriod'),
      CpuRealtimeRuntime: int('cpuRtRuntime'),
      CpusetCpus: one('cpusetCpus'),
      CpusetMems: one('cpusetMems'),
      PidsLimit: int('pidsLimit'),
      ShmSize: bytes('shmSize'),
      OomScoreAdj: int('oomScoreAdj'),
      OomKillDisable: on('oomKillDisable') || undefined,
      Runtime: one('runtime'),
    }),
    NetworkingConfig:
      Object.keys(endpoint).length > 0 ? { EndpointsConfig: { [network ?? 'default']: endpoint } } : undefined,
  });
}

function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

function compact(record: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(record).filter(([, value]) => value !== undefined));
}

function atLeastOne<T>(list: readonly T[]): readonly T[] | undefined {
  return list.length > 0 ? list : undefined;
}

function beforeLast(entry: string): string {
  return entry.slice(0, entry.lastIndexOf(':'));
}

function afterLast(entry: string): string {
  return entry.slice(entry.lastIndexOf(':') + 1);
}

function pairs(entries: readonly string[], separator: string): Record<string, string> {
  return Object.fromEntries(
    entries.map((entry) => {
      const at = entry.indexOf(separator);
      return at === -1 ? [entry, ''] : [entry.slice(0, at), entry.slice(at + 1)];
    }),
  );
}

function throttles(entries: readonly string[], parse: (rate: string) => number): readonly unknown[] | undefined {
  return atLeastOne(entries.map((entry) => ({ Path: beforeLast(entry), Rate: parse(afterLast(entry)) })));
}

/** Lines of NAME=VALUE; blank lines and those that begin with # are left out. A NAME alone takes the caller's value. */
export function environment(
  envFiles: readonly string[],
  entries: readonly string[],
  files: FlagFiles,
): readonly string[] {
  const lines = envFiles.flatMap((path) =>
    files
      .read(path)
      .split(/\r?\n/)
      .map((line) => line.trimStart())
      .filter((line) => line !== '' && !line.startsWith('#')),
  );
  const set: string[] = [];
  const named = new Set<string>();
  for (const line of [...lines, ...entries]) {
    const name = line.split('=', 1)[0] ?? '';
    named.add(name);
    if (name === '' || /\s/.test(name))
      throw new AppError(
        'invalid',
        `cannot set environment variable ${JSON.stringify(line)}: its name is empty or has white space`,
      );
    if (line.includes('=')) set.push(line);
    else if (files.env[name] !== undefined) set.push(`${name}=${files.env[name]}`);
  }
  const proxies = Object.entries(files.proxies ?? {}).filter(([name]) => !named.has(name));
  return [...proxies.map(([name, value]) => `${name}=${value}`), ...set];
}

function labels(labelFiles: readonly string[], entries: readonly string[], files: FlagFiles): Record<string, string> {
  const lines = labelFiles.flatMap((path) =>
    files
      .read(path)
      .split(/\r?\n/)
      .filter((line) => line.trim() !== '' && !line.startsWith('#')),
  );
  return pairs([...lines, ...entries], '=');
}

function volumesOnly(volumes: readonly string[]): Record<string, unknown> | undefined {
  const anonymous = volumes.filter((volume) => !volume.includes(':'));
  return anonymous.length === 0 ? undefined : Object.fromEntries(anonymous.map((path) => [path, {}]));
}

function healthcheck(
  one: (name: string) => string | undefined,
  { none }: { readonly none: boolean },
): Record<string, unknown> | undefined {
  if (none) return { Test: ['NONE'] };
  const nanoseconds = (name: string) => {
    const value = one(name);
    return value === undefined ? undefined : Math.round(parseDurationMs(value) * 1e6);
  };
  const check = compact({
    Test: one('healthCmd') === undefined ? undefined : ['CMD-SHELL', one('healthCmd')],
    Interval: nanoseconds('healthInterval'),
    Timeout: nanoseconds('healthTimeout'),
    StartPeriod: nanoseconds('healthStartPeriod'),
    StartInterval: nanoseconds('healthStartInterval'),
    Retries: one('healthRetries') === undefined ? undefined : Number(one('healthRetries')),
  });
  return Object.keys(check).length > 0 ? check : undefined;
}

/** `[IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/PROTO]`. */
function parsePublished(
  entry: string,
): readonly { readonly port: string; readonly hostIp: string; readonly hostPort: string }[] {
  const match = /^(?:(?:(\[[0-9a-fA-F:.]+\]|[0-9.]+):)?(\d+(?:-\d+)?)?:)?(\d+)(?:-(\d+))?(?:\/(tcp|udp|sctp))?$/.exec(
    entry,
  );
  if (match === null)
    throw new AppError('invalid', `cannot publish ${JSON.stringify(entry)}: want [IP:][HOST:]CONTAINER[/tcp|udp|sctp]`);
  const [, ip = '', host = '', first = '', last = first, protocol = 'tcp'] = match;
  const [hostFirst, hostLast] =
    host === '' ? [undefined, undefined] : [Number(host.split('-')[0]), Number(host.split('-').at(-1))];
  const count = Number(last) - Number(first) + 1;
  if (count < 1) throw new AppError('invalid', `cannot publish ${JSON.stringify(entry)}: the range of ports is empty`);
  const isPool = count === 1 && hostFirst !== hostLast;
  if (hostFirst !== undefined && hostLast !== undefined && !isPool && hostLast - hostFirst + 1 !== count)
    throw new AppError('invalid', `cannot publish ${JSON.stringify(entry)}: the ranges have different lengths`);
  return Array.from({ length: count }, (_unused, index) => ({
    port: `${Number(first) + index}/${protocol}`,
    hostIp: ip.replace(/^\[|\]$/g, ''),
    hostPort: hostFirst === undefined ? '' : isPool ? host : String(hostFirst + index),
  }));
}

/** `vendor.com/class=name`: a device by CDI, not a path. */
function isCdiName(entry: string): boolean {
  return /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*=[\w.:-]+$/.test(entry);
}

function parseDevice(entry: string): unknown {
  const [host = '', second, third] = entry.split(':');
  const isMode = second !== undefined && /^[rwm]+$/.test(second);
  return {
    PathOnHost: host,
    PathInContainer: second === undefined || isMode ? host : second,
    CgroupPermissions: (isMode ? second : third) ?? 'rwm',
  };
}

function parseGpus(entry: string): unknown {
  // A field in quotes holds commas: '"device=0,1",driver=nvidia'.
  const fields = pairs(
    (entry.match(/"[^"]*"|[^,]+/g) ?? []).map((field) => field.replaceAll('"', '')),
    '=',
  );
  const count =
    entry === 'all'
      ? -1
      : /^\d+$/.test(entry)
        ? Number(entry)
        : fields.count === undefined
          ? undefined
          : fields.count === 'all'
            ? -1
            : Number(fields.count);
  return compact({
    Driver: fields.driver ?? '',
    Count: fields.device === undefined ? (count ?? -1) : 0,
    DeviceIDs: fields.device === undefined ? undefined : fields.device.split(','),
    Capabilities: [['gpu']],
  });
}

function parseUlimit(entry: string): unknown {
  const match = /^([a-z]+)=(-?\d+)(?::(-?\d+))?$/.exec(entry);
  if (match === null)
    throw new AppError('invalid', `cannot use --ulimit ${JSON.stringify(entry)}: want NAME=SOFT[:HARD]`);
  return { Name: match[1], Soft: Number(match[2]), Hard: Number(match[3] ?? match[2]) };
}

function parseRestart(entry: string): unknown {
  const [name = '', count] = entry.split(':');
  if (
    !['no', 'always', 'unless-stopped', 'on-failure'].includes(name) ||
    (count !== undefined && (name !== 'on-failure' || !/^\d+$/.test(count)))
  )
    throw new AppError(
      'invalid',
      `cannot use --restart ${JSON.stringify(entry)}: want no, on-failure[:N], always or unless-stopped`,
    );
  return { Name: name, MaximumRetryCount: Number(count ?? 0) };
}

/** `type=bind,source=/a,target=/b,readonly`. */
function parseMount(entry: string): unknown {
  const mount: Record<string, unknown> = { Type: 'volume' };
  const options: Record<string, Record<string, unknown>> = { BindOptions: {}, VolumeOptions: {}, TmpfsOptions: {} };
  const set = (group: string, key: string, value: unknown) => {
    const record = options[group];
    if (record !== undefined) record[key] = value;
  };
  for (const field of entry.split(',')) {
    const at = field.indexOf('=');
    const key = (at === -1 ? field : field.slice(0, at)).trim().toLowerCase();
    const value = at === -1 ? '' : field.slice(at + 1).trim();
    const flag = value === '' || value === 'true' || value === '1';
    switch (key) {
      case 'type':
        mount.Type = value.toLowerCase();
        break;
      case 'source':
      case 'src':
        mount.Source = value;
        break;
      case 'target':
      case 'dst':
      case 'destination':
        mount.Target = value;
        break;
      case 'readonly':
      case 'ro':
        mount.ReadOnly = flag;
        break;
      case 'consistency':
        mount.Consistency = value;
        break;
      case 'bind-propagation':
        set('BindOptions', 'Propagation', value);
        break;
      case 'bind-recursive':
        if (value === 'disabled') set('BindOptions', 'NonRecursive', true);
        else if (value === 'writable') set('BindOptions', 'ReadOnlyNonRecursive', true);
        else if (value === 'readonly') set('BindOptions', 'ReadOnlyForceRecursive', true);
        else if (value !== 'enabled')
          throw new AppError('invalid', `cannot use --mount: bind-recursive ${JSON.stringify(value)} is unknown`);
        break;
      case 'volume-nocopy':
        set('VolumeOptions', 'NoCopy', flag);
        break;
      case 'volume-subpath':
        set('VolumeOptions', 'Subpath', value);
        break;
      case 'tmpfs-size':
        set('TmpfsOptions', 'SizeBytes', parseBytes(value));
        break;
      case 'tmpfs-mode':
        set('TmpfsOptions', 'Mode', Number.parseInt(value, 8));
        break;
      default:
        throw new AppError(
          'invalid',
          `cannot use --mount ${JSON.stringify(entry)}: unexpected key ${JSON.stringify(key)}`,
        );
    }
  }
  if (mount.Target === undefined)
    throw new AppError('invalid', `cannot use --mount ${JSON.stringify(entry)}: target is required`);
  for (const [group, record] of Object.entries(options)) if (Object.keys(record).length > 0) mount[group] = record;
  return mount;
}
