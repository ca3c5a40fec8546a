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
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { CgroupMoves } from '../kernel/cgroup-moves.ts';
import type { Cgroups } from '../kernel/cgroups.ts';
import { PROGRAM_PATH } from '../kernel/command.ts';
import { createLauncher } from '../kernel/launcher.ts';
import type { OciRuntime } from '../kernel/oci-runtime.ts';
import { filesOf, isConmon, makeFresh, type RunFiles, readExit, readNumber } from './conmon-files.ts';
import { CONMON_PIPES, Conmon, commonArgs } from './conmon-process.ts';
import { connectStdin, control, createBrake } from './conmon-streams.ts';
import { ConmonWatch } from './conmon-watch.ts';
import type {
  Adopted,
  ContainerSupervisor,
  ExecLaunchRequest,
  LaunchRequest,
  Monitored,
  Supervised,
  SupervisedExec,
} from './supervisor.ts';

export interface ConmonOptions {
  /** Its program must be an absolute path: conmon searches nothing. */
  readonly runtime: OciRuntime;
  readonly cgroups: Cgroups;
  readonly moves: CgroupMoves;
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
/** crun's words; seen once, on a host with no memory or processes to spare. */
const INIT_LOST = /sync socket|read from the init process/;
/** How often it is checked that conmons live; their exit files tell everything else at once. */
const LIVENESS_MS = 5_000;

export function createConmonSupervisor(options: ConmonOptions): ContainerSupervisor {
  return new ConmonSupervisor(options);
}
class ConmonSupervisor implements ContainerSupervisor {
  readonly #options: ConmonOptions;
  readonly #watched = new Set<ConmonWatch>();
  readonly #liveness: NodeJS.Timeout;
  #isClosed = false;
  /** Of conmons: in their cgroup, so that none has to be moved there, which takes the kernel long. */
  readonly #launcher = createLauncher({ prepare: (pid) => this.#moveMonitor(pid) });

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
    try {
      return await this.#launch(request, options);
    } catch (error) {
      // The runtime's child died while it was being set up: nothing of the container has run, so this is safe.
      if (!INIT_LOST.test(messageOf(error))) throw error;
      this.#options.log.warn('the runtime lost its first process, it is created again', {
        containerId: request.id,
        error,
      });
      return this.#launch(request, options);
    }
  }

  async #launch(request: LaunchRequest, options: Cancelable): Promise<Supervised> {
    const { runtime } = this.#options;
    const { id, bundle } = request;
    this.#options.moves.expect();
    const files = filesOf(this.#options.runDirectory, id);
    makeFresh(files, bundle);
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
    makeFresh(files, bundle);
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
            this.#options.moves.expect();
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

  async close(): Promise<void> {
    this.#isClosed = true;
    clearInterval(this.#liveness);
    for (const watched of this.#watched) watched.stop();
    await this.#launcher[Symbol.asyncDispose]();
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
    if (this.#isClosed) watched.stop();
    this.#watched.add(watched);
    void watched.exited.then(() => this.#watched.delete(watched));
    return watched;
  }

  async #moveMonitor(pid: number): Promise<void> {
    const { cgroups, cgroupParent } = this.#options;
    const cgroup = `${cgroupParent}/${MONITORS}`;
    await cgroups.create(cgroup);
    await cgroups.add(cgroup, pid);
  }

  async #spawn(request: SpawnRequest): Promise<Conmon> {
    const { conmon = 'conmon' } = this.#options;
    const { words, reports, start, attach } = CONMON_PIPES;
    const program = await this.#launcher.start(conmon, request.args, {
      outputs: [words, reports, ...(request.waitForAttach === true ? [attach] : [])],
      inputs: [start],
      env: {
        PATH: PROGRAM_PATH,
        TZ: 'UTC',
        ...this.#options.runtime.env,
        _OCI_SYNCPIPE: String(reports),
        _OCI_STARTPIPE: String(start),
        ...(request.waitForAttach === true ? { _OCI_ATTACHPIPE: String(attach) } : {}),
      },
      cwd: request.bundle,
    });
    const conmonProcess = new Conmon(request.id, program);
    try {
      await request.ready;
      this.#options.moves.expect();
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
