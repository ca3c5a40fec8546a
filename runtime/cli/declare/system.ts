/** The commands about the engine and about registries. */
import { filter, format, type Group, longFilter, type Place } from './group.ts';

const system = () => import('../system-commands.ts');

export function declareSystem(group: Group, { program, act }: Place): void {
  program
    .command('version')
    .description('show versions')
    .option('-f, --format <FORMAT>', 'json, or a Go template')
    .action(act(async (session, flags: { format?: string }) => (await system()).version(session, flags)));
  group.both('info', (command) =>
    command
      .description('show what the engine is and what the host lacks')
      .option('-f, --format <FORMAT>', 'json, or a Go template')
      .action(act(async (session, flags: { format?: string }) => (await system()).info(session, flags))),
  );
  group.both('events', (command) =>
    command
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
  );
  group.only('df', (command) =>
    command
      .description('show disk usage')
      .option('-v, --verbose', 'each image and container')
      .addOption(format())
      .action(
        act(async (session, flags: { format?: string; verbose?: boolean }) =>
          (await system()).systemUsage(session, flags),
        ),
      ),
  );
  group.only('prune', (command) =>
    command
      .description('remove stopped containers, and unused networks and images')
      .option('-a, --all', 'all images that no container uses, not only those without a name')
      .option('--volumes', 'also anonymous volumes that no container uses')
      .addOption(longFilter())
      .option('-f, --force', 'do not ask')
      .action(
        act(async (session, flags: { all?: boolean; volumes?: boolean; filter?: readonly string[]; force?: boolean }) =>
          (await system()).systemPrune(session, flags),
        ),
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
}
