/** The commands that show, change and end containers. */
import { type Command, Option } from 'commander';
import { filter, format, type Group, inspecting, longFilter, many, type Place } from './group.ts';

const containers = () => import('../container-commands.ts');

export function declareContainers(group: Group, { act }: Place): void {
  const list = (command: Command) =>
    command
      .description('list containers')
      .option('-a, --all', 'also those that do not run')
      .addOption(filter())
      .addOption(format())
      .option('-n, --last <N>', 'the last N created, in any state')
      .option('-l, --latest', 'the last created, in any state')
      .option('--no-trunc', 'full ids and commands')
      .option('-q, --quiet', 'only ids')
      .option('-s, --size', 'sizes of their writable layers')
      .action(act(async (session, flags: Record<string, never>) => (await containers()).ps(session, flags)));
  group.both('ps', list, 'ls');
  group.only('list', list);

  group.both('logs', (command) =>
    command
      .description('show the output of a container')
      .argument('<container>')
      .option('-f, --follow', 'go on with what it prints')
      .option('-t, --timestamps', 'show when each line was printed')
      .option('--details', 'show extra attributes')
      .option('--since <TIME>', 'only after this time or span (10m)')
      .option('--until <TIME>', 'only before this time or span')
      .option('-n, --tail <LINES>', 'only the last lines', 'all')
      .action(
        act(async (session, name: string, flags: Record<string, never>) =>
          (await containers()).logs(session, name, flags),
        ),
      ),
  );
  const stopping = (verb: 'stop' | 'restart', description: string) => (command: Command) =>
    command
      .description(description)
      .argument('<container...>')
      .option('-t, --timeout <SECONDS>', 'seconds before it is killed, -1 = never')
      .addOption(new Option('--time <SECONDS>').hideHelp())
      .option('-s, --signal <SIGNAL>', 'signal to send first')
      .action(
        act(async (session, names: string[], flags: { timeout?: string; signal?: string }) =>
          (await containers())[verb](session, names, flags),
        ),
      );
  group.both('stop', stopping('stop', 'stop running containers'));
  group.both('restart', stopping('restart', 'stop and start containers'));
  group.both('kill', (command) =>
    command
      .description('send a signal to running containers')
      .argument('<container...>')
      .option('-s, --signal <SIGNAL>', 'the signal, by name or number', 'KILL')
      .action(
        act(async (session, names: string[], flags: { signal?: string }) =>
          (await containers()).kill(session, names, flags),
        ),
      ),
  );
  group.both('pause', (command) =>
    command
      .description('freeze containers')
      .argument('<container...>')
      .action(act(async (session, names: string[]) => (await containers()).pause(session, names))),
  );
  group.both('unpause', (command) =>
    command
      .description('thaw containers')
      .argument('<container...>')
      .action(act(async (session, names: string[]) => (await containers()).unpause(session, names))),
  );
  group.both('wait', (command) =>
    command
      .description('wait until containers stop, and print their exit codes')
      .argument('<container...>')
      .action(act(async (session, names: string[]) => (await containers()).wait(session, names))),
  );
  group.both('rename', (command) =>
    command
      .description('rename a container')
      .argument('<container>')
      .argument('<name>')
      .action(act(async (session, from: string, to: string) => (await containers()).rename(session, from, to))),
  );
  group.both('rm', (command) =>
    command
      .description('remove containers')
      .argument('<container...>')
      .option('-f, --force', 'kill a running one')
      .option('-v, --volumes', 'also its anonymous volumes')
      .option('-l, --link', 'remove a link')
      .action(
        act(async (session, names: string[], flags: { force?: boolean; volumes?: boolean; link?: boolean }) =>
          (await containers()).rm(session, names, flags),
        ),
      ),
  );
  group.both('top', (command) =>
    command
      .description('show the processes of a container')
      .argument('<container>')
      .argument('[psOptions...]')
      .passThroughOptions()
      .action(act(async (session, name: string, args: string[]) => (await containers()).top(session, name, args))),
  );
  group.both('diff', (command) =>
    command
      .description("show what changed in a container's filesystem")
      .argument('<container>')
      .action(act(async (session, name: string) => (await containers()).diff(session, name))),
  );
  group.both('cp', (command) =>
    command
      .description('copy files between a container and here')
      .argument('<source>', 'CONTAINER:PATH, PATH, or - for a tar on stdin')
      .argument('<target>', 'CONTAINER:PATH, PATH, or - for a tar on stdout')
      .option('-a, --archive', 'keep owners')
      .option('-L, --follow-link', 'copy what a link in the source leads to')
      .option('-q, --quiet', 'say nothing')
      .action(
        act(
          async (
            session,
            source: string,
            target: string,
            flags: { archive?: boolean; followLink?: boolean; quiet?: boolean },
          ) => (await import('../copy-command.ts')).cp(session, source, target, flags),
        ),
      ),
  );
  group.both('port', (command) =>
    command
      .description('list published ports')
      .argument('<container>')
      .argument('[port]')
      .action(
        act(async (session, name: string, port: string | undefined) => (await containers()).port(session, name, port)),
      ),
  );
  group.both('stats', (command) =>
    command
      .description('show resource usage')
      .argument('[container...]')
      .option('-a, --all', 'also those that do not run')
      .addOption(format())
      .option('--no-stream', 'print once')
      .option('--no-trunc', 'full ids')
      .action(
        act(async (session, names: string[], flags: Record<string, never>) =>
          (await containers()).stats(session, names, flags),
        ),
      ),
  );
  group.both('update', (command) =>
    command
      .description('change limits of containers')
      .argument('<container...>')
      .option('-m, --memory <BYTES>', 'memory limit')
      .option('--memory-swap <BYTES>', 'memory and swap limit')
      .option('--memory-reservation <BYTES>', 'soft memory limit')
      .option('--cpus <NUMBER>', 'number of CPUs')
      .option('-c, --cpu-shares <WEIGHT>', 'relative CPU weight')
      .option('--cpu-period <MICROSECONDS>', 'CFS period')
      .option('--cpu-quota <MICROSECONDS>', 'CFS quota')
      .option('--cpuset-cpus <LIST>', 'CPUs to run on')
      .option('--cpuset-mems <LIST>', 'memory nodes to use')
      .option('--pids-limit <NUMBER>', 'process limit')
      .option('--blkio-weight <10-1000>', 'block I/O weight')
      .option('--restart <POLICY>', 'restart policy')
      .action(
        act(async (session, names: string[], flags: Record<string, string>) =>
          (await containers()).update(session, names, flags),
        ),
      ),
  );
  group.both('export', (command) =>
    command
      .description("write a container's filesystem as a tar")
      .argument('<container>')
      .option('-o, --output <FILE>', 'file instead of stdout')
      .action(
        act(async (session, name: string, flags: { output?: string }) =>
          (await containers()).exportContainer(session, name, flags),
        ),
      ),
  );
  group.both('commit', (command) =>
    command
      .description("make an image of a container's changes")
      .argument('<container>')
      .argument('[name]')
      .option('-a, --author <AUTHOR>', 'author')
      .addOption(many('-c, --change <INSTRUCTION>', 'apply a Dockerfile instruction'))
      .option('-m, --message <TEXT>', 'commit message')
      .option('--no-pause', 'do not pause it meanwhile')
      .action(
        act(async (session, name: string, target: string | undefined, flags: Record<string, never>) =>
          (await containers()).commit(session, name, target, flags),
        ),
      ),
  );
  group.only('prune', (command) =>
    command
      .description('remove all stopped containers')
      .addOption(longFilter())
      .option('-f, --force', 'do not ask')
      .action(
        act(async (session, flags: { filter?: readonly string[]; force?: boolean }) =>
          (await containers()).pruneContainers(session, flags),
        ),
      ),
  );
  group.only('inspect', inspecting(act, 'container'));
}
