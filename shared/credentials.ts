/**
 * Credentials for registries as docker keeps them: `auths` of config.json, or helper programs that it names.
 * Protocol of helpers: https://github.com/docker/docker-credential-helpers#development
 *
 * An answer is for exactly one host: nothing here guesses that a password for one registry fits another.
 */
import { spawn } from 'node:child_process';
import { mkdir, readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { text } from 'node:stream/consumers';
import { writeDurably } from './atomic-file.ts';
import { AppError, hasCode } from './errors.ts';
import { DEFAULT_HOST } from './reference.ts';

export type Credentials =
  | { readonly kind: 'password'; readonly username: string; readonly password: string }
  /** An OAuth2 refresh token, which the registry's token server exchanges. */
  | { readonly kind: 'identity-token'; readonly token: string }
  /** A bearer token to be sent as it is. */
  | { readonly kind: 'registry-token'; readonly token: string };

export interface CredentialStore {
  get(host: string): Promise<Credentials | undefined>;
  /** Registries that there are credentials for, as far as the file itself tells. */
  hosts(): Promise<readonly string[]>;
  /** @throws AppError 'unsupported' for a registry-token */
  set(host: string, credentials: Credentials): Promise<void>;
  /** false = there were none. */
  remove(host: string): Promise<boolean>;
}

export interface CredentialStoreOptions {
  /** docker's config.json; made when something is stored and it is not there. */
  readonly path: string;
  /** For helper programs: PATH, HOME and what they need. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** docker keeps those of docker.io under this name. */
const DOCKER_HUB_KEY = 'https://index.docker.io/v1/';
const IDENTITY_USER = '<token>';
const HELPER_TIMEOUT_MS = 60_000;
const HELPER_ANSWER_MAX = 64 << 10;

/** What is here of an entry; anything else in it stays as it is. */
interface AuthEntry {
  readonly auth?: string;
  readonly username?: string;
  readonly password?: string;
  readonly identitytoken?: string;
  readonly registrytoken?: string;
}

interface ConfigFile {
  readonly auths?: Readonly<Record<string, AuthEntry>>;
  readonly credHelpers?: Readonly<Record<string, string>>;
  readonly credsStore?: string;
}

// By hand: a schema library would be half of the start of every command that talks to a registry.
const isTextOrAbsent = (value: unknown): boolean => value === undefined || typeof value === 'string';
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isObjectOf = (value: unknown, isMember: (member: unknown) => boolean): boolean =>
  value === undefined || (isObject(value) && Object.values(value).every(isMember));

function isAuthEntry(value: unknown): boolean {
  const fields = ['auth', 'username', 'password', 'identitytoken', 'registrytoken'];
  return isObject(value) && fields.every((field) => isTextOrAbsent(value[field]));
}

function isConfigFile(value: unknown): value is ConfigFile {
  return (
    isObject(value) &&
    isObjectOf(value.auths, isAuthEntry) &&
    isObjectOf(value.credHelpers, (helper) => typeof helper === 'string') &&
    isTextOrAbsent(value.credsStore)
  );
}

export function createCredentialStore(options: CredentialStoreOptions): CredentialStore {
  const { path, env } = options;
  const load = async (): Promise<ConfigFile> => {
    let json: string;
    try {
      json = await readFile(path, 'utf8');
    } catch (error) {
      if (hasCode(error, 'ENOENT')) return {};
      throw error;
    }
    const parsed = parseJson(json);
    if (isConfigFile(parsed)) return parsed;
    throw new AppError('invalid', `cannot read ${JSON.stringify(path)}: it is not a docker configuration file`);
  };
  const save = async (file: ConfigFile) => {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    await writeDurably(path, `${JSON.stringify(file, null, '\t')}\n`, { mode: 0o600 });
  };
  const helperFor = (file: ConfigFile, host: string) => file.credHelpers?.[host] ?? (file.credsStore || undefined);

  return {
    async get(host) {
      const file = await load();
      const helper = helperFor(file, host);
      if (helper !== undefined) {
        const found = await askHelper(helper, 'get', { input: keyOf(host), env });
        if (found !== undefined) return fromHelper(helper, found);
      }
      for (const [key, entry] of Object.entries(file.auths ?? {})) {
        if (hostOfKey(key) !== host) continue;
        const credentials = fromEntry(entry);
        if (credentials !== undefined) return credentials;
      }
      return undefined;
    },

    async hosts() {
      const { auths = {}, credHelpers = {} } = await load();
      return [...new Set([...Object.keys(auths), ...Object.keys(credHelpers)].map(hostOfKey))];
    },

    async set(host, credentials) {
      if (credentials.kind === 'registry-token')
        throw new AppError('unsupported', `cannot store credentials for "${host}": bearer tokens are not kept`);
      const file = await load();
      const helper = helperFor(file, host);
      if (helper === undefined) return save({ ...file, auths: { ...file.auths, [keyOf(host)]: toEntry(credentials) } });
      const isToken = credentials.kind === 'identity-token';
      const input = JSON.stringify({
        ServerURL: keyOf(host),
        Username: isToken ? IDENTITY_USER : credentials.username,
        Secret: isToken ? credentials.token : credentials.password,
      });
      await askHelper(helper, 'store', { input, env });
      // docker marks hosts whose secret is elsewhere by an empty entry.
      await save({ ...file, auths: { ...file.auths, [keyOf(host)]: {} } });
    },

    async remove(host) {
      const file = await load();
      const helper = helperFor(file, host);
      const erased =
        helper !== undefined && (await askHelper(helper, 'erase', { input: keyOf(host), env })) !== undefined;
      const entries = Object.entries(file.auths ?? {});
      const kept = entries.filter(([key]) => hostOfKey(key) !== host);
      if (kept.length === entries.length) return erased;
      await save({ ...file, auths: Object.fromEntries(kept) });
      return true;
    },
  };
}

function keyOf(host: string): string {
  return host === DEFAULT_HOST ? DOCKER_HUB_KEY : host;
}

/** Old clients wrote URLs as keys. */
function hostOfKey(key: string): string {
  const host = key.replace(/^https?:\/\//, '').replace(/\/.*$/, '');
  return host === 'index.docker.io' ? DEFAULT_HOST : host;
}

function fromEntry(entry: AuthEntry): Credentials | undefined {
  if (entry.identitytoken) return { kind: 'identity-token', token: entry.identitytoken };
  if (entry.registrytoken) return { kind: 'registry-token', token: entry.registrytoken };
  if (entry.auth) {
    // Some writers pad with NUL.
    const decoded = Buffer.from(entry.auth, 'base64').toString('utf8').replace(/\0+$/, '');
    const colon = decoded.indexOf(':');
    if (colon < 1) throw new AppError('invalid', 'cannot read credentials: "auth" is not base64 of user:password');
    return { kind: 'password', username: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
  }
  if (entry.username && entry.password !== undefined)
    return { kind: 'password', username: entry.username, password: entry.password };
  return undefined;
}

function toEntry(credentials: Exclude<Credentials, { kind: 'registry-token' }>): AuthEntry {
  if (credentials.kind === 'identity-token') return { identitytoken: credentials.token };
  return { auth: Buffer.from(`${credentials.username}:${credentials.password}`).toString('base64') };
}

function fromHelper(helper: string, answer: string): Credentials {
  const parsed = parseJson(answer);
  const { Username: username, Secret: secret } = isObject(parsed) ? parsed : {};
  if (typeof username !== 'string' || typeof secret !== 'string')
    throw new AppError('invalid', `cannot read the answer of credential helper "${helper}"`);
  if (username === IDENTITY_USER) return { kind: 'identity-token', token: secret };
  return { kind: 'password', username, password: secret };
}

function parseJson(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

/** undefined = the helper has nothing for it. Input goes by stdin, so that no secret shows in the process list. */
async function askHelper(
  helper: string,
  action: 'get' | 'store' | 'erase',
  { input, env }: { readonly input: string; readonly env: CredentialStoreOptions['env'] },
): Promise<string | undefined> {
  // The name becomes part of a program's name; a path in it would run something else.
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(helper))
    throw new AppError('invalid', `cannot use credential helper ${JSON.stringify(helper)}: it is not a plain name`);
  const program = `docker-credential-${helper}`;
  const child = spawn(program, [action], { stdio: ['pipe', 'pipe', 'ignore'], env, timeout: HELPER_TIMEOUT_MS });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  // A helper may end without reading; its exit code tells more than the broken pipe.
  child.stdin.on('error', () => {});
  child.stdin.end(input);
  try {
    const [code, output] = await Promise.all([ended, text(child.stdout)]);
    if (code === 0) return output.slice(0, HELPER_ANSWER_MAX);
    if (/credentials not found|not found in native keychain/i.test(output)) return undefined;
    throw new AppError(
      'unavailable',
      `cannot ${action} credentials: ${program} ended with ${code}: ${output.trim().slice(0, 300)}`,
    );
  } catch (error) {
    if (hasCode(error, 'ENOENT'))
      throw new AppError('not-found', `cannot ${action} credentials: there is no ${program} in PATH`, { cause: error });
    throw error;
  }
}
