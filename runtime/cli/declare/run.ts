/** The commands that start a process and talk to it. */
import { type Command, Option } from 'commander';
import { addContainerFlags } from '../container-request.ts';
import { type Group, many, type Place } from './group.ts';

const running = () => import('../run-command.ts');

export function declareRun(group: Group, { act, words }: Place): void {
  // The hundred flags of run and create are declared when one of them is meant.
  const withContainerFlags = (command: Command) => (words.has(command.name()) ? addContainerFlags(command) : command);
  group.both('run', (command) =>
    withContainerFlags(
      command.description('create a container and run a command in it').argument('<image>').argument('[command...]'),
    )
      .option('-d, --detach', 'leave it running and print its id')
      .option('--detach-keys <KEYS>', 'keys that leave it running')
      .option('--no-sig-proxy', 'do not forward signals')
      .addOption(new Option('--sig-proxy').hideHelp())
      .passThroughOptions()
      .action(
        act(
          async (session, name: string, args: string[], flags: Record<string, string | boolean | readonly string[]>) =>
            (await running()).run(session, flags, name, args),
        ),
      ),
  );
  group.both('create', (command) =>
    withContainerFlags(
      command.description('create a container without starting it').argument('<image>').argument('[command...]'),
    )
      .passThroughOptions()
      .action(
        act(
          async (session, name: string, args: string[], flags: Record<string, string | boolean | readonly string[]>) =>
            (await running()).create(session, flags, name, args),
        ),
      ),
  );
  group.both('start', (command) =>
    command
      .description('start stopped containers')
      .argument('<container...>')
      .option('-a, --attach', 'attach stdout and stderr, forward signals')
      .option('-i, --interactive', 'attach stdin')
      .option('--detach-keys <KEYS>', 'keys that leave it running')
      .action(
        act(async (session, names: string[], flags: { attach?: boolean; interactive?: boolean; detachKeys?: string }) =>
          (await running()).start(session, names, flags),
        ),
      ),
  );
  group.both('attach', (command) =>
    command
      .description('attach to a running container')
      .argument('<container>')
      .option('--no-stdin', 'do not attach stdin')
      .option('--no-sig-proxy', 'do not forward signals')
      .addOption(new Option('--sig-proxy').hideHelp())
      .option('--detach-keys <KEYS>', 'keys that leave it running')
      .action(
        act(async (session, name: string, flags: { stdin?: boolean; sigProxy?: boolean; detachKeys?: string }) =>
          (await running()).attach(session, name, flags),
        ),
      ),
  );
  group.both('exec', (command) =>
    command
      .description('run a command in a running container')
      .argument('<container>')
      .argument('<command...>')
      .option('-d, --detach', 'do not wait for it')
      .option('--detach-keys <KEYS>', 'keys that leave it running')
      .addOption(many('-e, --env <NAME=VALUE>', 'set an environment variable'))
      .addOption(many('--env-file <FILE>', 'read environment variables from a file'))
      .option('-i, --interactive', 'keep stdin open')
      .option('--privileged', 'all capabilities')
      .option('-t, --tty', 'give it a terminal')
      .option('-u, --user <USER[:GROUP]>', 'user, by name or number')
      .option('-w, --workdir <PATH>', 'working directory')
      .passThroughOptions()
      .action(
        act(async (session, name: string, command: string[], flags: Record<string, never>) =>
          (await running()).exec(session, name, command, flags),
        ),
      ),
  );
}
