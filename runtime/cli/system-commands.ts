/** What `version`, `info`, `events`, `system df`, `system prune`, `login` and `logout` do. */
import { AppError } from '../../shared/errors.ts';
import { formatBytes } from '../../shared/units.ts';
import { jsonLines } from './client.ts';
import { filterQuery } from './filters.ts';
import { imageRows } from './image-rows.ts';
import { moment } from './moment.ts';
import { formatObjects, formatRows, print, say } from './output.ts';
import { ask, confirm } from './question.ts';
import type { Session } from './session.ts';
import { type Json, list, number, object, strings, text } from './values.ts';
import { CLIENT_VERSION } from './version.ts';

export interface FormatFlags {
  readonly format?: string;
}

export async function version(session: Session, flags: FormatFlags): Promise<void> {
  const client = {
    Version: CLIENT_VERSION,
    ApiVersion: '1.52',
    NodeVersion: process.version.slice(1),
    Os: process.platform,
    Arch: process.arch,
  };
  if (flags.format === undefined)
    print(
      `Client: Berth ${client.Version}\n API version: ${client.ApiVersion}\n Node version: ${client.NodeVersion}\n OS/Arch: ${client.Os}/${client.Arch}`,
    );
  const server = object(await session.engine.call('GET', '/version'));
  if (flags.format !== undefined)
    return print(formatObjects([{ Client: client, Server: server }], flags.format).replace(/^\[(.*)\]$/s, '$1'));
  const parts = list(server.Components)
    .map(object)
    .map((part) => ` ${text(part.Name)}:\n  Version: ${text(part.Version)}`);
  print(
    [
      `\nServer: ${text(object(server.Platform).Name)}`,
      ` Version: ${text(server.Version)}`,
      ` API version: ${text(server.ApiVersion)} (minimum version ${text(server.MinAPIVersion)})`,
      ` OS/Arch: ${text(server.Os)}/${text(server.Arch)}`,
      ` Kernel version: ${text(server.KernelVersion)}`,
      ...parts,
    ].join('\n'),
  );
}

const INFO_LINES: readonly (readonly [label: string, value: (info: Json) => string])[] = [
  ['Containers', (info) => text(info.Containers)],
  [' Running', (info) => text(info.ContainersRunning)],
  [' Paused', (info) => text(info.ContainersPaused)],
  [' Stopped', (info) => text(info.ContainersStopped)],
  ['Images', (info) => text(info.Images)],
  ['Server Version', (info) => text(info.ServerVersion)],
  ['Storage Driver', (info) => text(info.Driver)],
  ['Logging Driver', (info) => text(info.LoggingDriver)],
  ['Cgroup Driver', (info) => text(info.CgroupDriver)],
  ['Cgroup Version', (info) => text(info.CgroupVersion)],
  ['Runtimes', (info) => Object.keys(object(info.Runtimes)).sort().join(' ')],
  ['Default Runtime', (info) => text(info.DefaultRuntime)],
  ['Security Options', (info) => list(info.SecurityOptions).map(text).join(' ')],
  ['Kernel Version', (info) => text(info.KernelVersion)],
  ['Operating System', (info) => text(info.OperatingSystem)],
  ['Architecture', (info) => text(info.Architecture)],
  ['CPUs', (info) => text(info.NCPU)],
  ['Total Memory', (info) => formatBytes(number(info.MemTotal))],
  ['Name', (info) => text(info.Name)],
  ['ID', (info) => text(info.ID)],
  ['Root Dir', (info) => text(info.DockerRootDir)],
];

export async function info(session: Session, flags: FormatFlags): Promise<void> {
  const answer = object(await session.engine.call('GET', '/info'));
  if (flags.format !== undefined) return print(formatObjects([answer], flags.format).replace(/^\[(.*)\]$/s, '$1'));
  const lines = INFO_LINES.map(([label, value]) => [label, value(answer)] as const).filter(([, value]) => value !== '');
  const status = list(answer.DriverStatus).map((pair) => `  ${list(pair).map(text).join(': ')}`);
  print(
    lines.flatMap(([label, value]) => [`${label}: ${value}`, ...(label === 'Storage Driver' ? status : [])]).join('\n'),
  );
  for (const warning of list(answer.Warnings)) say(text(warning));
}

export interface EventsFlags extends FormatFlags {
  readonly since?: string;
  readonly until?: string;
  readonly filter?: readonly string[];
}

