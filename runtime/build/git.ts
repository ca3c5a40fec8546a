/**
 * Git repositories as trees: `ADD https://host/repo.git#ref:subdir` and remote contexts, with their submodules.
 *
 * Nothing is checked out: `git archive` writes each tree as a tar. So neither a link nor an attribute of a repository can
 * name a path of the host (CVE-2026-33748).
 */
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import type { ProxySettings } from '../../shared/proxies.ts';
import { redactText } from '../../shared/redact.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { TAR_END } from '../../shared/tar-writer.ts';
import type { Lease } from '../images/images.ts';
import { streamCommand } from '../kernel/command.ts';
import type { Chain, LayerStore } from '../layers/layer-store.ts';
import { rewriteTar } from '../layers/tar-rewrite.ts';
import { nameFromUtf8, nameToUtf8 } from '../layers/tree.ts';
import type { FetchedSources } from './fetched-sources.ts';
import type { GitReference } from './git-reference.ts';
import { createGit, fetchCommit, type Git, remoteCommit } from './git-repository.ts';
import { type Submodule, submodulesOf } from './git-submodules.ts';

export interface GitTree {
  /** One layer with the files of the (sub)tree at its root, as root's, with the commit's time. */
  readonly chain: Chain;
  readonly commit: string;
}

export interface GitOptions extends Cancelable {
  readonly lease: Lease;
  /** Whether `.git` is part of the tree. */
  readonly keepGitDir?: boolean | undefined;
  /** Commit, or the beginning of it, that the ref must be. */
  readonly checksum?: string | undefined;
  /** Socket of an ssh agent, for `git@` and `ssh://`. */
  readonly sshAgent?: string | undefined;
}

export interface GitTrees {
  /**
   * @throws AppError 'unsupported' when the host has no git; 'unavailable' in git's words; 'invalid' for unusable submodules;
   * 'not-found' for a ref or subdirectory that is not there; 'integrity' (checksum)
   */
  fetch(reference: GitReference, options: GitOptions): Promise<GitTree>;
}

export interface GitPorts {
  readonly layers: Pick<LayerStore, 'make'>;
  readonly sources: Pick<FetchedSources, 'find' | 'put'>;
  /** For repositories on their way. */
  readonly directory: string;
  readonly randomId: () => string;
  readonly proxies: ProxySettings;
}

/** Of one context, however deep. */
const SUBMODULES_MAX = 200;
/** The tree as it was committed: nothing left out, filled in or converted, and no filter of the host runs for it. */
const ATTRIBUTES = '* -filter -text -ident -working-tree-encoding -export-ignore -export-subst\n';

export function createGitTrees(ports: GitPorts): GitTrees {
  const { layers, sources, directory, randomId, proxies } = ports;
  return {
    async fetch(reference, { checksum, lease, signal, sshAgent, keepGitDir = false }) {
      const keyOf = (commit: string) => JSON.stringify(['git', reference, commit, keepGitDir]);
      const place = join(directory, randomId());
      const open = async (name: string): Promise<Repository> => {
        const path = join(place, name);
        await mkdir(path, { recursive: true, mode: 0o700 });
        return { path, git: createGit(path, { place, proxies, sshAgent, signal }) };
      };
      try {
        const repository = await open('.git');
        const commit = await remoteCommit(repository.git, reference);
        const before = commit === undefined ? undefined : await sources.find(keyOf(commit), lease);
        if (commit !== undefined && before !== undefined) {
          checkCommit(commit, checksum);
          return { chain: [before.layerId], commit };
        }
        const fetched = await fetchCommit(repository.git, reference, commit);
        checkCommit(fetched, checksum);
        const trees = await treesOf(repository, { ...reference, commit: fetched }, open);
        const tar = treesTar(trees, keepGitDir ? { place, commit: fetched } : undefined);
        const { id: layerId } = await layers.make(Readable.from(tar, { objectMode: false }), [], {
          signal,
          protect: (id) => lease.protect(id),
          files: { removed: [] },
        });
        const description = `git snapshot of ${redactText(reference.remote)}#${fetched}`;
        await sources.put(keyOf(fetched), { kind: 'source.git', description, layerId, about: null });
        return { chain: [layerId], commit: fetched };
      } finally {
        await rm(place, { recursive: true, force: true });
      }
    },
  };
}

function checkCommit(commit: string, checksum: string | undefined): void {
  if (checksum !== undefined && !(checksum.length >= 7 && commit.startsWith(checksum.toLowerCase())))
    throw new AppError('integrity', `expected checksum to match ${checksum}, got ${commit}`);
}

interface Repository {
  readonly git: Git;
  readonly path: string;
}

/** A commit's tree, or a directory of it, and where it goes. */
interface Tree {
  readonly repository: Repository;
  readonly commit: string;
  readonly subdirectory: string;
  /** latin1, '' = the top. */
  readonly prefix: string;
}

