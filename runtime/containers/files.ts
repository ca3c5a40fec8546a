/**
 * Files of a container, read and written as they are seen inside it: `cp` both ways, and what a path is.
 *
 * No path is ever followed from the host (CVE-2018-15664, CVE-2019-10152, CVE-2021-41089, CVE-2026-42306). Each
 * operation is one short-lived OCI container over the same root filesystem and volumes, in which the host's own tar
 * runs; a link, however often it is swapped meanwhile, leads nowhere but into the container. Nothing of the container is
 * executed or loaded (CVE-2019-14271): programs, loader and libraries are the host's, bound below /dev, and everything
 * else is mounted so that the kernel refuses to map it as code. Archives are decompressed before they get there
 * (CVE-2026-41567).
 *
 * Like Docker's, it sees binds and volumes but neither tmpfs nor /dev, /proc and /sys.
 */
import { mkdir, rm, stat, writeFile } from 'node:fs/promises';
import { join, posix } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { AppError } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { decompress } from '../images/decompress.ts';
import { type OpenCommand, openCommand } from '../kernel/command.ts';
import { findHostTools, type HostTools } from '../kernel/host-tools.ts';
import type { Mounts } from '../kernel/mount.ts';
import type { OciRuntime } from '../kernel/oci-runtime.ts';
import type { TarEntry } from '../layers/tar.ts';
import { rewriteTar } from '../layers/tar-rewrite.ts';
import { nameFromUtf8 } from '../layers/tree.ts';
import type { MountPoint } from './container.ts';

/** A container's files while somebody looks at them. */
export interface FileView {
  /** Id or name, as in messages. */
  readonly name: string;
  /** Mounted on the host. */
  readonly rootfs: string;
  readonly mounts: readonly MountPoint[];
  readonly isReadOnly: boolean;
}

/** lstat of a path; a trailing `/` or `/.` looks behind a link, as everywhere. */
export interface PathStat {
  readonly name: string;
  readonly sizeBytes: number;
  /** As in stat(2), type and all. */
  readonly mode: number;
  /** Seconds since 1970 with nine digits of fraction. */
  readonly mtime: string;
  /** Of a link: where it leads in the end, as an absolute path; else ''. */
  readonly linkTarget: string;
}

export interface WriteFilesOptions extends Cancelable {
  /** A directory is not replaced by a file. */
  readonly keepDirectories?: boolean;
  /** All files get this owner instead of the archive's. */
  readonly owner?: { readonly uid: number; readonly gid: number } | undefined;
}

export interface ContainerFiles {
  /** @throws AppError 'not-found' in Docker's words */
  stat(view: FileView, path: string): Promise<PathStat>;
  /**
   * What is at path as a tar whose names begin with its last part. The caller owns the stream and must end it; `view`
   * stays in use until then. @throws as stat
   */
  read(view: FileView, path: string): Promise<{ readonly stat: PathStat; readonly tar: Readable }>;
  /**
   * Unpacks a tar (plain, gzip, bzip2, xz or zstd; consumed whole) into a directory that exists.
   * @throws AppError 'not-found', 'invalid' (no directory; what is no tar), 'denied' (read-only), in Docker's words
   */
  write(view: FileView, path: string, tar: Readable, options?: WriteFilesOptions): Promise<void>;
}

export interface ContainerFilesPorts {
  readonly runtime: OciRuntime;
  readonly mounts: Pick<Mounts, 'mountBind' | 'unmount'>;
  /** For bundles; emptied by a reboot. */
  readonly directory: string;
  readonly cgroupParent: string;
  readonly randomId: () => string;
}

const TOOLS = ['sh', 'tar', 'stat', 'realpath'] as const;
/** Below /dev, where nothing of a container's own filesystem is seen. */
const TOOLS_AT = '/dev/.berth';
const NOT_FOUND = 9;
const NOT_A_DIRECTORY = 10;

