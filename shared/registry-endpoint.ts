/**
 * RegistryEndpoint: requests to one registry (or mirror) with all that makes them arrive: https first, authentication,
 * redirects, retries. Paths begin after `/v2/`.
 *
 * The Authorization header goes to the endpoint's own origin and nowhere else; a redirect or a Location to another host
 * goes without, and never from https to http.
 */

import { randomInt } from 'node:crypto';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Credentials } from './credentials.ts';
import { AppError, type ErrorKind, isKind } from './errors.ts';
import {
  createHttpTransport,
  type HttpResponse,
  type HttpTransport,
  isNotTls,
  originOf,
  readErrorBody,
  type TlsSettings,
} from './http-transport.ts';
import { isLoopbackHost, type ProxySettings } from './proxies.ts';
import { redactText } from './redact.ts';
import { createAuthenticator } from './registry-auth.ts';
import type { Cancelable } from './streams.ts';

export interface EndpointOptions {
  /** Host and port as in a reference; docker.io is known to be registry-1.docker.io. */
  readonly host: string;
  readonly credentials?: (() => Promise<Credentials | undefined>) | undefined;
  /** Where http may be spoken when https is not: on loopback hosts only (default), always, never. */
  readonly plainHttp?: 'loopback' | 'always' | 'never' | undefined;
  readonly tls?: TlsSettings | undefined;
  /** Hosts outside the registry's domain that may see its credentials, as token servers. */
  readonly trustedRealms?: readonly string[] | undefined;
  readonly proxies?: ProxySettings | undefined;
  readonly userAgent?: string | undefined;
  readonly timeouts?: Partial<EndpointTimeouts> | undefined;
  readonly retry?: Partial<RetryPolicy> | undefined;
}

export interface EndpointTimeouts {
  /** From the request to the head of the answer. */
  readonly answerMs: number;
  /** The same for the request that completes an upload: registries may read the whole blob then. */
  readonly completionMs: number;
  /** Longest silence within a body. */
  readonly idleMs: number;
}

export interface RetryPolicy {
  /** The first one included. */
  readonly attempts: number;
  /** Doubled each time, with jitter. */
  readonly baseMs: number;
  readonly maxMs: number;
  /** 0 ≤ random < 1 */
  readonly random: () => number;
}

const TIMEOUTS: EndpointTimeouts = { answerMs: 30_000, completionMs: 600_000, idleMs: 60_000 };
const RETRY: RetryPolicy = { attempts: 4, baseMs: 250, maxMs: 10_000, random: () => randomInt(2 ** 32) / 2 ** 32 };
/** A server that asks for more gets an error instead, with `retryAfterMs` in its detail. */
const RETRY_AFTER_MAX_MS = 60_000;
const REDIRECTS_MAX = 5;
const ERROR_TEXT_MAX = 500;
const REGISTRY_HOSTS: Readonly<Record<string, string>> = { 'docker.io': 'registry-1.docker.io' };

export interface EndpointRequest extends Cancelable {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /** A path after `/v2/` with its query, or a URL that an earlier answer named. */
  readonly target: string | URL;
  /** What is asked for, in words for errors: `fetch manifest "latest" of host/repository`. */
  readonly action: string;
  /** Token scopes, as `repository:name:pull`. */
  readonly scopes: readonly string[];
  readonly headers?: Readonly<Record<string, string>>;
  /** Called anew for every attempt. */
  readonly body?: () => Promise<Readable | Buffer>;
  readonly timeoutMs?: number;
  /** Statuses that are an answer; any other is thrown. */
  readonly accept: readonly number[];
  /** For requests that must not be sent twice. */
  readonly isOnce?: boolean;
}

export interface RegistryEndpoint extends Disposable {
  readonly host: string;
  /** Sends until there is an accepted answer. @throws AppError, kind by status */
  send(request: EndpointRequest): Promise<HttpResponse>;
  /** Sends to a host that is none of ours, without any credentials. https only. */
  sendForeign(request: Omit<EndpointRequest, 'scopes'>): Promise<HttpResponse>;
  /** What a Location or Link of this answer names. @throws AppError 'denied' */
  follow(response: HttpResponse, location: string, action: string): URL;
  /** What the token server gives in place of the password; valid after an answer that needed authentication. */
  identityToken(): Promise<string | undefined>;
  readonly retry: RetryPolicy;
  readonly timeouts: EndpointTimeouts;
}

