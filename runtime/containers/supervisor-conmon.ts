/**
 * ContainerSupervisor by conmon. What must survive this process is in files, and only there:
 *
 *   <bundle>/attach  ctl                     conmon's socket (SOCK_SEQPACKET) and fifo
 *   <runDirectory>/<id>/conmon.pid  pid      conmon's, and the first process's
 *   <runDirectory>/<id>/exits/<id>           the exit code, once; renamed into place after the last byte of the log
 *   <runDirectory>/<id>/cgroup              its cgroup, when that is not below the engine's own
 *   <runDirectory>/<id>/persist/oom          exists when the kernel killed something for want of memory
 *
 * conmon is moved to a cgroup of its own before it creates anything, so that stopping the engine's stops no container.
 * Each exit directory belongs to one container or exec: a shared one would let an exec overwrite a container's code.
 * https://github.com/containers/conmon/blob/v2.1.6/docs/conmon.8.md
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { constants, type FSWatcher, type Stats, watch } from 'node:fs';
import { mkdir, open, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError, hasCode, isKind } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { Cgroups } from '../kernel/cgroups.ts';
import { PROGRAM_PATH } from '../kernel/command.ts';
import { type OciRuntime, runtimeFailure } from '../kernel/oci-runtime.ts';
import type {
  Adopted,
  Brake,
  ContainerSupervisor,
  ExecLaunchRequest,
  Exit,
  LaunchRequest,
  Monitored,
  StdinMode,
  Supervised,
  SupervisedExec,
} from './supervisor.ts';

export interface ConmonOptions {
  /** Its program must be an absolute path: conmon searches nothing. */
  readonly runtime: OciRuntime;
  readonly cgroups: Cgroups;
  /** Where conmons live: `<parent>/monitors`. Containers' cgroups are `<parent>/<id>`. */
  readonly cgroupParent: string;
  /** On a filesystem that a reboot empties: what is here speaks of this boot's processes. */
  readonly runDirectory: string;
  readonly now: () => Date;
  readonly log: Log;
  /** Absolute, or found on the search path. */
  readonly conmon?: string;
  readonly socat?: string;
}

const MONITORS = 'monitors';
/** How often it is checked that conmons live; their exit files tell everything else at once. */
const LIVENESS_MS = 5_000;
const CREATE_TIMEOUT_MS = 120_000;
/** Between conmon's death and its exit file there is nothing; between the process's and the file only a moment. */
const EXIT_FILE_GRACE_MS = 2_000;
const CTL_RETRIES = 50;
const CTL_RETRY_MS = 10;
/** Killed, by whom nobody knows. */
const LOST_EXIT_CODE = 137;

export function createConmonSupervisor(options: ConmonOptions): ContainerSupervisor {
  return new ConmonSupervisor(options);
}

class ConmonSupervisor implements ContainerSupervisor {
  readonly #options: ConmonOptions;
  readonly #watched = new Set<ConmonWatch>();
  readonly #liveness: NodeJS.Timeout;
  #hasMonitorCgroup = false;

