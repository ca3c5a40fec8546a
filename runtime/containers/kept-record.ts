/**
 * The record of one container. It changes in memory at once, so that nobody sees an old state, and is stored after; what
 * could not be stored is stored with the next change, which writes all of it.
 */
import type { Log } from '../../shared/log.ts';
import { type ContainerEvent, type ContainerRecord, transition } from './container.ts';
import type { ContainerStore } from './container-store.ts';

export class KeptRecord {
  readonly #store: ContainerStore;
  readonly #log: Pick<Log, 'error'>;
  #current: ContainerRecord;

  constructor(record: ContainerRecord, { store, log }: { readonly store: ContainerStore; readonly log: Log }) {
    this.#current = record;
    this.#store = store;
    this.#log = log;
  }

  get current(): ContainerRecord {
    return this.#current;
  }

  /** Resolves when it is stored; a failure to store is logged. */
  apply(event: ContainerEvent): Promise<void> {
    this.patch({ state: transition(this.#current.state, event) });
    return this.#store.update(this.#current).catch((error) => {
      this.#log.error('the state of a container could not be stored', { containerId: this.#current.id, error });
    });
  }

  /** In memory alone: for what goes with the next event. */
  patch(change: Partial<Pick<ContainerRecord, 'state' | 'restartCount' | 'stoppedByUser'>>): void {
    this.#current = { ...this.#current, ...change };
  }

  /** What has happened already: it stays true when it cannot be stored. @throws what the store throws */
  async keep(change: Pick<ContainerRecord, 'endpoints'>): Promise<void> {
    this.#current = { ...this.#current, ...change };
    await this.#store.update(this.#current);
  }

  /** Takes the change back when it cannot be stored. @throws what the store throws */
  async change(change: Partial<Pick<ContainerRecord, 'name' | 'hostConfig'>>): Promise<void> {
    const { name, hostConfig } = this.#current;
    this.#current = { ...this.#current, ...change };
    try {
      await this.#store.update(this.#current);
    } catch (error) {
      this.#current = { ...this.#current, name, hostConfig };
      throw error;
    }
  }

  insert(): Promise<void> {
    return this.#store.insert(this.#current);
  }

  delete(): Promise<void> {
    return this.#store.delete(this.#current.id);
  }
}
