/**
 * The commands of `berth` and their flags. Only declarations: what a command does is imported when it runs, so that
 * `berth version` does not load what `berth run` needs; groups are filled, and the hundred flags of `run` declared,
 * only when the command line names them, which saves 15 ms at every start. Short forms (`ps`) and grouped ones
 * (`container ls`) are the same declaration twice.
 */
import { type Command, Option } from 'commander';
import { addContainerFlags } from './container-request.ts';
import type { ImportFlags } from './image-commands.ts';
import type {
  ConnectFlags,
  CreateFlags as CreateNetworkFlags,
  ListFlags as ListNetworksFlags,
} from './network-commands.ts';
import type { Session } from './session.ts';

/** Runs with an open session; arguments and flags are as commander gives them. */
export type Act = (
  work: (session: Session, ...args: never[]) => Promise<void>,
) => (...args: unknown[]) => Promise<void>;

const collect = (value: string, earlier: readonly string[] = []): readonly string[] => [...earlier, value];
const filter = () => new Option('-f, --filter <KEY=VALUE>', 'only those that match').argParser(collect);
const longFilter = () => new Option('--filter <KEY=VALUE>', 'only those that match').argParser(collect);
const format = () => new Option('--format <FORMAT>', 'json, a Go template, or "table TEMPLATE"');

const images = () => import('./image-commands.ts');
const containers = () => import('./container-commands.ts');
const volumes = () => import('./volume-commands.ts');
const running = () => import('./run-command.ts');
const system = () => import('./system-commands.ts');
const networks = () => import('./network-commands.ts');

type Declare = (parent: Command, name: string) => Command;

