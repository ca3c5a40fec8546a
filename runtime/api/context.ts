/**
 * What a handler of the Engine API gets, and how it reads a request by Docker's rules: booleans, numbers, filters and
 * moments in the query, JSON bodies, credentials in headers. Everything here is hostile input until it has been parsed.
 */
import { PassThrough, type Readable } from 'node:stream';
import Router, { type RouterContext } from '@koa/router';
import type Koa from 'koa';
import { z } from 'zod';
import type { Credentials } from '../../shared/credentials.ts';
import { AppError, messageOf } from '../../shared/errors.ts';
import { collect } from '../../shared/streams.ts';
import { parseDurationMs } from '../../shared/units.ts';

import { encodeJson } from './errors.ts';

/** Minor number of the API version that the client speaks; the major is 1 for ever. */
export interface ApiState {
  apiMinor: number;
}
export type ApiContext = RouterContext<ApiState, Koa.DefaultContext>;
export type ApiRouter = Router<ApiState, Koa.DefaultContext>;

export function createRouter(): ApiRouter {
  return new Router<ApiState, Koa.DefaultContext>();
}

/** Bodies are descriptions, not content: content is streamed. */
const JSON_MAX_BYTES = 8 << 20;

/** A part of the path; names of containers may come with Docker's leading slash. */
export function pathPart(ctx: ApiContext, name: string): string {
  const value = ctx.params[name] ?? '';
  return value.startsWith('/') ? value.slice(1) : value;
}

/** First value of a query key; undefined when absent. */
export function queryText(ctx: ApiContext, key: string): string | undefined {
  const value = ctx.query[key];
  return Array.isArray(value) ? value[0] : value;
}

export function queryTexts(ctx: ApiContext, key: string): readonly string[] {
  const value = ctx.query[key];
  if (value === undefined) return [];
  return Array.isArray(value) ? value : [value];
}

/** Docker's rule: false is written as nothing, `0`, `no`, `false` or `none`; anything else is true. */
export function isTrue(text: string): boolean {
  return !['', '0', 'no', 'false', 'none'].includes(text.trim().toLowerCase());
}

export function queryFlag(ctx: ApiContext, key: string, absent = false): boolean {
  const text = queryText(ctx, key);
  return text === undefined ? absent : isTrue(text);
}

/** undefined when absent or empty. @throws AppError 'invalid' */
export function queryInteger(ctx: ApiContext, key: string): number | undefined {
  const text = queryText(ctx, key);
  if (text === undefined || text === '') return undefined;
  if (!/^-?\d{1,15}$/.test(text))
    throw new AppError('invalid', `invalid value for ${key}: ${JSON.stringify(text.slice(0, 100))} is not a number`);
  return Number(text);
}

/**
 * `seconds[.nanoseconds]` since 1970, as clients send it; undefined when absent, empty or 0.
 * @throws AppError 'invalid'
 */
export function queryNanos(ctx: ApiContext, key: string): bigint | undefined {
  const text = queryText(ctx, key);
  if (text === undefined || text === '' || text === '0') return undefined;
  return parseNanos(text, key);
}

/** @throws AppError 'invalid' */
export function parseNanos(text: string, key: string): bigint {
  const match = /^(-?)(\d{1,12})(?:\.(\d{1,9})\d*)?$/.exec(text);
  if (match === null)
    throw new AppError(
      'invalid',
      `invalid value for ${key}: ${JSON.stringify(text.slice(0, 100))} is not seconds[.nanoseconds] since 1970`,
    );
  const nanos = BigInt(match[2] ?? 0) * 1_000_000_000n + BigInt((match[3] ?? '').padEnd(9, '0'));
  return match[1] === '-' ? -nanos : nanos;
}