  constructor(options: ConmonOptions) {
    this.#options = options;
    this.#liveness = setInterval(() => {
      for (const watched of this.#watched)
        watched.checkLiveness().catch((error) => {
          options.log.warn('it could not be seen whether a monitor lives', { error });
        });
    }, LIVENESS_MS);
    this.#liveness.unref();
  }

  async launch(request: LaunchRequest, options: Cancelable = {}): Promise<Supervised> {
    const { runtime } = this.#options;
    const { id, bundle } = request;
    const files = filesOf(this.#options.runDirectory, id);
    await makeFresh(files, bundle);
    if (request.cgroup !== undefined) await writeFile(files.cgroup, request.cgroup);
    try {
      const conmon = await this.#spawn({
        id,
        bundle,
        files,
        ready: request.ready,
        args: [...commonArgs(request, { id, files, runtime }), ...(request.terminal ? ['-t'] : [])],
      });
      const pid = await conmon.nextNumber('create', options.signal);
      conmon.release();
      const watched = this.#watch(id, files);
      return this.#supervise(request, { files, watched, pid });
    } catch (error) {
      await runtime.delete(id, { force: true });
      await rm(files.directory, { recursive: true, force: true });
      throw error;
    }
  }

  async launchExec(request: ExecLaunchRequest): Promise<SupervisedExec> {
    const { runtime } = this.#options;
    const { execId, containerId, bundle } = request;
    const files = filesOf(this.#options.runDirectory, execId);
    await makeFresh(files, bundle);
    try {
      const conmon = await this.#spawn({
        id: execId,
        bundle,
        files,
        waitForAttach: true,
        args: [
          ...commonArgs(request, { id: containerId, files, runtime }),
          '-t',
          '--exec',
          '--exec-attach',
          '--exec-process-spec',
          join(bundle, 'process.json'),
        ],
      });
      // conmon names an exit file after the container; the directory tells that it is the exec's.
      const watched = this.#watch(containerId, files);
      return {
        ...this.#monitored(execId, { bundle, watched }),
        start: async () => {
          try {
            conmon.go();
            const pid = await conmon.nextNumber('exec', undefined);
            conmon.release();
            return pid;
          } catch (error) {
            watched.stop();
            throw error;
          }
        },
        delete: async () => {
          watched.stop();
          conmon.release();
          await rm(files.directory, { recursive: true, force: true });
        },
      };
    } catch (error) {
      await rm(files.directory, { recursive: true, force: true });
      throw error;
    }
  }

  async adopt(request: LaunchRequest): Promise<Adopted | undefined> {
    const { runtime, runDirectory } = this.#options;
    const { id } = request;
    const files = filesOf(runDirectory, id);
    const pid = (await readNumber(files.pid)) ?? 0;
    const state = await runtime.state(id);
    const exit = await readExit(files, id);
    const conmonPid = (await readNumber(files.conmonPid)) ?? 0;
    // Either nothing was started, or putting away what had ended was cut off.
    if (state === undefined && exit === undefined && (pid === 0 || !(await isConmon(conmonPid)))) {
      await rm(files.directory, { recursive: true, force: true });
      return undefined;
    }
    if (exit === undefined && state?.status === 'created') {
      // Created and never started: that start has not happened.
      await runtime.delete(id, { force: true });
      await rm(files.directory, { recursive: true, force: true });
      return undefined;
    }
    const watched = this.#watch(id, files);
    await watched.checkLiveness();
    const status = exit !== undefined ? 'ended' : state?.status === 'paused' ? 'paused' : 'running';
    return { supervised: this.#supervise(request, { files, watched, pid }), status };
  }

  async sweep(valid: ReadonlySet<string>): Promise<void> {
    const { runtime, cgroups, cgroupParent, runDirectory, log } = this.#options;
    const known = await runtime.list();
    for (const { id } of known.filter((state) => !valid.has(state.id))) {
      log.warn('removing a process that no container owns', { containerId: id });
      await runtime.delete(id, { force: true });
    }
    for (const name of await cgroups.children(cgroupParent)) {
      if (name === MONITORS || valid.has(name)) continue;
      await cgroups.kill(`${cgroupParent}/${name}`);
      await cgroups.remove(`${cgroupParent}/${name}`);
    }
    const names = await readdir(runDirectory).catch(() => []);
    for (const name of names.filter((each) => !valid.has(each))) {
      const files = filesOf(runDirectory, name);
      const cgroup = await readFile(files.cgroup, 'utf8').catch(() => undefined);
      if (cgroup !== undefined) {
        await cgroups.kill(cgroup);
        await cgroups.remove(cgroup);
      }
      await rm(files.directory, { recursive: true, force: true });
    }
  }

  close(): void {
    clearInterval(this.#liveness);
    for (const watched of this.#watched) watched.stop();
  }

  #supervise(
    { id, bundle }: LaunchRequest,
    found: { readonly files: RunFiles; readonly watched: ConmonWatch; readonly pid: number },
  ): Supervised {
    const { runtime } = this.#options;
    return {
      ...this.#monitored(id, { bundle, watched: found.watched }),
      pid: found.pid,
      start: () => runtime.start(id),
      kill: (signal) => runtime.kill(id, signal),
      pause: () => runtime.pause(id),
      resume: () => runtime.resume(id),
      update: (resources) => runtime.update(id, resources),
      delete: async () => {
        await runtime.delete(id, { force: true });
        found.watched.stop();
        await rm(found.files.directory, { recursive: true, force: true });
      },
    };
  }

  #monitored(id: string, { bundle, watched }: { readonly bundle: string; readonly watched: ConmonWatch }): Monitored {
    const { socat = 'socat' } = this.#options;
    return {
      id,
      exited: watched.exited,
      resize: ({ rows, columns }) => control(bundle, `1 ${rows} ${columns}\n`),
      reopenLog: () => control(bundle, '2 0 0\n'),
      stdin: () => connectStdin(socat, bundle),
      brake: () => createBrake(socat, bundle),
    };
  }

  #watch(exitName: string, files: RunFiles): ConmonWatch {
    const watched = new ConmonWatch({ exitName, files, now: this.#options.now });
    this.#watched.add(watched);
    void watched.exited.then(() => this.#watched.delete(watched));
    return watched;
  }

  async #moveMonitor(pid: number): Promise<void> {
    const { cgroups, cgroupParent } = this.#options;
    const cgroup = `${cgroupParent}/${MONITORS}`;
    if (this.#hasMonitorCgroup) {
      try {
        return await cgroups.add(cgroup, pid);
      } catch (error) {
        // Others of the host remove empty cgroups, too.
        if (!isKind(error, 'unavailable')) throw error;
      }
    }
    await cgroups.create(cgroup);
    this.#hasMonitorCgroup = true;
    await cgroups.add(cgroup, pid);
  }

  async #spawn(request: SpawnRequest): Promise<Conmon> {
    const { conmon = 'conmon' } = this.#options;
    const child = spawn(conmon, request.args, {
      // 3: conmon tells the pid. 4: conmon waits for a byte. 5: conmon tells that its attach socket is open.
      stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe', request.waitForAttach === true ? 'pipe' : 'ignore'],
      env: {
        PATH: PROGRAM_PATH,
        TZ: 'UTC',
        ...this.#options.runtime.env,
        _OCI_SYNCPIPE: '3',
        _OCI_STARTPIPE: '4',
        ...(request.waitForAttach === true ? { _OCI_ATTACHPIPE: '5' } : {}),
      },
      detached: true,
      cwd: request.bundle,
    });
    const conmonProcess = new Conmon(request.id, child);
    try {
      await conmonProcess.spawned;
      await this.#moveMonitor(child.pid ?? 0).catch((error) => Promise.reject(conmonProcess.lastWords() ?? error));
      await request.ready;
      conmonProcess.go();
      if (request.waitForAttach === true) await conmonProcess.attachable();
      return conmonProcess;
    } catch (error) {
      conmonProcess.abandon();
      throw error;
    }
  }
}

