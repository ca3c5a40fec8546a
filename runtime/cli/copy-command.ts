/**
 * `berth cp`, by docker's rules for what a path means. Archives are made and unpacked by the host's tar, which follows
 * no link that an archive has brought along; names are changed on the way.
 * https://docs.docker.com/reference/cli/docker/container/cp/
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { lstat, readlink, stat } from 'node:fs/promises';
import type { IncomingHttpHeaders } from 'node:http';
import { basename, dirname, isAbsolute, resolve } from 'node:path';
import { Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { extract, pack } from 'tar-stream';
import { AppError, hasCode, isKind } from '../../shared/errors.ts';
import { say } from './output.ts';
import type { Session } from './session.ts';
import { number, object, text } from './values.ts';

export interface CopyFlags {
  readonly archive?: boolean;
  readonly followLink?: boolean;
  readonly quiet?: boolean;
}

/** One side of a copy. */
export type Place =
  | { readonly kind: 'container'; readonly container: string; readonly path: string }
  | { readonly kind: 'local'; readonly path: string }
  | { readonly kind: 'stream' };

interface PathInfo {
  readonly path: string;
  readonly exists: boolean;
  readonly isDirectory: boolean;
  /** Where a link leads in the end; '' when it is none. */
  readonly linkTarget: string;
}

/** `CONTAINER:PATH`, `PATH` or `-`. What begins with `/` or `.` is local, whatever colons follow. Pure. */
export function parsePlace(argument: string): Place {
  if (argument === '-') return { kind: 'stream' };
  const colon = argument.indexOf(':');
  if (isAbsolute(argument) || argument.startsWith('.') || colon <= 0) return { kind: 'local', path: argument };
  return { kind: 'container', container: argument.slice(0, colon), path: argument.slice(colon + 1) };
}

export async function cp(session: Session, from: string, to: string, flags: CopyFlags): Promise<void> {
  const source = parsePlace(from);
  const target = parsePlace(to);
  if (source.kind === 'container' && target.kind === 'container')
    throw new AppError('invalid', 'copying between containers is not supported');
  if (source.kind === 'container') return copyOut(session, source, { target, flags });
  if (target.kind === 'container') return copyIn(session, source, { target, flags });
  throw new AppError('invalid', 'must specify at least one container source');
}

type ContainerPlace = Extract<Place, { readonly kind: 'container' }>;

async function copyOut(
  session: Session,
  source: ContainerPlace,
  { target, flags }: { readonly target: Place; readonly flags: CopyFlags },
): Promise<void> {
  let path = source.path;
  const info = await containerInfo(session, source.container, path);
  if (flags.followLink === true && info.linkTarget !== '') {
    const followed = await containerInfo(session, source.container, info.linkTarget);
    if (followed.exists) path = keepEnding(info.linkTarget, path);
  }
  const archive = await session.engine.stream('GET', `/containers/${source.container}/archive`, { query: { path } });
  if (target.kind !== 'local') {
    await pipeline(archive, process.stdout);
    return;
  }
  const { isDirectory } = statOf(archive.headers);
  const plan = planCopy({ path, isDirectory }, await localInfo(target.path));
  await unpack(renamed(archive, plan), plan.directory, flags);
  if (flags.quiet !== true) say(`Successfully copied to ${resolve(target.path)}`);
}

async function copyIn(
  session: Session,
  source: Place,
  { target, flags }: { readonly target: ContainerPlace; readonly flags: CopyFlags },
): Promise<void> {
  let info = await containerInfo(session, target.container, target.path);
  if (info.linkTarget !== '') {
    const followed = await containerInfo(session, target.container, info.linkTarget);
    info = { ...followed, path: keepEnding(info.linkTarget, target.path) };
  }
  const put = (body: Readable, path: string) =>
    session.engine.call('PUT', `/containers/${target.container}/archive`, {
      query: { path, noOverwriteDirNonDir: true, copyUIDGID: flags.archive },
      body,
    });
  if (source.kind !== 'local') {
    if (info.exists && !info.isDirectory)
      throw new AppError('invalid', `destination "${target.container}:${target.path}" must be a directory`);
    await put(process.stdin, target.path);
    return;
  }
  const path = flags.followLink === true ? await followLocal(source.path) : source.path;
  const found = await localInfo(path);
  if (!found.exists) throw new AppError('not-found', `lstat ${resolve(path)}: no such file or directory`);
  const plan = planCopy({ path: resolveKeeping(path), isDirectory: found.isDirectory }, info);
  await put(renamed(packed(path), plan), plan.directory);
  if (flags.quiet !== true) say(`Successfully copied to ${target.container}:${target.path}`);
}

export interface CopyPlan {
  /** Where to unpack; it exists. */
  readonly directory: string;
  /** First part of the names in the archive, and what it becomes. */
  readonly from: string;
  readonly to: string;
}

/**
 * docker's table of what goes where. The archive's names begin with the last part of the source's path. Pure.
 * @throws AppError 'invalid' when a directory should go where a file is, or a file into a directory that is not there
 */
export function planCopy(source: { readonly path: string; readonly isDirectory: boolean }, target: PathInfo): CopyPlan {
  const from = lastPart(source.path);
  const wantsDirectory = /\/\.?$/.test(target.path);
  const contentsOnly = /(?:^|\/)\.$/.test(source.path);
  if (target.exists && target.isDirectory)
    return { directory: target.path, from, to: contentsOnly || from === '/' ? '.' : from };
  const directory = dirname(stripEnding(target.path));
  const to = basename(stripEnding(target.path));
  if (target.exists) {
    if (source.isDirectory) throw new AppError('invalid', 'cannot copy directory');
    if (wantsDirectory) throw new AppError('invalid', 'not a directory');
    return { directory, from, to };
  }
  if (!source.isDirectory && wantsDirectory)
    throw new AppError('invalid', `destination directory "${target.path}" must exist`);
  return { directory, from, to };
}

