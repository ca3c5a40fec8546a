/**
 * What one container has on disk: made with it, lent to those who look into it, and deleted with it.
 *
 *   <directory>/<id>/bundle  hostname  hosts  resolv.conf  log/     beside the snapshotter's upper, work and rootfs
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type ContainerRecord, isAlive } from './container.ts';
import type { ContainerRuns, RunParts } from './container-runs.ts';
import { volumeParts, withSources } from './container-volumes.ts';
import type { FileView } from './files.ts';
import type { ContainerPorts } from './ports.ts';
import type { Turns } from './turns.ts';

/** A container's files, mounted at least until this is disposed. */
export type OpenFiles = FileView & AsyncDisposable;

export interface FilesContext extends RunParts {
  /** `<directory>/<id>`. */
  readonly directory: string;
  readonly runs: Pick<ContainerRuns, 'putAway'>;
  /** Of the container: it does not start or end half way through a mount. */
  readonly turns: Turns;
  readonly ports: Pick<ContainerPorts, 'snapshots' | 'volumes'>;
}

export class ContainerFiles {
  readonly #record: () => ContainerRecord;
  readonly #context: FilesContext;
  /** Who looks at them while nothing runs. */
  #users = 0;

  constructor(record: () => ContainerRecord, context: FilesContext) {
    this.#record = record;
    this.#context = context;
  }

  async create(): Promise<void> {
    const { id, chain } = this.#record();
    await this.#context.ports.snapshots.prepare(id, chain);
    await this.#context.bundle.create();
  }

  /** The container may start, end or go away meanwhile. */
  async open(): Promise<OpenFiles> {
    const { directory, ports, turns } = this.#context;
    const { name, mounts, hostConfig } = this.#record();
    await using undo = new AsyncDisposableStack();
    const volumes = undo.use(await ports.volumes.open(volumeParts(this.#record())));
    const view = {
      name,
      rootfs: join(directory, 'rootfs'),
      mounts: withSources(mounts, volumes.sources),
      isReadOnly: hostConfig.ReadonlyRootfs,
    };
    if (!isAlive(this.#record().state)) {
      await turns.take(() => this.#mount());
      undo.defer(() => turns.takeAlways(() => this.#unmount()));
    }
    const owned = undo.move();
    return { ...view, [Symbol.asyncDispose]: () => owned.disposeAsync() };
  }

  async #mount(): Promise<void> {
    const { ports, runs } = this.#context;
    await runs.putAway;
    await ports.snapshots.mount(this.#record().id);
    this.#users += 1;
  }

  async #unmount(): Promise<void> {
    const { ports, runs, turns } = this.#context;
    this.#users -= 1;
    await runs.putAway;
    const { id, state } = this.#record();
    if (this.#users === 0 && !turns.areOver && !isAlive(state)) await ports.snapshots.unmount(id);
  }

  /** When what has run is put away and what it printed is handed on. Idempotent. */
  async delete(): Promise<void> {
    const { directory, ports, runs, bundle, network, output } = this.#context;
    await runs.putAway;
    await output.drain();
    await network.close();
    await bundle.close();
    await ports.snapshots.remove(this.#record().id);
    await Promise.all([
      rm(directory, { recursive: true, force: true }),
      rm(output.directory, { recursive: true, force: true }),
    ]);
  }
}
