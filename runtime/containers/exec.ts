/**
 * Execs: extra processes in running containers. Without a terminal the runtime runs on plain pipes of ours, so bytes and
 * backpressure are the kernel's; with one, conmon holds the terminal and the log is the output, as for a container.
 *
 * An exec lives with its container's run, and is told about until the container is removed. Execs are not stored: after
 * a crash of the engine nobody is connected to them.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { watch } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { AppError, hasCode, isKind, messageOf } from '../../shared/errors.ts';
import { PROGRAM_PATH } from '../kernel/command.ts';
import { runtimeWords, startExitCode } from '../kernel/oci-runtime.ts';
import { createAttachment } from './attachment.ts';
import type {
  Attachment,
  ExecDetails,
  ExecStartOptions,
  OutputChunk,
  OutputStream,
  TerminalSize,
} from './containers.ts';
import type { LiveContainer } from './live-container.ts';
import { openContainerLog } from './logs.ts';
import type { ContainerPorts } from './ports.ts';
import type { ExecRequest } from './request.ts';
import { commandFailure } from './start-failure.ts';
import type { Monitored } from './supervisor.ts';

/** A terminal's output is read as it comes; what nobody reads any more is bounded. */
const TERMINAL_LOG = { maxBytes: 4_000_000, maxFiles: 1 };
const TRIM_MS = 1000;
/** Clients ask for the exit code right after the end; who runs a command every second must not cost memory for ever. */
const ENDED_KEPT = 1000;

interface Exec {
  readonly id: string;
  readonly container: LiveContainer;
  readonly request: ExecRequest;
  readonly directory: string;
  state: 'created' | 'running' | 'ended';
  exitCode: number | undefined;
  /** Told even after its end. */
  lastPid: number;
  monitored: Monitored | undefined;
  /** Its output has been read, or nobody will: its files may go. */
  read: Promise<unknown>;
  /** The runtime, when it runs on pipes. */
  child: ChildProcess | undefined;
  /** Resolves when its command runs, or will not. */
  begun: Promise<unknown> | undefined;
}

export type ExecPorts = Pick<ContainerPorts, 'runtime' | 'supervisor' | 'moves' | 'runDirectory' | 'randomId' | 'log'>;

export class Execs {
  readonly #ports: ExecPorts;
  readonly #execs = new Map<string, Exec>();
  /** Oldest first. */
  readonly #endedIds = new Set<string>();

  constructor(ports: ExecPorts) {
    this.#ports = ports;
  }

