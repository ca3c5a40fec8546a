/**
 * The variables of a build: what ARG and ENV say, in order. The last one said counts, as with BuildKit: an ARG below an
 * ENV of its name hides it from the lines below, and changes nothing in the image. Pure but for its own state.
 *
 * A build has one scope before its first stage; each stage has its own, which sees of that one only what it declares.
 */

import type { Meter } from './glob.ts';
import type { Instruction } from './instructions.ts';
import type { Escape, Variables } from './words.ts';

export interface ScopeOptions {
  /** `--build-arg`, and predefined ones. */
  readonly buildArgs?: Readonly<Record<string, string>> | undefined;
  /** What is there without a declaration before the first stage, and with one in a stage: platformArgs(). */
  readonly predefined?: Readonly<Record<string, string>> | undefined;
}

/** They steer the build; no command sees them. */
const NOT_FOR_COMMANDS = ['BUILDKIT_SBOM_SCAN_CONTEXT', 'BUILDKIT_SBOM_SCAN_STAGE'];

export class Scope implements Variables {
  readonly escape: Escape;
  readonly meter: Meter;
  readonly #values: Map<string, string>;
  /** What ARG has declared here, by name, with the values that it gave. */
  readonly #args: Map<string, string | undefined>;
  readonly #globals: ReadonlyMap<string, string>;
  readonly #buildArgs: ReadonlyMap<string, string>;

  constructor(
    base: Pick<Scope, 'escape' | 'meter'>,
    parts: {
      readonly values: Iterable<readonly [string, string]>;
      readonly args: Iterable<readonly [string, string | undefined]>;
      readonly globals: ReadonlyMap<string, string>;
      readonly buildArgs: ReadonlyMap<string, string>;
    },
  ) {
    this.escape = base.escape;
    this.meter = base.meter;
    this.#values = new Map(parts.values);
    this.#args = new Map(parts.args);
    this.#globals = parts.globals;
    this.#buildArgs = parts.buildArgs;
  }

  get(name: string): string | undefined {
    return this.#values.get(name);
  }

  /** Of everything that is set. */
  names(): Iterable<string> {
    return this.#values.keys();
  }

  isDeclared(name: string): boolean {
    return this.#args.has(name);
  }

  /** What ARG has declared and set so far: a RUN gets them, is keyed by them, and its history begins with them. */
  args(): ReadonlyMap<string, string> {
    const set = new Map<string, string>();
    for (const name of this.#args.keys()) {
      const value = this.#values.get(name);
      if (value !== undefined && !NOT_FOR_COMMANDS.includes(name)) set.set(name, value);
    }
    return set;
  }

  /** What the caller gave for this name; then the default is not even looked at. */
  given(name: string): string | undefined {
    return this.#buildArgs.get(name);
  }

  /** What is known of this name outside the stage, for an ARG without a default. */
  inherited(name: string): string | undefined {
    return this.#globals.get(name);
  }

  /** Takes over what a resolved ENV or ARG says; others say nothing. */
  apply(instruction: Instruction): void {
    if (instruction.kind === 'ENV') for (const { name, value } of instruction.pairs) this.#values.set(name, value);
    if (instruction.kind !== 'ARG') return;
    for (const { name, value } of instruction.arguments) {
      this.#args.set(name, value);
      if (value !== undefined) this.#values.set(name, value);
    }
  }

  /** The scope of a stage on an image with this environment; called on the scope before the stages. */
  stage(env: readonly string[] = []): Scope {
    return new Scope(this, { values: entriesOf(env), args: [], globals: this.#values, buildArgs: this.#buildArgs });
  }

  /** The scope of a stage on the stage that this scope is of, at its end. */
  child(): Scope {
    return new Scope(this, {
      values: this.#values,
      args: this.#args,
      globals: this.#globals,
      buildArgs: this.#buildArgs,
    });
  }
}

function entriesOf(env: readonly string[]): readonly (readonly [string, string])[] {
  return env.map((entry) => {
    const equals = entry.indexOf('=');
    return equals === -1 ? [entry, ''] : [entry.slice(0, equals), entry.slice(equals + 1)];
  });
}
