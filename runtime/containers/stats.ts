/**
 * One sample of a container's counters, from its cgroup (v1 or v2) and its network namespace.
 * https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/
 */
import { readFile } from 'node:fs/promises';
import type { Cgroups } from '../kernel/cgroups.ts';
import type { NetworkCounters, StatsSample } from './containers.ts';

export interface SampleRequest {
  readonly cgroup: string;
  /** A process of the container, for its network namespace. */
  readonly pid: number;
  /** Shows its own interfaces; with the host's network there is nothing to count. */
  readonly hasOwnNetwork: boolean;
  readonly hostMemoryBytes: number;
  readonly now: () => Date;
}

const USER_HZ = 100;
const NS_PER_TICK = 1e9 / USER_HZ;
const NS_PER_US = 1000;

export async function sampleStats(cgroups: Cgroups, request: SampleRequest): Promise<StatsSample> {
  const { cgroup, pid, hasOwnNetwork, hostMemoryBytes } = request;
  const read = (controller: string, file: string) => cgroups.read(cgroup, controller, file);
  const isV2 = cgroups.mode === 'v2';
  const [cpu, system, memory, pids, blockIo, networks] = await Promise.all([
    isV2 ? cpuOfV2(read) : cpuOfV1(read),
    readFile('/proc/stat', 'utf8').then(systemCpu),
    isV2 ? memoryOfV2(read) : memoryOfV1(read),
    pidsOf(read),
    isV2 ? blockIoOfV2(read) : blockIoOfV1(read),
    hasOwnNetwork ? readFile(`/proc/${pid}/net/dev`, 'utf8').then(parseNetDev, () => ({})) : {},
  ]);
  return {
    at: request.now(),
    cpu: { ...cpu, ...system },
    memory: { ...memory, limitBytes: Math.min(memory.limitBytes, hostMemoryBytes) },
    pids,
    blockIo,
    networks,
  };
}

type Read = (controller: string, file: string) => Promise<string | undefined>;
type Cpu = Omit<StatsSample['cpu'], 'systemNs' | 'onlineCpus'>;

async function cpuOfV2(read: Read): Promise<Cpu> {
  const stat = parseFlat(await read('cpu', 'cpu.stat'));
  return {
    totalNs: (stat.usage_usec ?? 0) * NS_PER_US,
    userNs: (stat.user_usec ?? 0) * NS_PER_US,
    kernelNs: (stat.system_usec ?? 0) * NS_PER_US,
    periods: stat.nr_periods ?? 0,
    throttledPeriods: stat.nr_throttled ?? 0,
    throttledNs: (stat.throttled_usec ?? 0) * NS_PER_US,
  };
}

async function cpuOfV1(read: Read): Promise<Cpu> {
  const [usage, perCpu, ticks, stat] = await Promise.all([
    read('cpuacct', 'cpuacct.usage'),
    read('cpuacct', 'cpuacct.usage_percpu'),
    read('cpuacct', 'cpuacct.stat').then(parseFlat),
    read('cpu', 'cpu.stat').then(parseFlat),
  ]);
  return {
    totalNs: Number(usage ?? 0),
    perCpuNs: perCpu?.trim().split(/\s+/).map(Number),
    userNs: (ticks.user ?? 0) * NS_PER_TICK,
    kernelNs: (ticks.system ?? 0) * NS_PER_TICK,
    periods: stat.nr_periods ?? 0,
    throttledPeriods: stat.nr_throttled ?? 0,
    throttledNs: stat.throttled_time ?? 0,
  };
}

/** Time of all processors in all states, guest time counted once; and how many there are. Pure. */
export function systemCpu(procStat: string): { readonly systemNs: number; readonly onlineCpus: number } {
  const lines = procStat.split('\n');
  // user nice system idle iowait irq softirq: what docker's CLI divides by.
  const ticks = (lines[0] ?? '').trim().split(/\s+/).slice(1, 8).map(Number);
  const systemNs = ticks.reduce((sum, value) => sum + value, 0) * NS_PER_TICK;
  return { systemNs, onlineCpus: lines.filter((line) => /^cpu\d/.test(line)).length };
}