interface SpawnRequest {
  readonly id: string;
  readonly bundle: string;
  readonly files: RunFiles;
  readonly args: readonly string[];
  /** conmon waits in its cgroup until then. */
  readonly ready?: Promise<unknown> | undefined;
  readonly waitForAttach?: boolean;
}

interface RunFiles {
  readonly directory: string;
  readonly conmonPid: string;
  readonly pid: string;
  readonly exits: string;
  readonly persist: string;
  readonly cgroup: string;
}

function filesOf(runDirectory: string, id: string): RunFiles {
  const directory = join(runDirectory, id);
  return {
    directory,
    conmonPid: join(directory, 'conmon.pid'),
    pid: join(directory, 'pid'),
    exits: join(directory, 'exits'),
    persist: join(directory, 'persist'),
    cgroup: join(directory, 'cgroup'),
  };
}

/** An exit file of the run before would end the next one at once. */
async function makeFresh(files: RunFiles, bundle: string): Promise<void> {
  await rm(files.directory, { recursive: true, force: true });
  await mkdir(files.directory, { recursive: true, mode: 0o700 });
  await Promise.all([
    mkdir(files.exits),
    mkdir(files.persist),
    ...['attach', 'ctl', 'winsz', 'oom'].map((name) => rm(join(bundle, name), { force: true })),
  ]);
}

function commonArgs(
  request: { readonly bundle: string; readonly logPath: string; readonly stdin: StdinMode },
  context: { readonly id: string; readonly files: RunFiles; readonly runtime: OciRuntime },
): string[] {
  const { id, files, runtime } = context;
  return [
    '--api-version',
    ...['-c', id, '-u', id, '-n', id],
    ...['-r', runtime.program],
    ...runtime.globalArgs.flatMap((argument) => ['--runtime-arg', argument]),
    ...['-b', request.bundle],
    ...['-p', files.pid, '-P', files.conmonPid],
    ...['--exit-dir', files.exits, '--persist-dir', files.persist],
    '--full-attach',
    // A sync at every rotation would stop the container for as long as the disk takes.
    ...['-l', `k8s-file:${request.logPath}`, '--no-sync-log', '--log-level', 'error'],
    ...(request.stdin === 'none' ? [] : ['-i']),
    ...(request.stdin === 'open' ? ['--leave-stdin-open'] : []),
  ];
}

/** The conversation with a conmon that has just been started. */
class Conmon {
  readonly spawned: Promise<void>;
  readonly #id: string;
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  #stderr = '';