/** The `until` of prune filters: seconds since 1970, a date, or a Go duration before now. @throws AppError 'invalid' */
export function parseMoment(text: string, now: Date): Date {
  if (/^\d+(?:\.\d+)?$/.test(text)) return new Date(Number(text) * 1000);
  if (/^\d{4}-\d\d-\d\d/.test(text)) {
    const at = new Date(text);
    if (!Number.isNaN(at.getTime())) return at;
  }
  return new Date(now.getTime() - parseDurationMs(text));
}

export type Filters = Readonly<Record<string, readonly string[]>>;

const filtersSchema = z.record(z.string(), z.union([z.array(z.string()), z.record(z.string(), z.boolean())]));

/**
 * `filters=` in both of its spellings, `{"status":["a"]}` and `{"status":{"a":true}}`.
 * @throws AppError 'invalid' for anything else, and for keys that are not in `known` (undefined = the callee checks)
 */
export function queryFilters(ctx: ApiContext, known?: readonly string[]): Filters {
  const text = queryText(ctx, 'filters');
  if (text === undefined || text === '') return {};
  let parsed: z.infer<typeof filtersSchema>;
  try {
    parsed = filtersSchema.parse(JSON.parse(text));
  } catch {
    throw new AppError('invalid', 'invalid filter: want JSON such as {"label":["a=b"]}');
  }
  for (const key of Object.keys(parsed))
    if (known?.includes(key) === false) throw new AppError('invalid', `invalid filter '${key.slice(0, 100)}'`);
  return Object.fromEntries(
    Object.entries(parsed).map(([key, values]) => [key, Array.isArray(values) ? values : Object.keys(values)]),
  );
}

/** A filter that holds one boolean. @throws AppError 'invalid' */
export function filterFlag(filters: Filters, key: string): boolean | undefined {
  const values = filters[key];
  if (values === undefined || values.length === 0) return undefined;
  const flags = new Set(
    values.map((value) => (/^(?:1|true)$/i.test(value) ? true : /^(?:0|false)$/i.test(value) ? false : undefined)),
  );
  const [flag] = flags;
  if (flags.size !== 1 || flag === undefined)
    throw new AppError('invalid', `invalid filter '${key}=${values.join(',')}'`);
  return flag;
}

/** A filter that may be given once. @throws AppError 'invalid' */
export function filterText(filters: Filters, key: string): string | undefined {
  const values = filters[key] ?? [];
  if (values.length > 1) throw new AppError('invalid', `invalid filter '${key}': it may be given once`);
  return values[0];
}

/**
 * Reads a JSON body by Docker's rules: none at all is allowed and counts as `{}`, but whatever is sent must be called
 * application/json and be exactly one document. @throws AppError 'invalid', 'too-large'
 */
export async function readJson(ctx: ApiContext): Promise<unknown> {
  const hasBody = ctx.get('transfer-encoding') !== '' || Number(ctx.get('content-length') || 0) > 0;
  const contentType = ctx.get('content-type');
  if (!hasBody) return {};
  if (contentType === '') throw new AppError('invalid', 'malformed Content-Type header (): mime: no media type');
  if (!/^application\/json\s*(?:;|$)/i.test(contentType))
    throw new AppError('invalid', `unsupported Content-Type header (${contentType}): must be 'application/json'`);
  const text = (await collect(ctx.req, JSON_MAX_BYTES, { what: 'the request body' })).toString('utf8');
  if (text.trim() === '') throw new AppError('invalid', 'invalid JSON: got EOF while reading request body');
  try {
    return JSON.parse(text);
  } catch (error) {
    const why = messageOf(error);
    if (/after JSON/.test(why)) throw new AppError('invalid', 'unexpected content after JSON');
    const isCut = /end of JSON|Unterminated/.test(why) || why.includes(`at position ${text.length} `);
    throw new AppError('invalid', `invalid JSON: ${isCut ? 'unexpected EOF' : goSyntaxError(why, text)}`);
  }
}

/** Where Go's parser says what it expected, by the words of ours. */
const EXPECTED: readonly (readonly [why: RegExp, words: string])[] = [
  [/property name or|double-quoted property name/, 'looking for beginning of object key string'],
  [/':' after property name/, 'after object key'],
  [/after property value/, 'after object key:value pair'],
  [/after array element/, 'after array element'],
  [/control character/, 'in string literal'],
  [/escaped character/, 'in string escape code'],
];

