/**
 * One HTTP exchange with a server that may be slow, gone or hostile: TLS, proxies, time limits and bounded bodies over
 * node-fetch. Knows no redirects, no authentication and no retries: those need to know what is asked for
 * (registry-client.ts). Nothing in its errors shows credentials or queries of URLs.
 */
import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import { Readable, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { HttpProxyAgent } from 'http-proxy-agent';
import { HttpsProxyAgent } from 'https-proxy-agent';
import fetch, { type Headers } from 'node-fetch';
import { AppError, hasCode, messageOf } from './errors.ts';
import { type ProxySettings, proxyFor } from './proxies.ts';
import { redactText } from './redact.ts';
import { type Cancelable, collect } from './streams.ts';

export interface TlsSettings {
  /** PEM; replaces the public certificate authorities. */
  readonly ca?: string;
  /** PEM of the client's own certificate. */
  readonly cert?: string;
  readonly key?: string;
  /** Accepts any certificate. */
  readonly isUnverified?: boolean;
}

export interface TransportOptions {
  readonly userAgent: string;
  readonly proxies?: ProxySettings;
  readonly tls?: TlsSettings;
  /** Longest silence while a body is read or sent. */
  readonly idleTimeoutMs: number;
}

export interface HttpRequest extends Cancelable {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  readonly url: URL;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Readable | Buffer | string;
  /** Until the answer's head is there; with a streamed body, counted from its last byte. */
  readonly timeoutMs: number;
}

export interface HttpResponse {
  readonly status: number;
  readonly headers: Headers;
  readonly url: URL;
  /** Fails with 'timeout' on silence. The caller reads it to its end or destroys it. */
  readonly body: Readable;
}

export interface HttpTransport extends Disposable {
  /** @throws AppError 'unavailable', 'timeout', 'denied' (certificate); the signal's reason */
  send(request: HttpRequest): Promise<HttpResponse>;
}

const BODY_CHUNK_BYTES = 256 << 10;
/** Chunks that wait for the reader; of 64 KiB, as the socket is read. */
const BODY_CHUNKS = 4;
const ERROR_BODY_MAX_BYTES = 64 << 10;
const KEEP_ALIVE = { keepAlive: true, maxFreeSockets: 8 } as const;

export function createHttpTransport(options: TransportOptions): HttpTransport {
  const { tls = {} } = options;
  const tlsOptions = {
    ...(tls.ca === undefined ? {} : { ca: tls.ca }),
    ...(tls.cert === undefined ? {} : { cert: tls.cert }),
    ...(tls.key === undefined ? {} : { key: tls.key }),
    rejectUnauthorized: tls.isUnverified !== true,
  };
  const agents = new Map<string, HttpAgent>();
  const agentFor = (url: URL): HttpAgent => {
    const proxy = options.proxies === undefined ? undefined : proxyFor(url, options.proxies);
    const key = `${url.protocol} ${proxy?.href ?? ''}`;
    const agent = agents.get(key) ?? makeAgent(url, proxy);
    agents.set(key, agent);
    return agent;
  };
  const makeAgent = (url: URL, proxy: URL | undefined): HttpAgent => {
    if (url.protocol === 'https:')
      return proxy === undefined
        ? new HttpsAgent({ ...KEEP_ALIVE, ...tlsOptions })
        : new HttpsProxyAgent(proxy, { ...KEEP_ALIVE, ...tlsOptions });
    return proxy === undefined ? new HttpAgent(KEEP_ALIVE) : new HttpProxyAgent(proxy, KEEP_ALIVE);
  };

  return {
    async send(request) {
      request.signal?.throwIfAborted();
      const controller = new AbortController();
      const cancel = () => controller.abort();
      request.signal?.addEventListener('abort', cancel, { once: true });
      const patience = createPatience(cancel);
      try {
        const { idleTimeoutMs } = options;
        const body =
          request.body instanceof Readable
            ? watched(request.body, patience, { ...request, idleTimeoutMs })
            : request.body;
        patience.wait(request.timeoutMs);
        const response = await fetch(request.url, {
          method: request.method,
          headers: { 'user-agent': options.userAgent, ...request.headers },
          body: body ?? null,
          redirect: 'manual',
          // The bytes that the digest is of, not what they decompress to.
          compress: false,
          highWaterMark: BODY_CHUNK_BYTES,
          signal: controller.signal,
          agent: agentFor,
        });
        patience.stop();
        const { status, headers } = response;
        const raw = response.body instanceof Readable ? response.body : Readable.from([]);
        return { status, headers, url: request.url, body: guarded(raw, request, idleTimeoutMs) };
      } catch (error) {
        patience.stop();
        if (request.body instanceof Readable) request.body.destroy();
        request.signal?.throwIfAborted();
        throw toAppError(request, error, { isTimeout: patience.isOver() });
      } finally {
        request.signal?.removeEventListener('abort', cancel);
      }
    },
    [Symbol.dispose]() {
      for (const agent of agents.values()) agent.destroy();
      agents.clear();
    },
  };
}

interface Patience {
  /** Begins anew; not after stop(): a body may end after its answer has come, when its last read takes longer. */
  wait(ms: number): void;
  /** For good. */
  stop(): void;
  isOver(): boolean;
}

function createPatience(giveUp: () => void): Patience {
  let timer: NodeJS.Timeout | undefined;
  let over = false;
  let stopped = false;
  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
    isOver: () => over,
    wait(ms) {
      if (stopped) return;
      clearTimeout(timer);
      timer = setTimeout(() => {
        over = true;
        giveUp();
      }, ms);
    },
  };
}

