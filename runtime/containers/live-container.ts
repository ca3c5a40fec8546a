/**
 * One container and what becomes of it: its verbs, the end of its runs, its restarts and its removal. Verbs happen one
 * after another; the end of a run is taken in when it comes.
 *
 * Order of writing, so that a crash leaves the old or the new state: the record is stored after what it names is made,
 * and what a run leaves (its exit code, above all) is deleted only after its end is stored. What was not stored yet is
 * found again by `adopt`.
 */
import { join } from 'node:path';
import { AppError, isKind, messageOf } from '../../shared/errors.ts';
import { parseSignal } from '../../shared/signals.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { type ContainerRecord, endedOf, exitCodeOf, isAlive, transition } from './container.ts';
import { type BundlePorts, ContainerBundle } from './container-bundle.ts';
import { ContainerFiles, type OpenFiles } from './container-files.ts';
import { ContainerNetwork } from './container-network.ts';
import { ContainerOutput } from './container-output.ts';
import { ContainerRuns } from './container-runs.ts';
import type { ContainerStore } from './container-store.ts';
import { releaseVolumes } from './container-volumes.ts';
import type {
  Attachment,
  AttachOptions,
  LogOptions,
  LogStream,
  RemoveOptions,
  StartOptions,
  StopOptions,
  WaitCondition,
  WaitResult,
} from './containers.ts';
import { KeptRecord } from './kept-record.ts';
import { withoutLink } from './links.ts';
import { joinedContainers } from './namespaces.ts';
import type { ContainerPorts, EtcPaths } from './ports.ts';
import type { ExecRequest } from './request.ts';
import { wantsRestart, wantsStartAtBoot } from './restart.ts';
import { RestartTimer } from './restart-timer.ts';
import { startFailure } from './start-failure.ts';
import type { Adopted, Exit, Supervised } from './supervisor.ts';
import { Turns } from './turns.ts';
import { Waiters } from './waiters.ts';

const SIGKILL = 9;
const DEFAULT_STOP_SECONDS = 10;
/** A killed process ends at once, unless it waits in the kernel for a device. */
const KILL_MS = 15_000;
/** The engine cannot know how a run ended that the host's own end took along. */
const LOST_EXIT_CODE = 255;

export interface LivePorts extends ContainerPorts, BundlePorts {
  readonly store: ContainerStore;
  readonly isRestarting: (name: string) => boolean;
  readonly etcOf: (name: string) => EtcPaths;
  readonly recordOf: (name: string) => ContainerRecord;
  /** The addresses of some container have changed. */
  readonly onMoved: () => void;
  /** Its name is free and its id unknown from now on. */
  readonly onRemoved: (container: LiveContainer) => void;
  /** A run has begun, or was found again. */
  readonly onStarted: (container: LiveContainer) => void;
  readonly onEnded: (container: LiveContainer) => void;
}

export class LiveContainer {
  readonly #ports: LivePorts;
  readonly #output: ContainerOutput;
  readonly #network: ContainerNetwork;
  readonly #bundle: ContainerBundle;
  readonly #runs: ContainerRuns;
  readonly #files: ContainerFiles;
  readonly #kept: KeptRecord;
  readonly #waiters = new Waiters(() => this.#waitResult());
  /** Of its verbs: a container that went away while somebody waited is not found. */
  readonly #turns = new Turns(() => new AppError('not-found', `No such container: ${this.name}`));
  readonly #restartTimer = new RestartTimer();
  #isClosed = false;