// The shell sees what comes from outside only as "$1" and so on, never as words to interpret.
const TOOL = `tool() { t=$1; shift; "$LOADER" --inhibit-cache --library-path "$LIBRARIES" "$t" "$@"; }
missing() {
  case "$1" in */ | */.) p=\${1%.}; [ -e "\${p%/}" ] && exit ${NOT_A_DIRECTORY} ;; esac
  exit ${NOT_FOUND}
}`;
const STAT = `${TOOL}
tool "$STAT" --printf '%f %s %.9Y\\0' -- "$1" 2>/dev/null || missing "$1"
if [ -L "$1" ]; then tool "$REALPATH" --canonicalize-missing --zero -- "$1"; else printf '\\0'; fi`;
const READ = `${STAT}
if [ -d "$1" ] && ! [ -L "$1" ]; then cd -P -- "$1"; set -- .; else cd -P -- "$2"; set -- "./$3"; fi || exit ${NOT_FOUND}
case "$PWD" in
  /) hidden=./dev/* ;;
  /dev | /dev/*) hidden=./* ;;
  *) hidden=./.berth/nothing ;;
esac
tool "$TAR" --create --file=- --blocking-factor=1 --format=posix --numeric-owner --xattrs \\
  --xattrs-include=security.capability --warning=no-file-ignored --anchored --exclude="$hidden" -- "$1"
code=$?; [ $code = 1 ] && exit 0; exit $code`;
const WRITE = `${TOOL}
[ -e "$1" ] || missing "$1"
cd -P -- "$1" 2>/dev/null || exit ${NOT_A_DIRECTORY}
printf '%s\\0' "$PWD"
shift
tool "$TAR" --extract --file=- --numeric-owner --same-owner --same-permissions --xattrs --xattrs-include='user.*' \\
  --xattrs-include=security.capability "$@"`;

/** No more than what tar needs to restore owners, modes and nodes; least of all CAP_DAC_READ_SEARCH, which opens any file of a filesystem by its handle. */
const CAPABILITIES = ['CAP_CHOWN', 'CAP_DAC_OVERRIDE', 'CAP_FOWNER', 'CAP_FSETID', 'CAP_MKNOD', 'CAP_SETFCAP'];

export function createContainerFiles(ports: ContainerFilesPorts): ContainerFiles {
  let tools: Promise<HostTools<(typeof TOOLS)[number]>> | undefined;
  const enter = async (view: FileView, script: string, args: readonly string[]): Promise<Visit> => {
    tools ??= findHostTools(TOOLS);
    // Whatever is installed later counts.
    tools.catch(() => {
      tools = undefined;
    });
    return openVisit(ports, { view, script, args, tools: await tools });
  };

  return {
    async stat(view, path) {
      await using visit = await enter(view, STAT, [absolute(path)]);
      const found = await readStat(visit, path, view);
      await visit.ended;
      return found;
    },
    async read(view, path) {
      const at = absolute(path);
      await using undo = new AsyncDisposableStack();
      const visit = undo.use(await enter(view, READ, [at, posix.dirname(at), posix.basename(at)]));
      const found = await readStat(visit, path, view);
      const rename = renaming(found.name);
      const content = async function* (): AsyncGenerator<Buffer, void, undefined> {
        try {
          yield* rewriteTar(visit.output(), (entry) => [rename(entry)]);
          await mustSucceed(visit, `cannot copy ${JSON.stringify(path)} from container ${JSON.stringify(view.name)}`);
        } finally {
          await visit[Symbol.asyncDispose]();
        }
      };
      const tar = Readable.from(content(), { objectMode: false, highWaterMark: 1 << 20 });
      // A generator that was never begun does not come to its end either.
      tar.once('close', () => void visit[Symbol.asyncDispose]());
      undo.move();
      return { stat: found, tar };
    },
    async write(view, path, tar, { keepDirectories = false, owner, signal } = {}) {
      const what = `cannot copy to ${JSON.stringify(path)} in container ${JSON.stringify(view.name)}`;
      await using visit = await enter(view, WRITE, [
        absolute(path),
        ...(keepDirectories ? [] : ['--recursive-unlink']),
      ]);
      const [target] = await visit.fields(1);
      if (target === undefined) {
        const { exitCode } = await visit.ended;
        if (exitCode === NOT_FOUND) throw fileNotFound(path, view);
        if (exitCode === NOT_A_DIRECTORY) throw new AppError('invalid', 'extraction point is not a directory');
        throw await failure(visit, what);
      }
      checkWritable(view, target);
      // Failures of what is sent come first: tar only sees that there is no more.
      await pipeline(rewriteTar(await decompress(tar, { mayBeEmpty: true }), incoming(owner)), visit.input, {
        signal,
      }).catch((error) => {
        if (error instanceof AppError || signal?.aborted === true) throw error;
      });
      await mustSucceed(visit, what);
    },
  };
}

