/** The commands about images. */
import type { ImportFlags } from '../image-commands.ts';
import { filter, format, type Group, inspecting, longFilter, many, type Place } from './group.ts';

const images = () => import('../image-commands.ts');

export function declareImages(group: Group, { act }: Place): void {
  group.both('pull', (command) =>
    command
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
  );
  group.both('push', (command) =>
    command
      .description('upload an image')
      .argument('<name>')
      .option('-a, --all-tags', 'all tags of the repository')
      .option('-q, --quiet', 'no progress')
      .action(
        act(async (session, name: string, flags: { allTags?: boolean; quiet?: boolean }) =>
          (await images()).push(session, name, flags),
        ),
      ),
  );
  group.both(
    'images',
    (command) =>
      command
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
    'ls',
  );
  group.both('tag', (command) =>
    command
      .description('give an image another name')
      .argument('<source>')
      .argument('<target>')
      .action(act(async (session, source: string, target: string) => (await images()).tag(session, source, target))),
  );
  group.both(
    'rmi',
    (command) =>
      command
        .description('remove images')
        .argument('<image...>')
        .option('-f, --force', 'also when stopped containers use it')
        .option('--no-prune', 'keep untagged parents')
        .action(
          act(async (session, names: string[], flags: { force?: boolean; prune?: boolean }) =>
            (await images()).rmi(session, names, flags),
          ),
        ),
    'rm',
  );
  group.both('history', (command) =>
    command
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
  );
  group.both('save', (command) =>
    command
      .description('write images as a tar')
      .argument('<image...>')
      .option('-o, --output <FILE>', 'file instead of stdout')
      .action(
        act(async (session, names: string[], flags: { output?: string }) =>
          (await images()).save(session, names, flags),
        ),
      ),
  );
  group.both('load', (command) =>
    command
      .description('read images from a tar')
      .option('-i, --input <FILE>', 'file instead of stdin')
      .option('-q, --quiet', 'no progress')
      .action(
        act(async (session, flags: { input?: string; quiet?: boolean }) => (await images()).load(session, flags)),
      ),
  );
  group.both('import', (command) =>
    command
      .description('make an image of the tar of a filesystem')
      .argument('<file>', 'a tar, compressed or not; - is stdin')
      .argument('[name]', 'REPOSITORY[:TAG]')
      .addOption(many('-c, --change <INSTRUCTION>', 'a Dockerfile instruction for its configuration'))
      .option('-m, --message <TEXT>', 'a comment')
      .option('--platform <PLATFORM>', 'such as linux/arm64; default: of the engine')
      .action(
        act(async (session, file: string, reference: string | undefined, flags: ImportFlags) =>
          (await images()).importImage(session, file, reference, flags),
        ),
      ),
  );
  group.only('prune', (command) =>
    command
      .description('remove unused images')
      .option('-a, --all', 'all that no container uses')
      .addOption(longFilter())
      .option('-f, --force', 'do not ask')
      .action(
        act(async (session, flags: { all?: boolean; filter?: readonly string[]; force?: boolean }) =>
          (await images()).pruneImages(session, flags),
        ),
      ),
  );

  group.only('gc', (command) =>
    command
      .description("remove unused images by the engine's policy, oldest first")
      .option('--dry-run', 'only tell what would go')
      .action(act(async (session, flags: { dryRun?: boolean }) => (await images()).collectImages(session, flags))),
  );
  group.only('inspect', inspecting(act, 'image'));
}