  async create(container: LiveContainer, request: ExecRequest): Promise<string> {
    const { status } = container.record.state;
    if (status === 'paused')
      throw new AppError('conflict', `Container ${container.name} is paused, unpause the container before exec`);
    if (status === 'restarting')
      throw new AppError('conflict', `Container ${container.name} is restarting, wait until the container is running`);
    if (status !== 'running') throw new AppError('conflict', `container ${container.id} is not running`);
    this.#ports.moves.expect();
    // Who is unknown is refused at once, in an answer: once it starts there is only the stream.
    if (request.User !== '') await container.execProcess(request);
    const id = this.#ports.randomId();
    const directory = join(this.#ports.runDirectory, 'execs', id);
    this.#execs.set(id, {
      id,
      container,
      request,
      directory,
      state: 'created',
      exitCode: undefined,
      lastPid: 0,
      read: Promise.resolve(),
      monitored: undefined,
      child: undefined,
      begun: undefined,
    });
    container.publish(`exec_create: ${commandText(request)}`, { execID: id });
    return id;
  }

  async start(id: string, options: ExecStartOptions): Promise<Attachment | undefined> {
    const exec = this.#find(id);
    const { container, request } = exec;
    if (exec.state !== 'created') throw new AppError('conflict', `Error: Exec command ${id} has already run`);
    if (container.record.state.status !== 'running')
      throw new AppError('conflict', `container ${container.id} is not running`);
    exec.state = 'running';
    this.#ports.moves.expect();
    container.publish(`exec_start: ${commandText(request)}`, { execID: id });
    try {
      const [process] = await Promise.all([
        container.execProcess(request),
        mkdir(exec.directory, { recursive: true, mode: 0o700 }),
      ]);
      await writeFile(join(exec.directory, 'process.json'), process, { mode: 0o600 });
      return request.Tty ? await this.#startOnTerminal(exec, options) : await this.#startOnPipes(exec, options);
    } catch (error) {
      await this.#ended(exec, 126);
      throw error;
    }
  }

  async inspect(id: string): Promise<ExecDetails> {
    const exec = this.#find(id);
    return {
      id,
      containerId: exec.container.id,
      request: exec.request,
      running: exec.state === 'running',
      exitCode: exec.exitCode,
      pid: await pidOf(exec),
    };
  }

  async resize(id: string, size: TerminalSize): Promise<void> {
    const exec = this.#find(id);
    if (exec.container.record.state.status !== 'running')
      throw new AppError('conflict', `container ${exec.container.id} is not running`);
    if (exec.state !== 'running' || exec.monitored === undefined)
      throw new AppError('conflict', `cannot resize exec ${id}: it has no running terminal`);
    await exec.monitored.resize(size);
  }

  /** SIGKILL to what it runs; what that has started lives on, unheard. An exec that has ended is left alone. */
  async kill(id: string): Promise<void> {
    const exec = this.#find(id);
    if (exec.state === 'running') await exec.begun;
    const pid = await pidOf(exec);
    // Before its end its pid is not used again: the runtime has not waited for it yet.
    if (exec.state !== 'running' || pid <= 1) return;
    try {
      process.kill(pid, 'SIGKILL');
    } catch (error) {
      if (!hasCode(error, 'ESRCH')) throw error;
    }
    exec.child?.stdout?.destroy();
    exec.child?.stderr?.destroy();
  }

  /** Commands go on, as their containers do; nobody here waits for them or listens to them any more. */
  close(): void {
    for (const { child } of this.#execs.values()) {
      child?.unref();
      for (const pipe of [child?.stdin, child?.stdout, child?.stderr]) pipe?.destroy();
    }
  }

  /** Forgets one that nobody will ask about again. */
  drop(id: string): void {
    this.#execs.delete(id);
    this.#endedIds.delete(id);
  }

  /** Those of a container that have not ended. */
  idsOf(container: LiveContainer): readonly string[] {
    return [...this.#execs.values()]
      .filter((exec) => exec.container === container && exec.state !== 'ended')
      .map(({ id }) => id);
  }

  forget(container: LiveContainer): void {
    for (const exec of this.#execs.values()) if (exec.container === container) this.drop(exec.id);
  }

  #find(id: string): Exec {
    const exact = this.#execs.get(id);
    const found = exact ?? (id === '' ? undefined : [...this.#execs.values()].find((exec) => exec.id.startsWith(id)));
    if (found === undefined) throw new AppError('not-found', `No such exec instance: ${id}`);
    return found;
  }

  async #startOnPipes(exec: Exec, options: ExecStartOptions): Promise<Attachment | undefined> {
    const { runtime } = this.#ports;
    const { request, directory, container } = exec;
    const isDetached = options.detach === true;
    const errorPath = join(directory, 'runtime.log');
    // The runtime's own words go to a file: its stderr is the command's.
    const args = [
      '--log',
      errorPath,
      ...runtime.execArgs(container.id, {
        processPath: join(directory, 'process.json'),
        pidFile: join(directory, 'pid'),
      }),
    ];
    // Before the runtime, so that it cannot come unseen.
    const hasStarted = appearance(join(directory, 'pid'));
    const child = spawn(runtime.program, args, {
      stdio: isDetached
        ? 'ignore'
        : [
            request.AttachStdin ? 'pipe' : 'ignore',
            request.AttachStdout ? 'pipe' : 'ignore',
            request.AttachStderr ? 'pipe' : 'ignore',
          ],
      env: { PATH: PROGRAM_PATH, ...runtime.env },
      detached: isDetached,
    });
    exec.child = child;
    child.on('error', () => {});
    child.stdin?.on('error', () => {});
    const failure = endOf(child).then(async (exitCode) => {
      hasStarted.close();
      const [said, pid] = await Promise.all([readFile(errorPath, 'utf8').catch(() => ''), pidOf(exec)]);
      exec.lastPid = pid;
      const words = runtimeWords(said);
      const isCommand = pid > 0;
      await this.#ended(exec, isCommand ? exitCode : startExitCode(words));
      return isCommand ? undefined : execFailure(request.Cmd, words);
    });
    exec.begun = Promise.race([hasStarted.appeared, failure]);
    if (isDetached) {
      child.unref();
      return undefined;
    }
    const abort = () => child.stdin?.destroy();
    options.signal?.addEventListener('abort', abort, { once: true });
    return {
      terminal: false,
      output: pipesOf(child, { failure, hasStarted: hasStarted.appeared }),
      input: child.stdin ?? undefined,
      [Symbol.asyncDispose]: async () => {
        options.signal?.removeEventListener('abort', abort);
        child.stdin?.destroy();
        discard(child.stdout);
        discard(child.stderr);
      },
    };
  }

  async #startOnTerminal(exec: Exec, options: ExecStartOptions): Promise<Attachment | undefined> {
    const { supervisor } = this.#ports;
    const { request, directory, container } = exec;
    const log = await openContainerLog(join(directory, 'log'), TERMINAL_LOG);
    const supervised = await supervisor.launchExec({
      execId: exec.id,
      containerId: container.id,
      bundle: directory,
      logPath: log.path,
      stdin: request.AttachStdin ? 'open' : 'none',
    });
    exec.monitored = supervised;
    const trim = setInterval(() => {
      log
        .rotate({ reopen: () => supervised.reopenLog(), gone: supervised.exited })
        .catch((error) => this.#ports.log.warn('the log of an exec could not be rotated', { execId: exec.id, error }));
    }, TRIM_MS);
    const ended = supervised.exited.then(async ({ code }) => {
      clearInterval(trim);
      await this.#ended(exec, code);
    });
    const size = options.size ?? sizeOf(request);
    const attachment =
      options.detach === true
        ? undefined
        : createAttachment({
            log,
            from: await log.start(),
            run: { launched: Promise.resolve(supervised), ended },
            terminal: true,
            isForeground: true,
            hasStdin: request.AttachStdin,
            options: {
              stdin: true,
              stdout: true,
              stream: true,
              detachKeys: request.DetachKeys,
              signal: options.signal,
            },
            onDetach: () => container.publish('exec_detach', { execID: exec.id }),
          });
    const read = Promise.withResolvers<void>();
    if (attachment !== undefined) exec.read = read.promise;
    try {
      exec.lastPid = await supervised.start();
    } catch (error) {
      clearInterval(trim);
      read.resolve();
      await supervised.delete();
      const words = error instanceof AppError ? String(error.detail?.runtime ?? error.message) : messageOf(error);
      await this.#ended(exec, startExitCode(words));
      return options.detach === true ? undefined : told(execFailure(request.Cmd, words), { terminal: true });
    }
    void ended.then(() => supervised.delete()).catch(() => {});
    // A command that has ended by now needs no size any more.
    if (size !== undefined) await supervised.resize(size).catch((error) => unlessEnded(exec, error));
    return attachment && untilRead(attachment, read.resolve);
  }

  async #ended(exec: Exec, exitCode: number): Promise<void> {
    if (exec.state === 'ended') return;
    exec.state = 'ended';
    exec.exitCode = exitCode;
    exec.lastPid = await pidOf(exec);
    exec.container.publish('exec_die', { execID: exec.id, exitCode: String(exitCode) });
    this.#endedIds.add(exec.id);
    for (const id of this.#endedIds) {
      if (this.#endedIds.size <= ENDED_KEPT) break;
      this.drop(id);
    }
    void exec.read
      .then(() => rm(exec.directory, { recursive: true, force: true }))
      .catch((error) => this.#ports.log.warn('files of an exec could not be removed', { execId: exec.id, error }));
  }
}

function unlessEnded({ state }: Exec, error: unknown): void {
  if (state === 'running' && !isKind(error, 'conflict')) throw error;
}

/** It may have ended before anybody begins to read. */
function untilRead(attachment: Attachment, onRead: () => void): Attachment {
  return {
    ...attachment,
    output: (async function* () {
      try {
        yield* attachment.output;
      } finally {
        onRead();
      }
    })(),
    async [Symbol.asyncDispose]() {
      onRead();
      await attachment[Symbol.asyncDispose]();
    },
  };
}

async function pidOf({ directory, lastPid }: Exec): Promise<number> {
  if (lastPid > 0) return lastPid;
  const text = await readFile(join(directory, 'pid'), 'utf8').catch(() => '0');
  return Number(text) || 0;
}

function sizeOf({ ConsoleSize }: ExecRequest): TerminalSize | undefined {
  if (ConsoleSize === null || ConsoleSize === undefined) return undefined;
  return { rows: ConsoleSize[0], columns: ConsoleSize[1] };
}

function execFailure(command: readonly string[], words: string): string {
  const cause = commandFailure(command, words).replace('error during container init: ', '');
  return `OCI runtime exec failed: exec failed: unable to start container process: ${cause}\r\n`;
}

/** A command whose reader has gone must not wait for it for ever. */
function discard(stream: Readable | null): void {
  // An iterator that reads no more would keep the stream from flowing.
  stream?.removeAllListeners('readable');
  stream?.resume();
}

async function endOf(child: ChildProcess): Promise<number> {
  const [code, signal]: [number | null, NodeJS.Signals | null] = await new Promise((resolve) => {
    child.once('exit', (...how) => resolve(how));
    child.once('error', () => resolve([null, null]));
  });
  return code ?? (signal === null ? 125 : 137);
}

/** Resolves when the runtime has made the file: then stderr is the command's. */
function appearance(path: string): { readonly appeared: Promise<void>; close(): void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  const watcher = watch(dirname(path), (_event, name) => {
    if (name === basename(path)) resolve();
  }).on('error', () => {});
  void promise.then(() => watcher.close());
  return { appeared: promise, close: () => watcher.close() };
}

interface PipesContext {
  /** Why the command could not be run, once it is over. */
  readonly failure: Promise<string | undefined>;
  readonly hasStarted: Promise<void>;
}

/** Both pipes in the order in which they are read, at the reader's speed; then, if the command was none, why. */
async function* pipesOf(
  child: ChildProcess,
  { failure, hasStarted }: PipesContext,
): AsyncGenerator<OutputChunk, void, undefined> {
  let isCommand = false;
  const pending = new Map<OutputStream, Promise<Read>>();
  const read = (stream: OutputStream, chunks: AsyncIterator<Buffer>) => {
    pending.set(
      stream,
      chunks.next().then(({ done, value }) => ({ stream, chunks, bytes: done === true ? undefined : value })),
    );
  };
  // A process that could not be started for want of descriptors has no pipes at all.
  if (child.stdout) read('stdout', child.stdout[Symbol.asyncIterator]());
  if (child.stderr) read('stderr', child.stderr[Symbol.asyncIterator]());
  while (pending.size > 0) {
    const { stream, chunks, bytes } = await Promise.race(pending.values());
    pending.delete(stream);
    if (bytes === undefined) continue;
    if (stream === 'stderr' && !isCommand) {
      // crun says on stderr, too, why it could not run a command; that is told once, and in Docker's words.
      const message = await Promise.race([hasStarted, failure]);
      if (message !== undefined) continue;
      isCommand = true;
    }
    yield { stream, bytes };
    read(stream, chunks);
  }
  const message = await failure;
  if (message !== undefined) yield { stream: 'stdout', bytes: Buffer.from(message) };
}

interface Read {
  readonly stream: OutputStream;
  readonly chunks: AsyncIterator<Buffer>;
  /** undefined = the end. */
  readonly bytes: Buffer | undefined;
}

function told(message: string, { terminal }: { readonly terminal: boolean }): Attachment {
  return {
    terminal,
    output: (async function* () {
      yield { stream: 'stdout' as const, bytes: Buffer.from(message) };
    })(),
    input: undefined,
    [Symbol.asyncDispose]: async () => {},
  };
}

/** As Docker's events have it: the program, a blank, its arguments. */
function commandText({ Cmd: [program = '', ...args] }: ExecRequest): string {
  return `${program} ${args.join(' ')}`;
}