function stripEnding(path: string): string {
  return path.replace(/(?<=.)\/\.?$/, '');
}

function lastPart(path: string): string {
  return /(?:^|\/)\.$/.test(path) ? '.' : basename(path) || '/';
}

/** A final `/` or `/.` says something; it survives what the rest is resolved to. */
function keepEnding(path: string, original: string): string {
  const ending = /\/\.?$/.exec(original)?.[0] ?? '';
  return ending === '' || path.endsWith(ending) ? path : `${stripEnding(path)}${ending}`;
}

function resolveKeeping(path: string): string {
  return keepEnding(resolve(path), path === '.' ? '/.' : path);
}

async function containerInfo(session: Session, container: string, path: string): Promise<PathInfo> {
  try {
    const { headers } = await session.engine.stream('HEAD', `/containers/${container}/archive`, { query: { path } });
    return { path, exists: true, ...statOf(headers) };
  } catch (error) {
    if (!isKind(error, 'not-found')) throw error;
    // Of a missing container every later request says the same.
    return { path, exists: false, isDirectory: false, linkTarget: '' };
  }
}

/** Go's bit of os.FileMode. */
const GO_DIRECTORY = 2 ** 31;
const STDERR_KEPT_CHARACTERS = 4096;

function statOf(headers: IncomingHttpHeaders): {
  readonly isDirectory: boolean;
  readonly linkTarget: string;
} {
  const header = headers['x-docker-container-path-stat'];
  const stat = object(JSON.parse(Buffer.from(String(header ?? ''), 'base64').toString() || '{}'));
  return { isDirectory: number(stat.mode) >= GO_DIRECTORY, linkTarget: text(stat.linkTarget) };
}

async function localInfo(path: string): Promise<PathInfo> {
  const found = await stat(path).catch(() => undefined);
  return { path, exists: found !== undefined, isDirectory: found?.isDirectory() === true, linkTarget: '' };
}

async function followLocal(path: string): Promise<string> {
  const info = await lstat(stripEnding(path)).catch(() => undefined);
  if (info?.isSymbolicLink() !== true) return path;
  const target = await readlink(stripEnding(path));
  return keepEnding(resolve(dirname(path), target), path);
}

/** A tar whose names begin with the last part of the path, after `./`. */
function packed(path: string): Readable {
  const full = resolveKeeping(path);
  const isWhole = ['.', '/'].includes(lastPart(full));
  const directory = isWhole ? stripEnding(full) : dirname(stripEnding(full));
  const what = isWhole ? '.' : `./${basename(stripEnding(full))}`;
  const child = spawn('tar', ['--create', '--file=-', '--numeric-owner', `--directory=${directory}`, '--', what], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const ended = endOf(child, `cannot read ${JSON.stringify(path)}`);
  ended.catch((error) => child.stdout.destroy(error));
  return child.stdout;
}

/** Unpacks a tar with the host's tar; owners are the caller unless `archive`. @throws AppError 'unavailable' */
export async function unpack(archive: Readable, directory: string, flags: CopyFlags): Promise<void> {
  const owner = flags.archive === true ? ['--same-owner', '--numeric-owner'] : ['--no-same-owner'];
  const child = spawn(
    'tar',
    ['--extract', '--file=-', '--preserve-permissions', ...owner, `--directory=${directory}`],
    {
      stdio: ['pipe', 'ignore', 'pipe'],
    },
  );
  const ended = endOf(child, `cannot write to ${JSON.stringify(directory)}`);
  // Why tar has stopped reading is told by its end.
  const fed = pipeline(archive, child.stdin).catch((error) => {
    if (!hasCode(error, 'EPIPE', 'ERR_STREAM_PREMATURE_CLOSE')) throw error;
  });
  await Promise.all([fed, ended]);
}

async function endOf(
  child: ChildProcessByStdio<null | Writable, null | Readable, Readable>,
  what: string,
): Promise<void> {
  let words = '';
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    words = (words + chunk).slice(-STDERR_KEPT_CHARACTERS);
  });
  const [code] = await once(child, 'close');
  if (code !== 0) throw new AppError('unavailable', `${what}: ${words.trim() || `tar ended with code ${code}`}`);
}

/** The same archive with other names. */
function renamed(archive: Readable, { from, to }: CopyPlan): Readable {
  if (from === to) return archive;
  const reader = extract();
  const writer = pack();
  const copied = async () => {
    for await (const entry of reader) {
      const { name, linkname, type } = entry.header;
      const link =
        type === 'link' && typeof linkname === 'string' ? { linkname: renameEntry(linkname, { from, to }) } : {};
      const target = writer.entry({ ...entry.header, name: renameEntry(name, { from, to }), ...link });
      await pipeline(entry, target);
    }
    writer.finalize();
  };
  Promise.all([pipeline(archive, reader), copied()]).catch((error) => writer.destroy(error));
  return Readable.from(writer, { objectMode: false });
}

/** Pure. `.` and `/` as the first part mean everything. */
export function renameEntry(name: string, { from, to }: Pick<CopyPlan, 'from' | 'to'>): string {
  const clean = name.replace(/^(?:\.?\/)+/, '').replace(/^\.$/, '');
  if (from === '.' || from === '/') return clean === '' ? to : `${to}/${clean}`;
  return clean === from || clean.startsWith(`${from}/`) ? `${to}${clean.slice(from.length)}` : clean;
}
