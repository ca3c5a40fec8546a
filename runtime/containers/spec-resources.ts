/**
 * linux.resources of config.json: limits and devices, in the terms of cgroup v1, which runtimes convert for v2.
 * What only v1 has is refused on v2. Also what `update` hands to the runtime. Pure.
 */
import { AppError } from '../../shared/errors.ts';
import type { CgroupMode } from '../kernel/cgroups.ts';
import type { HostConfig } from './request.ts';

export interface DeviceNumbers {
  readonly major: number;
  readonly minor: number;
}

export interface OciDeviceRule {
  readonly allow: boolean;
  readonly type?: string;
  readonly major?: number;
  readonly minor?: number;
  readonly access: string;
}

export interface OciResources {
  readonly devices?: readonly OciDeviceRule[];
  readonly memory?: Readonly<Record<string, number | boolean>>;
  readonly cpu?: Readonly<Record<string, number | string>>;
  readonly pids?: { readonly limit: number };
  readonly blockIO?: Readonly<Record<string, unknown>>;
}

/** The part of HostConfig that limits. */
export type Limits = Pick<
  HostConfig,
  | 'Memory'
  | 'MemoryReservation'
  | 'MemorySwap'
  | 'MemorySwappiness'
  | 'OomKillDisable'
  | 'NanoCpus'
  | 'CpuShares'
  | 'CpuPeriod'
  | 'CpuQuota'
  | 'CpuRealtimePeriod'
  | 'CpuRealtimeRuntime'
  | 'CpusetCpus'
  | 'CpusetMems'
  | 'PidsLimit'
  | 'BlkioWeight'
  | 'BlkioWeightDevice'
  | 'BlkioDeviceReadBps'
  | 'BlkioDeviceWriteBps'
  | 'BlkioDeviceReadIOps'
  | 'BlkioDeviceWriteIOps'
>;

export interface ResourcesInput {
  readonly hostConfig: HostConfig;
  readonly cgroupMode: CgroupMode;
  readonly devices: readonly (DeviceNumbers & { readonly type: 'b' | 'c'; readonly access: string })[];
  /** By path. */
  readonly blockDevices: Readonly<Record<string, DeviceNumbers>>;
}

/** null, zero, full, random, urandom, tty, console: nodes that runtimes make, or that do no harm. */
const ALLOWED_DEVICES: readonly (readonly [major: number, minor: number])[] = [
  [1, 5],
  [1, 3],
  [1, 9],
  [1, 8],
  [5, 0],
  [5, 1],
];
const FUSE: DeviceNumbers = { major: 10, minor: 229 };
/** Microseconds; what --cpus is counted in. */
const CPU_PERIOD = 100_000;

export function resourcesOf({ hostConfig, cgroupMode, devices, blockDevices }: ResourcesInput): OciResources {
  return {
    devices: hostConfig.Privileged ? [{ allow: true, access: 'rwm' }] : deviceRules(hostConfig, devices),
    ...limitsOf(hostConfig, cgroupMode, blockDevices),
  };
}

/** Without the devices: what may change while the container runs. */
export function limitsOf(
  limits: Limits,
  cgroupMode: CgroupMode,
  blockDevices: Readonly<Record<string, DeviceNumbers>>,
): Omit<OciResources, 'devices'> {
  if (cgroupMode === 'v2') refuseV1Only(limits);
  const memory = memoryOf(limits);
  const cpu = cpuOf(limits);
  const blockIO = blockIoOf(limits, blockDevices);
  const pids = limits.PidsLimit ?? 0;
  return {
    ...(Object.keys(memory).length > 0 ? { memory } : {}),
    ...(Object.keys(cpu).length > 0 ? { cpu } : {}),
    ...(pids > 0 ? { pids: { limit: pids } } : {}),
    ...(Object.keys(blockIO).length > 0 ? { blockIO } : {}),
  };
}

function refuseV1Only(limits: Limits): void {
  const used = [
    ['--oom-kill-disable', limits.OomKillDisable],
    ['--memory-swappiness', limits.MemorySwappiness !== undefined && limits.MemorySwappiness !== -1],
    ['--cpu-rt-period', limits.CpuRealtimePeriod !== 0],
    ['--cpu-rt-runtime', limits.CpuRealtimeRuntime !== 0],
  ].find(([, isUsed]) => isUsed);
  if (used !== undefined) throw new AppError('unsupported', `cannot use ${used[0]}: cgroup v2 does not have it`);
}