/** Docker's: below the root, and a final `/` or `/.` stays. @throws AppError 'invalid' */
function absolute(path: string): string {
  if (path === '') throw new AppError('invalid', "bad parameter: 'path' cannot be empty");
  if (path.includes('\0')) throw new AppError('invalid', 'invalid path: it contains a null byte');
  const clean = posix.join('/', path).replace(/(?<=.)\/$/, '');
  if (/(?:^|\/)\.\/*$/.test(path)) return posix.join(clean, '/').concat('.');
  return path.endsWith('/') && clean !== '/' ? `${clean}/` : clean;
}

function fileNotFound(path: string, view: FileView): AppError {
  return new AppError('not-found', `Could not find the file ${path} in container ${view.name}`);
}

async function readStat(visit: Visit, path: string, view: FileView): Promise<PathStat> {
  const [record = '', linkTarget] = await visit.fields(2);
  const [mode = '', size, mtime = ''] = record.split(' ');
  if (linkTarget === undefined) {
    const what = `cannot look at ${JSON.stringify(path)} in container ${JSON.stringify(view.name)}`;
    const { exitCode } = await visit.ended;
    if (exitCode === NOT_FOUND) throw fileNotFound(path, view);
    if (exitCode === NOT_A_DIRECTORY) throw new AppError('invalid', `${what}: not a directory`);
    throw await failure(visit, what);
  }
  const name = posix.basename(absolute(path)) || '/';
  return { name, sizeBytes: Number(size), mode: Number.parseInt(mode, 16), mtime, linkTarget };
}

/** tar calls it `./…`, whatever it is; the client wants the last part of the path that it asked for. */
function renaming(name: string): (entry: TarEntry) => TarEntry {
  // Docker's names of what is in the root begin with a slash.
  const base = name === '/' ? '' : nameFromUtf8(name);
  const inside = (path: string) => {
    const rest = path.replace(/^\.\/?/, '').replace(/\/$/, '');
    return rest === '' ? base : `${base}/${rest}`;
  };
  let isDirectory = false;
  return (entry) => {
    const isFirst = /^\.\/?$/.test(entry.path);
    if (isFirst) isDirectory = true;
    // A single file is its own name.
    const rename = isDirectory ? inside : (path: string) => path.replace(/^\.\//, '');
    return {
      ...entry,
      path: rename(entry.path),
      linkPath: entry.type === 'link' ? rename(entry.linkPath) : entry.linkPath,
    };
  };
}

/** What a client sent, made harmless: paths stay below the target, and the target itself is left as it is. */
function incoming(owner: WriteFilesOptions['owner']): (entry: TarEntry) => readonly TarEntry[] {
  const inside = (path: string) => {
    const clean = posix.normalize(path.replace(/^\/+/, '')).replace(/\/$/, '');
    if (clean === '..' || clean.startsWith('../'))
      throw new AppError('invalid', `cannot unpack ${JSON.stringify(path)}: it is outside of the target`);
    return clean === '.' ? '' : clean;
  };
  return (entry) => {
    const path = inside(entry.path);
    if (path === '') return [];
    const linkPath = entry.type === 'link' ? inside(entry.linkPath) : entry.linkPath;
    return [{ ...entry, ...owner, path, linkPath }];
  };
}

/** @throws AppError 'denied' in Docker's words; the mounts say the same, but less clearly */
function checkWritable(view: FileView, target: string): void {
  const isBelow = (directory: string) => target === directory || target.startsWith(`${directory}/`);
  if (isBelow('/dev'))
    throw new AppError('denied', `cannot copy to ${JSON.stringify(target)}: what is in /dev is made when it starts`);
  const volume = view.mounts
    .filter(({ destination, type }) => type !== 'tmpfs' && isBelow(destination))
    .sort((a, b) => b.destination.length - a.destination.length)[0];
  if (volume !== undefined && !volume.writable) throw new AppError('denied', 'mounted volume is marked read-only');
  if (volume === undefined && view.isReadOnly) throw new AppError('denied', 'container rootfs is marked read-only');
}

/** One run of a script inside. Disposing ends it, however far it has come. */
interface Visit extends AsyncDisposable {
  /** The next fields of its output, each ended by NUL; fewer when it ended before. */
  fields(count: number): Promise<readonly string[]>;
  /** What follows the fields. */
  output(): AsyncGenerator<Buffer, void, undefined>;
  readonly input: OpenCommand['stdin'];
  readonly ended: OpenCommand['ended'];
}

interface VisitRequest {
  readonly view: FileView;
  readonly script: string;
  readonly args: readonly string[];
  readonly tools: HostTools<(typeof TOOLS)[number]>;
}

async function openVisit(ports: ContainerFilesPorts, request: VisitRequest): Promise<Visit> {
  const { runtime, mounts } = ports;
  const id = `files-${ports.randomId().slice(0, 16)}`;
  const bundle = join(ports.directory, id);
  const rootfs = join(bundle, 'rootfs');
  await using undo = new AsyncDisposableStack();
  await mkdir(rootfs, { recursive: true, mode: 0o700 });
  undo.defer(() => rm(bundle, { recursive: true, force: true }));
  // Without this the loader would obey the container's /etc/ld.so.preload.
  await mounts.mountBind({ source: request.view.rootfs, target: rootfs, inert: true });
  undo.defer(() => mounts.unmount([rootfs], { lazy: true }));
  const config = configOf(request, {
    rootfs,
    cgroup: `${ports.cgroupParent}/${id}`,
    binds: await bindsOf(request.view),
  });
  await writeFile(join(bundle, 'config.json'), JSON.stringify(config), { mode: 0o600 });

  let isOver = false;
  // Ending the runtime's own process does not end what it has started, and it may be about to start it.
  const end = async () => {
    if (!isOver) await runtime.delete(id, { force: true });
  };
  undo.defer(end);
  const command = openCommand(runtime.program, runtime.runArgs(id, { bundle }), { env: runtime.env });
  const ended = command.ended.then((result) => {
    isOver ||= !isEnding;
    return result;
  });
  ended.catch(() => {});
  let isEnding = false;
  undo.defer(async () => {
    isEnding = true;
    await end();
    await command[Symbol.asyncDispose]();
  });
  const chunks: AsyncIterator<Buffer> = command.stdout[Symbol.asyncIterator]();
  let rest: Buffer = Buffer.alloc(0);
  const owned = undo.move();
  return {
    input: command.stdin,
    ended,
    async fields(count) {
      const found: string[] = [];
      while (found.length < count) {
        const end = rest.indexOf(0);
        if (end !== -1) {
          found.push(rest.subarray(0, end).toString());
          rest = rest.subarray(end + 1);
          continue;
        }
        const next = await chunks.next();
        if (next.done === true) return found;
        rest = Buffer.concat([rest, next.value]);
      }
      return found;
    },
    async *output() {
      if (rest.length > 0) yield rest;
      for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) yield next.value;
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function mustSucceed(visit: Visit, what: string): Promise<void> {
  if ((await visit.ended).exitCode !== 0) throw await failure(visit, what);
}

async function failure(visit: Visit, what: string): Promise<AppError> {
  const { exitCode, stderr } = await visit.ended;
  const words = stderr
    .split('\n')
    .map((line) => line.replace(/^\S*\/tar: /, ''))
    .find((line) => line !== '');
  if (words !== undefined && /Read-only file system/.test(words)) return new AppError('denied', `${what}: ${words}`);
  if (words !== undefined && /Cannot open: (?:Is a directory|File exists)/.test(words))
    return new AppError(
      'invalid',
      `cannot overwrite directory ${JSON.stringify(words.split(':')[0])} with non-directory`,
    );
  return new AppError('unavailable', `${what}: ${words ?? `exit code ${exitCode}`}`);
}

/** Only what exists: the source of a bind may have gone, and nothing is made for a copy. */
async function bindsOf({ mounts }: FileView): Promise<readonly MountPoint[]> {
  const there = await Promise.all(
    mounts.map(
      ({ type, source }) =>
        type !== 'tmpfs' &&
        stat(source).then(
          () => true,
          () => false,
        ),
    ),
  );
  return mounts
    .filter((_mount, index) => there[index] === true)
    .sort((a, b) => a.destination.split('/').length - b.destination.split('/').length);
}

interface ConfigPlace {
  readonly rootfs: string;
  readonly cgroup: string;
  readonly binds: readonly MountPoint[];
}

/** https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md */
function configOf({ script, args, tools, view }: VisitRequest, { rootfs, cgroup, binds }: ConfigPlace): object {
  const { loader, libraries, programs } = tools.commandsAt(TOOLS_AT);
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: false,
      user: { uid: 0, gid: 0, umask: 0 },
      args: [loader, '--inhibit-cache', '--library-path', libraries, programs.sh, '-c', script, 'sh', ...args],
      env: [
        'LC_ALL=C',
        `LOADER=${loader}`,
        `LIBRARIES=${libraries}`,
        `TAR=${programs.tar}`,
        `STAT=${programs.stat}`,
        `REALPATH=${programs.realpath}`,
      ],
      cwd: '/',
      capabilities: { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES },
      noNewPrivileges: true,
    },
    root: { path: rootfs, readonly: view.isReadOnly },
    mounts: [
      ...binds.map(({ source, destination, writable }) => ({
        destination,
        type: 'bind',
        source,
        options: ['rbind', 'rprivate', 'noexec', 'nosuid', 'nodev', writable ? 'rw' : 'ro'],
      })),
      { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'noexec', 'mode=755', 'size=64k'] },
      ...tools.directories.map((source, index) => ({
        destination: `${TOOLS_AT}/${index}`,
        type: 'bind',
        source,
        options: ['bind', 'rprivate', 'ro', 'nosuid', 'nodev'],
      })),
    ],
    linux: {
      cgroupsPath: cgroup,
      namespaces: ['mount', 'pid', 'ipc', 'uts', 'network'].map((type) => ({ type })),
    },
  };
}
