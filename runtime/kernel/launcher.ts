/**
 * Starts programs through a small process of its own (launcher.pl): a fork of the engine copies its page tables, which
 * takes ten milliseconds at a hundred megabytes, and the engine does nothing else meanwhile. A container's start needs
 * seven programs, and its end four.
 *
 * The process is started when it is first needed and again when it has died. Where there is no perl, programs are forked
 * from here.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { join } from 'node:path';
import { Readable, type Writable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import {
  type CommandOptions,
  type CommandResult,
  failureOf,
  OUTPUT_MAX_BYTES,
  PROGRAM_PATH,
  type RunCommand,
  runCommand,
  TIMEOUT_MS,
} from './command.ts';

export interface Launcher extends AsyncDisposable {
  /** As runCommand. */
  readonly run: RunCommand;
  /**
   * Starts a program in a process group of its own, with pipes in the place of the descriptors that are named; 0 to 2 are
   * /dev/null otherwise. It goes on when this process ends. @throws AppError 'unsupported' if it is not installed, 'unavailable'
   */
  start(program: string, args: readonly string[], options: StartProgramOptions): Promise<StartedProgram>;
}

export interface StartProgramOptions {
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  /** Descriptors that it writes to. */
  readonly outputs: readonly number[];
  /** Descriptors that it reads from. */
  readonly inputs: readonly number[];
}

export interface StartedProgram {
  readonly pid: number;
  /** What it writes to a descriptor. Ends when nobody has that open any more. */
  output(fd: number): Readable;
  write(fd: number, text: string): void;
  kill(signal: number): void;
  /** Closes all pipes and tells nothing more of it. Idempotent. */
  release(): void;
}

const SIGKILL = 9;
const HEADER_BYTES = 4;

/** What a frame from the launcher is about. */
interface Caller {
  started(pid: number, errno: number): void;
  wrote(fd: number, bytes: Buffer): void;
  ended(status: number): void;
  lost(error: AppError): void;
}

type Helper = ChildProcessByStdio<Writable, Readable, null>;

export interface LauncherOptions {
  /**
   * Done to the launcher's process before it starts anything, so that what it starts inherits it; where there is no
   * launcher, to each program that `start` starts.
   */
  readonly prepare?: (pid: number) => Promise<void>;
  /** For tests. */
  readonly perl?: string;
}

