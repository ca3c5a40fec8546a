/**
 * Where a build's files come from, as the command line names them: a directory, a tarball, stdin, or what only the engine
 * fetches. Directories are walked here; nothing outside of them is read for what they say.
 */
import { createReadStream, lstatSync, openSync, readSync, realpathSync, statSync } from 'node:fs';
import { hostname } from 'node:os';
import { basename, join, relative, resolve } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import {
  createIgnore,
  DOCKERIGNORE_MAX_BYTES,
  dockerignoreNames,
  parseDockerignore,
} from '../../shared/dockerignore.ts';
import { AppError } from '../../shared/errors.ts';
import { type ListedFile, packContext, readOwnFile, readWhole, walkContext } from './build-context.ts';

export const DOCKERFILE_MAX_BYTES = 1 << 20;

/** What the engine is told, and how its files get there. */
export type Source =
  | { readonly kind: 'files'; readonly directory: Directory }
  | { readonly kind: 'archive'; readonly tar: Readable }
  | { readonly kind: 'remote'; readonly url: string }
  | { readonly kind: 'image'; readonly reference: string }
  | { readonly kind: 'empty' };

export interface Directory {
  readonly root: string;
  /** Text of the ignore file that counts. */
  readonly ignore: string | undefined;
  /** The engine knows what it had the last time by this name. */
  readonly name: string;
  /** All files, in batches. */
  list(): Generator<readonly ListedFile[]>;
  /** Some of them as a tar. */
  pack(files: Iterable<ListedFile>): Readable;
}

export interface BuildSources {
  readonly context: Source;
  readonly dockerfile: {
    readonly name: string;
    readonly text: string | undefined;
    readonly ignore?: string | undefined;
  };
}

const REMOTE = /^(?:https?:\/\/|git:\/\/|ssh:\/\/|git@|github\.com\/)/;

/** @throws AppError 'not-found', 'denied', 'invalid' */
export async function openSources(
  context: string,
  { file, onLeftOut }: { readonly file: string | undefined; readonly onLeftOut: (line: string) => void },
): Promise<BuildSources> {
  if (context === '-' && file === '-')
    throw new AppError('invalid', 'cannot read both context and Dockerfile from stdin');
  const fromStdin = file === '-' ? { name: 'Dockerfile', text: await readText(process.stdin) } : undefined;
  const named = { name: file ?? 'Dockerfile', text: undefined };
  if (REMOTE.test(context) || context.endsWith('.git'))
    return { context: { kind: 'remote', url: context }, dockerfile: fromStdin ?? named };
  if (context === '-') {
    const stdin = await peek(process.stdin);
    if (isArchive(stdin.head)) return { context: { kind: 'archive', tar: stdin.stream }, dockerfile: named };
    if (file !== undefined) throw new AppError('invalid', 'cannot use --file with a Dockerfile from stdin');
    return { context: { kind: 'empty' }, dockerfile: { name: 'Dockerfile', text: await readText(stdin.stream) } };
  }
  const found = statSync(context, { throwIfNoEntry: false });
  if (found === undefined)
    throw new AppError('not-found', `cannot build from ${JSON.stringify(context)}: there is no such path`);
  if (!found.isDirectory()) {
    if (!isArchive(headOf(context)))
      throw new AppError(
        'invalid',
        `cannot build from ${JSON.stringify(context)}: it is neither a directory nor an archive`,
      );
    return { context: { kind: 'archive', tar: createReadStream(context) }, dockerfile: fromStdin ?? named };
  }
  const dockerfile = fromStdin ?? readDockerfile(context, file);
  const directory = openDirectory(context, { dockerfile: dockerfile.name, onLeftOut });
  return { context: { kind: 'files', directory }, dockerfile: { ...dockerfile, ignore: directory.ignore } };
}