  constructor(record: ContainerRecord, ports: LivePorts) {
    this.#ports = ports;
    this.#kept = new KeptRecord(record, ports);
    const directory = join(ports.directory, record.id);
    const current = () => this.#kept.current;
    this.#output = new ContainerOutput(current, {
      directory,
      runDirectory: ports.runDirectory,
      hostname: ports.host.hostname,
      warnings: ports.log,
    });
    const etc = {
      hostname: join(directory, 'hostname'),
      hosts: join(directory, 'hosts'),
      resolvConf: join(directory, 'resolv.conf'),
    };
    this.#network = new ContainerNetwork(current, etc, ports);
    this.#bundle = new ContainerBundle(current, { directory, network: this.#network, ports });
    const parts = { bundle: this.#bundle, network: this.#network, output: this.#output };
    this.#runs = new ContainerRuns(current, parts, ports);
    this.#files = new ContainerFiles(current, { ...parts, directory, runs: this.#runs, turns: this.#turns, ports });
  }

  get record(): ContainerRecord {
    return this.#kept.current;
  }
  get id(): string {
    return this.record.id;
  }
  get name(): string {
    return this.record.name;
  }

  /** What runs, for execs and samples. */
  get supervised(): Supervised | undefined {
    return this.#runs.supervised;
  }
  get cgroup(): string {
    return this.#runs.cgroup;
  }
  get etcPaths(): EtcPaths {
    return this.#network.etcPaths;
  }
  /** What it is connected to. */
  get network(): Pick<ContainerNetwork, 'connections' | 'sandbox'> {
    return this.#network;
  }
  /** Text of process.json for an exec in what runs. */
  execProcess(request: ExecRequest): Promise<string> {
    return this.#bundle.execProcess(request);
  }
  get output(): Pick<ContainerOutput, 'path' | 'diskBytes'> {
    return this.#output;
  }

  /** Makes its directories and stores it, in this order: a row never names what is not there. */
  async create(): Promise<void> {
    try {
      await this.#files.create();
      await this.#kept.insert();
    } catch (error) {
      await this.#files.delete();
      throw error;
    }
    this.publish('create');
  }

  start(options: StartOptions = {}): Promise<boolean> {
    return this.#turns.take(async () => {
      const { status } = this.record.state;
      if (status === 'running') return false;
      if (status === 'paused') throw new AppError('conflict', 'cannot start a paused container, try unpause instead');
      if (status === 'removing' || status === 'dead')
        throw new AppError('conflict', 'container is marked for removal and cannot be started');
      this.#cancelRestart();
      await this.#launchAnew(options);
      return true;
    });
  }

  stop(options: StopOptions = {}): Promise<boolean> {
    return this.#turns.take(() => this.#stop(options));
  }

  async restart(options: StopOptions = {}): Promise<void> {
    await this.#turns.take(async () => {
      await this.#stop(options);
      await this.#launchAnew({});
    });
    this.publish('restart');
  }

  /** Does not wait its turn: it must reach a container that is being stopped. */
  async kill(signalName = 'SIGKILL'): Promise<void> {
    const signal = parseSignal(signalName);
    if (!isAlive(this.record.state))
      throw new AppError('conflict', `cannot kill container: ${this.name}: container ${this.id} is not running`);
    if (signal === SIGKILL || signal === this.#stopSignal()) this.#kept.patch({ stoppedByUser: true });
    const { ended } = this.#runs.current;
    await this.#signal(signal);
    if (signal === SIGKILL) await this.#mustEnd(ended);
  }

  pause(): Promise<void> {
    return this.#turns.take(async () => {
      const supervised = this.#mustRun();
      if (this.record.state.status === 'paused')
        throw new AppError('conflict', `container ${this.id} is already paused`);
      await supervised.pause();
      await this.#kept.apply({ type: 'paused' });
      this.publish('pause');
    });
  }

  unpause(): Promise<void> {
    return this.#turns.take(async () => {
      const supervised = this.#mustRun();
      if (this.record.state.status !== 'paused') throw new AppError('conflict', `Container ${this.id} is not paused`);
      await supervised.resume();
      await this.#kept.apply({ type: 'unpaused' });
      this.publish('unpause');
    });
  }

  /** Changes the record, and limits of what runs. `changeOf` sees what earlier changes have made of it. */
  update(changeOf: (record: ContainerRecord) => Partial<Pick<ContainerRecord, 'name' | 'hostConfig'>>): Promise<void> {
    return this.#turns.take(async () => {
      const change = changeOf(this.record);
      // First what can be refused: a record must not tell of limits that the kernel did not take.
      if (change.hostConfig !== undefined)
        await this.supervised?.update(await this.#ports.spec.resources(change.hostConfig, this.record.hostConfig));
      await this.#kept.change(change);
    });
  }

  /** Now if it runs, else from its next start on. `endpoints` are all that it then has. */
  connect(network: string, endpoints: ContainerRecord['endpoints']): Promise<void> {
    return this.#turns.take(async () => {
      await this.#network.connect(network, endpoints);
      await this.#keepEndpoints(endpoints);
    });
  }

  disconnect(network: string, endpoints: ContainerRecord['endpoints']): Promise<void> {
    return this.#turns.take(async () => {
      await this.#network.disconnect(network);
      await this.#keepEndpoints(endpoints);
    });
  }

  /** Somebody that it may be linked to has come or gone. */
  followLinks(): Promise<void> {
    return this.#network.followLinks();
  }

  /** It knows the other container by this name no more, in the default network. @throws AppError 'not-found' */
  unlink(alias: string): Promise<void> {
    return this.#turns.take(async () => {
      const { hostConfig } = this.record;
      const Links = withoutLink(hostConfig, alias);
      if (Links === undefined) throw new AppError('not-found', `No such container: ${this.name}/${alias}`);
      await this.#kept.change({ hostConfig: { ...hostConfig, Links } });
      await this.#network.refresh();
    });
  }

  async #keepEndpoints(endpoints: ContainerRecord['endpoints']): Promise<void> {
    await this.#kept.keep({ endpoints });
    await this.#network.refresh();
  }

  wait(condition: WaitCondition, options: Cancelable = {}): Promise<WaitResult> {
    if (condition === 'not-running' && this.#isAtRest()) return Promise.resolve(this.#waitResult());
    return this.#waiters.wait(condition, options);
  }

  /** It does not run, and is not about to be restarted. */
  #isAtRest(): boolean {
    const { state } = this.record;
    return !isAlive(state) && state.status !== 'restarting';
  }

  async #untilRest({ signal }: Cancelable): Promise<void> {
    if (!this.#isAtRest()) await this.#waiters.wait('at-rest', { signal });
  }

  async remove(options: RemoveOptions = {}): Promise<void> {
    const isForced = options.force === true;
    if (isForced) {
      this.#restartTimer.cancel();
      this.#kept.patch({ stoppedByUser: true });
    }
    // A start that had its turn before may have made it run again.
    for (let isGone = false; !isGone; ) {
      if (isForced && isAlive(this.record.state)) {
        const { ended } = this.#runs.current;
        await this.kill().catch(async (error) => {
          if (!isKind(error, 'conflict')) throw error;
          await this.#mustEnd(ended);
        });
      }
      isGone = await this.#removeNow(options);
    }
  }

  /** false = it runs, and is to be killed first. */
  #removeNow(options: RemoveOptions): Promise<boolean> {
    const what = `cannot remove container ${JSON.stringify(this.name)}`;
    return this.#turns.takeAlways(async () => {
      const { state } = this.record;
      const { status } = state;
      if (this.#turns.areOver) return true;
      if (options.force === true && isAlive(state)) return false;
      if (status === 'running' || (status === 'restarting' && options.force !== true))
        throw new AppError(
          'conflict',
          `${what}: container is ${status}: stop the container before removing or force remove`,
        );
      if (status === 'paused')
        throw new AppError('conflict', `${what}: container is paused and must be unpaused first`);
      this.#cancelRestart();
      await this.#kept.apply({ type: 'removing' });
      try {
        await this.#files.delete();
      } catch (cause) {
        await this.#kept.apply({ type: 'remove-failed', error: messageOf(cause) });
        this.#waiters.resolve('removed', 'next-exit');
        throw new AppError('unavailable', `${what}: ${messageOf(cause)}`, { cause });
      }
      await this.#forget();
      if (options.volumes === true) await this.#removeVolumes();
      this.#collectLayers();
      return true;
    });
  }

  /** Its files, mounted at least until this is disposed; it may start, end or go away meanwhile. */
  async openFiles(): Promise<OpenFiles> {
    this.#mustBeAbleTo('reach the files of');
    return this.#files.open();
  }

  async attach(options: AttachOptions): Promise<Attachment> {
    const onDetach = () => this.publish('detach');
    const attachment = await this.#output.attach(this.#runs.current, { ...options, onDetach });
    this.publish('attach');
    return attachment;
  }

  logs(options: LogOptions): Promise<LogStream> {
    return this.#output.logs(options, () => this.#untilRest(options));
  }

  async trimLog(): Promise<void> {
    const { supervised } = this;
    if (supervised === undefined) return;
    await this.#output.trim({ reopen: () => supervised.reopenLog(), gone: supervised.exited });
  }

  /** After a start of the engine: brings record and reality together. */
  async adopt(): Promise<void> {
    const { state, hostConfig, stoppedByUser } = this.record;
    if (state.status === 'removing') {
      await this.#files.delete();
      return this.#forget();
    }
    if (state.status === 'dead') return;
    // What a run before has left is handed on now.
    if (!isAlive(state)) this.#output.forward(Promise.resolve());
    const found = await this.#runs.find();
    if (found !== undefined && (await this.#isStored(found))) {
      await found.supervised.delete();
      await this.#ports.snapshots.unmount(this.id);
    } else if (found !== undefined) {
      if (!isAlive(state))
        await this.#kept.apply({ type: 'started', at: this.#ports.now(), pid: found.supervised.pid });
      const isPaused = this.record.state.status === 'paused';
      if (found.status === 'paused' && !isPaused) await this.#kept.apply({ type: 'paused' });
      if (found.status === 'running' && isPaused) await this.#kept.apply({ type: 'unpaused' });
      this.#runs.resume(found.supervised);
      if (found.status === 'ended') return this.#ended(found.supervised, await found.supervised.exited);
      void found.supervised.exited.then((exit) => this.#ended(found.supervised, exit));
      this.#ports.onStarted(this);
      // While nobody watched, the log has grown; and a rotation may have been cut off.
      const log = await this.#output.open();
      await log
        .rotate({ reopen: () => found.supervised.reopenLog(), gone: found.supervised.exited }, { always: true })
        .catch((error) => this.#ports.log.warn('a log could not be rotated', { containerId: this.id, error }));
      return;
    }
    if (state.status === 'exited' && hostConfig.AutoRemove) return this.#removeItself();
    if (isAlive(state)) {
      await this.#kept.apply({ type: 'exited', exitCode: LOST_EXIT_CODE, oomKilled: false, at: this.#ports.now() });
      this.publish('die', { exitCode: String(LOST_EXIT_CODE) });
      if (hostConfig.AutoRemove) return this.#removeItself();
    } else if (state.status === 'restarting') await this.#kept.apply({ type: 'restart-cancelled' });
    await this.#network.close();
    await this.#bundle.close();
    const ran = isAlive(state) || state.status === 'restarting';
    if (
      ran
        ? wantsRestart(hostConfig.RestartPolicy, this.#lastRun())
        : state.status === 'exited' && wantsStartAtBoot(hostConfig.RestartPolicy, stoppedByUser)
    )
      await this.#turns
        .takeAlways(() => {
          // Who stopped the run before has not stopped this one.
          this.#kept.patch({ stoppedByUser: false });
          return this.#launch({});
        })
        .catch((error) => {
          this.#ports.log.warn('a container could not be started again', { containerId: this.id, error });
        });
  }

  /** Whether the record tells of this end already, and only putting the run away was cut off. */
  async #isStored({ status, supervised }: Adopted): Promise<boolean> {
    if (status !== 'ended') return false;
    const { finishedAt } = await supervised.exited;
    return endedOf(this.record.state)?.finishedAt.getTime() === finishedAt.getTime();
  }

  /** Stops watching, and starts nothing any more; what has begun, putting away above all, is waited for. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#restartTimer.cancel();
    this.#output.close();
    await this.settled();
  }

  /** Resolves when all that has begun by now is over; it never rejects. */
  async settled(): Promise<void> {
    await this.#turns.settled();
    await this.#runs.putAway;
  }

  publish(action: string, attributes: Readonly<Record<string, string>> = {}): void {
    const { imageName, name, config } = this.record;
    this.#ports.events.publish({
      type: 'container',
      action,
      id: this.id,
      attributes: { ...config.Labels, image: imageName, name, ...attributes },
    });
  }

  /** @throws AppError 'unsupported' where nothing can be mounted or run */
  #mustBeAbleTo(action: string): void {
    const { obstacle } = this.#ports;
    if (obstacle !== undefined)
      throw new AppError('unsupported', `cannot ${action} container ${JSON.stringify(this.name)}: ${obstacle}`);
  }

  /** By somebody's wish: what its policy has counted is forgotten. */
  #launchAnew(options: StartOptions): Promise<void> {
    this.#kept.patch({ stoppedByUser: false, restartCount: 0 });
    this.#restartTimer.reset();
    return this.#launch(options);
  }

  async #launch(options: StartOptions): Promise<void> {
    this.#mustBeAbleTo('start');
    if (this.#isClosed)
      throw new AppError('unavailable', `cannot start container ${JSON.stringify(this.name)}: the engine is ending`);
    let supervised: Supervised;
    let startedAt: Date;
    try {
      ({ supervised, startedAt } = await this.#runs.launch(options));
    } catch (error) {
      const failure = startFailure(error, this.record.config);
      await this.#kept.apply({ type: 'start-failed', failure });
      this.#runs.giveUp(error);
      this.#waiters.resolve('not-running', 'next-exit', 'at-rest');
      if (this.record.hostConfig.AutoRemove) void this.#removeItself();
      throw new AppError(isKind(error, 'invalid') ? 'invalid' : 'unavailable', failure.message, { cause: error });
    }
    // Not waited for: after a crash the supervisor tells that it runs.
    void this.#kept.apply({ type: 'started', at: startedAt, pid: supervised.pid });
    this.publish('start');
    this.#runs.follow(supervised);
    this.#ports.onStarted(this);
    void supervised.exited.then((exit) => this.#ended(supervised, exit));
  }

  /** Takes in the end of a run. Everything up to the first await happens at once, so nobody sees half of it. */
  async #ended(supervised: Supervised, exit: Exit): Promise<void> {
    const { hostConfig } = this.record;
    this.#ports.onEnded(this);
    const { code: exitCode, oomKilled, finishedAt: at } = exit;
    const startedAt = isAlive(this.record.state) ? this.record.state.startedAt : at;
    const isRestarted = wantsRestart(hostConfig.RestartPolicy, { ...this.#lastRun(), exitCode });
    const ended = { type: isRestarted ? 'restarting' : 'exited', exitCode, oomKilled, at } as const;
    // Whose row goes at once is not stored first: until it is gone, a crash finds the end in what the run has left.
    const goesNow = !isRestarted && hostConfig.AutoRemove && this.#turns.areIdle;
    const gone = Promise.withResolvers<void>();
    const stored = goesNow ? gone.promise : this.#kept.apply(ended);
    if (goesNow) this.#kept.patch({ state: transition(this.record.state, ended) });
    if (oomKilled) this.publish('oom');
    const ranMs = Math.max(0, at.getTime() - startedAt.getTime());
    this.publish('die', { exitCode: String(exitCode), execDuration: String(Math.floor(ranMs / 1000)) });
    this.#runs.end(supervised, { stored, keepNetwork: isRestarted });
    // Docker's 'not-running' is over between two runs, too.
    this.#waiters.resolve('next-exit', 'not-running', ...(isRestarted ? [] : ['at-rest' as const]));
    if (isRestarted) this.#scheduleRestart(ranMs);
    else if (hostConfig.AutoRemove) await this.#removeItself(gone.resolve);
  }

  #lastRun(): { readonly exitCode: number; readonly restartCount: number; readonly stoppedByUser: boolean } {
    const { state, restartCount, stoppedByUser } = this.record;
    return { exitCode: exitCodeOf(state), restartCount, stoppedByUser };
  }

  #scheduleRestart(ranMs: number): void {
    // The next engine restarts it.
    if (this.#isClosed) return;
    this.#restartTimer.schedule(ranMs, () => {
      void this.#turns
        .takeAlways(async () => {
          if (this.record.state.status !== 'restarting') return;
          // Whose namespaces it shares comes first, when both are being restarted.
          if (joinedContainers(this.record.hostConfig).some(this.#ports.isRestarting)) return this.#scheduleRestart(0);
          this.#kept.patch({ restartCount: this.record.restartCount + 1 });
          await this.#launch({});
        })
        .catch((error) => {
          this.#ports.log.warn('a container could not be restarted', { containerId: this.id, error });
        });
    });
  }

  #cancelRestart(): void {
    this.#restartTimer.cancel();
    if (this.record.state.status !== 'restarting') return;
    void this.#kept.apply({ type: 'restart-cancelled' });
    this.#runs.closeNetwork();
    this.#waiters.resolve('not-running', 'at-rest');
  }

  async #stop({ timeoutSeconds, signal }: StopOptions): Promise<boolean> {
    const { state, config } = this.record;
    if (state.status === 'restarting') {
      this.#kept.patch({ stoppedByUser: true });
      this.#cancelRestart();
      return true;
    }
    if (!isAlive(state)) return false;
    this.#kept.patch({ stoppedByUser: true });
    const { ended } = this.#runs.current;
    await this.#signal(signal === undefined ? this.#stopSignal() : parseSignal(signal));
    const seconds = timeoutSeconds ?? config.StopTimeout ?? DEFAULT_STOP_SECONDS;
    const obeyed = seconds < 0 ? await ended.then(() => true) : await within(ended, seconds * 1000);
    if (!obeyed) {
      await this.#signal(SIGKILL);
      await this.#mustEnd(ended);
    }
    this.publish('stop');
    return true;
  }

  #stopSignal(): number {
    return parseSignal(this.record.config.StopSignal || 'SIGTERM');
  }

  async #signal(signal: number): Promise<void> {
    try {
      await this.supervised?.kill(signal);
      this.publish('kill', { signal: String(signal) });
      // A frozen process would get it only when it goes on.
      if (this.record.state.status === 'paused') {
        await this.supervised?.resume();
        await this.#kept.apply({ type: 'unpaused' });
      }
    } catch (error) {
      // It has ended meanwhile: its exit is on the way.
      if (!isKind(error, 'conflict', 'not-found')) throw error;
    }
  }

  async #mustEnd(ended: Promise<void>): Promise<void> {
    if (await within(ended, KILL_MS)) return;
    throw new AppError(
      'unavailable',
      `cannot stop container ${JSON.stringify(this.name)}: it was killed, but its end did not come within ${KILL_MS / 1000} seconds`,
    );
  }

  #mustRun(): Supervised {
    const { supervised } = this;
    if (supervised === undefined || !isAlive(this.record.state))
      throw new AppError('conflict', `container ${this.id} is not running`);
    return supervised;
  }

  /** --rm: the row first, so that name and answer need not wait for what is put away after it. */
  #removeItself(onForgotten: () => void = () => {}): Promise<void> {
    return this.#turns
      .takeAlways(async () => {
        try {
          if (this.#turns.areOver || isAlive(this.record.state)) return;
          await this.#forget();
        } finally {
          onForgotten();
        }
        await this.#files.delete();
        await this.#removeVolumes();
        this.#collectLayers();
      })
      .catch((error) => this.#ports.log.error('a container could not remove itself', { containerId: this.id, error }));
  }

  async #forget(): Promise<void> {
    await this.#kept.delete();
    await this.#ports.volumes.release(this.id);
    this.#turns.end();
    this.#ports.onRemoved(this);
    this.publish('destroy');
    this.#runs.giveUp();
    this.#waiters.resolve('removed', 'next-exit', 'not-running', 'at-rest');
  }

  /** Those that nobody named. The container is gone, so what stays is told to the log alone. */
  async #removeVolumes(): Promise<void> {
    await releaseVolumes(this.#ports, this.record, { anonymous: true }).catch((error) => {
      this.#ports.log.warn('a volume could not be removed with its container', { containerId: this.id, error });
    });
  }

  /** An image that was removed by force left its layers to the containers that stood on them. */
  #collectLayers(): void {
    const { images, log } = this.#ports;
    images
      .resolve(this.record.imageId)
      .catch(() => images.collectLayers(this.record.chain))
      .catch((error) => log.warn('layers stay for the next prune', { containerId: this.id, error }));
  }

  #waitResult(): WaitResult {
    const { state } = this.record;
    // Who started it is told why that failed; here it would be told twice.
    return { exitCode: exitCodeOf(state), error: state.status === 'dead' ? state.error : undefined };
  }
}

/** false = the time is up. */
async function within(promise: Promise<unknown>, milliseconds: number): Promise<boolean> {
  const { promise: late, resolve } = Promise.withResolvers<boolean>();
  const timer = setTimeout(resolve, milliseconds, false);
  try {
    return await Promise.race([promise.then(() => true), late]);
  } finally {
    clearTimeout(timer);
  }
}
