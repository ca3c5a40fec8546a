/**
 * Git repositories as trees: `ADD https://host/repo.git#ref:subdir` and remote contexts.
 *
 * The host's git fetches into a bare repository of ours, without hooks, templates or configuration of the host, and only
 * by network protocols; nothing is checked out: `git archive` writes the tree as a tar. So neither a link nor an
 * attribute of the repository can name a path of the host (CVE-2026-33748), and what comes from a Dockerfile is never
 * taken for an option (CVE-2019-13139): it follows `--` and must fit a strict grammar.
 */
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { AppError, isKind } from '../../shared/errors.ts';
import type { ProxySettings } from '../../shared/proxies.ts';
import { redactText } from '../../shared/redact.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { Lease } from '../images/images.ts';
import { runCommand, streamCommand } from '../kernel/command.ts';
import type { Chain, LayerStore } from '../layers/layer-store.ts';
import { rewriteTar } from '../layers/tar-rewrite.ts';

export interface GitReference {
  /** What git is given: a URL, or `user@host:path`. */
  readonly remote: string;
  /** Branch, tag or commit; undefined = what the remote's HEAD is. */
  readonly ref: string | undefined;
  /** Relative, '' = the whole tree. */
  readonly subdirectory: string;
}

const SCP = /^[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:(?![-/]*-)[\w./~+-]+$/;
const REF = /^[A-Za-z0-9_][\w./+@-]*$/;
const COMMIT = /^[0-9a-f]{40}(?:[0-9a-f]{24})?$/;
const PROTOCOLS = ['https:', 'http:', 'git:', 'ssh:'];

/** undefined = the text names no git repository. @throws AppError 'invalid' for one that is malformed */
export function parseGitReference(text: string): GitReference | undefined {
  const hash = text.indexOf('#');
  const address = hash === -1 ? text : text.slice(0, hash);
  const fragment = hash === -1 ? '' : text.slice(hash + 1);
  const remote = remoteOf(address);
  if (remote === undefined) return undefined;
  const colon = fragment.indexOf(':');
  const ref = colon === -1 ? fragment : fragment.slice(0, colon);
  const names = (colon === -1 ? '' : fragment.slice(colon + 1))
    .split('/')
    .filter((name) => name !== '' && name !== '.');
  const shown = JSON.stringify(redactText(text));
  if (ref !== '' && (!REF.test(ref) || ref.includes('..') || ref.includes('@{')))
    throw new AppError('invalid', `cannot use git repository ${shown}: its ref is malformed`);
  if (names.some((name) => name === '..' || /[\0\n]/.test(name)))
    throw new AppError('invalid', `cannot use git repository ${shown}: its subdirectory leads out of it`);
  return { remote, ref: ref === '' ? undefined : ref, subdirectory: names.join('/') };
}

function remoteOf(address: string): string | undefined {
  if (SCP.test(address)) return address;
  const text = /^(?:github\.com|gitlab\.com|bitbucket\.org)\//.test(address) ? `https://${address}` : address;
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !PROTOCOLS.includes(url.protocol)) return undefined;
  const isHttp = url.protocol === 'https:' || url.protocol === 'http:';
  if (isHttp && !url.pathname.endsWith('.git') && text === address) return undefined;
  // `ssh://-oProxyCommand=…`: ssh would take such a host for an option.
  if (!/^[A-Za-z0-9[]/.test(url.hostname) || /^-/.test(decodeURIComponent(url.username)) || url.search !== '')
    throw new AppError('invalid', `cannot use git repository ${JSON.stringify(redactText(address))}: it is malformed`);
  return text;
}

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
   * @throws AppError 'unsupported' when the host has no git, or the repository submodules; 'unavailable' in git's words;
   * 'not-found' for a ref or subdirectory that is not there; 'integrity' (checksum)
   */
  fetch(reference: GitReference, options: GitOptions): Promise<GitTree>;
}

export interface GitPorts {
  readonly layers: Pick<LayerStore, 'make' | 'get'>;
  /** For repositories on their way. */
  readonly directory: string;
  readonly randomId: () => string;
  readonly proxies: ProxySettings;
}

const TIMEOUT_MS = 15 * 60_000;
const REMEMBERED_MAX = 200;
/** The tree as it was committed: nothing left out, filled in or converted, and no filter of the host runs for it. */
const ATTRIBUTES = '* -filter -text -ident -working-tree-encoding -export-ignore -export-subst\n';