export function createRegistryEndpoint(options: EndpointOptions): RegistryEndpoint {
  const { host, plainHttp = 'loopback' } = options;
  const retry = { ...RETRY, ...options.retry };
  const timeouts = { ...TIMEOUTS, ...options.timeouts };
  const address = REGISTRY_HOSTS[host] ?? host;
  // From text each time: a URL forgets a port that is its scheme's default, and the other scheme has another.
  const baseOf = (scheme: string) => new URL(`${scheme}//${address}/v2/`);
  const { hostname } = baseOf('https:');
  const mayBePlain = plainHttp === 'always' || (plainHttp === 'loopback' && isLoopbackHost(hostname));
  /** undefined until the registry has answered by one of them. */
  let protocol: 'https:' | 'http:' | undefined = mayBePlain ? undefined : 'https:';

  const transport = createHttpTransport({
    userAgent: options.userAgent ?? 'berth',
    idleTimeoutMs: timeouts.idleMs,
    ...(options.proxies === undefined ? {} : { proxies: options.proxies }),
    ...(options.tls === undefined ? {} : { tls: options.tls }),
  });
  const authenticator = createAuthenticator({
    host: address,
    transport,
    credentials: options.credentials ?? (async () => undefined),
    trustedRealms: options.trustedRealms ?? [],
    isPlainHttpAllowed: plainHttp === 'always',
    timeoutMs: timeouts.answerMs,
    now: () => performance.now(),
  });

  const isOwn = (url: URL) =>
    (protocol === undefined || url.protocol === protocol) && url.origin === baseOf(url.protocol).origin;

  const exchange = async (request: EndpointRequest): Promise<HttpResponse> => {
    if (request.target instanceof URL) return await authenticated(request, request.target);
    for (const scheme of protocol === undefined ? (['https:', 'http:'] as const) : [protocol]) {
      const url = new URL(request.target, baseOf(scheme));
      try {
        const response = await authenticated(request, url);
        protocol = scheme;
        return response;
      } catch (error) {
        if (protocol !== undefined || scheme === 'http:' || !isNotTls(error)) throw error;
      }
    }
    throw new AppError('unavailable', `cannot ${request.action}: it cannot be reached`);
  };

  const authenticated = async (request: EndpointRequest, url: URL): Promise<HttpResponse> => {
    for (let tries = 0; ; tries += 1) {
      const sent = isOwn(url) ? authenticator.headerFor(request.scopes) : undefined;
      const response = await redirected(request, url, sent);
      if (response.status !== 401 || tries >= 2 || !isOwn(response.url)) return response;
      if (!(await authenticator.answer(response, request.scopes, { sent, signal: request.signal }))) return response;
      response.body.destroy();
    }
  };

  const redirected = async (request: EndpointRequest, first: URL, authorization: string | undefined) => {
    let url = first;
    let proof = authorization;
    for (let hops = 0; ; hops += 1) {
      const response = await once(transport, request, { url, authorization: proof, timeouts });
      const location = response.headers.get('location');
      const isBodyKept = response.status === 307 || response.status === 308;
      const isReading = request.method === 'GET' || request.method === 'HEAD';
      const isRedirect = isBodyKept || (isReading && [301, 302, 303].includes(response.status));
      if (!isRedirect || location === null) return response;
      response.body.destroy();
      if (hops >= REDIRECTS_MAX)
        throw new AppError('unavailable', `cannot ${request.action}: redirected more than ${REDIRECTS_MAX} times`);
      const next = nextUrl(url, location, request.action);
      if (next.origin !== url.origin) proof = undefined;
      url = next;
    }
  };

  const send = async (request: EndpointRequest): Promise<HttpResponse> => {
    for (let attempt = 1; ; attempt += 1) {
      const isLast = request.isOnce === true || attempt >= retry.attempts;
      let waitMs: number | undefined;
      try {
        const response = await exchange(request);
        if (request.accept.includes(response.status)) return response;
        waitMs = retryAfterMs(response);
        const error = await refusal(request, response, waitMs);
        if (isLast || !isTransient(error) || (waitMs ?? 0) > RETRY_AFTER_MAX_MS) throw error;
      } catch (error) {
        request.signal?.throwIfAborted();
        if (isLast || !isTransient(error) || (waitMs ?? 0) > RETRY_AFTER_MAX_MS) throw explained(request, error);
      }
      await sleep(waitMs ?? backoffMs(retry, attempt), undefined, { signal: request.signal });
    }
  };

  return {
    host,
    retry,
    timeouts,
    send,
    async sendForeign(request) {
      const url = new URL(request.target);
      if (url.protocol !== 'https:' || url.username !== '' || url.password !== '')
        throw new AppError('denied', `cannot ${request.action}: ${originOf(url)} is not a plain https address`);
      const response = await redirected({ ...request, scopes: [] }, url, undefined);
      if (request.accept.includes(response.status)) return response;
      throw await refusal({ ...request, scopes: [] }, response, undefined);
    },
    follow: (response, location, action) => nextUrl(response.url, location, action),
    identityToken: () => authenticator.identityToken(),
    [Symbol.dispose]: () => transport[Symbol.dispose](),
  };
}

