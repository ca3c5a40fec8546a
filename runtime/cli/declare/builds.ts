/** The commands about building. */
import { type Command, Option } from 'commander';
import type { BuildFlags } from '../build-request.ts';
import type { BuilderPruneFlags, CacheUsageFlags } from '../builder-commands.ts';
import { format, type Group, longFilter, many, type Place } from './group.ts';

const MANY: readonly (readonly [flags: string, description: string])[] = [
  ['-t, --tag <NAME[:TAG]>', 'name of the image'],
  ['--build-arg <NAME[=VALUE]>', "value of an ARG; without a value the environment's"],
  ['--build-context <NAME=SOURCE>', 'further files or images: a directory, a URL, docker-image://REFERENCE'],
  ['--cache-from <SOURCE>', 'where steps may come from: REFERENCE, type=registry,ref=…, type=local,src=…'],
  ['--cache-to <TARGET>', 'where steps go: type=registry,ref=…[,mode=max], type=local,dest=…, type=inline'],
  ['--platform <OS/ARCH[/VARIANT]>', 'what to build for; several make an index'],
  ['-o, --output <OUTPUT>', 'DIRECTORY, - (a tar to stdout), or type=local|tar|oci|docker|image|registry,dest=…'],
  ['--label <NAME=VALUE>', 'label of the image'],
  ['--annotation <NAME=VALUE>', 'annotation of the manifest'],
  ['--attest <ATTESTATION>', 'type=provenance: what --provenance does'],
  ['--secret <SECRET>', 'id=ID[,src=FILE | ,env=NAME]: for RUN --mount=type=secret'],
  ['--ssh <ID[=SOCKET]>', 'agent for RUN --mount=type=ssh; default is SSH_AUTH_SOCK'],
  ['--add-host <NAME:ADDRESS>', 'line of /etc/hosts for RUN'],
  ['--allow <ENTITLEMENT>', 'network.host, security.insecure: what RUN may ask for'],
  ['--ulimit <NAME=SOFT[:HARD]>', 'ulimit of RUN'],
  ['--security-opt <OPTION>', 'security option of RUN'],
];

const ONE: readonly (readonly [flags: string, description: string])[] = [
  ['-f, --file <FILE>', 'the Dockerfile; - is stdin (default: Dockerfile in the context)'],
  ['--target <STAGE>', 'stage to build (default: the last)'],
  ['--no-cache', 'look up no step'],
  ['--pull', 'ask the registry for newer base images'],
  ['--push', 'publish it under its names; as --output type=registry'],
  ['--load', 'keep it in the engine beside other outputs, too'],
  ['--iidfile <FILE>', "write the image's id to a file"],
  ['--metadata-file <FILE>', 'write what was built to a file, as JSON'],
  ['--call <METHOD>', 'build, or check: what the build checks say (default: build)'],
  ['--check', 'as --call check'],
  ['--provenance <VALUE>', 'true, with --push: a SLSA provenance statement beside the image'],
  ['--sbom <VALUE>', 'only false: no bill of materials is made'],
  ['--network <MODE>', 'network of RUN: default, none, host or a name'],
  ['--shm-size <SIZE>', 'size of /dev/shm of RUN'],
  ['-m, --memory <SIZE>', 'memory of RUN'],
  ['--memory-swap <SIZE>', 'memory and swap of RUN; -1 is no limit'],
  ['-c, --cpu-shares <N>', 'relative weight of RUN'],
  ['--cpu-period <MICROSECONDS>', 'period of the CPU limit of RUN'],
  ['--cpu-quota <MICROSECONDS>', 'CPU time in each period of RUN'],
  ['--cpuset-cpus <CPUS>', 'CPUs of RUN: 0-2, 0,1'],
  ['--cpuset-mems <NODES>', 'memory nodes of RUN'],
  ['--cgroup-parent <CGROUP>', 'parent cgroup of RUN'],
  ['-q, --quiet', "only print the image's id"],
  ['--progress <KIND>', 'auto, plain, tty, rawjson or quiet (default: auto)'],
];

/** Docker's, of which only the values that say nothing new are taken: nothing of a step outlives it, to begin with. */
const HIDDEN: readonly string[] = [
  '--builder <NAME>',
  '--compress',
  '--force-rm',
  '--isolation <TECHNOLOGY>',
  '--rm',
  '--squash',
];

export function declareBuilds(
  { images, builder }: { readonly images: Group; readonly builder: Group },
  place: Place,
): void {
  const { act, words } = place;
  const declareBuild = (command: Command): Command => {
    command
      .description('build an image from a Dockerfile')
      .argument('<context>', 'a directory, a tarball, a URL, a git repository, or - for stdin');
    // The flags are declared when the command is meant.
    if (words.has('build')) addBuildFlags(command);
    return command.action(
      act(async (session, context: string, flags: BuildFlags) =>
        (await import('../build-command.ts')).build(session, context, flags),
      ),
    );
  };
  images.both('build', declareBuild);
  builder.only('build', declareBuild);
  builder.only('prune', (command) =>
    command
      .description('remove what the build cache holds and no build uses')
      .option('-a, --all', 'also what images share, and cache mounts')
      .addOption(longFilter())
      .option('-f, --force', 'do not ask')
      .option('--keep-storage <SIZE>', 'keep this much; as --reserved-space')
      .option('--reserved-space <SIZE>', 'keep this much')
      .option('--max-used-space <SIZE>', 'keep no more than this')
      .option('--min-free-space <SIZE>', 'only until the disk has this much free')
      .action(
        act(async (session, flags: BuilderPruneFlags) =>
          (await import('../builder-commands.ts')).pruneCache(session, flags),
        ),
      ),
  );
  builder.only('du', (command) =>
    command
      .description('show what the build cache holds')
      .option('-v, --verbose', 'also what each record is')
      .addOption(format())
      .action(
        act(async (session, flags: CacheUsageFlags) =>
          (await import('../builder-commands.ts')).cacheUsage(session, flags),
        ),
      ),
  );
}

function addBuildFlags(command: Command): void {
  for (const [flags, description] of ONE) command.option(flags, description);
  for (const [flags, description] of MANY) command.addOption(many(flags, description));
  command.addOption(
    new Option('--no-cache-filter <STAGE>', 'look up no step of this stage').argParser(
      (value: string, earlier: readonly string[] | true) => [...(earlier === true ? [] : (earlier ?? [])), value],
    ),
  );
  for (const flags of HIDDEN) command.addOption(new Option(flags).hideHelp());
}