interface TreeRequest {
  readonly remote: string;
  readonly commit: string;
  readonly subdirectory: string;
}

/** The tree and, below it, those of its submodules: fetched by now. @throws AppError 'not-found', 'invalid', 'too-large' */
async function treesOf(
  repository: Repository,
  request: TreeRequest,
  open: (name: string) => Promise<Repository>,
): Promise<readonly Tree[]> {
  const trees: Tree[] = [];
  const visit = async (tree: Tree, remote: string) => {
    await checkTree(tree);
    trees.push(tree);
    for (const { path, ...submodule } of await submodules(tree, remote)) {
      if (trees.length > SUBMODULES_MAX)
        throw new AppError('too-large', `cannot use the git repository: it has more than ${SUBMODULES_MAX} submodules`);
      const inner = await open(`submodule-${trees.length}`);
      await fetchCommit(
        inner.git,
        { remote: submodule.remote, ref: submodule.commit, subdirectory: '' },
        submodule.commit,
      );
      const below = nameFromUtf8(tree.subdirectory === '' ? path : path.slice(tree.subdirectory.length + 1));
      const prefix = tree.prefix === '' ? below : `${tree.prefix}/${below}`;
      await visit({ repository: inner, commit: submodule.commit, subdirectory: '', prefix }, submodule.remote);
    }
  };
  const { remote, ...top } = request;
  await visit({ repository, ...top, prefix: '' }, remote);
  return trees;
}

async function checkTree({ repository: { git }, commit, subdirectory }: Tree): Promise<void> {
  const type = await git.run(['cat-file', '-t', `${commit}:${subdirectory}`]).catch(() => '');
  if (type.trim() !== 'tree') throw new AppError('not-found', `subdir not found: ${JSON.stringify(subdirectory)}`);
}

const SUBMODULE = '160000 ';

async function submodules(tree: Tree, remote: string): Promise<readonly Submodule[]> {
  const { git } = tree.repository;
  const links = new Map<string, string>();
  for await (const line of lines(git.stream(['ls-tree', '-r', '-z', `${tree.commit}:${tree.subdirectory}`]))) {
    if (!line.startsWith(SUBMODULE)) continue;
    const [about = '', name = ''] = line.split('\t', 2);
    const path = nameToUtf8(name);
    links.set(tree.subdirectory === '' ? path : `${tree.subdirectory}/${path}`, about.split(' ')[2] ?? '');
  }
  if (links.size === 0) return [];
  const blob = `${tree.commit}:.gitmodules`;
  const config = await git.run(['config', '--null', '--blob', blob, '--list']).catch(() => '');
  return submodulesOf({ remote, links, config });
}

async function* lines(chunks: AsyncIterable<Buffer>): AsyncGenerator<string> {
  let rest = '';
  for await (const chunk of chunks) {
    const parts = (rest + chunk.toString('latin1')).split('\0');
    rest = parts.pop() ?? '';
    yield* parts;
  }
}

interface KeptGitDir {
  readonly place: string;
  readonly commit: string;
}

/** All trees in one archive. `kept` adds the first repository as `.git`. */
async function* treesTar(trees: readonly Tree[], kept: KeptGitDir | undefined): AsyncGenerator<Buffer> {
  const [top] = trees;
  if (top === undefined) throw new RangeError('there is no tree');
  const time = await top.repository.git.run(['show', '--no-patch', '--format=%ct', top.commit]);
  const times = { mtimeSeconds: Number(time.trim()), mtimeNanoseconds: 0 };
  for (const { repository, commit, subdirectory, prefix } of trees) {
    const attributes = join(repository.path, 'info', 'attributes');
    await mkdir(join(repository.path, 'info'), { recursive: true });
    await writeFile(attributes, ATTRIBUTES);
    const archive = repository.git.stream(['archive', '--format=tar', `${commit}:${subdirectory}`]);
    const path = (name: string) => (prefix === '' ? name : `${prefix}/${name}`);
    yield* withoutEnd(rewriteTar(archive, (entry) => [{ ...entry, ...times, path: path(entry.path), uid: 0, gid: 0 }]));
    await rm(attributes);
  }
  if (kept !== undefined) {
    const { git } = top.repository;
    await git.run(['update-ref', '--no-deref', 'HEAD', kept.commit]);
    await git.run(['read-tree', kept.commit]);
    const owners = ['--numeric-owner', '--owner=0', '--group=0'];
    const create = ['--create', '--format=posix', '--sort=name', ...owners, `--directory=${kept.place}`, '.git'];
    yield* withoutEnd(rewriteTar(streamCommand('tar', create), (entry) => [{ ...entry, ...times }]));
  }
  yield TAR_END;
}

/** Several archives in one: none of them may say that it is over. */
async function* withoutEnd(tar: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let last: Buffer | undefined;
  for await (const piece of tar) {
    if (last !== undefined) yield last;
    last = piece;
  }
}