export async function events(session: Session, flags: EventsFlags): Promise<void> {
  const stream = await session.engine.stream('GET', '/events', {
    query: {
      since: moment(flags.since, session.now()),
      until: moment(flags.until, session.now()),
      filters: filterQuery(flags.filter),
    },
  });
  for await (const line of jsonLines(stream)) {
    const event = object(line);
    if (flags.format !== undefined) {
      print(flags.format === 'json' ? JSON.stringify(event) : formatObjects([event], flags.format));
      continue;
    }
    const actor = object(event.Actor);
    const attributes = Object.entries(object(actor.Attributes)).map(([key, value]) => `${key}=${text(value)}`);
    const time = new Date(number(event.timeNano) / 1e6 || number(event.time) * 1000).toISOString();
    print(
      `${time} ${text(event.Type)} ${text(event.Action)} ${text(actor.ID)}${attributes.length > 0 ? ` (${attributes.join(', ')})` : ''}`,
    );
  }
}

export interface UsageFlags extends FormatFlags {
  readonly verbose?: boolean;
}

interface UsageRow {
  readonly type: string;
  readonly usage: Json;
}

/** Docker's table, and what sharing saves: logical counts every image whole, actual counts each layer once. */
export async function systemUsage(session: Session, flags: UsageFlags): Promise<void> {
  const [docker, berth] = await Promise.all([
    session.engine.call('GET', '/system/df', { query: { verbose: flags.verbose === true ? 1 : undefined } }),
    session.engine.call('GET', '/berth/v1/usage'),
  ]);
  const usage = object(docker);
  const own = object(berth);
  if (flags.format === 'json') return print(JSON.stringify({ ...usage, Berth: own }));
  const rows: readonly UsageRow[] = [
    { type: 'Images', usage: object(usage.ImageUsage) },
    { type: 'Containers', usage: object(usage.ContainerUsage) },
    { type: 'Local Volumes', usage: object(usage.VolumeUsage) },
    { type: 'Build Cache', usage: object(usage.BuildCacheUsage) },
  ];
  const table = rows.map(({ type, usage: kind }) => {
    const size = number(kind.TotalSize);
    const free = number(kind.Reclaimable);
    const percent = type !== 'Build Cache' && size > 0 ? ` (${Math.floor((free / size) * 100)}%)` : '';
    return {
      Type: type,
      TotalCount: String(number(kind.TotalCount)),
      Active: String(number(kind.ActiveCount)),
      Size: formatBytes(size),
      Reclaimable: `${formatBytes(free)}${percent}`,
    };
  });
  print(
    formatRows(
      table,
      [
        ['Type', 'TYPE'],
        ['TotalCount', 'TOTAL'],
        ['Active', 'ACTIVE'],
        ['Size', 'SIZE'],
        ['Reclaimable', 'RECLAIMABLE'],
      ],
      { format: flags.format },
    ),
  );
  if (flags.format !== undefined) return;
  const logical = number(own.LogicalBytes);
  const actual = number(own.ActualBytes);
  const parts = list(own.Parts).map(object);
  const ofImages = number(parts.find((part) => part.Name === 'images')?.Bytes);
  print(
    `\nLogical size of all images: ${formatBytes(logical)}\nActual size on disk: ${formatBytes(actual)}\nSaved by sharing: ${formatBytes(logical - ofImages)}`,
  );
  for (const part of parts) print(` ${text(part.Name)}: ${formatBytes(number(part.Bytes))}`);
  if (flags.verbose === true) {
    const images = list(object(usage.ImageUsage).Items);
    print(
      `\nImages space usage:\n\n${formatRows(imageRows(images), [
        ['Repository', 'REPOSITORY'],
        ['Tag', 'TAG'],
        ['ID', 'IMAGE ID'],
        ['Size', 'SIZE'],
        ['SharedSize', 'SHARED SIZE'],
        ['UniqueSize', 'UNIQUE SIZE'],
        ['Containers', 'CONTAINERS'],
      ])}`,
    );
    const containers = list(object(usage.ContainerUsage).Items).map(object);
    print(
      `\nContainers space usage:\n\n${formatRows(
        containers.map((item) => ({
          ID: text(item.Id).slice(0, 12),
          Image: text(item.Image),
          Size: formatBytes(number(item.SizeRw)),
          Status: text(item.Status),
          Names: list(item.Names)
            .map((name) => text(name).replace(/^\//, ''))
            .join(','),
        })),
        [
          ['ID', 'CONTAINER ID'],
          ['Image', 'IMAGE'],
          ['Size', 'SIZE'],
          ['Status', 'STATUS'],
          ['Names', 'NAMES'],
        ],
      )}`,
    );
  }
}