export function createGitTrees(ports: GitPorts): GitTrees {
  const { layers, directory, randomId } = ports;
  const remembered = new Map<string, GitTree>();

  async function fetch(reference: GitReference, options: GitOptions): Promise<GitTree> {
    const place = join(directory, randomId());
    const repository = join(place, '.git');
    await mkdir(repository, { recursive: true, mode: 0o700 });
    const git = createGit(ports, { place, repository, options });
    try {
      const commit = await remoteCommit(git, reference);
      const key = JSON.stringify([reference, commit, options.keepGitDir === true]);
      const before = commit === undefined ? undefined : await known(key, options.lease);
      if (before !== undefined) {
        checkCommit(before.commit, options.checksum);
        return before;
      }
      const fetched = await fetchCommit(git, reference, commit);
      checkCommit(fetched, options.checksum);
      await checkTree(git, reference, fetched);
      const tar = treeTar(git, { ...reference, commit: fetched, place, keepGitDir: options.keepGitDir === true });
      const layer = await layers.make(Readable.from(tar, { objectMode: false }), [], {
        signal: options.signal,
        protect: (id) => options.lease.protect(id),
        files: { removed: [] },
      });
      const tree: GitTree = { chain: [layer.id], commit: fetched };
      remember(JSON.stringify([reference, fetched, options.keepGitDir === true]), tree);
      return tree;
    } finally {
      await rm(place, { recursive: true, force: true });
    }
  }

  async function known(key: string, lease: Lease): Promise<GitTree | undefined> {
    const found = remembered.get(key);
    const [id] = found?.chain ?? [];
    if (found === undefined || id === undefined) return undefined;
    await lease.protect(id);
    return (await layers.get(id)) === undefined ? undefined : found;
  }

  function remember(key: string, tree: GitTree): void {
    remembered.delete(key);
    remembered.set(key, tree);
    const [oldest] = remembered.keys();
    if (remembered.size > REMEMBERED_MAX && oldest !== undefined) remembered.delete(oldest);
  }

  return { fetch };
}

interface Git {
  /** stdout; fails with git's words. */
  run(args: readonly string[]): Promise<string>;
  stream(args: readonly string[]): AsyncGenerator<Buffer, void, undefined>;
}

const SAFE = [
  '-c',
  'core.hooksPath=/dev/null',
  '-c',
  'core.fsmonitor=false',
  '-c',
  'protocol.file.allow=never',
  '-c',
  'protocol.ext.allow=never',
  '-c',
  'credential.helper=',
  '-c',
  'gc.auto=0',
  '-c',
  'tar.umask=0022',
];

function createGit(
  { proxies }: GitPorts,
  { place, repository, options }: { readonly place: string; readonly repository: string; readonly options: GitOptions },
): Git {
  const proxy = { http_proxy: proxies.http, https_proxy: proxies.https, no_proxy: proxies.no };
  const env: Record<string, string> = {
    HOME: place,
    GIT_CONFIG_NOSYSTEM: '1',
    GIT_CONFIG_GLOBAL: '/dev/null',
    GIT_TERMINAL_PROMPT: '0',
    GIT_ALLOW_PROTOCOL: 'http:https:git:ssh',
    GIT_SSH_COMMAND: `ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=${place}/known_hosts`,
    ...Object.fromEntries(
      Object.entries(proxy).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])),
    ),
  };
  if (options.sshAgent !== undefined) env.SSH_AUTH_SOCK = options.sshAgent;
  const common = [...SAFE, `--git-dir=${repository}`];
  return {
    async run(args) {
      const { signal } = options;
      const { exitCode, stdout, stderr } = await runCommand('git', [...common, ...args], {
        env,
        signal,
        timeoutMs: TIMEOUT_MS,
      }).catch((error: unknown) => {
        if (!isKind(error, 'unsupported')) throw error;
        throw new AppError('unsupported', 'cannot fetch a git repository: this host has no git', { cause: error });
      });
      if (exitCode !== 0)
        throw new AppError(
          'unavailable',
          `cannot fetch a git repository: ${redactText(stderr.trim()) || `git ended with ${exitCode}`}`,
        );
      return stdout;
    },
    stream: (args) => streamCommand('git', [...common, ...args]),
  };
}

/** Without fetching; undefined = only fetching can tell. */
async function remoteCommit(git: Git, { remote, ref }: GitReference): Promise<string | undefined> {
  if (ref !== undefined && COMMIT.test(ref)) return ref;
  const wanted = ref === undefined ? ['HEAD'] : [`refs/heads/${ref}`, `refs/tags/${ref}^{}`, `refs/tags/${ref}`, ref];
  const answer = await git.run([
    'ls-remote',
    '--',
    remote,
    ...(ref === undefined ? ['HEAD'] : [ref, `refs/tags/${ref}^{}`]),
  ]);
  const found = new Map(
    answer.split('\n').map((line) => {
      const [commit = '', name = ''] = line.split('\t');
      return [name, commit] as const;
    }),
  );
  return wanted.map((name) => found.get(name)).find((commit) => commit !== undefined);
}

