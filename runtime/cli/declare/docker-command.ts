/**
 * Commands that take flags in all of Docker's spellings. Commander knows no value of a boolean flag, and would take the
 * `=` of `-e=VALUE` for a part of the value.
 */
import { Command, type Option, type ParseOptionsResult } from 'commander';

/** What Go's parser takes for a boolean. */
const BOOLEANS: ReadonlyMap<string, boolean> = new Map([
  ...['1', 't', 'T', 'true', 'TRUE', 'True'].map((text) => [text, true] as const),
  ...['0', 'f', 'F', 'false', 'FALSE', 'False'].map((text) => [text, false] as const),
]);

const WITH_VALUE = /^-[^=]+=/;

/** A commander command, of which subcommands are such too: `--rm=false`, `-it=0` and `-e=NAME` mean what they do to Docker. */
export class DockerCommand extends Command {
  #endsAtOperand = false;

  override createCommand(name?: string): DockerCommand {
    return new DockerCommand(name);
  }

  override passThroughOptions(passThrough = true): this {
    this.#endsAtOperand = passThrough;
    return super.passThroughOptions(passThrough);
  }

  override parseOptions(args: string[]): ParseOptionsResult {
    if (!args.some((arg) => WITH_VALUE.test(arg))) return super.parseOptions(args);
    const { rest, values } = this.#takeBooleans(args);
    const parsed = super.parseOptions(rest);
    for (const [name, value] of values) this.setOptionValueWithSource(name, value, 'cli');
    return parsed;
  }

  /** The arguments in commander's spelling, and the values of flags that are switched off. */
  #takeBooleans(args: readonly string[]): { readonly rest: string[]; readonly values: ReadonlyMap<string, boolean> } {
    const rest: string[] = [];
    const values = new Map<string, boolean>();
    const endsAtOperand = this.#endsAtOperand || this.commands.length > 0;
    const setBoolean = (option: Option, flag: string, text: string | undefined): void => {
      const name = option.attributeName();
      const value = text === undefined ? true : BOOLEANS.get(text);
      if (value === undefined)
        this.error(`error: invalid argument ${JSON.stringify(text)} for ${flag}: want true or false`);
      // The last one counts; what is in `values` is set after commander has seen all others.
      if (value === true) {
        values.delete(name);
        rest.push(flag);
      } else values.set(name, option.negate);
    };
    for (let at = 0; at < args.length; at += 1) {
      const arg = args[at] ?? '';
      if (arg === '--' || (endsAtOperand && !isFlag(arg))) return { rest: [...rest, ...args.slice(at)], values };
      const flags = arg.startsWith('--') ? longFlag(arg) : isFlag(arg) ? this.#shortFlags(arg) : [];
      for (const { flag, text } of flags) {
        const option = this.options.find(({ long, short }) => flag === long || flag === short);
        if (option !== undefined && isBoolean(option)) {
          setBoolean(option, flag, text);
          continue;
        }
        if (text !== undefined) rest.push(...(flag.startsWith('--') ? [`${flag}=${text}`] : [flag, text]));
        else if (option?.required === true) {
          at += 1;
          rest.push(flag, ...args.slice(at, at + 1));
        } else rest.push(flag);
      }
      if (flags.length === 0) rest.push(arg);
    }
    return { rest, values };
  }

  /** `-ite=NAME` as -i, -t and -e with NAME. What is unknown stays in one piece, for the error. */
  #shortFlags(arg: string): readonly Flag[] {
    const flags: Flag[] = [];
    for (let at = 1; at < arg.length; at += 1) {
      const flag = `-${arg[at]}`;
      const option = this.options.find(({ short }) => short === flag);
      const after = arg.slice(at + 1);
      if (option === undefined) return [...flags, { flag: `-${arg.slice(at)}`, text: undefined }];
      if (after.startsWith('=')) return [...flags, { flag, text: after.slice(1) }];
      if (!isBoolean(option)) return [...flags, { flag, text: after === '' ? undefined : after }];
      flags.push({ flag, text: undefined });
    }
    return flags;
  }
}

interface Flag {
  /** With its dashes. */
  readonly flag: string;
  readonly text: string | undefined;
}

function longFlag(arg: string): readonly Flag[] {
  const at = arg.indexOf('=');
  return [at === -1 ? { flag: arg, text: undefined } : { flag: arg.slice(0, at), text: arg.slice(at + 1) }];
}

function isFlag(arg: string): boolean {
  return arg.length > 1 && arg.startsWith('-');
}

function isBoolean(option: Option): boolean {
  return !option.required && !option.optional;
}