/** `words` is the command line: it tells which declarations are needed in full. */
export function buildProgram(program: Command, act: Act, words: ReadonlySet<string>): Command {
  program.enablePositionalOptions();
  const group = (name: string, description: string) => program.command(name).description(description);
  const container = group('container', 'manage containers');
  const image = group('image', 'manage images');
  const volume = group('volume', 'manage volumes');
  const systemGroup = group('system', 'manage the engine');
  addNetworkCommands(group('network', 'manage networks'), act, words);

  /** Declares a command at the top and, under another or the same name, in its group. */
  function both(parent: Command, declare: Declare, name: string, grouped = name): void {
    declare(program, name);
    if (words.has(parent.name())) declare(parent, grouped);
  }
  const withContainerFlags = (command: Command) => (words.has(command.name()) ? addContainerFlags(command) : command);

  both(
    container,
    (at, name) =>
      withContainerFlags(
        at
          .command(name)
          .description('create a container and run a command in it')
          .argument('<image>')
          .argument('[command...]'),
      )
        .option('-d, --detach', 'leave it running and print its id')
        .option('--detach-keys <KEYS>', 'keys that leave it running')
        .option('--no-sig-proxy', 'do not forward signals')
        .addOption(new Option('--sig-proxy [BOOL]').hideHelp())
        .passThroughOptions()
        .action(
          act(
            async (
              session,
              name: string,
              args: string[],
              flags: Record<string, string | boolean | readonly string[]>,
            ) => (await running()).run(session, flags, name, args),
          ),
        ),
    'run',
  );
  both(
    container,
    (at, name) =>
      withContainerFlags(
        at
          .command(name)
          .description('create a container without starting it')
          .argument('<image>')
          .argument('[command...]'),
      )
        .passThroughOptions()
        .action(
          act(
            async (
              session,
              name: string,
              args: string[],
              flags: Record<string, string | boolean | readonly string[]>,
            ) => (await running()).create(session, flags, name, args),
          ),
        ),
    'create',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('start stopped containers')
        .argument('<container...>')
        .option('-a, --attach', 'attach stdout and stderr, forward signals')
        .option('-i, --interactive', 'attach stdin')
        .option('--detach-keys <KEYS>', 'keys that leave it running')
        .action(
          act(
            async (session, names: string[], flags: { attach?: boolean; interactive?: boolean; detachKeys?: string }) =>
              (await running()).start(session, names, flags),
          ),
        ),
    'start',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('attach to a running container')
        .argument('<container>')
        .option('--no-stdin', 'do not attach stdin')
        .option('--no-sig-proxy', 'do not forward signals')
        .addOption(new Option('--sig-proxy [BOOL]').hideHelp())
        .option('--detach-keys <KEYS>', 'keys that leave it running')
        .action(
          act(async (session, name: string, flags: { stdin?: boolean; sigProxy?: boolean; detachKeys?: string }) =>
            (await running()).attach(session, name, flags),
          ),
        ),
    'attach',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('run a command in a running container')
        .argument('<container>')
        .argument('<command...>')
        .option('-d, --detach', 'do not wait for it')
        .option('--detach-keys <KEYS>', 'keys that leave it running')
        .addOption(new Option('-e, --env <NAME=VALUE>', 'set an environment variable').argParser(collect))
        .addOption(new Option('--env-file <FILE>', 'read environment variables from a file').argParser(collect))
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
    'exec',
  );
  for (const [name, grouped] of [
    ['ps', 'ls'],
    [undefined, 'list'],
  ] as const) {
    const declare: Declare = (at, as) =>
      at
        .command(as)
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
    if (name !== undefined) declare(program, name);
    declare(container, grouped);
  }
  both(
    container,
    (at, name) =>
      at
        .command(name)
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
    'logs',
  );
  const stopping =
    (verb: 'stop' | 'restart', description: string): Declare =>
    (at, name) =>
      at
        .command(name)
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
  both(container, stopping('stop', 'stop running containers'), 'stop');
  both(container, stopping('restart', 'stop and start containers'), 'restart');
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('send a signal to running containers')
        .argument('<container...>')
        .option('-s, --signal <SIGNAL>', 'the signal, by name or number', 'KILL')
        .action(
          act(async (session, names: string[], flags: { signal?: string }) =>
            (await containers()).kill(session, names, flags),
          ),
        ),
    'kill',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('freeze containers')
        .argument('<container...>')
        .action(act(async (session, names: string[]) => (await containers()).pause(session, names))),
    'pause',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('thaw containers')
        .argument('<container...>')
        .action(act(async (session, names: string[]) => (await containers()).unpause(session, names))),
    'unpause',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('wait until containers stop, and print their exit codes')
        .argument('<container...>')
        .action(act(async (session, names: string[]) => (await containers()).wait(session, names))),
    'wait',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('rename a container')
        .argument('<container>')
        .argument('<name>')
        .action(act(async (session, from: string, to: string) => (await containers()).rename(session, from, to))),
    'rename',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
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
    'rm',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('show the processes of a container')
        .argument('<container>')
        .argument('[psOptions...]')
        .passThroughOptions()
        .action(act(async (session, name: string, args: string[]) => (await containers()).top(session, name, args))),
    'top',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description("show what changed in a container's filesystem")
        .argument('<container>')
        .action(act(async (session, name: string) => (await containers()).diff(session, name))),
    'diff',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
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
            ) => (await import('./copy-command.ts')).cp(session, source, target, flags),
          ),
        ),
    'cp',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description('list published ports')
        .argument('<container>')
        .argument('[port]')
        .action(
          act(async (session, name: string, port: string | undefined) =>
            (await containers()).port(session, name, port),
          ),
        ),
    'port',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
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
    'stats',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
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
    'update',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description("write a container's filesystem as a tar")
        .argument('<container>')
        .option('-o, --output <FILE>', 'file instead of stdout')
        .action(
          act(async (session, name: string, flags: { output?: string }) =>
            (await containers()).exportContainer(session, name, flags),
          ),
        ),
    'export',
  );
  both(
    container,
    (at, name) =>
      at
        .command(name)
        .description("make an image of a container's changes")
        .argument('<container>')
        .argument('[name]')
        .option('-a, --author <AUTHOR>', 'author')
        .addOption(new Option('-c, --change <INSTRUCTION>', 'apply a Dockerfile instruction').argParser(collect))
        .option('-m, --message <TEXT>', 'commit message')
        .option('--no-pause', 'do not pause it meanwhile')
        .action(
          act(async (session, name: string, target: string | undefined, flags: Record<string, never>) =>
            (await containers()).commit(session, name, target, flags),
          ),
        ),
    'commit',
  );
  container
    .command('prune')
    .description('remove all stopped containers')
    .addOption(longFilter())
    .option('-f, --force', 'do not ask')
    .action(
      act(async (session, flags: { filter?: readonly string[]; force?: boolean }) =>
        (await containers()).pruneContainers(session, flags),
      ),
    );

  both(
    image,
    (at, name) =>
      at
        .command(name)
        .description('download an image')
        .argument('<name>')
        .option('-a, --all-tags', 'all tags of the repository')
        .option('--platform <OS/ARCH[/VARIANT]>', 'platform, when there are several')
        .option('-q, --quiet', 'no progress')
        .action(
          act(async (session, name: string, flags: { allTags?: boolean; platform?: string; quiet?: boolean }) =>
            (await images()).pull(session, name, flags),
          ),
        ),
    'pull',
  );
  both(
    image,
    (at, name) =>
      at
        .command(name)
        .description('upload an image')
        .argument('<name>')
        .option('-a, --all-tags', 'all tags of the repository')
        .option('-q, --quiet', 'no progress')
        .action(
          act(async (session, name: string, flags: { allTags?: boolean; quiet?: boolean }) =>
            (await images()).push(session, name, flags),
          ),
        ),
    'push',
  );
  both(
    image,
    (at, name) =>
      at
        .command(name)
        .description('list images')
        .argument('[name]')
        .option('-a, --all', 'also intermediate ones')
        .option('--digests', 'show digests')
        .addOption(filter())
        .addOption(format())
        .option('--no-trunc', 'full ids')
        .option('-q, --quiet', 'only ids')
        .option('--tree', 'as a tree of the layers that they share')
        .action(
          act(async (session, name: string | undefined, flags: Record<string, never>) =>
            (await images()).images(session, name, flags),
          ),
        ),
    'images',
    'ls',
  );
  both(
    image,
    (at, name) =>
      at
        .command(name)
        .description('give an image another name')
        .argument('<source>')
        .argument('<target>')
        .action(act(async (session, source: string, target: string) => (await images()).tag(session, source, target))),
    'tag',
  );
  both(
    image,
    (at, name) =>
      at
        .command(name)
        .description('remove images')
        .argument('<image...>')
        .option('-f, --force', 'also when stopped containers use it')
        .option('--no-prune', 'keep untagged parents')
        .action(
          act(async (session, names: string[], flags: { force?: boolean; prune?: boolean }) =>
            (await images()).rmi(session, names, flags),
          ),
        ),
    'rmi',
    'rm',
  );
  both(
    image,
    (at, name) =>
      at
        .command(name)
        .description('show the steps that made an image')
        .argument('<image>')
        .addOption(format())
        .option('-H, --no-human', 'sizes in bytes')
        .option('--no-trunc', 'full ids and commands')
        .option('-q, --quiet', 'only ids')
        .action(
          act(async (session, name: string, flags: Record<string, never>) =>
            (await images()).history(session, name, flags),
          ),
        ),
    'history',
  );
  both(
    image,
    (at, name) =>
      at
        .command(name)
        .description('write images as a tar')
        .argument('<image...>')
        .option('-o, --output <FILE>', 'file instead of stdout')
        .action(
          act(async (session, names: string[], flags: { output?: string }) =>
            (await images()).save(session, names, flags),
          ),
        ),
    'save',
  );
  both(
    image,
    (at, name) =>
      at
        .command(name)
        .description('read images from a tar')
        .option('-i, --input <FILE>', 'file instead of stdin')
        .option('-q, --quiet', 'no progress')
        .action(
          act(async (session, flags: { input?: string; quiet?: boolean }) => (await images()).load(session, flags)),
        ),
    'load',
  );
  both(
    image,
    (at, name) =>
      at
        .command(name)
        .description('make an image of the tar of a filesystem')
        .argument('<file>', 'a tar, compressed or not; - is stdin')
        .argument('[name]', 'REPOSITORY[:TAG]')
        .addOption(
          new Option('-c, --change <INSTRUCTION>', 'a Dockerfile instruction for its configuration').argParser(collect),
        )
        .option('-m, --message <TEXT>', 'a comment')
        .option('--platform <PLATFORM>', 'such as linux/arm64; default: of the engine')
        .action(
          act(async (session, file: string, reference: string | undefined, flags: ImportFlags) =>
            (await images()).importImage(session, file, reference, flags),
          ),
        ),
    'import',
  );
  image
    .command('prune')
    .description('remove unused images')
    .option('-a, --all', 'all that no container uses')
    .addOption(longFilter())
    .option('-f, --force', 'do not ask')
    .action(
      act(async (session, flags: { all?: boolean; filter?: readonly string[]; force?: boolean }) =>
        (await images()).pruneImages(session, flags),
      ),
    );

  image
    .command('gc')
    .description("remove unused images by the engine's policy, oldest first")
    .option('--dry-run', 'only tell what would go')
    .action(act(async (session, flags: { dryRun?: boolean }) => (await images()).collectImages(session, flags)));

  const inspecting = (at: Command, name: string, type: string | undefined) =>
    at
      .command(name)
      .description('show everything about objects')
      .argument('<name...>')
      .option('-f, --format <FORMAT>', 'json, or a Go template')
      .option('-s, --size', 'sizes of a container')
      .option('--type <TYPE>', 'container, image, network or volume')
      .action(
        act(async (session, names: string[], flags: { format?: string; size?: boolean; type?: string }) =>
          (await containers()).inspect(session, names, type === undefined ? flags : { ...flags, type }),
        ),
      );
  inspecting(program, 'inspect', undefined);
  inspecting(container, 'inspect', 'container');
  inspecting(image, 'inspect', 'image');
  inspecting(volume, 'inspect', 'volume');

  volume
    .command('create')
    .description('create a volume')
    .argument('[name]')
    .option('-d, --driver <NAME>', 'volume driver')
    .addOption(new Option('--label <KEY=VALUE>', 'set a label').argParser(collect))
    .addOption(new Option('-o, --opt <KEY=VALUE>', 'type, o and device, as for mount(8)').argParser(collect))
    .action(
      act(async (session, name: string | undefined, flags: Record<string, never>) =>
        (await volumes()).createVolume(session, name, flags),
      ),
    );
  volume
    .command('ls')
    .description('list volumes')
    .addOption(filter())
    .addOption(format())
    .option('-q, --quiet', 'only names')
    .action(act(async (session, flags: Record<string, never>) => (await volumes()).listVolumes(session, flags)));
  volume
    .command('rm')
    .description('remove volumes that no container refers to')
    .argument('<volume...>')
    .option('-f, --force', 'no error for one that is not there')
    .action(
      act(async (session, names: string[], flags: { force?: boolean }) =>
        (await volumes()).removeVolumes(session, names, flags),
      ),
    );
  volume
    .command('prune')
    .description('remove anonymous volumes that no container refers to')
    .option('-a, --all', 'also those that somebody named')
    .addOption(longFilter())
    .option('-f, --force', 'do not ask')
    .action(
      act(async (session, flags: { all?: boolean; filter?: readonly string[]; force?: boolean }) =>
        (await volumes()).pruneVolumes(session, flags),
      ),
    );
  volume
    .command('export')
    .description('write what is in a volume as a tar')
    .argument('<volume>')
    .option('-o, --output <FILE>', 'file instead of stdout')
    .action(
      act(async (session, name: string, flags: { output?: string }) =>
        (await volumes()).exportVolume(session, name, flags),
      ),
    );
  volume
    .command('import')
    .description('fill an empty volume from an uncompressed tar')
    .argument('<volume>')
    .argument('<file>', '- is stdin')
    .action(act(async (session, name: string, file: string) => (await volumes()).importVolume(session, name, file)));

  program
    .command('version')
    .description('show versions')
    .option('-f, --format <FORMAT>', 'json, or a Go template')
    .action(act(async (session, flags: { format?: string }) => (await system()).version(session, flags)));
  both(
    systemGroup,
    (at, name) =>
      at
        .command(name)
        .description('show what the engine is and what the host lacks')
        .option('-f, --format <FORMAT>', 'json, or a Go template')
        .action(act(async (session, flags: { format?: string }) => (await system()).info(session, flags))),
    'info',
  );
  both(
    systemGroup,
    (at, name) =>
      at
        .command(name)
        .description('follow what happens')
        .addOption(filter())
        .addOption(format())
        .option('--since <TIME>', 'from this time or span')
        .option('--until <TIME>', 'to this time or span')
        .action(
          act(async (session, flags: { format?: string; since?: string; until?: string; filter?: readonly string[] }) =>
            (await system()).events(session, flags),
          ),
        ),
    'events',
  );
  systemGroup
    .command('df')
    .description('show disk usage')
    .option('-v, --verbose', 'each image and container')
    .addOption(format())
    .action(
      act(async (session, flags: { format?: string; verbose?: boolean }) =>
        (await system()).systemUsage(session, flags),
      ),
    );
  systemGroup
    .command('prune')
    .description('remove stopped containers, and unused networks and images')
    .option('-a, --all', 'all images that no container uses, not only those without a name')
    .option('--volumes', 'also anonymous volumes that no container uses')
    .addOption(longFilter())
    .option('-f, --force', 'do not ask')
    .action(
      act(async (session, flags: { all?: boolean; volumes?: boolean; filter?: readonly string[]; force?: boolean }) =>
        (await system()).systemPrune(session, flags),
      ),
    );
  program
    .command('login')
    .description('sign in to a registry')
    .argument('[server]')
    .option('-u, --username <NAME>', 'user name')
    .option('-p, --password <PASSWORD>', 'password')
    .option('--password-stdin', 'read the password from stdin')
    .action(
      act(
        async (
          session,
          server: string | undefined,
          flags: { username?: string; password?: string; passwordStdin?: boolean },
        ) => (await system()).login(session, server, flags),
      ),
    );
  program
    .command('logout')
    .description('forget the credentials of a registry')
    .argument('[server]')
    .action(act(async (session, server: string | undefined) => (await system()).logout(session, server)));
  return program;
}

