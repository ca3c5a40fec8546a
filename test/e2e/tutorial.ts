/** The two clients of the tutorial tests, the real docker CLI and ours: one table of commands holds for both. */
import { berth, CLI, type Outcome } from '../fixtures/programs.ts';
import type { EnginePlace } from './engine-place.ts';
import { openTerminal, type Terminal } from './terminal.ts';

export const CLIENTS = ['docker', 'berth'] as const;
export type ClientName = (typeof CLIENTS)[number];

export interface Client {
  run(args: readonly string[], input?: string): Promise<Outcome>;
  /** As run, but it must succeed. Answers stdout without its final newline. */
  ok(args: readonly string[], input?: string): Promise<string>;
  /** One field of a container, by a Go template. */
  field(container: string, template: string): Promise<string>;
  /** The same command in a terminal. */
  terminal(args: readonly string[]): Terminal;
}

export function tutorialClient(name: ClientName, place: () => EnginePlace): Client {
  const run: Client['run'] = (args, input) =>
    name === 'docker' ? place().docker(args, input) : berth(place().host, place().engine, args, input);
  const ok: Client['ok'] = async (args, input) => {
    const { code, stdout, stderr } = await run(args, input);
    if (code !== 0) throw new Error(`${name} ${args.join(' ')} ended with code ${code}:\n${stdout}${stderr}`);
    return stdout.replace(/\n$/, '');
  };
  return {
    run,
    ok,
    field: (container, template) => ok(['inspect', '--format', template, container]),
    terminal(args) {
      const { engine, host } = place();
      const program = name === 'docker' ? ['docker', '-H', engine.url] : [process.execPath, CLI];
      const command = [...program, ...args].map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(' ');
      return openTerminal(command, { ...host.env, BERTH_HOST: engine.url });
    },
  };
}