async function fetchCommit(git: Git, { remote, ref }: GitReference, commit: string | undefined): Promise<string> {
  await git.run(['init', '--quiet', '--template=']);
  const parse = async (name: string) =>
    (await git.run(['rev-parse', '--verify', '--quiet', '--end-of-options', `${name}^{commit}`])).trim();
  if (commit !== undefined) {
    try {
      await git.run([
        'fetch',
        '--quiet',
        '--depth=1',
        '--no-tags',
        '--no-recurse-submodules',
        '--',
        remote,
        ref ?? 'HEAD',
      ]);
      return await parse('FETCH_HEAD');
    } catch (error) {
      // Some servers give no commit by its name.
      if (ref === undefined || !COMMIT.test(ref) || !isKind(error, 'unavailable')) throw error;
    }
  }
  await git.run([
    'fetch',
    '--quiet',
    '--no-recurse-submodules',
    '--',
    remote,
    '+refs/heads/*:refs/remotes/origin/*',
    '+refs/tags/*:refs/tags/*',
  ]);
  try {
    return await parse(ref ?? 'HEAD');
  } catch (cause) {
    throw new AppError('not-found', `cannot find ${JSON.stringify(ref)} in the git repository`, { cause });
  }
}

function checkCommit(commit: string, checksum: string | undefined): void {
  if (checksum !== undefined && !(checksum.length >= 7 && commit.startsWith(checksum.toLowerCase())))
    throw new AppError('integrity', `expected checksum to match ${checksum}, got ${commit}`);
}

async function checkTree(git: Git, { subdirectory }: GitReference, commit: string): Promise<void> {
  const type = await git.run(['cat-file', '-t', `${commit}:${subdirectory}`]).catch(() => '');
  if (type.trim() !== 'tree') throw new AppError('not-found', `subdir not found: ${JSON.stringify(subdirectory)}`);
  for await (const line of lines(git.stream(['ls-tree', '-r', '-z', `${commit}:${subdirectory}`])))
    if (line.startsWith('160000 '))
      throw new AppError(
        'unsupported',
        `cannot use the git repository: ${JSON.stringify(line.slice(line.indexOf('\t') + 1))} is a submodule`,
      );
}

async function* lines(chunks: AsyncIterable<Buffer>): AsyncGenerator<string> {
  let rest = '';
  for await (const chunk of chunks) {
    const parts = (rest + chunk.toString('latin1')).split('\0');
    rest = parts.pop() ?? '';
    yield* parts;
  }
}

interface TreeRequest {
  readonly commit: string;
  readonly subdirectory: string;
  readonly place: string;
  readonly keepGitDir: boolean;
}

async function* treeTar(git: Git, { commit, subdirectory, place, keepGitDir }: TreeRequest): AsyncGenerator<Buffer> {
  await mkdir(join(place, '.git', 'info'), { recursive: true });
  await writeFile(join(place, '.git', 'info', 'attributes'), ATTRIBUTES);
  const mtime = Number((await git.run(['show', '--no-patch', '--format=%ct', commit])).trim());
  const archive = git.stream(['archive', '--format=tar', `${commit}:${subdirectory}`]);
  const own = rewriteTar(archive, (entry) => [{ ...entry, uid: 0, gid: 0, mtimeSeconds: mtime, mtimeNanoseconds: 0 }]);
  if (!keepGitDir) {
    yield* own;
    return;
  }
  await rm(join(place, '.git', 'info', 'attributes'));
  await git.run(['update-ref', '--no-deref', 'HEAD', commit]);
  await git.run(['read-tree', commit]);
  yield* withoutEnd(own);
  const data = streamCommand('tar', [
    '--create',
    '--format=posix',
    '--sort=name',
    '--numeric-owner',
    '--owner=0',
    '--group=0',
    `--directory=${place}`,
    '.git',
  ]);
  yield* rewriteTar(data, (entry) => [{ ...entry, mtimeSeconds: mtime, mtimeNanoseconds: 0 }]);
}

/** Two archives in one: the first must not say that it is over. */
async function* withoutEnd(tar: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let last: Buffer | undefined;
  for await (const piece of tar) {
    if (last !== undefined) yield last;
    last = piece;
  }
}
