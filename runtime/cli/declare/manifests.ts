/** The commands about indexes. */
import type { AnnotateFlags, CreateFlags, InspectFlags, PushFlags } from '../manifest-commands.ts';
import { type Group, many, type Place } from './group.ts';

const manifests = () => import('../manifest-commands.ts');
const INSECURE = ['--insecure', 'the registry may speak plain http or show any certificate'] as const;

export function declareManifests(group: Group, { act }: Place): void {
  group.only('create', (command) =>
    command
      .description('start an index of images that registries have; it is kept here until it is pushed')
      .argument('<index>')
      .argument('<image...>')
      .option('-a, --amend', 'add to one that there is')
      .option(...INSECURE)
      .action(
        act(async (session, name: string, images: string[], flags: CreateFlags) =>
          (await manifests()).create(session, name, images, flags),
        ),
      ),
  );
  group.only('annotate', (command) =>
    command
      .description('say which platform an image of an index is for')
      .argument('<index>')
      .argument('<image>')
      .option('--arch <ARCHITECTURE>', 'processor architecture, as amd64')
      .option('--os <OS>', 'operating system')
      .option('--variant <VARIANT>', 'variant of the architecture, as v7')
      .addOption(many('--os-features <FEATURE>', 'feature of the operating system'))
      .option('--os-version <VERSION>', 'version of the operating system')
      .action(
        act(async (session, name: string, image: string, flags: AnnotateFlags) =>
          (await manifests()).annotate(session, name, image, flags),
        ),
      ),
  );
  group.only('inspect', (command) =>
    command
      .description('show an index that is kept here, an image of it, or what a registry has')
      .argument('<name>')
      .argument('[image]')
      .option('-v, --verbose', 'with names and descriptors')
      .option(...INSECURE)
      .action(
        act(async (session, name: string, image: string | undefined, flags: InspectFlags) =>
          (await manifests()).inspect(session, name, image, flags),
        ),
      ),
  );
  group.only('push', (command) =>
    command
      .description('push an index, and print its digest')
      .argument('<index>')
      .option('-p, --purge', 'forget it after the push')
      .option(...INSECURE)
      .action(act(async (session, name: string, flags: PushFlags) => (await manifests()).push(session, name, flags))),
  );
  group.only('rm', (command) =>
    command
      .description('forget indexes that are kept here')
      .argument('<index...>')
      .action(act(async (session, names: string[]) => (await manifests()).rm(session, names))),
  );
}