/** What clients know of wrong JSON. */
function goSyntaxError(why: string, text: string): string {
  const position = /at position (\d+)/.exec(why)?.[1];
  const character = position === undefined ? /^Unexpected token '(.+?)',/.exec(why)?.[1] : text[Number(position)];
  if (character === undefined) return why.slice(0, 200);
  const words = EXPECTED.find(([pattern]) => pattern.test(why))?.[1] ?? 'looking for beginning of value';
  return `invalid character '${character}' ${words}`;
}

/** readJson, checked. @throws AppError 'invalid' naming the field */
export async function readBody<T>(ctx: ApiContext, schema: z.ZodType<T>): Promise<T> {
  const result = schema.safeParse(await readJson(ctx));
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw new AppError(
    'invalid',
    `invalid JSON: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'unexpected value'}`,
  );
}

const credentialsSchema = z.object({
  username: z.string().optional(),
  password: z.string().optional(),
  identitytoken: z.string().optional(),
  registrytoken: z.string().optional(),
});

/** `X-Registry-Auth`: base64url of JSON. Docker ignores what it cannot read, and so do we: the registry will say 401. */
export function registryCredentials(ctx: ApiContext): Credentials | undefined {
  const header = ctx.get('x-registry-auth');
  if (header === '') return undefined;
  try {
    const parsed = credentialsSchema.parse(JSON.parse(Buffer.from(header, 'base64url').toString('utf8')));
    return credentialsFrom(parsed);
  } catch {
    return undefined;
  }
}

export function credentialsFrom(parsed: z.infer<typeof credentialsSchema>): Credentials | undefined {
  if (parsed.identitytoken) return { kind: 'identity-token', token: parsed.identitytoken };
  if (parsed.registrytoken) return { kind: 'registry-token', token: parsed.registrytoken };
  if (!parsed.username) return undefined;
  return { kind: 'password', username: parsed.username, password: parsed.password ?? '' };
}

/**
 * The body as a stream that may be destroyed before its end: the rest is read and dropped, and the request can still be
 * answered. Destroying the request itself would cut the connection.
 */
export function requestBody(ctx: ApiContext): Readable {
  const { req } = ctx;
  const body = new PassThrough({ highWaterMark: 1 << 20 });
  req.pipe(body);
  req.once('close', () => {
    if (!req.readableEnded) body.destroy(hangup());
  });
  body.once('close', () => {
    req.unpipe(body);
    req.resume();
  });
  return body;
}

/** Aborts when the client hangs up before it has its whole answer. */
export function disconnectSignal(ctx: ApiContext): AbortSignal {
  const abort = new AbortController();
  const { res } = ctx;
  if (res.destroyed) abort.abort(hangup());
  res.once('close', () => {
    if (!res.writableFinished) abort.abort(hangup());
  });
  return abort.signal;
}

function hangup(): AppError {
  return new AppError('timeout', 'cannot finish the request: the client has hung up');
}

/** Answers as dockerd does: no charset, a final newline. */
export function sendJson(ctx: ApiContext, value: unknown, status = 200): void {
  ctx.status = status;
  ctx.set('Content-Type', 'application/json');
  ctx.body = encodeJson(value);
}

/** A status without a body, not even a type. */
export function sendNothing(ctx: ApiContext, status: 200 | 201): void {
  ctx.status = status;
  ctx.body = '';
  ctx.remove('Content-Type');
}

/** Go's RFC 3339 without fractions. */
export function goSeconds(at: Date): string {
  return at.toISOString().replace(/\.\d+Z$/, 'Z');
}

/** Go prints times with nanoseconds, and the zero time for "never". */
export function goTime(at: Date | undefined): string {
  return at === undefined ? '0001-01-01T00:00:00Z' : at.toISOString();
}