  constructor(id: string, child: ChildProcess) {
    this.#id = id;
    this.#child = child;
    this.spawned = new Promise((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', (cause) =>
        reject(new AppError('unsupported', `cannot start conmon: ${cause.message}; is it installed?`, { cause })),
      );
    });
    this.spawned.catch(() => {});
    this.#lines = createInterface({ input: this.#readable(3) })[Symbol.asyncIterator]();
    this.#readable(2).on('data', (bytes: Buffer) => {
      this.#stderr = `${this.#stderr}${bytes}`.slice(-4096);
    });
    for (const stream of child.stdio) stream?.on('error', () => {});
  }

  /** One byte: first "you are in your cgroup", then, for an exec, "start it". */
  go(): void {
    this.#writable(4).write('\0');
  }

  async attachable(): Promise<void> {
    const lines = createInterface({ input: this.#readable(5) })[Symbol.asyncIterator]();
    const { done } = await lines.next();
    if (done === true) throw this.#failure('start', this.#stderr);
  }

  /** The next `{"data": n}`. A negative n is a failure, told in the runtime's words. */
  async nextNumber(verb: string, signal: AbortSignal | undefined): Promise<number> {
    const deadline = AbortSignal.any([
      AbortSignal.timeout(CREATE_TIMEOUT_MS),
      ...(signal === undefined ? [] : [signal]),
    ]);
    const aborted = Promise.withResolvers<never>();
    const onAbort = () =>
      aborted.reject(new AppError('timeout', `cannot ${verb} container ${JSON.stringify(this.#id)}: it was cancelled`));
    deadline.addEventListener('abort', onAbort, { once: true });
    try {
      const { done, value } = await Promise.race([this.#lines.next(), aborted.promise]);
      const report = done === true ? undefined : parseReport(value);
      if (report === undefined) throw this.#failure(verb, this.#stderr);
      if (report.data < 0) throw this.#failure(verb, report.message ?? this.#stderr);
      return report.data;
    } catch (error) {
      this.abandon();
      throw error;
    } finally {
      deadline.removeEventListener('abort', onAbort);
    }
  }

  /** Lets go: conmon goes on without us. */
  release(): void {
    for (const stream of this.#child.stdio) stream?.destroy();
    this.#child.unref();
  }

  /** Ends a conmon that has not started anything yet; one that has is ended by deleting its container. */
  abandon(): void {
    this.#child.kill('SIGKILL');
    this.release();
  }

  /** What it complained about, if it did. */
  lastWords(): AppError | undefined {
    return this.#stderr === '' ? undefined : this.#failure('start the monitor of', this.#stderr);
  }

  #failure(verb: string, words: string): AppError {
    return runtimeFailure(verb, this.#id, words);
  }

  #readable(fd: 2 | 3 | 5): Readable {
    const stream = this.#pipe(fd);
    if (stream !== undefined && 'read' in stream) return stream;
    throw new AppError('unavailable', `cannot hear conmon: it has no pipe ${fd}`);
  }

  #writable(fd: 4): Writable {
    const stream = this.#pipe(fd);
    if (stream !== undefined && 'write' in stream) return stream;
    throw new AppError('unavailable', `cannot talk to conmon: it has no pipe ${fd}`);
  }

  #pipe(fd: number): Readable | Writable | undefined {
    return Array.from(this.#child.stdio)[fd] ?? undefined;
  }
}

function parseReport(line: string): { readonly data: number; readonly message?: string } | undefined {
  const value: unknown = JSON.parse(line);
  if (typeof value !== 'object' || value === null || !('data' in value) || typeof value.data !== 'number')
    return undefined;
  return 'message' in value && typeof value.message === 'string'
    ? { data: value.data, message: value.message }
    : { data: value.data };
}

/** Turns the exit file, or conmon's death without one, into a promise. */
class ConmonWatch {
  readonly exited: Promise<Exit>;
  readonly #options: { readonly exitName: string; readonly files: RunFiles; readonly now: () => Date };
  readonly #watcher: FSWatcher | undefined;
  readonly #resolve: (exit: Exit) => void;

  constructor(options: { readonly exitName: string; readonly files: RunFiles; readonly now: () => Date }) {
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<Exit>();
    this.exited = promise;
    this.#resolve = resolve;
    this.#watcher = watchIfThere(options.files.exits, (name) => {
      if (name === options.exitName) this.#look();
    });
    // It may have ended before we watched.
    this.#look();
  }

  /** A conmon that was killed writes no exit file, and nobody watches its container any more. */
  async checkLiveness(): Promise<void> {
    const { files, now } = this.#options;
    if (await this.#check()) return;
    const pid = await readNumber(files.conmonPid);
    if (pid !== undefined && (await isConmon(pid))) return;
    await delay(EXIT_FILE_GRACE_MS, undefined, { ref: false });
    if (await this.#check()) return;
    this.#end({ code: LOST_EXIT_CODE, oomKilled: false, finishedAt: now() });
  }

  stop(): void {
    this.#watcher?.close();
  }

  /** What cannot be read just now, for want of descriptors or memory, is found by checkLiveness. */
  #look(): void {
    this.#check().catch(() => {});
  }

  async #check(): Promise<boolean> {
    const exit = await readExit(this.#options.files, this.#options.exitName);
    if (exit === undefined) return false;
    this.#end(exit);
    return true;
  }

  #end(exit: Exit): void {
    this.stop();
    this.#resolve(exit);
  }
}