export function createLauncher({ prepare = async () => {}, perl = 'perl' }: LauncherOptions = {}): Launcher {
  const callers = new Map<number, Caller>();
  let lastNumber = 0;
  let helper: Helper | undefined;
  let obtaining: Promise<Helper | undefined> | undefined;
  let isMissing = false;

  const lose = (lost: Helper): void => {
    if (helper !== lost) return;
    helper = undefined;
    const error = new AppError('unavailable', 'cannot run programs: the launcher has ended');
    for (const caller of [...callers.values()]) caller.lost(error);
    callers.clear();
  };

  /** undefined = there is no perl. */
  const obtain = async (): Promise<Helper | undefined> => {
    if (helper !== undefined || isMissing) return helper;
    obtaining ??= begin().finally(() => {
      obtaining = undefined;
    });
    return await obtaining;
  };

  const begin = async (): Promise<Helper | undefined> => {
    const child = spawn(perl, [join(import.meta.dirname, 'launcher.pl')], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { PATH: PROGRAM_PATH, LC_ALL: 'C' },
    });
    if (child.pid === undefined) {
      await new Promise((resolve) => child.once('error', resolve));
      isMissing = true;
      return undefined;
    }
    try {
      await prepare(child.pid);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
    helper = child;
    child.once('error', () => lose(child));
    child.once('exit', () => lose(child));
    child.stdin.on('error', () => lose(child));
    readFrames(child.stdout, (frame) => receive(frame));
    hold(child);
    return child;
  };

  /** An idle launcher keeps nobody from ending. */
  const hold = (child: Helper): void => {
    const streams = [child, child.stdin, child.stdout] as readonly { ref?(): void; unref?(): void }[];
    for (const stream of streams) callers.size > 0 ? stream.ref?.() : stream.unref?.();
  };

  const forget = (number: number): void => {
    callers.delete(number);
    if (helper !== undefined) hold(helper);
  };

  const receive = (frame: Buffer): void => {
    const letter = String.fromCharCode(frame[0] ?? 0);
    const number = frame.readUInt32BE(1);
    const caller = callers.get(number);
    if (caller === undefined) return;
    const rest = frame.subarray(5);
    if (letter === 'P') {
      const pid = rest.readUInt32BE(0);
      if (pid === 0) forget(number);
      caller.started(pid, pid === 0 ? rest.readUInt32BE(4) : 0);
    } else if (letter === 'O') caller.wrote(rest.readUInt32BE(0), rest.subarray(4));
    else if (letter === 'X') {
      forget(number);
      caller.ended(rest.readUInt32BE(0));
    }
  };

  const send = (letter: string, number: number, ...parts: readonly (Buffer | string)[]): void => {
    const head = Buffer.alloc(HEADER_BYTES + 5);
    const rest = Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : part)));
    head.writeUInt32BE(5 + rest.length, 0);
    head.write(letter, HEADER_BYTES);
    head.writeUInt32BE(number, HEADER_BYTES + 1);
    helper?.stdin.write(Buffer.concat([head, rest]));
  };

  const request = (child: Helper, caller: Caller, fields: readonly (string | Uint8Array)[]): number => {
    lastNumber = (lastNumber + 1) % 2 ** 32;
    callers.set(lastNumber, caller);
    hold(child);
    send('R', lastNumber, ...fields.flatMap((field) => [word(Buffer.byteLength(field)), Buffer.from(field)]));
    return lastNumber;
  };

  const run: RunCommand = async (program, args, options = {}) => {
    const child = await obtain();
    if (child === undefined) return runCommand(program, args, options);
    const { cwd = '', stdin = '' } = options;
    const env = { PATH: PROGRAM_PATH, LC_ALL: 'C', ...options.env };
    const fields = [cwd, joinedEnv(env), joined([program, ...args]), '0i 1o 2o', stdin];
    return await new Promise<CommandResult>((resolve, reject) => {
      const stop = () => {
        send('K', number, word(SIGKILL));
        send('F', number);
        forget(number);
      };
      const number = request(child, collectResult(program, options, { resolve, reject, stop }), fields);
    });
  };

  const start: Launcher['start'] = async (program, args, options) => {
    const child = await obtain();
    if (child === undefined) {
      const started = await startByFork(program, args, options);
      await prepare(started.pid);
      return started;
    }
    const { cwd, env, outputs, inputs } = options;
    const descriptors = [...outputs.map((fd) => `${fd}o`), ...inputs.map((fd) => `${fd}i`)].join(' ');
    const fields = [cwd, joinedEnv(env), joined([program, ...args]), descriptors, ''];
    const streams = new Map(outputs.map((fd) => [fd, new Readable({ read() {} })]));
    const close = () => {
      for (const stream of streams.values()) if (!stream.destroyed) stream.push(null);
    };
    const startedAs = (number: number, pid: number): StartedProgram => ({
      pid,
      output: (fd) => streams.get(fd) ?? Readable.from([]),
      write: (fd, text) => send('W', number, word(fd), text),
      kill: (signal) => send('K', number, word(signal)),
      release() {
        if (callers.has(number)) send('F', number);
        forget(number);
        for (const stream of streams.values()) stream.destroy();
      },
    });
    return await new Promise<StartedProgram>((resolve, reject) => {
      const caller: Caller = {
        started(pid, errno) {
          if (pid === 0) reject(failureOf(program, failureOfErrno(errno), { timedOut: false, cwd }));
          else resolve(startedAs(number, pid));
        },
        wrote: (fd, bytes) => void streams.get(fd)?.push(bytes.length === 0 ? null : Buffer.from(bytes)),
        ended: close,
        lost(error) {
          close();
          reject(error);
        },
      };
      const number = request(child, caller, fields);
    });
  };

  return {
    run,
    start,
    async [Symbol.asyncDispose]() {
      const child = helper;
      if (child === undefined) return;
      helper = undefined;
      const gone = new Promise((resolve) => child.once('exit', resolve));
      child.ref();
      child.stdin.end();
      await gone;
    },
  };
}

