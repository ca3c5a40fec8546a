/**
 * What declarations are made of: a group of commands, and the flags that many share. Groups are filled only when the
 * command line names them; what a command does is imported when it runs, so that `berth version` does not load what
 * `berth run` needs. Both save 15 ms at every start.
 */
import { type Command, Option } from 'commander';
import type { Session } from '../session.ts';

/** Runs with an open session; arguments and flags are as commander gives them. */
export type Act = (
  work: (session: Session, ...args: never[]) => Promise<void>,
) => (...args: unknown[]) => Promise<void>;

/** Adds arguments, flags and the action to a command. */
type Declare = (command: Command) => Command;

export interface Group {
  /** A command at the top (`ps`) and, under the same or another name, in the group (`container ls`). */
  both(name: string, declare: Declare, grouped?: string): void;
  /** A command in the group alone. */
  only(name: string, declare: Declare): void;
}

export interface Place {
  readonly program: Command;
  readonly act: Act;
  /** The command line: it tells which declarations are needed in full. */
  readonly words: ReadonlySet<string>;
}

export function createGroup({ program, words }: Place, name: string, description: string): Group {
  const group = program.command(name).description(description);
  const only: Group['only'] = (command, declare) => {
    if (words.has(name)) declare(group.command(command));
  };
  return {
    only,
    both: (command, declare, grouped = command) => {
      declare(program.command(command));
      only(grouped, declare);
    },
  };
}

/** A flag that may be given several times. */
export const many = (flags: string, description: string): Option =>
  new Option(flags, description).argParser((value: string, earlier: readonly string[] = []) => [...earlier, value]);
export const filter = (): Option => many('-f, --filter <KEY=VALUE>', 'only those that match');
/** Where -f is --force. */
export const longFilter = (): Option => many('--filter <KEY=VALUE>', 'only those that match');
export const format = (): Option => new Option('--format <FORMAT>', 'json, a Go template, or "table TEMPLATE"');

/** `inspect`, at the top for objects of all types, in a group for its own. */
export function inspecting(act: Act, type?: string): Declare {
  return (command) =>
    command
      .description('show everything about objects')
      .argument('<name...>')
      .option('-f, --format <FORMAT>', 'json, or a Go template')
      .option('-s, --size', 'sizes of a container')
      .option('--type <TYPE>', 'container, image, network or volume')
      .action(
        act(async (session, names: string[], flags: { format?: string; size?: boolean; type?: string }) =>
          (await import('../container-commands.ts')).inspect(
            session,
            names,
            type === undefined ? flags : { ...flags, type },
          ),
        ),
      );
}