/** One of `--build-context`. @throws AppError 'not-found', 'unsupported' */
export function openNamed(value: string, onLeftOut: (line: string) => void): Source {
  if (value.startsWith('docker-image://')) return { kind: 'image', reference: value.slice('docker-image://'.length) };
  if (value.startsWith('oci-layout://') || value.startsWith('target:'))
    throw new AppError(
      'unsupported',
      `cannot use --build-context ${value}: it can be a directory, a URL or docker-image://`,
    );
  if (REMOTE.test(value)) return { kind: 'remote', url: value };
  if (statSync(value, { throwIfNoEntry: false })?.isDirectory() !== true)
    throw new AppError('not-found', `cannot use --build-context ${JSON.stringify(value)}: it is no directory`);
  return { kind: 'files', directory: openDirectory(value, { dockerfile: undefined, onLeftOut }) };
}

/** Relative to the working directory, as Docker has it; without --file it is the context's own. */
function readDockerfile(context: string, file: string | undefined): { readonly name: string; readonly text: string } {
  const path = file === undefined ? join(context, 'Dockerfile') : resolve(file);
  const within = relative(resolve(context), resolve(path));
  const isInside = within !== '' && within.split('/')[0] !== '..';
  const text = isInside
    ? readOwnFile(context, within, DOCKERFILE_MAX_BYTES)
    : readWhole(realPath(path), DOCKERFILE_MAX_BYTES);
  if (text === undefined)
    throw new AppError('not-found', `cannot read Dockerfile ${JSON.stringify(path)}: there is no such file`);
  return { name: isInside ? within : basename(path), text };
}

function realPath(path: string): string {
  return lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true ? realpathSync(path) : path;
}

interface DirectoryOptions {
  /** Whose own ignore file counts first. */
  readonly dockerfile: string | undefined;
  readonly onLeftOut: (line: string) => void;
}

function openDirectory(path: string, { dockerfile, onLeftOut }: DirectoryOptions): Directory {
  const root = realpathSync(path);
  const names = dockerfile === undefined ? ['.dockerignore'] : dockerignoreNames(dockerfile);
  const [found] = names.flatMap((name) => {
    const text = readOwnFile(root, name, DOCKERIGNORE_MAX_BYTES);
    return text === undefined ? [] : [{ name, text }];
  });
  const ignore = createIgnore(found === undefined ? [] : parseDockerignore(found.text));
  return {
    root,
    ignore: found?.text,
    name: `${hostname()}:${root}${found === undefined || found.name === '.dockerignore' ? '' : `#${found.name}`}`,
    list: () =>
      walkContext({
        root,
        ignore,
        onLeftOut: (file, what) => onLeftOut(`leaving out ${JSON.stringify(file)}: it is ${what}`),
      }),
    pack: (files) => Readable.from(packContext(root, files), { objectMode: false, highWaterMark: 1 << 20 }),
  };
}

const MAGICS: readonly (readonly number[])[] = [
  [0x1f, 0x8b],
  [0x28, 0xb5, 0x2f, 0xfd],
  [0x42, 0x5a, 0x68],
  [0xfd, 0x37, 0x7a, 0x58, 0x5a],
];
const HEAD_BYTES = 512;
const USTAR_AT = 257;

/** A tar, or something that may be one when it has been decompressed. Pure. */
export function isArchive(head: Buffer): boolean {
  return (
    MAGICS.some((magic) => magic.every((byte, at) => head[at] === byte)) ||
    head.subarray(USTAR_AT, USTAR_AT + 5).toString('latin1') === 'ustar'
  );
}

function headOf(path: string): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  return head.subarray(0, readSync(openSync(path, 'r'), head));
}

/** The first bytes of a stream, and all of it. */
async function peek(source: Readable): Promise<{ readonly head: Buffer; readonly stream: Readable }> {
  const stream = new PassThrough({ highWaterMark: 1 << 20 });
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of source.iterator({ destroyOnReturn: false })) {
    chunks.push(chunk);
    size += chunk.length;
    if (size >= HEAD_BYTES) break;
  }
  const head = Buffer.concat(chunks, size);
  if (size > 0) stream.write(head);
  if (source.readableEnded) stream.end();
  else source.pipe(stream);
  return { head, stream };
}

async function readText(stream: Readable): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of stream) {
    size += chunk.length;
    if (size > DOCKERFILE_MAX_BYTES)
      throw new AppError(
        'too-large',
        `cannot read a Dockerfile from stdin: it is larger than ${DOCKERFILE_MAX_BYTES} bytes`,
      );
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