function startByFork(
  program: string,
  args: readonly string[],
  { cwd, env, outputs, inputs }: StartProgramOptions,
): Promise<StartedProgram> {
  const last = Math.max(2, ...outputs, ...inputs);
  const stdio = Array.from({ length: last + 1 }, (_, fd) =>
    outputs.includes(fd) || inputs.includes(fd) ? ('pipe' as const) : ('ignore' as const),
  );
  const child = spawn(program, args, { stdio, env, cwd, detached: true });
  const pipes = Array.from(child.stdio);
  for (const pipe of pipes) pipe?.on('error', () => {});
  return new Promise((resolve, reject) => {
    child.once('error', (cause) => reject(failureOf(program, cause, { timedOut: false, cwd })));
    child.once('spawn', () =>
      resolve({
        pid: child.pid ?? 0,
        output(fd) {
          const pipe = pipes[fd];
          return pipe instanceof Readable ? pipe : Readable.from([]);
        },
        write(fd, text) {
          const pipe = pipes[fd];
          if (pipe != null && 'write' in pipe) pipe.write(text);
        },
        kill: (signal) => void child.kill(signal),
        release() {
          for (const pipe of pipes) pipe?.destroy();
          child.unref();
        },
      }),
    );
  });
}

/** Collects what a program says, within the limits of runCommand. */
function collectResult(
  program: string,
  { cwd, signal, timeoutMs = TIMEOUT_MS }: CommandOptions,
  outcome: {
    readonly resolve: (result: CommandResult) => void;
    readonly reject: (error: unknown) => void;
    readonly stop: () => void;
  },
): Caller {
  const startedAt = performance.now();
  const said: Readonly<Record<number, Buffer[]>> = { 1: [], 2: [] };
  let bytesSaid = 0;
  const stop = (error: Error, timedOut = false): void => {
    settle();
    outcome.stop();
    outcome.reject(failureOf(program, error, { timedOut, cwd }));
  };
  const timer = setTimeout(() => stop(new Error('timeout'), true), timeoutMs);
  const onAbort = () => stop(Object.assign(new Error('aborted'), { code: 'ABORT_ERR' }));
  signal?.addEventListener('abort', onAbort, { once: true });
  const settle = (): void => {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  };
  return {
    started(pid, errno) {
      if (pid === 0) {
        settle();
        outcome.reject(failureOf(program, failureOfErrno(errno), { timedOut: false, cwd }));
      } else if (signal?.aborted === true) onAbort();
    },
    wrote(fd, bytes) {
      bytesSaid += bytes.length;
      if (bytesSaid > OUTPUT_MAX_BYTES)
        stop(Object.assign(new Error('too much'), { code: 'ERR_CHILD_PROCESS_STDIO_MAXBUFFER' }));
      else said[fd]?.push(Buffer.from(bytes));
    },
    ended(status) {
      settle();
      const [stdout = '', stderr = ''] = [1, 2].map((fd) => Buffer.concat(said[fd] ?? []).toString('utf8'));
      // waitpid(2): the signal in the low seven bits, the exit code above them.
      const killedBy = status & 0x7f;
      const exitCode = killedBy === 0 ? status >> 8 : 128 + killedBy;
      outcome.resolve({ exitCode, stdout, stderr, durationMs: performance.now() - startedAt });
    },
    lost(error) {
      settle();
      outcome.reject(error);
    },
  };
}

/** Frames cut out of a stream of bytes; each is good only while it is handed over. */
function readFrames(stream: Readable, receive: (frame: Buffer) => void): void {
  let left: Buffer = Buffer.alloc(0);
  stream.on('data', (chunk: Buffer) => {
    left = left.length === 0 ? chunk : Buffer.concat([left, chunk]);
    while (left.length >= HEADER_BYTES && left.length >= HEADER_BYTES + left.readUInt32BE(0)) {
      const end = HEADER_BYTES + left.readUInt32BE(0);
      receive(left.subarray(HEADER_BYTES, end));
      left = left.subarray(end);
    }
  });
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function joinedEnv(env: Readonly<Record<string, string>>): string {
  return joined(Object.entries(env).map((pair) => pair.join('=')));
}

/** @throws AppError 'invalid': NUL ends a string for the kernel, too */
function joined(words: readonly string[]): string {
  if (words.some((each) => each.includes('\0'))) throw new AppError('invalid', 'cannot pass NUL to a program');
  return words.join('\0');
}

const ERRNO_CODES: Readonly<Record<number, string>> = { 2: 'ENOENT', 13: 'EACCES' };

function failureOfErrno(errno: number): Error {
  return Object.assign(new Error(`error ${errno}`), { code: ERRNO_CODES[errno] ?? String(errno) });
}
