/**
 * Links, addresses, routes and named network namespaces, by ip(8). What belongs together is one `ip -batch -`, which
 * stops at its first failure; nothing here decides what a network looks like. Names and addresses are the caller's and
 * must hold no white space: each command is one line.
 */
import { readdir } from 'node:fs/promises';
import { AppError, hasCode } from '../../shared/errors.ts';
import { type CommandResult, type RunCommand, runCommand } from './command.ts';

/** Where ip(8) keeps the namespaces that have names. */
const NETNS_DIRECTORY = '/run/netns';

export interface LinkInfo {
  readonly name: string;
  readonly mtu: number;
  /** The bridge that it is a port of. */
  readonly master: string | undefined;
}

export interface Links {
  /** Runs commands such as `link set lo up`, in order. @throws AppError 'unavailable' with the command that failed; those before it stay done */
  run(commands: readonly string[], options?: { readonly namespace?: string }): Promise<void>;
  /** Runs each, whatever happens to the others: for taking things back. */
  attempt(commands: readonly string[]): Promise<void>;
  list(): Promise<readonly LinkInfo[]>;
  /** Destinations that the host has routes to, as CIDR or `default`; each with the link it leads through. */
  routes(): Promise<readonly { readonly destination: string; readonly link: string }[]>;
  /** Names of namespaces. */
  namespaces(): Promise<readonly string[]>;
  /** For config.json and nsenter(1). */
  namespacePath(name: string): string;
}

export interface LinksOptions {
  readonly program?: string | undefined;
  readonly run?: RunCommand;
}

export function createLinks({ program = 'ip', run = runCommand }: LinksOptions = {}): Links {
  const json = async (args: readonly string[]): Promise<readonly unknown[]> => {
    const result = await run(program, ['-json', ...args]);
    if (result.exitCode !== 0) throw failure(`run ip ${args.join(' ')}`, result);
    const parsed: unknown = result.stdout.trim() === '' ? [] : JSON.parse(result.stdout);
    return Array.isArray(parsed) ? parsed : [];
  };
  return {
    async run(commands, { namespace } = {}) {
      if (commands.length === 0) return;
      const args = [...(namespace === undefined ? [] : ['-netns', namespace]), '-batch', '-'];
      const result = await run(program, args, { stdin: lines(commands) });
      if (result.exitCode === 0) return;
      const number = Number(/Command failed -:(\d+)/.exec(result.stderr)?.[1] ?? 0);
      throw failure(`run "ip ${commands[number - 1] ?? '-batch'}"`, result);
    },
    async attempt(commands) {
      if (commands.length > 0) await run(program, ['-force', '-batch', '-'], { stdin: lines(commands) });
    },
    async list() {
      return (await json(['link', 'show'])).map((link) => ({
        name: textField(link, 'ifname'),
        mtu: Number(field(link, 'mtu')),
        master: textField(link, 'master') || undefined,
      }));
    },
    async routes() {
      const found = await Promise.all([json(['-4', 'route', 'show']), json(['-6', 'route', 'show'])]);
      return found
        .flat()
        .map((route) => ({ destination: textField(route, 'dst'), link: textField(route, 'dev') }))
        .filter(({ destination }) => destination !== '');
    },
    async namespaces() {
      try {
        return await readdir(NETNS_DIRECTORY);
      } catch (error) {
        if (hasCode(error, 'ENOENT')) return [];
        throw error;
      }
    },
    namespacePath: (name) => `${NETNS_DIRECTORY}/${name}`,
  };
}

function lines(commands: readonly string[]): string {
  return commands.map((command) => `${command}\n`).join('');
}

function field(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? new Map(Object.entries(value)).get(name) : undefined;
}

function textField(value: unknown, name: string): string {
  const found = field(value, name);
  return typeof found === 'string' ? found : '';
}

function failure(action: string, { stderr, exitCode }: CommandResult): AppError {
  const words = stderr
    .split('\n')
    .map((line) => line.trim())
    .find((line) => line !== '' && !line.startsWith('Command failed'));
  const kind = /not permitted/.test(words ?? '')
    ? 'denied'
    : /File exists/.test(words ?? '')
      ? 'already-exists'
      : 'unavailable';
  return new AppError(kind, `cannot ${action}: ${words ?? `exit code ${exitCode}`}`);
}