function addNetworkCommands(network: Command, act: Act, words: ReadonlySet<string>): void {
  if (!words.has(network.name())) return;
  const many = (flags: string, description: string) => new Option(flags, description).argParser(collect);
  network
    .command('create')
    .description('make a network')
    .argument('<name>')
    .option('-d, --driver <DRIVER>', 'bridge, macvlan or ipvlan')
    .addOption(many('--subnet <CIDR>', 'where its addresses come from; chosen when absent'))
    .addOption(many('--gateway <IP>', "the host's address in the subnet"))
    .addOption(many('--ip-range <CIDR>', 'part of the subnet that containers get addresses from'))
    .addOption(many('--aux-address <NAME=IP>', 'an address that belongs to something else'))
    .option('--internal', 'nothing gets in or out')
    .option('--attachable', 'recorded with the network: containers can always be connected by hand')
    .option('--no-ipv4', 'IPv6 alone')
    .option('--ipv6', 'IPv6 as well')
    .addOption(many('-o, --opt <KEY=VALUE>', 'option of the driver'))
    .addOption(many('--label <KEY=VALUE>', 'label'))
    .action(
      act(async (session, name: string, flags: CreateNetworkFlags) => (await networks()).create(session, name, flags)),
    );
  network
    .command('ls')
    .alias('list')
    .description('list networks')
    .addOption(filter())
    .addOption(format())
    .option('-q, --quiet', 'only ids')
    .option('--no-trunc', 'whole ids')
    .action(act(async (session, flags: ListNetworksFlags) => (await networks()).ls(session, flags)));
  network
    .command('inspect')
    .description('show everything about networks')
    .argument('<network...>')
    .option('-f, --format <FORMAT>', 'json, or a Go template')
    .action(
      act(async (session, names: string[], flags: { format?: string }) =>
        (await networks()).inspectNetworks(session, names, flags),
      ),
    );
  network
    .command('connect')
    .description('connect a container to a network, now if it runs')
    .argument('<network>')
    .argument('<container>')
    .option('--ip <IP>', 'IPv4 address')
    .option('--ip6 <IP>', 'IPv6 address')
    .addOption(many('--alias <NAME>', 'another name in the network'))
    .addOption(many('--driver-opt <KEY=VALUE>', 'option of the driver'))
    .option('--gw-priority <NUMBER>', 'the network with the highest has the default route')
    .action(
      act(async (session, name: string, container: string, flags: ConnectFlags) =>
        (await networks()).connect(session, name, container, flags),
      ),
    );
  network
    .command('disconnect')
    .description('take a container out of a network')
    .argument('<network>')
    .argument('<container>')
    .option('-f, --force', 'also when the container is in a bad state')
    .action(
      act(async (session, name: string, container: string, flags: { force?: boolean }) =>
        (await networks()).disconnect(session, name, container, flags),
      ),
    );
  network
    .command('rm')
    .alias('remove')
    .description('remove networks')
    .argument('<network...>')
    .action(act(async (session, names: string[]) => (await networks()).rm(session, names)));
  network
    .command('prune')
    .description('remove networks that no container uses')
    .addOption(longFilter())
    .option('-f, --force', 'do not ask')
    .action(
      act(async (session, flags: { filter?: readonly string[]; force?: boolean }) =>
        (await networks()).prune(session, flags),
      ),
    );
}
