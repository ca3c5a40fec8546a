/**
 * EngineClient: the Docker Engine API as the commands use it. It turns the engine's error answers back into AppError,
 * so that commands catch kinds and never see HTTP. Connections are not pooled: a command makes few requests, and an
 * idle socket would keep the process from ending.
 */
import type { ClientRequest, IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import { AppError, type ErrorKind, hasCode } from '../../shared/errors.ts';
import type { EngineHost } from './host.ts';

/** Not imported: an import of node:http evaluates its getters, which loads undici and costs 30 ms at every start. */
const { request: httpRequest } = process.getBuiltinModule('node:http');

/** The API version that the CLI speaks; the engine takes every request in its terms. */
const API_VERSION = '1.52';
/** Answers that are read whole; larger ones are streams. */
const JSON_MAX_BYTES = 256 * 1024 * 1024;

export type Query = Readonly<Record<string, string | number | boolean | readonly string[] | undefined>>;

export interface CallOptions {
  readonly query?: Query;
  /** Sent as JSON. */
  readonly json?: unknown;
  /** Sent as it is, chunked. */
  readonly body?: Readable;
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

/** A connection that has become a stream of bytes both ways. */
export interface Hijacked {
  readonly socket: Socket;
  /** True when stdout and stderr arrive in frames; false on a terminal. */
  readonly multiplexed: boolean;
}

export interface EngineClient {
  readonly host: EngineHost;
  /** The JSON answer; undefined for an empty one. @throws AppError, 'unavailable' when no engine listens */
  call(method: string, path: string, options?: CallOptions): Promise<unknown>;
  /** The answer's body as it comes; the caller owns the stream. */
  stream(method: string, path: string, options?: CallOptions): Promise<IncomingMessage>;
  /** Upgrades the connection (attach, exec). The caller owns the socket. */
  hijack(path: string, options?: CallOptions): Promise<Hijacked>;
}

const KINDS: Readonly<Record<number, ErrorKind>> = {
  400: 'invalid',
  401: 'unauthenticated',
  403: 'denied',
  404: 'not-found',
  409: 'conflict',
  413: 'too-large',
  416: 'range',
  501: 'unsupported',
  503: 'unavailable',
  504: 'timeout',
};

/** Appends a query; lists become JSON filters' business of the caller, repeated keys here. */
export function target(path: string, query: Query | undefined): string {
  const params = new URLSearchParams();
  for (const [key, value] of Object.entries(query ?? {})) {
    if (value === undefined || value === false) continue;
    for (const item of Array.isArray(value) ? value : [value]) params.append(key, item === true ? '1' : String(item));
  }
  const text = params.toString();
  // What Docker's API lacks has a version of its own.
  // Names come from the user: a question mark in one must not begin a query (`berth rm 'x?force=1'`).
  const escaped = path.toWellFormed().replace(/[^\w/.:@~-]+/g, encodeURIComponent);
  const versioned = escaped.startsWith('/berth/') ? escaped : `/v${API_VERSION}${escaped}`;
  return text === '' ? versioned : `${versioned}?${text}`;
}

async function readWhole(stream: Readable): Promise<string> {
  const chunks: Buffer[] = [];
  let seen = 0;
  for await (const chunk of stream) {
    const bytes: Buffer = chunk;
    seen += bytes.length;
    if (seen > JSON_MAX_BYTES)
      throw new AppError('too-large', `cannot read the engine's answer: it is larger than ${JSON_MAX_BYTES} bytes`);
    chunks.push(bytes);
  }
  return Buffer.concat(chunks, seen).toString('utf8');
}

function parseAnswer(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

async function refused(answer: IncomingMessage): Promise<AppError> {
  const text = await readWhole(answer);
  const body = parseAnswer(text);
  const message =
    typeof body === 'object' && body !== null && 'message' in body && typeof body.message === 'string'
      ? body.message
      : text.trim() || `the engine answered ${answer.statusCode}`;
  return new AppError(KINDS[answer.statusCode ?? 500] ?? 'conflict', message, {
    detail: { status: answer.statusCode },
  });
}

export function createEngineClient(host: EngineHost): EngineClient {
  // Without a name for TLS, which is not spoken here, Node would look for one: 7 ms of compiling what an IPv6 address is.
  const address = {
    servername: '',
    ...(host.kind === 'unix' ? { socketPath: host.path } : { host: host.host, port: host.port }),
  };
  const where = host.kind === 'unix' ? `unix://${host.path}` : `tcp://${host.host}:${host.port}`;

  function open(
    method: string,
    path: string,
    options: CallOptions,
    extra: Readonly<Record<string, string>> = {},
  ): ClientRequest {
    const json = options.json === undefined ? undefined : JSON.stringify(options.json);
    const headers: Record<string, string | number> = { host: 'berth', ...options.headers, ...extra };
    if (json !== undefined) {
      headers['content-type'] = 'application/json';
      headers['content-length'] = Buffer.byteLength(json);
    } else if (options.body !== undefined) {
      headers['content-type'] ??= 'application/x-tar';
    } else if (method === 'POST') headers['content-length'] = 0;
    const request = httpRequest({
      ...address,
      method,
      path: target(path, options.query),
      headers,
      agent: false,
      signal: options.signal,
    });
    if (options.body !== undefined) {
      options.body.on('error', (error) => request.destroy(error));
      options.body.pipe(request);
    } else request.end(json);
    return request;
  }

  const unreachable = (error: unknown): unknown => {
    if (hasCode(error, 'ECONNREFUSED', 'ENOENT'))
      return new AppError('unavailable', `cannot connect to the engine at ${where}: is berthd running?`, {
        cause: error,
      });
    if (hasCode(error, 'EACCES'))
      return new AppError(
        'denied',
        `cannot connect to the engine at ${where}: permission denied; use root or join the group "berth"`,
        { cause: error },
      );
    return error;
  };

  function answerOf(request: ClientRequest): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      request.once('response', resolve);
      request.once('error', (error) => reject(unreachable(error)));
    });
  }

  async function stream(method: string, path: string, options: CallOptions = {}): Promise<IncomingMessage> {
    const answer = await answerOf(open(method, path, options));
    if ((answer.statusCode ?? 500) >= 400) throw await refused(answer);
    return answer;
  }

  return {
    host,
    stream,
    async call(method, path, options = {}) {
      const text = await readWhole(await stream(method, path, options));
      return text === '' ? undefined : parseAnswer(text);
    },
    hijack(path, options = {}) {
      const request = open('POST', path, options, { connection: 'Upgrade', upgrade: 'tcp' });
      return new Promise((resolve, reject) => {
        request.once('upgrade', (answer, stream, head) => {
          const socket = stream as Socket;
          if (head.length > 0) socket.unshift(head);
          socket.setNoDelay(true);
          resolve({
            socket,
            multiplexed: answer.headers['content-type'] === 'application/vnd.docker.multiplexed-stream',
          });
        });
        request.once('response', (answer) => {
          refused(answer).then(reject, reject);
        });
        request.once('error', (error) => reject(unreachable(error)));
      });
    },
  };
}

/** Splits a body of JSON lines (pull, push, events, stats) into values. Ends with the body. */
export async function* jsonLines(stream: Readable): AsyncGenerator<unknown> {
  let rest = '';
  stream.setEncoding('utf8');
  for await (const chunk of stream) {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) if (line.trim() !== '') yield JSON.parse(line);
  }
  if (rest.trim() !== '') yield JSON.parse(rest);
}
