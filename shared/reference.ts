/**
 * Names of images, with Docker's defaulting rules: `debian` is docker.io/library/debian:latest, `host:5000/a` names a
 * host because its first part has a dot, a colon, an upper-case letter or is `localhost`.
 * Grammar: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests
 * Pure: no I/O.
 */
import { type Digest, isDigest, parseDigest } from './digest.ts';
import { AppError } from './errors.ts';

const COMPONENT = '[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*';
/** One repository path, for building other patterns. */
export const REPOSITORY_PATTERN = `${COMPONENT}(?:/${COMPONENT})*`;
export const TAG_PATTERN = '[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}';
const REPOSITORY = new RegExp(`^${REPOSITORY_PATTERN}$`);
const TAG = new RegExp(`^${TAG_PATTERN}$`);
const HOST =
  /^(?:\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*)(?::[0-9]{1,5})?$/;
/** Host and repository together, as the specification advises. */
export const NAME_MAX_LENGTH = 255;
/** Name, tag and a sha512 digest together. */
const REFERENCE_MAX_LENGTH = NAME_MAX_LENGTH + 1 + 128 + 1 + 135;

export const DEFAULT_HOST = 'docker.io';
export const DEFAULT_TAG = 'latest';

export interface Reference {
  /** The registry's host and port; `docker.io` when none was written. */
  readonly host: string;
  /** Path within the registry; `library/` is added on docker.io. */
  readonly repository: string;
  readonly tag?: string | undefined;
  readonly digest?: Digest | undefined;
}

export function isRepository(text: string): boolean {
  return text.length <= NAME_MAX_LENGTH && REPOSITORY.test(text);
}

export function isTag(text: string): boolean {
  return TAG.test(text);
}

/**
 * Parses what a user writes. With neither tag nor digest the tag becomes `latest`, unless `bare` asks for what was
 * written. @throws AppError 'invalid'
 */
export function parseReference(text: string, options: { readonly bare?: boolean } = {}): Reference {
  const fail = (why: string): never => {
    // What clients look for when they try a text as one name after another.
    throw new AppError('invalid', `invalid reference format: ${JSON.stringify(text.slice(0, 300))}: ${why}`);
  };
  if (text.length > REFERENCE_MAX_LENGTH) fail(`it is longer than ${REFERENCE_MAX_LENGTH} characters`);
  const at = text.indexOf('@');
  const named = at === -1 ? text : text.slice(0, at);
  const digest = at === -1 ? undefined : parseDigest(text.slice(at + 1));
  const colon = named.lastIndexOf(':');
  const hasTag = colon > named.lastIndexOf('/');
  const name = hasTag ? named.slice(0, colon) : named;
  const written = hasTag ? named.slice(colon + 1) : undefined;
  if (written !== undefined && !isTag(written)) fail(`${JSON.stringify(written)} is not a tag`);
  if (name === '') fail('it has no repository');

  const slash = name.indexOf('/');
  const first = slash === -1 ? '' : name.slice(0, slash);
  const isHost = first !== '' && (/[.:A-Z]/.test(first) || first === 'localhost');
  const host = isHost ? (first === 'index.docker.io' ? DEFAULT_HOST : first) : DEFAULT_HOST;
  if (!HOST.test(host)) fail(`${JSON.stringify(host)} is not a host`);
  const path = isHost ? name.slice(slash + 1) : name;
  const repository = host === DEFAULT_HOST && !path.includes('/') ? `library/${path}` : path;
  if (/[A-Z]/.test(repository)) fail('repository names must be lower case');
  if (!REPOSITORY.test(repository)) fail(`${JSON.stringify(path)} is not a repository name`);
  if (host.length + 1 + repository.length > NAME_MAX_LENGTH) fail(`it is longer than ${NAME_MAX_LENGTH} characters`);
  if (isDigest(`sha256:${text}`)) fail('64 hexadecimal characters are an image id, not a name');

  const tag = written ?? (digest === undefined && options.bare !== true ? DEFAULT_TAG : undefined);
  return { host, repository, tag, digest };
}

/** The short form that people see: docker.io and library/ are left out. */
export function familiarName(reference: Reference): string {
  if (reference.host !== DEFAULT_HOST) return `${reference.host}/${reference.repository}`;
  return reference.repository.replace(/^library\/(?=[^/]+$)/, '');
}

/** Short form with tag and digest. */
export function familiarReference(reference: Reference): string {
  return `${familiarName(reference)}${suffix(reference)}`;
}

/** The one full spelling; what stores use as key. */
export function canonicalReference(reference: Reference): string {
  return `${reference.host}/${reference.repository}${suffix(reference)}`;
}

function suffix({ tag, digest }: Reference): string {
  return `${tag === undefined ? '' : `:${tag}`}${digest === undefined ? '' : `@${digest}`}`;
}

/** What to ask the registry for: the digest if there is one, else the tag. */
export function manifestReference(reference: Reference): string {
  return reference.digest ?? reference.tag ?? DEFAULT_TAG;
}
