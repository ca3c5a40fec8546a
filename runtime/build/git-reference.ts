/**
 * How builds name git repositories: `URL#ref:subdirectory`, and addresses alone. What comes from a Dockerfile is never
 * taken for an option (CVE-2019-13139): it must fit a strict grammar. Pure.
 */
import { AppError } from '../../shared/errors.ts';
import { redactText } from '../../shared/redact.ts';

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
export const COMMIT = /^[0-9a-f]{40}(?:[0-9a-f]{24})?$/;
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

/** Over http only what ends in `.git` is taken for a repository, and what lies at well-known hosts. */
function remoteOf(address: string): string | undefined {
  if (/^(?:github\.com|gitlab\.com|bitbucket\.org)\//.test(address)) return parseRemote(`https://${address}`);
  const isHttp = /^https?:/i.test(address);
  return isHttp && URL.canParse(address) && !new URL(address).pathname.endsWith('.git')
    ? undefined
    : parseRemote(address);
}

/** The address of a repository; undefined = it is none that is fetched. @throws AppError 'invalid' for a malformed one */
export function parseRemote(address: string): string | undefined {
  if (SCP.test(address)) return address;
  const url = URL.canParse(address) ? new URL(address) : undefined;
  if (url === undefined || !PROTOCOLS.includes(url.protocol)) return undefined;
  // `ssh://-oProxyCommand=…`: ssh would take such a host for an option.
  if (!/^[A-Za-z0-9[]/.test(url.hostname) || /^-/.test(decodeURIComponent(url.username)) || url.search !== '')
    throw new AppError('invalid', `cannot use git repository ${JSON.stringify(redactText(address))}: it is malformed`);
  return address;
}
