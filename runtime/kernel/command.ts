/**
 * Runs one host program to its end and tells what it said, or passes it on while it is said. Every other file of this folder goes through here.
 * Programs get a fixed environment (search path and C locale, since we read their messages) and never a shell; their
 * output is bounded. Long-running children (conmon, aardvark-dns) are not started here.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { AppError, hasCode } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';

/** Where distributions put the programs that we need. */
export const PROGRAM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
export const OUTPUT_MAX_BYTES = 16 * 1024 * 1024;
export const TIMEOUT_MS = 60_000;
const STDERR_KEPT_CHARACTERS = 4096;

export interface CommandOptions {
  readonly cwd?: string | undefined;
  /** Added to the fixed environment. */
  readonly env?: Readonly<Record<string, string>> | undefined;
  readonly stdin?: string | Uint8Array | undefined;
  /** After this the program is killed and the call fails with 'timeout'; default 60 s. */
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface CommandResult {
  /** 128 + n after signal n, as a shell would say. */
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
  readonly durationMs: number;
}

/**
 * A program that ends with any exit code is a result, not an error.
 * @throws AppError 'unsupported' if it is not installed, 'timeout', 'too-large' when it talks too much
 */
export type RunCommand = (program: string, args: readonly string[], options?: CommandOptions) => Promise<CommandResult>;

/** By a fork of this process, which takes the longer the more memory it holds; launcher.ts has another way. */
export function runCommand(
  program: string,
  args: readonly string[],
  options: CommandOptions = {},
): Promise<CommandResult> {
  const startedAt = performance.now();
  return new Promise((resolve, reject) => {
    const child = execFile(
      program,
      args,
      {
        cwd: options.cwd,
        env: { PATH: PROGRAM_PATH, LC_ALL: 'C', ...options.env },
        encoding: 'utf8',
        maxBuffer: OUTPUT_MAX_BYTES,
        timeout: options.timeoutMs ?? TIMEOUT_MS,
        killSignal: 'SIGKILL',
        signal: options.signal,
      },
      (error, stdout, stderr) => {
        const durationMs = performance.now() - startedAt;
        if (error === null) return resolve({ exitCode: 0, stdout, stderr, durationMs });
        if (typeof error.code === 'number') return resolve({ exitCode: error.code, stdout, stderr, durationMs });
        reject(failureOf(program, error, { timedOut: error.killed === true, cwd: options.cwd }));
      },
    );
    // A program may end without reading its input; its exit code tells the story.
    child.stdin?.on('error', () => {});
    child.stdin?.end(options.stdin);
  });
}

export function failureOf(
  program: string,
  cause: Error,
  { timedOut, cwd }: { readonly timedOut: boolean; readonly cwd: string | undefined },
): AppError {
  const name = JSON.stringify(program);
  if (hasCode(cause, 'ENOENT'))
    return new AppError(
      'unsupported',
      `cannot run ${name}: it is not installed${cwd === undefined ? '' : `, or ${JSON.stringify(cwd)} is not a directory`}`,
      { cause },
    );
  if (hasCode(cause, 'EACCES')) return new AppError('denied', `cannot run ${name}: permission denied`, { cause });
  if (hasCode(cause, 'ERR_CHILD_PROCESS_STDIO_MAXBUFFER'))
    return new AppError('too-large', `cannot run ${name}: it wrote more than ${OUTPUT_MAX_BYTES} bytes`, { cause });
  if (hasCode(cause, 'ABORT_ERR')) return new AppError('timeout', `cannot run ${name}: it was cancelled`, { cause });
  if (timedOut) return new AppError('timeout', `cannot run ${name}: it did not end in time and was killed`, { cause });
  return new AppError('unavailable', `cannot run ${name}: ${cause.message}`, { cause });
}

export interface StreamOptions {
  /** Exit codes that are no failure; default 0 alone. */
  readonly accepted?: readonly number[];
  readonly cwd?: string | undefined;
  /** What the program reads; its failure is the program's. Destroyed with it. */
  readonly stdin?: Readable | undefined;
}

/**
 * What a program writes, while it writes it. Whoever stops reading early ends the program.
 * @throws AppError 'unsupported' if it is not installed, 'unavailable' with its words when it fails
 */
export async function* streamCommand(
  program: string,
  args: readonly string[],
  { accepted = [0], cwd, stdin }: StreamOptions = {},
): AsyncGenerator<Buffer, void, undefined> {
  const child = spawn(program, args, {
    cwd,
    env: { PATH: PROGRAM_PATH, LC_ALL: 'C' },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const { ended, words } = watch(child, { program, cwd });
  if (child.pid === undefined) await ended;
  let broken: unknown;
  pipeline(stdin ?? Readable.from([]), child.stdin).catch((error) => {
    // A program that ends before it has read everything is no failure of its input.
    if (!hasCode(error, 'EPIPE', 'ERR_STREAM_PREMATURE_CLOSE')) broken = error;
  });
  try {
    for await (const chunk of child.stdout) yield chunk;
    const exitCode = await ended;
    if (broken !== undefined) throw broken;
    if (!accepted.includes(exitCode))
      throw new AppError('unavailable', `cannot run ${JSON.stringify(program)}: ${words() || `exit code ${exitCode}`}`);
  } finally {
    child.kill('SIGKILL');
  }
}

/**
 * Runs a program that reads all of `input`, however much that is, and must end with success. It has ended, whatever
 * happens, when the call has. When the next piece is asked for, one larger than a pipe's buffer (64 KiB) is used up.
 * @throws AppError 'unsupported', 'unavailable' with its words; what input throws; an AbortError when cancelled
 */
export async function feedCommand(
  program: string,
  args: readonly string[],
  input: AsyncIterable<Buffer>,
  { signal }: Cancelable = {},
): Promise<void> {
  const child = spawn(program, args, { env: { PATH: PROGRAM_PATH, LC_ALL: 'C' }, stdio: ['pipe', 'ignore', 'pipe'] });
  const { ended, words } = watch(child, { program, cwd: undefined });
  if (child.pid === undefined) await ended;
  try {
    // A program that gives up closes its input; why is told by its exit code and words.
    await pipeline(input, child.stdin, { signal }).catch((error: unknown) => {
      if (!hasCode(error, 'EPIPE', 'ERR_STREAM_PREMATURE_CLOSE')) throw error;
    });
    const exitCode = await ended;
    if (exitCode !== 0)
      throw new AppError('unavailable', `cannot run ${JSON.stringify(program)}: ${words() || `exit code ${exitCode}`}`);
  } finally {
    child.kill('SIGKILL');
    await ended.catch(() => {});
  }
}

/** A program on pipes. The caller owns both streams; disposing kills it and waits until it is gone. */
export interface OpenCommand extends AsyncDisposable {
  readonly stdin: Writable;
  readonly stdout: Readable;
  /** When it has ended and its output is closed. stderr: its last words. */
  readonly ended: Promise<{ readonly exitCode: number; readonly stderr: string }>;
}

/**
 * `ended` rejects with AppError 'unsupported' if it is not installed.
 * @throws AppError 'unavailable' when there are no descriptors left for its pipes
 */
export function openCommand(
  program: string,
  args: readonly string[],
  { env }: Pick<CommandOptions, 'env'> = {},
): OpenCommand {
  const child = spawn(program, args, {
    env: { PATH: PROGRAM_PATH, LC_ALL: 'C', ...env },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const { ended, words } = watch(child, { program, cwd: undefined });
  if (child.stdin === undefined)
    throw new AppError('unavailable', `cannot run ${JSON.stringify(program)}: no descriptors are left`);
  // It may end before it has read everything: its exit code tells why.
  child.stdin.on('error', () => {});
  const result = ended.then((exitCode) => ({ exitCode, stderr: words() }));
  result.catch(() => {});
  return {
    stdin: child.stdin,
    stdout: child.stdout,
    ended: result,
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL');
      child.stdin.destroy();
      child.stdout.destroy();
      await ended.catch(() => {});
    },
  };
}

interface Watched {
  /** The exit code, when all of its output has been read. */
  readonly ended: Promise<number>;
  /** The last that it said on stderr. */
  words(): string;
}

/** Before anything is done with its pipes: a child that could not be started for want of descriptors has none. */
function watch(
  child: ChildProcess,
  { program, cwd }: { readonly program: string; readonly cwd: string | undefined },
): Watched {
  const ended = new Promise<number>((resolve, reject) => {
    child.on('error', (cause) => reject(failureOf(program, cause, { timedOut: false, cwd })));
    child.on('close', (code) => resolve(code ?? 128));
  });
  ended.catch(() => {});
  let text = '';
  child.stderr?.setEncoding('utf8').on('data', (more: string) => {
    text = (text + more).slice(-STDERR_KEPT_CHARACTERS);
  });
  return { ended, words: () => text.trim() };
}
