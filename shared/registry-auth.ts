/**
 * Proving to a registry who we are: Basic, and Bearer tokens from the token server that its challenge names.
 * https://github.com/distribution/distribution/blob/main/docs/content/spec/auth/token.md and oauth.md
 *
 * A challenge is hostile input: credentials go to a token server only over https (or loopback) and only within the
 * registry's own registrable domain, unless it was named as trusted. Tokens are kept per scope until they expire.
 */
import { z } from 'zod';
import type { Credentials } from './credentials.ts';
import { AppError } from './errors.ts';
import { type HttpResponse, type HttpTransport, originOf, readErrorBody } from './http-transport.ts';
import { isLoopbackHost } from './proxies.ts';
import { type Cancelable, collect } from './streams.ts';

export interface Challenge {
  /** Lower case. */
  readonly scheme: string;
  readonly parameters: ReadonlyMap<string, string>;
}

/**
 * Challenges of a WWW-Authenticate header; what cannot be read is left out.
 * https://www.rfc-editor.org/rfc/rfc9110#section-11.6.1
 */
export function parseChallenges(header: string): readonly Challenge[] {
  const challenges: { scheme: string; parameters: Map<string, string> }[] = [];
  // One token at a time: `name="quoted \" text"`, `name=token`, or a bare word, which begins the next challenge.
  const part = /([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?/y;
  let at = 0;
  while (at < header.length) {
    const gap = /[\s,]*/y;
    gap.lastIndex = at;
    gap.exec(header);
    part.lastIndex = gap.lastIndex;
    const match = part.exec(header);
    if (match === null) break;
    at = part.lastIndex;
    const [, name = '', quoted, plain] = match;
    const value = quoted === undefined ? plain : quoted.replace(/\\(.)/g, '$1');
    if (value === undefined) challenges.push({ scheme: name.toLowerCase(), parameters: new Map() });
    else challenges.at(-1)?.parameters.set(name.toLowerCase(), value);
  }
  return challenges;
}

export interface AuthOptions {
  /** The registry that is spoken to, for messages and for what a challenge may name. */
  readonly host: string;
  readonly transport: HttpTransport;
  readonly credentials: () => Promise<Credentials | undefined>;
  /** Hosts outside the registry's domain that may see its credentials. */
  readonly trustedRealms: readonly string[];
  /** Whether http: token servers are acceptable beyond loopback. */
  readonly isPlainHttpAllowed: boolean;
  readonly timeoutMs: number;
  /** Milliseconds of a clock that may not jump. */
  readonly now: () => number;
}

export interface Authenticator {
  /** The Authorization header to send for these scopes, as far as it is known without asking. */
  headerFor(scopes: readonly string[]): string | undefined;
  /**
   * Answers a 401: makes headerFor() give a better header. false = nothing more can be tried.
   * @throws AppError 'unauthenticated', 'denied' (challenge that must not be followed), 'unavailable'
   */
  answer(response: HttpResponse, scopes: readonly string[], options: AnswerOptions): Promise<boolean>;
  /** Asks for a long-lived token in place of the password, where there has been a challenge and its server gives one. */
  identityToken(): Promise<string | undefined>;
}

export interface AnswerOptions extends Cancelable {
  /** The header that was refused. */
  readonly sent: string | undefined;
}

const TOKEN_ANSWER_MAX_BYTES = 1 << 20;
/** The specification's default. */
const TOKEN_LIFE_MS = 60_000;
/** Given up before it expires at the server, whose clock is not ours. */
const TOKEN_MARGIN_MS = 5_000;
/** One per repository; forgetting them costs asking again. */
const TOKENS_MAX = 1_000;
const CLIENT_ID = 'berth';

const tokenSchema = z.looseObject({
  token: z.string().optional(),
  access_token: z.string().optional(),
  expires_in: z.number().optional(),
  refresh_token: z.string().optional(),
});

interface Token {
  readonly text: string;
  readonly expiresAt: number;
}

export function createAuthenticator(options: AuthOptions): Authenticator {
  const tokens = new Map<string, Token>();
  const asking = new Map<string, Promise<Token>>();
  let fixedHeader: string | undefined;
  let lastBearer: Challenge | undefined;
  const keyOf = (scopes: readonly string[]) => [...scopes].sort().join(' ');

  const headerFor = (scopes: readonly string[]) => {
    const token = tokens.get(keyOf(scopes));
    return token !== undefined && token.expiresAt > options.now() ? `Bearer ${token.text}` : fixedHeader;
  };

  return {
    headerFor,

    async answer(response, scopes, { sent, signal }) {
      // Somebody else has got a new token since this request was sent.
      const current = headerFor(scopes);
      if (current !== undefined && current !== sent) return true;
      const challenges = challengesOf(response);
      const credentials = await options.credentials();
      if (credentials?.kind === 'registry-token') {
        fixedHeader = `Bearer ${credentials.token}`;
        return sent !== fixedHeader;
      }
      const bearer = challenges.find(({ scheme }) => scheme === 'bearer');
      if (bearer === undefined) {
        if (!challenges.some(({ scheme }) => scheme === 'basic') || credentials?.kind !== 'password') return false;
        fixedHeader = basic(credentials);
        return sent !== fixedHeader;
      }
      lastBearer = bearer;
      const key = keyOf(scopes);
      tokens.delete(key);
      const pending =
        // Without the caller's signal: others may be waiting for the same token.
        asking.get(key) ?? askForToken(options, bearer, { credentials, scopes }).finally(() => asking.delete(key));
      asking.set(key, pending);
      const token = await pending;
      signal?.throwIfAborted();
      if (tokens.size >= TOKENS_MAX) tokens.clear();
      tokens.set(key, token);
      return true;
    },

    async identityToken() {
      const credentials = await options.credentials();
      if (lastBearer === undefined || credentials?.kind !== 'password') return undefined;
      const answer = await exchange(options, lastBearer, { credentials, scopes: [], isOffline: true });
      return answer.refresh_token;
    },
  };
}

function challengesOf(response: HttpResponse): readonly Challenge[] {
  return parseChallenges(response.headers.get('www-authenticate') ?? '');
}

function basic({ username, password }: { readonly username: string; readonly password: string }): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
}

interface TokenRequest {
  readonly credentials: Credentials | undefined;
  readonly scopes: readonly string[];
  readonly isOffline?: boolean;
}

async function askForToken(options: AuthOptions, bearer: Challenge, request: TokenRequest): Promise<Token> {
  const answer = await exchange(options, bearer, request);
  const text = answer.token ?? answer.access_token;
  // A token with line ends would smuggle headers.
  if (text === undefined || !/^[\x21-\x7e]+$/.test(text))
    throw new AppError('unauthenticated', `cannot authenticate at "${options.host}": its token server sent no token`);
  const lifeMs = Math.max(answer.expires_in === undefined ? 0 : answer.expires_in * 1000, TOKEN_LIFE_MS);
  return { text, expiresAt: options.now() + lifeMs - TOKEN_MARGIN_MS };
}

async function exchange(
  options: AuthOptions,
  bearer: Challenge,
  { credentials, scopes, isOffline = false }: TokenRequest,
): Promise<z.infer<typeof tokenSchema>> {
  const realm = parseRealm(options, bearer.parameters.get('realm'));
  if (credentials !== undefined) await assertTrusted(options, realm);
  const service = bearer.parameters.get('service');
  const wanted = new Set(
    [...scopes, ...(bearer.parameters.get('scope')?.split(' ') ?? [])].filter((scope) => scope !== ''),
  );

  const form = new URLSearchParams();
  if (service !== undefined) form.set('service', service);
  const isRefresh = credentials?.kind === 'identity-token';
  if (isRefresh) {
    form.set('grant_type', 'refresh_token');
    form.set('refresh_token', credentials.token);
    form.set('client_id', CLIENT_ID);
    form.set('scope', [...wanted].join(' '));
  } else {
    for (const scope of wanted) form.append('scope', scope);
    if (credentials?.kind === 'password') form.set('account', credentials.username);
    if (isOffline) {
      form.set('offline_token', 'true');
      form.set('client_id', CLIENT_ID);
    }
  }
  const url = new URL(realm);
  if (!isRefresh) for (const [name, value] of form) url.searchParams.append(name, value);
  const response = await options.transport.send({
    method: isRefresh ? 'POST' : 'GET',
    url,
    headers: {
      accept: 'application/json',
      ...(isRefresh ? { 'content-type': 'application/x-www-form-urlencoded' } : {}),
      ...(credentials?.kind === 'password' ? { authorization: basic(credentials) } : {}),
    },
    ...(isRefresh ? { body: form.toString() } : {}),
    timeoutMs: options.timeoutMs,
  });
  if (response.status !== 200) {
    await readErrorBody(response);
    const isRefusal = response.status >= 400 && response.status < 500 && response.status !== 429;
    throw new AppError(
      isRefusal ? 'unauthenticated' : 'unavailable',
      `cannot authenticate at "${options.host}": its token server ${originOf(realm)} answered ${response.status}${isRefusal ? '; check user name and password' : ''}`,
      { detail: { status: response.status } },
    );
  }
  const bytes = await collect(response.body, TOKEN_ANSWER_MAX_BYTES, { what: 'token answer' });
  const parsed = tokenSchema.safeParse(parseJson(bytes.toString('utf8')));
  if (parsed.success) return parsed.data;
  throw new AppError('unauthenticated', `cannot authenticate at "${options.host}": its token server did not send JSON`);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function parseRealm({ host, isPlainHttpAllowed }: AuthOptions, text: string | undefined): URL {
  const refuse = (why: string) => new AppError('denied', `cannot authenticate at "${host}": its token server ${why}`);
  if (text === undefined || !URL.canParse(text)) throw refuse('has no usable address');
  const realm = new URL(text);
  if (realm.username !== '' || realm.password !== '') throw refuse('has credentials in its address');
  if (realm.protocol === 'https:') return realm;
  if (realm.protocol !== 'http:') throw refuse(`has the address scheme "${realm.protocol}"`);
  // A registry elsewhere must not make us talk to services of this host, nor in the clear to anybody.
  const registry = hostnameOf(host);
  if (isLoopbackHost(realm.hostname) && isLoopbackHost(registry)) return realm;
  if (isPlainHttpAllowed && realm.hostname === registry) return realm;
  throw refuse(`${originOf(realm)} does not use https`);
}

async function assertTrusted({ host, trustedRealms }: AuthOptions, realm: URL): Promise<void> {
  const registry = hostnameOf(host);
  if (realm.hostname === registry || trustedRealms.includes(realm.hostname) || trustedRealms.includes(realm.host))
    return;
  if (isLoopbackHost(realm.hostname) && isLoopbackHost(registry)) return;
  // Only here, because the list of public suffixes takes a while to load.
  const { getDomain } = await import('tldts');
  const domain = getDomain(registry, { allowPrivateDomains: true });
  if (domain !== null && domain === getDomain(realm.hostname, { allowPrivateDomains: true })) return;
  throw new AppError(
    'denied',
    `cannot authenticate at "${host}": it asks to send the credentials to ${originOf(realm)}, which is not in its domain; trust that host explicitly if this is right`,
  );
}

function hostnameOf(host: string): string {
  return new URL(`https://${host}`).hostname;
}
