/**
 * The runs of one container, one after another: each is made of the container's parts (its files, volumes, network and
 * log), and put away part by part. It knows nothing of the record's state: when to start and what an end means is not
 * decided here.
 */
import { AppError } from '../../shared/errors.ts';
import type { AttachedRun } from './attachment.ts';
import type { ContainerRecord } from './container.ts';
import type { ContainerBundle } from './container-bundle.ts';
import type { ContainerNetwork } from './container-network.ts';
import type { ContainerOutput } from './container-output.ts';
import { volumeParts } from './container-volumes.ts';
import type { StartOptions } from './containers.ts';
import type { ContainerPorts } from './ports.ts';
import type { Adopted, Supervised } from './supervisor.ts';

export type RunPorts = Pick<ContainerPorts, 'snapshots' | 'supervisor' | 'volumes' | 'cgroupParent' | 'log' | 'now'>;

export interface RunParts {
  readonly bundle: ContainerBundle;
  readonly network: ContainerNetwork;
  readonly output: ContainerOutput;
}

/** One run to come or under way. */
interface Run {
  readonly launched: PromiseWithResolvers<Supervised>;
  readonly ended: PromiseWithResolvers<void>;
}

export class ContainerRuns {
  readonly #record: () => ContainerRecord;
  readonly #parts: RunParts;
  readonly #ports: RunPorts;
  #run: Run = newRun();
  #supervised: Supervised | undefined;
  /** What the last run leaves is being put away. */
  #teardown: Promise<void> = Promise.resolve();

  constructor(record: () => ContainerRecord, parts: RunParts, ports: RunPorts) {
    this.#record = record;
    this.#parts = parts;
    this.#ports = ports;
  }

  /** What runs now. */
  get supervised(): Supervised | undefined {
    return this.#supervised;
  }

  /** The run under way, or else the next one. */
  get current(): AttachedRun & { readonly ended: Promise<void> } {
    return { launched: this.#run.launched.promise, ended: this.#run.ended.promise };
  }

  get cgroup(): string {
    const { id, hostConfig } = this.#record();
    const { CgroupParent } = hostConfig;
    return `${CgroupParent === '' ? this.#ports.cgroupParent : `/${CgroupParent.replace(/^\/+/, '')}`}/${id}`;
  }

  /** Nothing of the last run is left when this resolves; it never rejects. */
  get putAway(): Promise<void> {
    return this.#teardown;
  }

  /** Starts one; the caller says `follow` next. When it fails, nothing is left of it. */
  async launch(options: StartOptions): Promise<{ readonly supervised: Supervised; readonly startedAt: Date }> {
    const { snapshots, supervisor, volumes } = this.#ports;
    const { bundle, network, output } = this.#parts;
    const { id } = this.#record();
    await this.#teardown;
    await using undo = new AsyncDisposableStack();
    undo.defer(() => snapshots.unmount(id));
    undo.defer(() => bundle.close());
    undo.defer(() => network.close());
    await using attached = await volumes.attach(id, volumeParts(this.#record()));
    undo.defer(() => volumes.detach(id));
    const ready = bundle.make(attached.sources, options.env);
    const settled = ready.catch(() => {});
    // Whatever fails first, nothing is still being made when the rest is taken back.
    undo.defer(() => settled);
    await output.check();
    const log = await output.open();
    const supervised = await supervisor.launch({ ...bundle.launchRequest(log.path, this.cgroup), ready }, options);
    undo.defer(() => supervised.delete());
    this.#run.launched.resolve(supervised);
    await Promise.all([network.ready(), bundle.created()]);
    // Before it prints: clients ask for what it has logged since then.
    const startedAt = this.#ports.now();
    await supervised.start();
    undo.move();
    return { supervised, startedAt };
  }

  /** What an earlier engine has started, and its log, which is opened for it. */
  async find(): Promise<Adopted | undefined> {
    const { bundle, output } = this.#parts;
    const log = await output.open();
    return this.#ports.supervisor.adopt(bundle.launchRequest(log.path, this.cgroup));
  }

  /** Goes on with one that an earlier engine started. */
  resume(supervised: Supervised): void {
    this.#ports.volumes.resume(this.#record().id, volumeParts(this.#record()));
    this.follow(supervised);
  }

  /** This is what runs from now on. */
  follow(supervised: Supervised): void {
    this.#supervised = supervised;
    this.#run.launched.resolve(supervised);
    this.#parts.output.forward(this.#run.ended.promise);
  }

  /** It has ended. What it leaves is deleted only after `stored`; its network stays for the next one if `keepNetwork`. */
  end(
    supervised: Supervised,
    { stored, keepNetwork }: { readonly stored: Promise<void>; readonly keepNetwork: boolean },
  ): void {
    const { snapshots, volumes } = this.#ports;
    const { bundle, network } = this.#parts;
    const { id } = this.#record();
    this.#supervised = undefined;
    // At once: whoever starts the next container may want the same ports.
    const disconnected = keepNetwork ? undefined : network.close();
    // A failure is taken below; before that it must not end the engine.
    disconnected?.catch(() => {});
    this.#afterLast(async () => {
      await stored;
      await supervised.delete();
      await Promise.all([snapshots.unmount(id), bundle.close(), disconnected]);
      await volumes.detach(id);
    });
    this.giveUp();
  }

  /** The next run does not come after all: its network is not kept for it. */
  closeNetwork(): void {
    this.#afterLast(() => this.#parts.network.close());
  }

  #afterLast(work: () => Promise<unknown>): void {
    this.#teardown = this.#teardown.then(work).then(
      () => {},
      (error) => this.#ports.log.error('a run could not be put away', { containerId: this.#record().id, error }),
    );
  }

  /** Whoever waits for the current run waits no longer. */
  giveUp(reason: unknown = new AppError('conflict', 'it has ended')): void {
    const run = this.#run;
    this.#run = newRun();
    run.launched.reject(reason);
    run.ended.resolve();
  }
}

function newRun(): Run {
  const run = { launched: Promise.withResolvers<Supervised>(), ended: Promise.withResolvers<void>() };
  // Nobody may be waiting for it.
  run.launched.promise.catch(() => {});
  return run;
}