/** Sending is waiting too, but only for the peer: each chunk that leaves starts the time anew. */
function watched(
  body: Readable,
  patience: Patience,
  { idleTimeoutMs, timeoutMs }: { idleTimeoutMs: number; timeoutMs: number },
): Readable {
  const through = new Transform({
    highWaterMark: BODY_CHUNK_BYTES,
    transform(chunk, _encoding, done) {
      patience.wait(idleTimeoutMs);
      done(null, chunk);
    },
    flush(done) {
      patience.wait(timeoutMs);
      done();
    },
  });
  pipeline(body, through).catch(() => {});
  return through;
}

function guarded(body: Readable, request: HttpRequest, idleTimeoutMs: number): Readable {
  const late = () => {
    // Then it is our reader that is slow, not the server.
    if (through.readableLength > 0) timer.refresh();
    else
      through.destroy(
        new AppError('timeout', `cannot read from ${originOf(request.url)}: it sent nothing for ${idleTimeoutMs} ms`),
      );
  };
  const cancel = () => through.destroy(abortError(request.signal));
  const timer = setTimeout(late, idleTimeoutMs).unref();
  const through = new Transform({
    writableHighWaterMark: BODY_CHUNK_BYTES,
    // Chunks as they came: a stream of bytes would glue those that wait into a copy.
    readableObjectMode: true,
    readableHighWaterMark: BODY_CHUNKS,
    transform(chunk, _encoding, done) {
      timer.refresh();
      done(null, chunk);
    },
    destroy(error, done) {
      clearTimeout(timer);
      request.signal?.removeEventListener('abort', cancel);
      done(error);
    },
  });
  request.signal?.addEventListener('abort', cancel, { once: true });
  body.once('error', (error) => through.destroy(asAppError(toAppError(request, error, { isTimeout: false }))));
  pipeline(body, through).catch(() => {});
  return through;
}

function abortError(signal: AbortSignal | undefined): Error {
  return signal?.reason instanceof Error ? signal.reason : new DOMException('This operation was aborted', 'AbortError');
}

function asAppError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

/** `https://registry.example:5000`: what of a URL is always safe to show. */
export function originOf(url: URL): string {
  return `${url.protocol}//${url.host}`;
}

const TLS_ERROR = /^(?:ERR_SSL_|ERR_TLS_|EPROTO)/;
const CERTIFICATE_ERROR =
  /^(?:CERT_|UNABLE_TO_|DEPTH_ZERO_SELF_SIGNED_CERT|SELF_SIGNED_CERT_IN_CHAIN|ERR_TLS_CERT_ALTNAME_INVALID|HOSTNAME_MISMATCH|INVALID_CA)/;

/** True when the peer does not speak TLS, or hung up on it: then plain http may be what it speaks. */
export function isNotTls(error: unknown): boolean {
  const cause = error instanceof AppError ? error.cause : error;
  const code = codeOf(cause);
  return (
    (code !== undefined && TLS_ERROR.test(code) && !CERTIFICATE_ERROR.test(code)) ||
    code === 'ECONNRESET' ||
    code === 'ECONNREFUSED'
  );
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;
}

function toAppError(request: HttpRequest, error: unknown, { isTimeout }: { isTimeout: boolean }): unknown {
  if (error instanceof AppError) return error;
  const where = `cannot reach ${originOf(request.url)}`;
  if (isTimeout) return new AppError('timeout', `${where}: it did not answer in time`, { cause: error });
  const code = codeOf(error);
  if (code !== undefined && CERTIFICATE_ERROR.test(code))
    return new AppError('denied', `${where}: its certificate is not trusted (${code})`, { cause: error });
  if (hasCode(error, 'ENOTFOUND', 'EAI_AGAIN'))
    return new AppError('unavailable', `${where}: its name cannot be resolved`, { cause: error });
  if (hasCode(error, 'ECONNREFUSED'))
    return new AppError('unavailable', `${where}: the connection was refused`, { cause: error });
  if (
    error instanceof Error &&
    (code !== undefined || error.name === 'AbortError' || /premature close|aborted/i.test(error.message))
  )
    return new AppError('unavailable', `${where}: ${redactText(messageOf(error))}`, { cause: error });
  return error;
}

/** Reads what a server has to say about a failure; a body that cannot be read is no failure of its own. */
export async function readErrorBody(response: HttpResponse): Promise<string> {
  try {
    return (await collect(response.body, ERROR_BODY_MAX_BYTES, { what: 'error body' })).toString('utf8');
  } catch {
    return '';
  }
}
