/** What `pull`, `push`, `images`, `tag`, `rmi`, `history`, `save`, `load`, `import` and `image prune` do. */
import { createWriteStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { shortId } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import { familiarName, familiarReference, parseReference, type Reference } from '../../shared/reference.ts';
import { formatBytes, formatSpan } from '../../shared/units.ts';
import { filterQuery } from './filters.ts';
import { imageRows } from './image-rows.ts';
import { imageTree, type TreeImage } from './image-tree.ts';
import { formatRows, print, say } from './output.ts';
import { showProgress } from './progress.ts';
import { confirm } from './question.ts';
import { forEachName, type Session } from './session.ts';
import { openInput } from './streams.ts';
import { type Json, list, number, object, strings, text } from './values.ts';

/** The header with which the engine signs in to the image's registry; empty when nobody logged in. */
export async function registryAuth(session: Session, reference: Reference): Promise<Record<string, string>> {
  const found = await (await session.credentials()).get(reference.host);
  if (found === undefined) return {};
  const auth =
    found.kind === 'password'
      ? { username: found.username, password: found.password }
      : found.kind === 'identity-token'
        ? { identitytoken: found.token }
        : { registrytoken: found.token };
  return {
    'x-registry-auth': Buffer.from(JSON.stringify({ ...auth, serveraddress: reference.host })).toString('base64url'),
  };
}

export interface PullFlags {
  readonly allTags?: boolean;
  readonly platform?: string;
  readonly quiet?: boolean;
}

/** Pulls with progress on stderr when `onStderr`, so that `run` keeps stdout for the container. */
export async function pullImage(
  session: Session,
  name: string,
  flags: PullFlags & { readonly onStderr?: boolean },
): Promise<void> {
  const reference = parseReference(name, { bare: true });
  const stream = await session.engine.stream('POST', '/images/create', {
    query: {
      fromImage: familiarName(reference),
      tag: flags.allTags === true ? undefined : (reference.digest ?? reference.tag ?? 'latest'),
      platform: flags.platform,
    },
    headers: await registryAuth(session, reference),
  });
  await showProgress(stream, {
    output: flags.onStderr === true ? process.stderr : process.stdout,
    quiet: flags.quiet === true,
  });
}

export async function pull(session: Session, name: string, flags: PullFlags): Promise<void> {
  const reference = parseReference(name, { bare: true });
  if (flags.allTags === true && (reference.tag !== undefined || reference.digest !== undefined))
    throw new AppError('invalid', "tag can't be used with --all-tags/-a");
  if (flags.allTags !== true && flags.quiet !== true && reference.tag === undefined && reference.digest === undefined)
    print('Using default tag: latest');
  await pullImage(session, name, flags);
  print(flags.allTags === true ? familiarName(reference) : familiarReference(parseReference(name)));
}

export interface PushFlags {
  readonly allTags?: boolean;
  readonly quiet?: boolean;
}

export async function push(session: Session, name: string, flags: PushFlags): Promise<void> {
  const reference = parseReference(name, { bare: true });
  if (flags.allTags === true && reference.tag !== undefined)
    throw new AppError('invalid', "tag can't be used with --all-tags/-a");
  const stream = await session.engine.stream('POST', `/images/${familiarName(reference)}/push`, {
    query: { tag: flags.allTags === true ? undefined : (reference.tag ?? 'latest') },
    headers: { 'x-registry-auth': 'e30', ...(await registryAuth(session, reference)) },
  });
  await showProgress(stream, { output: process.stdout, quiet: flags.quiet === true });
  if (flags.quiet === true) print(familiarReference(reference));
}

export interface ImagesFlags {
  readonly all?: boolean;
  readonly digests?: boolean;
  readonly filter?: readonly string[];
  readonly format?: string;
  readonly trunc?: boolean;
  readonly quiet?: boolean;
  readonly tree?: boolean;
}

export async function images(session: Session, name: string | undefined, flags: ImagesFlags): Promise<void> {
  const filters = name === undefined ? flags.filter : [...(flags.filter ?? []), `reference=${name}`];
  const answer = await session.engine.call('GET', '/images/json', {
    query: { all: flags.all, digests: flags.digests, filters: filterQuery(filters) },
  });
  if (flags.tree === true) {
    if (flags.format !== undefined || flags.quiet === true || flags.digests === true)
      throw new AppError('invalid', 'cannot use --tree with --format, --quiet or --digests: it has a form of its own');
    return print(
      imageTree(await Promise.all(list(answer).map((image) => treeImage(session, object(image))))).join('\n'),
    );
  }
  const rows = imageRows(list(answer), { noTrunc: flags.trunc === false, now: session.now() });
  const columns: (readonly [string, string])[] = [
    ['Repository', 'REPOSITORY'],
    ['Tag', 'TAG'],
    ...(flags.digests === true ? [['Digest', 'DIGEST'] as const] : []),
    ['ID', 'IMAGE ID'],
    ['CreatedSince', 'CREATED'],
    ['Size', 'SIZE'],
  ];
  print(formatRows(rows, columns, { format: flags.format, quiet: flags.quiet === true ? 'ID' : undefined }));
}

async function treeImage(session: Session, image: Json): Promise<TreeImage> {
  const id = text(image.Id);
  const names = strings(image.RepoTags).filter((name) => name !== '<none>:<none>');
  const { RootFS } = object(await session.engine.call('GET', `/images/${id}/json`));
  return { label: [...names, `(${shortId(id)})`].join(' '), layers: strings(object(RootFS).Layers) };
}

export async function tag(session: Session, source: string, target: string): Promise<void> {
  const reference = parseReference(target);
  if (reference.digest !== undefined) throw new AppError('invalid', 'refusing to create a tag with a digest reference');
  await session.engine.call('POST', `/images/${source}/tag`, {
    query: { repo: familiarName(reference), tag: reference.tag },
  });
}

export interface RemoveImageFlags {
  readonly force?: boolean;
  readonly prune?: boolean;
}

export async function rmi(session: Session, names: readonly string[], flags: RemoveImageFlags): Promise<void> {
  await forEachName(session, names, async (name) => {
    const removals = await session.engine.call('DELETE', `/images/${name}`, {
      query: { force: flags.force, noprune: flags.prune === false },
    });
    for (const removal of list(removals).map(object))
      print(
        removal.Untagged === undefined ? `Deleted: ${text(removal.Deleted)}` : `Untagged: ${text(removal.Untagged)}`,
      );
  });
}

export interface HistoryFlags {
  readonly format?: string;
  readonly trunc?: boolean;
  readonly quiet?: boolean;
  readonly human?: boolean;
}

export async function history(session: Session, name: string, flags: HistoryFlags): Promise<void> {
  const now = session.now();
  const cut = (value: string, width: number) =>
    flags.trunc === false || value.length <= width ? value : `${value.slice(0, width - 1)}…`;
  const rows = list(await session.engine.call('GET', `/images/${name}/history`))
    .map(object)
    .map((step) => {
      const id = text(step.Id);
      const createdMs = number(step.Created) * 1000;
      return {
        ID: id.startsWith('sha256:') && flags.trunc !== false ? shortId(id) : id,
        CreatedAt: new Date(createdMs).toISOString(),
        CreatedSince: createdMs > 0 ? `${formatSpan(now - createdMs)} ago` : 'N/A',
        CreatedBy: cut(text(step.CreatedBy).replace(/\s+/g, ' '), 45),
        Size: flags.human === false ? String(number(step.Size)) : formatBytes(number(step.Size), 3),
        Comment: text(step.Comment),
        Tags: strings(step.Tags).join(','),
      };
    });
  print(
    formatRows(
      rows,
      [
        ['ID', 'IMAGE'],
        ['CreatedSince', 'CREATED'],
        ['CreatedBy', 'CREATED BY'],
        ['Size', 'SIZE'],
        ['Comment', 'COMMENT'],
      ],
      { format: flags.format, quiet: flags.quiet === true ? 'ID' : undefined },
    ),
  );
}

export interface SaveFlags {
  readonly output?: string;
}

export async function save(session: Session, names: readonly string[], flags: SaveFlags): Promise<void> {
  if (flags.output === undefined && process.stdout.isTTY)
    throw new AppError('invalid', 'cowardly refusing to save to a terminal: use -o FILE or a pipe');
  const tar = await session.engine.stream('GET', '/images/get', { query: { names } });
  await pipeline(tar, flags.output === undefined ? process.stdout : createWriteStream(flags.output));
}

export interface LoadFlags {
  readonly input?: string;
  readonly quiet?: boolean;
}

export async function load(session: Session, flags: LoadFlags): Promise<void> {
  if (flags.input === undefined && process.stdin.isTTY)
    throw new AppError('invalid', 'requested load from stdin, but stdin is a terminal: use -i FILE');
  const body = await openInput(flags.input ?? '-');
  const stream = await session.engine.stream('POST', '/images/load', {
    query: { quiet: flags.quiet === true ? 1 : 0 },
    body,
  });
  await showProgress(stream, { output: process.stdout, quiet: false });
}

export interface ImportFlags {
  readonly change?: readonly string[];
  readonly message?: string;
  readonly platform?: string;
}

export async function importImage(
  session: Session,
  file: string,
  name: string | undefined,
  flags: ImportFlags,
): Promise<void> {
  if (/^https?:\/\//.test(file))
    throw new AppError('unsupported', 'cannot import from a URL: download the file, or pipe it in as -');
  const reference = name === undefined ? undefined : parseReference(name, { bare: true });
  const stream = await session.engine.stream('POST', '/images/create', {
    query: {
      fromSrc: '-',
      repo: reference && familiarName(reference),
      tag: reference?.tag,
      message: flags.message,
      platform: flags.platform,
      changes: flags.change,
    },
    body: await openInput(file),
  });
  await showProgress(stream, { output: process.stdout, quiet: false });
}

export interface CollectFlags {
  readonly dryRun?: boolean;
}

export async function collectImages(session: Session, flags: CollectFlags): Promise<void> {
  const query = { dryRun: flags.dryRun === true ? 1 : undefined };
  const answer = object(await session.engine.call('POST', '/berth/v1/images/gc', { query }));
  for (const removal of list(answer.Removals).map(object))
    say(removal.Untagged === undefined ? `deleted: ${text(removal.Deleted)}` : `untagged: ${text(removal.Untagged)}`);
  const words = flags.dryRun === true ? 'Would reclaim' : 'Total reclaimed space';
  print(`${words}: ${formatBytes(number(answer.ReclaimedBytes))}`);
}

export interface PruneFlags {
  readonly all?: boolean;
  readonly filter?: readonly string[];
  readonly force?: boolean;
}

export async function pruneImages(session: Session, flags: PruneFlags): Promise<void> {
  const what =
    flags.all === true ? 'all images without at least one container associated to them' : 'all dangling images';
  if (!(await confirm(`WARNING! This will remove ${what}.\nAre you sure you want to continue?`, flags.force))) return;
  const filters = [...(flags.filter ?? []), ...(flags.all === true ? ['dangling=false'] : [])];
  const answer = object(
    await session.engine.call('POST', '/images/prune', { query: { filters: filterQuery(filters) } }),
  );
  for (const removal of list(answer.ImagesDeleted).map(object))
    say(removal.Untagged === undefined ? `deleted: ${text(removal.Deleted)}` : `untagged: ${text(removal.Untagged)}`);
  print(`Total reclaimed space: ${formatBytes(number(answer.SpaceReclaimed))}`);
}