export interface PruneFlags {
  readonly all?: boolean;
  readonly volumes?: boolean;
  readonly filter?: readonly string[];
  readonly force?: boolean;
}

/** In docker's order: containers first, since they hold networks, volumes and images. */
export async function systemPrune(session: Session, flags: PruneFlags): Promise<void> {
  const filters = flags.filter ?? [];
  if (flags.volumes === true && filters.some((filter) => filter.startsWith('until=')))
    throw new AppError('invalid', 'cannot use --filter until with --volumes: volumes have no time of last use');
  // No record of the build cache has a label.
  const withCache = filters.every((filter) => filter.startsWith('until='));
  const warnings = [
    'all stopped containers',
    'all networks not used by at least one container',
    ...(flags.volumes === true ? ['all anonymous volumes not used by at least one container'] : []),
    flags.all === true ? 'all images without at least one container associated to them' : 'all dangling images',
    ...(withCache ? [flags.all === true ? 'unused build cache' : 'dangling build cache'] : []),
  ];
  const question = `WARNING! This will remove:\n${warnings.map((line) => `  - ${line}\n`).join('')}\nAre you sure you want to continue?`;
  if (!(await confirm(question, flags.force))) return;
  let reclaimedBytes = 0;
  const prune = async (path: string, own: readonly string[] = [], more = {}): Promise<Json> => {
    const query = { filters: filterQuery([...filters, ...own]), ...more };
    const answer = object(await session.engine.call('POST', path, { query }));
    reclaimedBytes += number(answer.SpaceReclaimed);
    return answer;
  };
  const tell = (title: string, names: readonly string[]): void => {
    if (names.length > 0) print(`${title}:\n${names.join('\n')}\n`);
  };
  tell('Deleted Containers', strings((await prune('/containers/prune')).ContainersDeleted));
  tell('Deleted Networks', strings((await prune('/networks/prune')).NetworksDeleted));
  if (flags.volumes === true) tell('Deleted Volumes', strings((await prune('/volumes/prune')).VolumesDeleted));
  const images = await prune('/images/prune', flags.all === true ? ['dangling=false'] : []);
  tell(
    'Deleted Images',
    list(images.ImagesDeleted)
      .map(object)
      .map(({ Untagged, Deleted }) =>
        Untagged === undefined ? `deleted: ${text(Deleted)}` : `untagged: ${text(Untagged)}`,
      ),
  );
  // After the images: what they shared with it is its own now.
  if (withCache)
    tell(
      'Deleted build cache objects',
      strings((await prune('/build/prune', [], { all: flags.all === true ? 1 : undefined })).CachesDeleted),
    );
  print(`Total reclaimed space: ${formatBytes(reclaimedBytes)}`);
}

export interface LoginFlags {
  readonly username?: string;
  readonly password?: string;
  readonly passwordStdin?: boolean;
}

async function readStdin(): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  return Buffer.concat(chunks)
    .toString('utf8')
    .replace(/\r?\n$/, '');
}

export async function login(session: Session, server: string | undefined, flags: LoginFlags): Promise<void> {
  if (flags.password !== undefined) say('warning: --password shows in the list of processes; use --password-stdin');
  const username = flags.username ?? (await ask('Username: ', { otherwise: '--username' }));
  const password =
    flags.passwordStdin === true
      ? await readStdin()
      : (flags.password ?? (await ask('Password: ', { hidden: true, otherwise: '--password-stdin' })));
  const host = server ?? 'docker.io';
  const answer = object(
    await session.engine.call('POST', '/auth', { json: { username, password, serveraddress: host } }),
  );
  const token = text(answer.IdentityToken);
  const credentials =
    token === '' ? ({ kind: 'password', username, password } as const) : ({ kind: 'identity-token', token } as const);
  await (await session.credentials()).set(host, credentials);
  print(text(answer.Status) || 'Login Succeeded');
}

export async function logout(session: Session, server: string | undefined): Promise<void> {
  const host = server ?? 'docker.io';
  const removed = await (await session.credentials()).remove(host);
  print(removed ? `Removing login credentials for ${host}` : `Not logged in to ${host}`);
}
