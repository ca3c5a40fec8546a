/**
 * All containers of this host, in memory, by id and by name. A name is taken before its container is there, so that two
 * creates under way never get the same one.
 */
import { isKind } from '../../shared/errors.ts';
import { hostLinks } from './links.ts';
import type { LiveContainer } from './live-container.ts';
import { generateName, nameConflict, parseName, resolveName } from './names.ts';

export class ContainerTable implements Iterable<LiveContainer> {
  readonly #byId = new Map<string, LiveContainer>();
  readonly #idByName = new Map<string, string>();

  [Symbol.iterator](): Iterator<LiveContainer> {
    return this.#byId.values();
  }

  get ids(): ReadonlySet<string> {
    return new Set(this.#byId.keys());
  }

  /**
   * By a full id, a name, a prefix of one id only, or as a linked container calls it (`NAME/ALIAS`).
   * @throws AppError 'not-found', 'invalid' (ambiguous prefix)
   */
  find(name: string): LiveContainer {
    const [parent = '', alias] = name.replace(/^\//, '').split('/');
    const linking = alias === undefined ? undefined : this.tryFind(parent);
    const link = linking && hostLinks(linking.record.hostConfig).find((each) => each.alias === alias);
    return resolveName(link?.target ?? name, { byId: this.#byId, idByName: this.#idByName });
  }

  /** undefined where `find` would throw. */
  tryFind(name: string): LiveContainer | undefined {
    try {
      return this.find(name);
    } catch (error) {
      if (isKind(error, 'not-found', 'invalid')) return undefined;
      throw error;
    }
  }

  /** Takes a name for the container of this id. @throws AppError 'invalid'; 'conflict' when another has it */
  takeName(wanted: string, id: string): string {
    const name = parseName(wanted);
    const owner = this.#idByName.get(name);
    if (owner !== undefined) throw nameConflict(name, owner);
    this.#idByName.set(name, id);
    return name;
  }

  /** Takes one that we make up; `random` answers an integer in [0, limit). */
  takeAnyName(random: (limit: number) => number, id: string): string {
    const name = generateName(random, (candidate) => this.#idByName.has(candidate));
    this.#idByName.set(name, id);
    return name;
  }

  freeName(name: string): void {
    this.#idByName.delete(name);
  }

  /** It is found from now on, by its name too. */
  add(container: LiveContainer): void {
    this.#byId.set(container.id, container);
    this.#idByName.set(container.name, container.id);
  }

  delete({ id, name }: LiveContainer): void {
    this.#byId.delete(id);
    this.#idByName.delete(name);
  }
}
