/**
 * The host's git on a bare repository of ours: without hooks, templates or configuration of the host, and only by network
 * protocols. What comes from outside follows `--`.
 */
import { AppError, isKind } from '../../shared/errors.ts';
import type { ProxySettings } from '../../shared/proxies.ts';
import { redactText } from '../../shared/redact.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { runCommand, streamCommand } from '../kernel/command.ts';
import { COMMIT, type GitReference } from './git-reference.ts';

const TIMEOUT_MS = 15 * 60_000;

export interface GitSettings extends Cancelable {
  /** git's home, and what it learns of hosts. */
  readonly place: string;
  readonly proxies: ProxySettings;
  /** Socket of an ssh agent. */
  readonly sshAgent: string | undefined;
}

export interface Git {
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

export function createGit(repository: string, { place, proxies, sshAgent, signal }: GitSettings): Git {
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
  if (sshAgent !== undefined) env.SSH_AUTH_SOCK = sshAgent;
  const common = [...SAFE, `--git-dir=${repository}`];
  return {
    async run(args) {
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
export async function remoteCommit(git: Git, { remote, ref }: GitReference): Promise<string | undefined> {
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

export async function fetchCommit(
  git: Git,
  { remote, ref }: GitReference,
  commit: string | undefined,
): Promise<string> {
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
