/** The commands about volumes. */
import { filter, format, type Group, inspecting, longFilter, many, type Place } from './group.ts';

const volumes = () => import('../volume-commands.ts');

export function declareVolumes(group: Group, { act }: Place): void {
  group.only('inspect', inspecting(act, 'volume'));
  group.only('create', (command) =>
    command
      .description('create a volume')
      .argument('[name]')
      .option('-d, --driver <NAME>', 'volume driver')
      .addOption(many('--label <KEY=VALUE>', 'set a label'))
      .addOption(many('-o, --opt <KEY=VALUE>', 'type, o and device, as for mount(8)'))
      .action(
        act(async (session, name: string | undefined, flags: Record<string, never>) =>
          (await volumes()).createVolume(session, name, flags),
        ),
      ),
  );
  group.only('ls', (command) =>
    command
      .description('list volumes')
      .addOption(filter())
      .addOption(format())
      .option('-q, --quiet', 'only names')
      .action(act(async (session, flags: Record<string, never>) => (await volumes()).listVolumes(session, flags))),
  );
  group.only('rm', (command) =>
    command
      .description('remove volumes that no container refers to')
      .argument('<volume...>')
      .option('-f, --force', 'no error for one that is not there')
      .action(
        act(async (session, names: string[], flags: { force?: boolean }) =>
          (await volumes()).removeVolumes(session, names, flags),
        ),
      ),
  );
  group.only('prune', (command) =>
    command
      .description('remove anonymous volumes that no container refers to')
      .option('-a, --all', 'also those that somebody named')
      .addOption(longFilter())
      .option('-f, --force', 'do not ask')
      .action(
        act(async (session, flags: { all?: boolean; filter?: readonly string[]; force?: boolean }) =>
          (await volumes()).pruneVolumes(session, flags),
        ),
      ),
  );
  group.only('export', (command) =>
    command
      .description('write what is in a volume as a tar')
      .argument('<volume>')
      .option('-o, --output <FILE>', 'file instead of stdout')
      .action(
        act(async (session, name: string, flags: { output?: string }) =>
          (await volumes()).exportVolume(session, name, flags),
        ),
      ),
  );
  group.only('import', (command) =>
    command
      .description('fill an empty volume from an uncompressed tar')
      .argument('<volume>')
      .argument('<file>', '- is stdin')
      .action(act(async (session, name: string, file: string) => (await volumes()).importVolume(session, name, file))),
  );
}