function watchIfThere(path: string, onName: (name: string | null) => void): FSWatcher | undefined {
  try {
    return watch(path, (_event, name) => onName(name)).on('error', () => {});
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}

async function readExit(files: RunFiles, exitName: string): Promise<Exit | undefined> {
  const path = join(files.exits, exitName);
  const code = await readNumber(path);
  if (code === undefined) return undefined;
  const [info, oom] = await Promise.all([path, join(files.persist, 'oom')].map(statIfThere));
  return info === undefined ? undefined : { code, oomKilled: oom !== undefined, finishedAt: info.mtime };
}

async function statIfThere(path: string): Promise<Stats | undefined> {
  try {
    return await stat(path);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}

async function readNumber(path: string): Promise<number | undefined> {
  try {
    const text = (await readFile(path, 'utf8')).trim();
    return /^-?\d+$/.test(text) ? Number(text) : undefined;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}

/** Process ids are used again, and a zombie keeps its own: a number from a file alone proves nothing. */
async function isConmon(pid: number): Promise<boolean> {
  try {
    return / \(conmon\) [^ZX]/.test(await readFile(`/proc/${pid}/stat`, 'utf8'));
  } catch (error) {
    // Anything else says nothing about the process.
    if (hasCode(error, 'ENOENT', 'ESRCH')) return false;
    throw error;
  }
}

/** Writes to conmon's control fifo. Opening it fails with ENXIO until conmon reads it. */
async function control(bundle: string, message: string): Promise<void> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      await using handle = await open(join(bundle, 'ctl'), constants.O_WRONLY | constants.O_NONBLOCK);
      await handle.write(message);
      return;
    } catch (cause) {
      if (!hasCode(cause, 'ENXIO', 'ENOENT')) throw cause;
      if (attempt === CTL_RETRIES)
        throw new AppError('conflict', 'cannot control the container: its monitor has ended', { cause });
      await delay(CTL_RETRY_MS);
    }
  }
}

/**
 * Node opens no SOCK_SEQPACKET sockets; socat does. Output that comes back is thrown away, but it must be read: a
 * client of the attach socket that does not read stops conmon and the container. Packets are at most 32 KiB there.
 */
async function connectStdin(socat: string, bundle: string): Promise<Writable> {
  const child = spawn(socat, ['-b', '32768', 'STDIN!!OPEN:/dev/null,wronly', 'UNIX-CONNECT:attach,type=5'], {
    stdio: ['pipe', 'ignore', 'ignore'],
    cwd: bundle,
    env: { PATH: PROGRAM_PATH },
  });
  await started(child, socat);
  child.unref();
  // The container may end, or close its stdin, at any time: that is no error of the one who writes.
  const { stdin } = child;
  stdin.on('error', () => stdin.destroy());
  child.on('exit', () => stdin.destroy());
  return stdin;
}

/** A client of the attach socket that reads only while it is released. It is connected when it is first needed. */
function createBrake(socat: string, bundle: string): Brake {
  let child: ChildProcess | undefined;
  return {
    hold() {
      if (child !== undefined) return void child.stdout?.pause();
      child = spawn(socat, ['-u', '-b', '32768', 'UNIX-CONNECT:attach,type=5', 'STDOUT'], {
        stdio: ['ignore', 'pipe', 'ignore'],
        cwd: bundle,
        env: { PATH: PROGRAM_PATH },
      });
      child.on('error', () => {});
      child.unref();
      child.stdout?.on('data', () => {}).pause();
    },
    release: () => void child?.stdout?.resume(),
    close: () => void child?.kill('SIGKILL'),
  };
}

function started(child: ChildProcess, program: string): Promise<void> {
  return new Promise((resolve, reject) => {
    child.once('spawn', resolve);
    child.once('error', (cause) =>
      reject(new AppError('unsupported', `cannot start ${program}: ${cause.message}; is it installed?`, { cause })),
    );
  });
}