async function memoryOfV2(read: Read): Promise<StatsSample['memory']> {
  const [usage, max, stat] = await Promise.all([
    read('memory', 'memory.current'),
    read('memory', 'memory.max'),
    read('memory', 'memory.stat').then(parseFlat),
  ]);
  return { usageBytes: Number(usage ?? 0), limitBytes: numberOrInfinity(max), details: stat };
}

async function memoryOfV1(read: Read): Promise<StatsSample['memory']> {
  const [usage, maxUsage, max, stat] = await Promise.all([
    read('memory', 'memory.usage_in_bytes'),
    read('memory', 'memory.max_usage_in_bytes'),
    read('memory', 'memory.limit_in_bytes'),
    read('memory', 'memory.stat').then(parseFlat),
  ]);
  return {
    usageBytes: Number(usage ?? 0),
    maxUsageBytes: maxUsage === undefined ? undefined : Number(maxUsage),
    limitBytes: numberOrInfinity(max),
    details: stat,
  };
}

async function pidsOf(read: Read): Promise<StatsSample['pids']> {
  const [current, max] = await Promise.all([read('pids', 'pids.current'), read('pids', 'pids.max')]);
  const limit = numberOrInfinity(max);
  return { current: Number(current ?? 0), limit: Number.isFinite(limit) ? limit : undefined };
}

async function blockIoOfV2(read: Read): Promise<StatsSample['blockIo']> {
  return parseIoStat((await read('io', 'io.stat')) ?? '');
}

/** `8:0 rbytes=1 wbytes=2 rios=…`. Pure. */
export function parseIoStat(text: string): StatsSample['blockIo'] {
  return text.split('\n').flatMap((line) => {
    const [device = '', ...fields] = line.split(' ');
    const [major, minor] = device.split(':').map(Number);
    const values = new Map(fields.map((field) => [field.split('=')[0], Number(field.split('=')[1])]));
    if (major === undefined || minor === undefined || values.size === 0) return [];
    return [
      { major, minor, op: 'read', bytes: values.get('rbytes') ?? 0 },
      { major, minor, op: 'write', bytes: values.get('wbytes') ?? 0 },
    ];
  });
}

async function blockIoOfV1(read: Read): Promise<StatsSample['blockIo']> {
  const text =
    (await read('blkio', 'blkio.bfq.io_service_bytes_recursive')) ||
    (await read('blkio', 'blkio.throttle.io_service_bytes_recursive')) ||
    '';
  return text.split('\n').flatMap((line) => {
    const match = /^(\d+):(\d+) (\w+) (\d+)$/.exec(line);
    if (match === null) return [];
    return [{ major: Number(match[1]), minor: Number(match[2]), op: match[3] ?? '', bytes: Number(match[4]) }];
  });
}

/** Loopback is left out, as docker does. Pure. */
export function parseNetDev(text: string): Readonly<Record<string, NetworkCounters>> {
  const networks: Record<string, NetworkCounters> = {};
  for (const line of text.split('\n').slice(2)) {
    const [name = '', values = ''] = line.split(':');
    const field = values.trim().split(/\s+/).map(Number);
    if (name.trim() === '' || name.trim() === 'lo' || field.length < 12) continue;
    const at = (index: number) => field[index] ?? 0;
    networks[name.trim()] = {
      rxBytes: at(0),
      rxPackets: at(1),
      rxErrors: at(2),
      rxDropped: at(3),
      txBytes: at(8),
      txPackets: at(9),
      txErrors: at(10),
      txDropped: at(11),
    };
  }
  return networks;
}

function parseFlat(text: string | undefined): Record<string, number> {
  const pairs = (text ?? '')
    .split('\n')
    .filter(Boolean)
    .map((line) => line.split(' '));
  return Object.fromEntries(pairs.map(([name = '', value]) => [name, Number(value)]));
}

function numberOrInfinity(text: string | undefined): number {
  const trimmed = text?.trim() ?? 'max';
  return trimmed === 'max' ? Infinity : Number(trimmed);
}