async function once(
  transport: HttpTransport,
  request: EndpointRequest,
  { url, authorization, timeouts }: { url: URL; authorization: string | undefined; timeouts: EndpointTimeouts },
): Promise<HttpResponse> {
  const body = await request.body?.();
  return await transport.send({
    method: request.method,
    url,
    headers: { ...request.headers, ...(authorization === undefined ? {} : { authorization }) },
    ...(body === undefined ? {} : { body }),
    timeoutMs: request.timeoutMs ?? timeouts.answerMs,
    signal: request.signal,
  });
}

function nextUrl(from: URL, location: string, action: string): URL {
  const refuse = (why: string) => new AppError('denied', `cannot ${action}: ${originOf(from)} refers to ${why}`);
  if (!URL.canParse(location, from)) throw refuse('something that is no address');
  const next = new URL(location, from);
  if (next.username !== '' || next.password !== '') throw refuse('an address with credentials');
  if (next.protocol !== 'https:' && next.protocol !== 'http:') throw refuse(`a "${next.protocol}" address`);
  if (from.protocol === 'https:' && next.protocol === 'http:') {
    // What a registry behind a TLS proxy says that does not know about it; elsewhere it is a downgrade.
    if (next.hostname !== from.hostname) throw refuse(`${originOf(next)}, which is not https`);
    next.protocol = 'https:';
    next.port = from.port;
  }
  return next;
}

export function backoffMs({ baseMs, maxMs, random }: RetryPolicy, attempt: number): number {
  return Math.min(baseMs * 2 ** (attempt - 1), maxMs) * (0.5 + random());
}

/** Worth another try: network failures, 5xx, 429. */
export function isTransient(error: unknown): boolean {
  return isKind(error, 'unavailable', 'timeout');
}

/** Seconds or a date. https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3 */
function retryAfterMs(response: HttpResponse): number | undefined {
  const text = response.headers.get('retry-after')?.trim();
  if (text === undefined) return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text) * 1000;
  // Relative to the server's own clock, so that ours does not matter.
  const [until, now] = [Date.parse(text), Date.parse(response.headers.get('date') ?? '')];
  return Number.isNaN(until) || Number.isNaN(now) ? undefined : Math.max(0, until - now);
}

const KIND_OF_STATUS: Readonly<Record<number, ErrorKind>> = {
  401: 'unauthenticated',
  403: 'denied',
  404: 'not-found',
  405: 'unsupported',
  406: 'unsupported',
  408: 'timeout',
  409: 'conflict',
  413: 'too-large',
  415: 'unsupported',
  416: 'range',
  429: 'unavailable',
  501: 'unsupported',
  504: 'timeout',
};

async function refusal(
  request: EndpointRequest,
  response: HttpResponse,
  waitMs: number | undefined,
): Promise<AppError> {
  const { status } = response;
  const said = parseErrorBody(await readErrorBody(response));
  const kind = KIND_OF_STATUS[status] ?? (status >= 500 ? 'unavailable' : 'invalid');
  const why = said.text === '' ? '' : `: ${said.text}`;
  const hint = kind === 'unauthenticated' ? ' (log in to the registry first)' : '';
  return new AppError(kind, `cannot ${request.action}: the registry answered ${status}${why}${hint}`, {
    detail: { status, codes: said.codes, ...(waitMs === undefined ? {} : { retryAfterMs: waitMs }) },
  });
}

/** `{"errors":[{code, message}]}`, or nothing worth showing: a proxy's HTML page is not. */
function parseErrorBody(body: string): { readonly text: string; readonly codes: readonly string[] } {
  let json: unknown;
  try {
    json = JSON.parse(body);
  } catch {
    return { text: '', codes: [] };
  }
  const errors = isRecord(json) && Array.isArray(json.errors) ? json.errors.filter(isRecord).slice(0, 10) : [];
  const texts = errors.map(({ code, message }) =>
    [code, message].filter((part) => typeof part === 'string' && part !== ''),
  );
  const text = texts.map((parts) => parts.join(': ')).join('; ');
  // It may reach a terminal, where control characters are commands.
  const clean = redactText(text.replace(/[\p{Cc}\p{Cf}]/gu, ' ')).slice(0, ERROR_TEXT_MAX);
  return { text: clean, codes: errors.map(({ code }) => String(code).slice(0, 64)) };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function explained(request: EndpointRequest, error: unknown): unknown {
  if (!(error instanceof AppError) || error.message.startsWith(`cannot ${request.action}`)) return error;
  const why = error.message.replace(/^cannot /, 'could not ');
  return new AppError(error.kind, `cannot ${request.action}: ${why}`, {
    cause: error,
    ...(error.detail === undefined ? {} : { detail: error.detail }),
  });
}
