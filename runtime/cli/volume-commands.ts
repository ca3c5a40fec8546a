/** What `berth volume …` does. */
import { createWriteStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { AppError } from '../../shared/errors.ts';
import { formatBytes } from '../../shared/units.ts';
import { filterQuery } from './filters.ts';
import { formatRows, print } from './output.ts';
import { confirm } from './question.ts';
import { forEachName, type Session } from './session.ts';
import { openInput } from './streams.ts';
import { list, number, object, strings, text } from './values.ts';

const volumePath = (name: string) => `/volumes/${encodeURIComponent(name)}`;

export interface CreateVolumeFlags {
  readonly driver?: string;
  readonly label?: readonly string[];
  readonly opt?: readonly string[];
}

export async function createVolume(
  session: Session,
  name: string | undefined,
  flags: CreateVolumeFlags,
): Promise<void> {
  const volume = await session.engine.call('POST', '/volumes/create', {
    json: { Name: name, Driver: flags.driver, Labels: pairs(flags.label), DriverOpts: pairs(flags.opt) },
  });
  print(text(object(volume).Name));
}

function pairs(entries: readonly string[] = []): Record<string, string> {
  return Object.fromEntries(
    entries.map((entry) => {
      const equals = entry.indexOf('=');
      return equals === -1 ? [entry, ''] : [entry.slice(0, equals), entry.slice(equals + 1)];
    }),
  );
}

export interface ListVolumesFlags {
  readonly filter?: readonly string[];
  readonly format?: string;
  readonly quiet?: boolean;
}

export async function listVolumes(session: Session, flags: ListVolumesFlags): Promise<void> {
  const answer = object(
    await session.engine.call('GET', '/volumes', { query: { filters: filterQuery(flags.filter) } }),
  );
  const rows = list(answer.Volumes)
    .map(object)
    .map((volume) => ({
      Name: text(volume.Name),
      Driver: text(volume.Driver),
      Scope: text(volume.Scope),
      Mountpoint: text(volume.Mountpoint),
      Labels: Object.entries(object(volume.Labels))
        .map(([key, value]) => `${key}=${text(value)}`)
        .join(','),
    }));
  if (flags.quiet === true) {
    for (const { Name } of rows) print(Name);
    return;
  }
  print(
    formatRows(
      rows,
      [
        ['Driver', 'DRIVER'],
        ['Name', 'VOLUME NAME'],
      ],
      { format: flags.format },
    ),
  );
}

export async function removeVolumes(
  session: Session,
  names: readonly string[],
  flags: { readonly force?: boolean },
): Promise<void> {
  await forEachName(session, names, async (name) => {
    await session.engine.call('DELETE', volumePath(name), { query: { force: flags.force } });
    print(name);
  });
}

export async function pruneVolumes(
  session: Session,
  flags: { readonly all?: boolean; readonly filter?: readonly string[]; readonly force?: boolean },
): Promise<void> {
  const what = flags.all === true ? 'all volumes' : 'anonymous volumes';
  const question = `WARNING! This will remove ${what} not used by at least one container.\nAre you sure you want to continue?`;
  if (!(await confirm(question, flags.force))) return;
  const filters = [...(flags.filter ?? []), ...(flags.all === true ? ['all=true'] : [])];
  const answer = object(
    await session.engine.call('POST', '/volumes/prune', { query: { filters: filterQuery(filters) } }),
  );
  const deleted = strings(answer.VolumesDeleted);
  if (deleted.length > 0) print(`Deleted Volumes:\n${deleted.join('\n')}\n`);
  print(`Total reclaimed space: ${formatBytes(number(answer.SpaceReclaimed))}`);
}

/** Writes a volume as a tar to a file, or to stdout unless that is a terminal. */
export async function exportVolume(session: Session, name: string, flags: { readonly output?: string }): Promise<void> {
  if (flags.output === undefined && process.stdout.isTTY)
    throw new AppError('invalid', 'cannot write a tar to a terminal: use --output, or redirect');
  const tar = await session.engine.stream('GET', `/berth/v1${volumePath(name)}/export`);
  await pipeline(tar, flags.output === undefined ? process.stdout : createWriteStream(flags.output));
}

/** Fills an empty volume from a tar; `-` is stdin. */
export async function importVolume(session: Session, name: string, file: string): Promise<void> {
  const body = await openInput(file);
  await session.engine.call('POST', `/berth/v1${volumePath(name)}/import`, { body });
  print(name);
}