function memoryOf(limits: Limits): Record<string, number | boolean> {
  const { Memory, MemoryReservation, MemorySwap, MemorySwappiness, OomKillDisable } = limits;
  if (MemorySwap > 0 && Memory === 0)
    throw new AppError('invalid', 'You should always set the Memory limit when using Memoryswap limit, see usage');
  if (MemorySwap > 0 && MemorySwap < Memory)
    throw new AppError('invalid', 'Minimum memoryswap limit should be larger than memory limit, see usage');
  const swap = MemorySwap !== 0 ? MemorySwap : Memory > 0 ? Memory * 2 : 0;
  return {
    ...(Memory > 0 ? { limit: Memory } : {}),
    ...(MemoryReservation > 0 ? { reservation: MemoryReservation } : {}),
    ...(swap !== 0 ? { swap } : {}),
    ...(MemorySwappiness !== undefined && MemorySwappiness !== -1 ? { swappiness: MemorySwappiness } : {}),
    ...(OomKillDisable ? { disableOOMKiller: true } : {}),
  };
}

function cpuOf(limits: Limits): Record<string, number | string> {
  if (limits.NanoCpus > 0 && (limits.CpuPeriod > 0 || limits.CpuQuota > 0))
    throw new AppError('invalid', 'Conflicting options: Nano CPUs and CPU Period cannot both be set');
  const period = limits.NanoCpus > 0 ? CPU_PERIOD : limits.CpuPeriod;
  const quota = limits.NanoCpus > 0 ? Math.floor((limits.NanoCpus * CPU_PERIOD) / 1e9) : limits.CpuQuota;
  return {
    ...(limits.CpuShares > 0 ? { shares: limits.CpuShares } : {}),
    ...(period > 0 ? { period } : {}),
    ...(quota !== 0 ? { quota } : {}),
    ...(limits.CpuRealtimePeriod > 0 ? { realtimePeriod: limits.CpuRealtimePeriod } : {}),
    ...(limits.CpuRealtimeRuntime > 0 ? { realtimeRuntime: limits.CpuRealtimeRuntime } : {}),
    ...(limits.CpusetCpus === '' ? {} : { cpus: limits.CpusetCpus }),
    ...(limits.CpusetMems === '' ? {} : { mems: limits.CpusetMems }),
  };
}

function blockIoOf(limits: Limits, numbers: Readonly<Record<string, DeviceNumbers>>): Record<string, unknown> {
  const numbersOf = (path: string): DeviceNumbers => {
    const found = numbers[path];
    if (found === undefined)
      throw new AppError('invalid', `cannot limit ${JSON.stringify(path)}: it is not a block device`);
    return found;
  };
  const throttles = [
    ['throttleReadBpsDevice', limits.BlkioDeviceReadBps],
    ['throttleWriteBpsDevice', limits.BlkioDeviceWriteBps],
    ['throttleReadIOPSDevice', limits.BlkioDeviceReadIOps],
    ['throttleWriteIOPSDevice', limits.BlkioDeviceWriteIOps],
  ] as const;
  const result: Record<string, unknown> = {};
  if (limits.BlkioWeight > 0) result.weight = limits.BlkioWeight;
  if (limits.BlkioWeightDevice.length > 0)
    result.weightDevice = limits.BlkioWeightDevice.map(({ Path, Weight }) => ({ ...numbersOf(Path), weight: Weight }));
  for (const [name, devices] of throttles)
    if (devices.length > 0) result[name] = devices.map(({ Path, Rate }) => ({ ...numbersOf(Path), rate: Rate }));
  return result;
}

function deviceRules(hostConfig: HostConfig, devices: ResourcesInput['devices']): readonly OciDeviceRule[] {
  return [
    { allow: false, access: 'rwm' },
    ...ALLOWED_DEVICES.map(([major, minor]) => ({ allow: true, type: 'c', major, minor, access: 'rwm' })),
    { allow: false, type: 'c', ...FUSE, access: 'rwm' },
    ...devices.map(({ type, major, minor, access }) => ({ allow: true, type, major, minor, access })),
    ...hostConfig.DeviceCgroupRules.map(parseDeviceRule),
  ];
}

function parseDeviceRule(rule: string): OciDeviceRule {
  const match = /^([acb]) (\d+|\*):(\d+|\*) ([rwm]{1,3})$/.exec(rule);
  if (match === null) throw new AppError('invalid', `invalid device cgroup rule format: '${rule}'`);
  const [, type = '', major, minor, access = ''] = match;
  return {
    allow: true,
    type,
    ...(major === '*' ? {} : { major: Number(major) }),
    ...(minor === '*' ? {} : { minor: Number(minor) }),
    access,
  };
}
