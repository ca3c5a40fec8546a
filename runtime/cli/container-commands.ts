/** What the commands about existing containers do: ps, logs, stop, kill, rm, inspect and so on. */
import { createWriteStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { AppError, isKind } from '../../shared/errors.ts';
import { formatBinaryBytes, formatBytes, parseBytes } from '../../shared/units.ts';
import { jsonLines } from './client.ts';
import { containerRows } from './container-rows.ts';
import { filterQuery } from './filters.ts';
import { moment } from './moment.ts';
import { formatObjects, formatRows, print, say } from './output.ts';
import { confirm } from './question.ts';
import { forEachName, type Session } from './session.ts';
import { copyOutput } from './streams.ts';
import { alignColumns } from './table.ts';
import { type Json, list, number, object, strings, text } from './values.ts';

export interface PsFlags {
  readonly all?: boolean;
  readonly filter?: readonly string[];
  readonly format?: string;
  readonly last?: string;
  readonly latest?: boolean;
  readonly trunc?: boolean;
  readonly quiet?: boolean;
  readonly size?: boolean;
}

export async function ps(session: Session, flags: PsFlags): Promise<void> {
  const limit = flags.latest === true ? '1' : flags.last;
  const answer = await session.engine.call('GET', '/containers/json', {
    query: { all: flags.all, limit, size: flags.size, filters: filterQuery(flags.filter) },
  });
  const columns: (readonly [string, string])[] = [
    ['ID', 'CONTAINER ID'],
    ['Image', 'IMAGE'],
    ['Command', 'COMMAND'],
    ['RunningFor', 'CREATED'],
    ['Status', 'STATUS'],
    ['Ports', 'PORTS'],
    ['Names', 'NAMES'],
  ];
  if (flags.size === true) columns.push(['Size', 'SIZE']);
  const rows = containerRows(list(answer), { noTrunc: flags.trunc === false, now: session.now() });
  print(formatRows(rows, columns, { format: flags.format, quiet: flags.quiet === true ? 'ID' : undefined }));
}

export interface LogsFlags {
  readonly follow?: boolean;
  readonly timestamps?: boolean;
  readonly details?: boolean;
  readonly since?: string;
  readonly until?: string;
  readonly tail?: string;
}

export async function logs(session: Session, name: string, flags: LogsFlags): Promise<void> {
  const details = object(await session.engine.call('GET', `/containers/${name}/json`));
  const stream = await session.engine.stream('GET', `/containers/${name}/logs`, {
    query: {
      stdout: 1,
      stderr: 1,
      follow: flags.follow,
      timestamps: flags.timestamps,
      details: flags.details,
      since: moment(flags.since, session.now()),
      until: moment(flags.until, session.now()),
      tail: flags.tail,
    },
  });
  await copyOutput(
    stream,
    { stdout: process.stdout, stderr: process.stderr },
    { multiplexed: object(details.Config).Tty !== true },
  );
}

export interface StopFlags {
  readonly signal?: string;
  readonly time?: string;
  readonly timeout?: string;
}

/** A verb without an answer, for each name; the names are printed as docker does. */
async function eachContainer(
  session: Session,
  names: readonly string[],
  verb: string,
  query: Record<string, string | undefined> = {},
): Promise<void> {
  await forEachName(session, names, async (name) => {
    await session.engine.call('POST', `/containers/${name}/${verb}`, { query });
    print(name);
  });
}

export function stop(session: Session, names: readonly string[], flags: StopFlags): Promise<void> {
  return eachContainer(session, names, 'stop', { t: flags.timeout ?? flags.time, signal: flags.signal });
}

export function restart(session: Session, names: readonly string[], flags: StopFlags): Promise<void> {
  return eachContainer(session, names, 'restart', { t: flags.timeout ?? flags.time, signal: flags.signal });
}

export function kill(session: Session, names: readonly string[], flags: StopFlags): Promise<void> {
  return eachContainer(session, names, 'kill', { signal: flags.signal ?? 'KILL' });
}

export function pause(session: Session, names: readonly string[]): Promise<void> {
  return eachContainer(session, names, 'pause');
}

export function unpause(session: Session, names: readonly string[]): Promise<void> {
  return eachContainer(session, names, 'unpause');
}

export async function rename(session: Session, name: string, to: string): Promise<void> {
  await session.engine.call('POST', `/containers/${name}/rename`, { query: { name: to } });
}

export async function wait(session: Session, names: readonly string[]): Promise<void> {
  await forEachName(session, names, async (name) => {
    print(text(object(await session.engine.call('POST', `/containers/${name}/wait`)).StatusCode));
  });
}

export interface RemoveFlags {
  readonly force?: boolean;
  readonly volumes?: boolean;
  readonly link?: boolean;
}

export async function rm(session: Session, names: readonly string[], flags: RemoveFlags): Promise<void> {
  await forEachName(session, names, async (name) => {
    try {
      await session.engine.call('DELETE', `/containers/${name}`, {
        query: { force: flags.force, v: flags.volumes, link: flags.link },
      });
    } catch (error) {
      // With --force an absent container is what the user wants, but they should hear of a misspelt name.
      if (flags.force !== true || !isKind(error, 'not-found')) throw error;
      say(`error: ${error.message}`);
      return;
    }
    print(name);
  });
}

export interface InspectFlags {
  readonly format?: string;
  readonly size?: boolean;
  readonly type?: string;
}

/** Containers first, then images, as docker looks. */
export async function inspect(session: Session, names: readonly string[], flags: InspectFlags): Promise<void> {
  const places = [
    { type: 'container', path: (name: string) => `/containers/${name}/json` },
    { type: 'image', path: (name: string) => `/images/${name}/json` },
    { type: 'network', path: (name: string) => `/networks/${name}` },
    { type: 'volume', path: (name: string) => `/volumes/${name}` },
  ].filter((place) => flags.type === undefined || place.type === flags.type);
  if (places.length === 0)
    throw new AppError(
      'invalid',
      `cannot inspect type ${JSON.stringify(flags.type)}: want container, image, network or volume`,
    );
  const found: unknown[] = [];
  await forEachName(session, names, async (name) => {
    for (const place of places) {
      try {
        found.push(
          await session.engine.call('GET', place.path(name), {
            query: { size: place.type === 'container' ? flags.size : undefined },
          }),
        );
        return;
      } catch (error) {
        if (!isKind(error, 'not-found')) throw error;
      }
    }
    throw new AppError('not-found', `No such ${flags.type ?? 'object'}: ${name}`);
  });
  if (found.length > 0 || flags.format === undefined) print(formatObjects(found, flags.format));
}

export async function top(session: Session, name: string, psArgs: readonly string[]): Promise<void> {
  const answer = object(
    await session.engine.call('GET', `/containers/${name}/top`, {
      query: { ps_args: psArgs.length > 0 ? psArgs.join(' ') : undefined },
    }),
  );
  print(alignColumns([strings(answer.Titles), ...list(answer.Processes).map(strings)]));
}

export async function diff(session: Session, name: string): Promise<void> {
  const changes = list(await session.engine.call('GET', `/containers/${name}/changes`)).map(object);
  print(changes.map((change) => `${'CAD'.charAt(number(change.Kind))} ${text(change.Path)}`).join('\n'));
}

export async function port(session: Session, name: string, wanted: string | undefined): Promise<void> {
  const ports = object(
    object(object(await session.engine.call('GET', `/containers/${name}/json`)).NetworkSettings).Ports,
  );
  const key = wanted === undefined || wanted.includes('/') ? wanted : `${wanted}/tcp`;
  const lines = Object.entries(ports).flatMap(([inside, bindings]) =>
    list(bindings)
      .map(object)
      .map((binding) => ({
        inside,
        outside: `${text(binding.HostIp).includes(':') ? `[${text(binding.HostIp)}]` : text(binding.HostIp)}:${text(binding.HostPort)}`,
      })),
  );
  const shown = lines.filter((line) => key === undefined || line.inside === key);
  if (key !== undefined && shown.length === 0)
    throw new AppError('not-found', `no public port '${key}' published for ${name}`);
  print(shown.map((line) => (key === undefined ? `${line.inside} -> ${line.outside}` : line.outside)).join('\n'));
}

export interface UpdateFlags {
  readonly [flag: string]: string | undefined;
}

export async function update(session: Session, names: readonly string[], flags: UpdateFlags): Promise<void> {
  const bytes = (value: string | undefined) =>
    value === undefined ? undefined : value === '-1' ? -1 : parseBytes(value);
  const whole = (value: string | undefined) => (value === undefined ? undefined : Number(value));
  const [policy, retries] = flags.restart?.split(':') ?? [];
  const json = {
    Memory: bytes(flags.memory),
    MemorySwap: bytes(flags.memorySwap),
    MemoryReservation: bytes(flags.memoryReservation),
    NanoCpus: flags.cpus === undefined ? undefined : Math.round(Number(flags.cpus) * 1e9),
    CpuShares: whole(flags.cpuShares),
    CpuPeriod: whole(flags.cpuPeriod),
    CpuQuota: whole(flags.cpuQuota),
    CpusetCpus: flags.cpusetCpus,
    CpusetMems: flags.cpusetMems,
    PidsLimit: whole(flags.pidsLimit),
    BlkioWeight: whole(flags.blkioWeight),
    RestartPolicy: policy === undefined ? undefined : { Name: policy, MaximumRetryCount: Number(retries ?? 0) },
  };
  await forEachName(session, names, async (name) => {
    const answer = object(await session.engine.call('POST', `/containers/${name}/update`, { json }));
    for (const warning of strings(answer.Warnings)) say(`WARNING: ${warning}`);
    print(name);
  });
}

export async function exportContainer(
  session: Session,
  name: string,
  flags: { readonly output?: string },
): Promise<void> {
  if (flags.output === undefined && process.stdout.isTTY)
    throw new AppError('invalid', 'cowardly refusing to export to a terminal: use -o FILE or a pipe');
  const tar = await session.engine.stream('GET', `/containers/${name}/export`);
  await pipeline(tar, flags.output === undefined ? process.stdout : createWriteStream(flags.output));
}

export interface CommitFlags {
  readonly author?: string;
  readonly change?: readonly string[];
  readonly message?: string;
  readonly pause?: boolean;
}

export async function commit(
  session: Session,
  name: string,
  target: string | undefined,
  flags: CommitFlags,
): Promise<void> {
  const { familiarName, parseReference } = await import('../../shared/reference.ts');
  const reference = target === undefined ? undefined : parseReference(target);
  const answer = await session.engine.call('POST', '/commit', {
    query: {
      container: name,
      repo: reference === undefined ? undefined : familiarName(reference),
      tag: reference?.tag,
      author: flags.author,
      comment: flags.message,
      changes: flags.change,
      pause: flags.pause === false ? 0 : 1,
    },
    json: {},
  });
  print(text(object(answer).Id));
}

export async function pruneContainers(
  session: Session,
  flags: { readonly filter?: readonly string[]; readonly force?: boolean },
): Promise<void> {
  if (
    !(await confirm(
      'WARNING! This will remove all stopped containers.\nAre you sure you want to continue?',
      flags.force,
    ))
  )
    return;
  const answer = object(
    await session.engine.call('POST', '/containers/prune', { query: { filters: filterQuery(flags.filter) } }),
  );
  const deleted = strings(answer.ContainersDeleted);
  if (deleted.length > 0) print(`Deleted Containers:\n${deleted.join('\n')}\n`);
  print(`Total reclaimed space: ${formatBytes(number(answer.SpaceReclaimed))}`);
}

export interface StatsFlags {
  readonly all?: boolean;
  readonly format?: string;
  readonly stream?: boolean;
  readonly trunc?: boolean;
}

/** docker's arithmetic: CPU over both samples, memory without the page cache that can be dropped at once. */
function statsRow(sample: Json, { noTrunc }: { readonly noTrunc: boolean }): Record<string, string> {
  const cpu = object(sample.cpu_stats);
  const before = object(sample.precpu_stats);
  const used = number(object(cpu.cpu_usage).total_usage) - number(object(before.cpu_usage).total_usage);
  const whole = number(cpu.system_cpu_usage) - number(before.system_cpu_usage);
  const percent = whole > 0 && used > 0 ? (used / whole) * (number(cpu.online_cpus) || 1) * 100 : 0;
  const memory = object(sample.memory_stats);
  const detail = object(memory.stats);
  const bytes = Math.max(
    0,
    number(memory.usage) - (number(detail.inactive_file) || number(detail.total_inactive_file)),
  );
  const limit = number(memory.limit);
  const networks = Object.values(object(sample.networks)).map(object);
  const sum = (key: string) => networks.reduce((total, item) => total + number(item[key]), 0);
  const io = list(object(sample.blkio_stats).io_service_bytes_recursive).map(object);
  const blocks = (operation: string) =>
    io
      .filter((item) => text(item.op).toLowerCase() === operation)
      .reduce((total, item) => total + number(item.value), 0);
  return {
    ID: noTrunc ? text(sample.id) : text(sample.id).slice(0, 12),
    Container: text(sample.id).slice(0, 12),
    Name: text(sample.name).replace(/^\//, ''),
    CPUPerc: `${percent.toFixed(2)}%`,
    MemUsage: `${formatBinaryBytes(bytes)} / ${formatBinaryBytes(limit)}`,
    MemPerc: `${(limit > 0 ? (bytes / limit) * 100 : 0).toFixed(2)}%`,
    NetIO: `${formatBytes(sum('rx_bytes'), 3)} / ${formatBytes(sum('tx_bytes'), 3)}`,
    BlockIO: `${formatBytes(blocks('read'), 3)} / ${formatBytes(blocks('write'), 3)}`,
    PIDs: String(number(object(sample.pids_stats).current)),
  };
}

const STATS_COLUMNS: readonly (readonly [string, string])[] = [
  ['ID', 'CONTAINER ID'],
  ['Name', 'NAME'],
  ['CPUPerc', 'CPU %'],
  ['MemUsage', 'MEM USAGE / LIMIT'],
  ['MemPerc', 'MEM %'],
  ['NetIO', 'NET I/O'],
  ['BlockIO', 'BLOCK I/O'],
  ['PIDs', 'PIDS'],
];

export async function stats(session: Session, names: readonly string[], flags: StatsFlags): Promise<void> {
  const { engine } = session;
  const wanted =
    names.length > 0
      ? names
      : list(await engine.call('GET', '/containers/json', { query: { all: flags.all } })).map((item) =>
          text(object(item).Id),
        );
  const show = (samples: readonly Json[]) =>
    formatRows(
      samples.map((sample) => statsRow(sample, { noTrunc: flags.trunc === false })),
      STATS_COLUMNS,
      { format: flags.format },
    );
  if (flags.stream === false) {
    const samples = await Promise.all(
      wanted.map((name) => engine.call('GET', `/containers/${name}/stats`, { query: { stream: 0 } })),
    );
    print(show(samples.map(object)));
    return;
  }
  const latest = new Map<string, Json>();
  const clear = process.stdout.isTTY && flags.format === undefined ? '\u001b[H\u001b[2J' : '';
  await Promise.all(
    wanted.map(async (name, index) => {
      const stream = await engine.stream('GET', `/containers/${name}/stats`, { query: { stream: 1 } });
      for await (const sample of jsonLines(stream)) {
        latest.set(name, object(sample));
        // The first one's rhythm is everybody's: one table a second.
        if (index === 0) process.stdout.write(`${clear}${show([...latest.values()])}\n`);
      }
    }),
  );
}
