/**
 * Files and contexts from http and https: `ADD https://…` and `POST /build?remote=…`.
 *
 * A file becomes a layer with that one file: mode 0600, time from Last-Modified. What was fetched before is asked for by
 * its ETag or Last-Modified, so an unchanged file is not sent again while its layer is still here.
 */
import { createReadStream, createWriteStream } from 'node:fs';
import { mkdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { z } from 'zod';
import { algorithmOf, type Digest } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import { type HttpResponse, type HttpTransport, originOf } from '../../shared/http-transport.ts';
import { redactText } from '../../shared/redact.ts';
import { type Cancelable, limit, measure } from '../../shared/streams.ts';
import { TAR_END, tarHeader, tarPadding } from '../../shared/tar-writer.ts';
import type { Lease } from '../images/images.ts';
import type { Chain, LayerStore } from '../layers/layer-store.ts';
import { nameFromUtf8 } from '../layers/tree.ts';
import type { FetchedSources } from './fetched-sources.ts';

export interface RemoteFiles {
  /**
   * Fetches a file. The lease protects its layer. `checksum` is what its bytes must be.
   * @throws AppError 'unavailable', 'timeout', 'not-found', 'denied' (what the server says), 'integrity' (checksum), 'too-large'
   */
  fetch(url: string, options: FetchOptions): Promise<RemoteFile>;
  /** The body of a URL, whatever it is. The caller owns the stream. @throws as fetch */
  open(url: string, options?: Cancelable): Promise<Readable>;
}

export interface FetchOptions extends Cancelable {
  readonly lease: Lease;
  readonly checksum?: Digest | undefined;
}

export interface RemoteFile {
  /** UTF-8: from the server's Content-Disposition, else the last name of the URL. */
  readonly name: string;
  /** One layer with the one file `/<name>`. */
  readonly chain: Chain;
}

export interface RemoteFilesPorts {
  readonly transport: HttpTransport;
  readonly layers: Pick<LayerStore, 'make'>;
  readonly sources: Pick<FetchedSources, 'find' | 'put'>;
  /** For what is on its way; emptied at start by sweepDownloads(). */
  readonly directory: string;
  readonly randomId: () => string;
  readonly maxBytes?: number | undefined;
}

const REDIRECTS_MAX = 10;
const MAX_BYTES = 32 * 2 ** 30;
const TIMEOUT_MS = 60_000;
const NAME_DEFAULT = 'download';

/** What is kept of a fetched file. */
const aboutSchema = z.object({
  /** The server's words for the state of the file, as the headers that ask whether it has another one. */
  validators: z.record(z.string(), z.string()),
  name: z.string(),
  digest: z.string(),
});

interface Known {
  readonly validators: Readonly<Record<string, string>>;
  readonly file: RemoteFile;
}

/** Removes what a crash left of downloads. */
export async function sweepDownloads(directory: string): Promise<void> {
  await rm(directory, { recursive: true, force: true });
}

export function createRemoteFiles(ports: RemoteFilesPorts): RemoteFiles {
  const { transport, layers, sources, directory, randomId, maxBytes = MAX_BYTES } = ports;

  async function ask(
    text: string,
    headers: Readonly<Record<string, string>>,
    { signal }: Cancelable,
  ): Promise<HttpResponse> {
    let url = parseUrl(text);
    for (let hop = 0; hop <= REDIRECTS_MAX; hop++) {
      const response = await transport.send({ method: 'GET', url, headers, timeoutMs: TIMEOUT_MS, signal });
      const { status } = response;
      const location = response.headers.get('location');
      const isRedirect = [301, 302, 303, 307, 308].includes(status) && location !== null;
      if (!isRedirect) return response;
      response.body.destroy();
      if (!URL.canParse(location, url))
        throw new AppError('unavailable', `cannot fetch from ${originOf(url)}: it redirects to no URL`);
      url = parseUrl(new URL(location, url).href);
    }
    throw new AppError(
      'unavailable',
      `cannot fetch from ${originOf(url)}: it redirects more than ${REDIRECTS_MAX} times`,
    );
  }

  /** What is known of the URL, when its layer is still here; protected then. */
  async function known(url: string, { lease, checksum }: FetchOptions): Promise<Known | undefined> {
    const found = await sources.find(keyOf(url), lease);
    const about = aboutSchema.safeParse(found?.about);
    if (found === undefined || !about.success) return undefined;
    const { validators, name, digest } = about.data;
    if (Object.keys(validators).length === 0 || (checksum !== undefined && checksum !== digest)) return undefined;
    return { validators, file: { name, chain: [found.layerId] } };
  }

  async function fetch(url: string, options: FetchOptions): Promise<RemoteFile> {
    const before = await known(url, options);
    const response = await ask(url, before?.validators ?? {}, options);
    if (response.status === 304 && before !== undefined) {
      response.body.destroy();
      return before.file;
    }
    checkStatus(response);
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const path = join(directory, randomId());
    try {
      const measured = measure(options.checksum === undefined ? 'sha256' : algorithmOf(options.checksum));
      const { signal } = options;
      await pipeline(
        response.body,
        limit(maxBytes, 'download'),
        measured,
        createWriteStream(path, { flags: 'wx', mode: 0o600 }),
        { signal },
      );
      const { digest } = measured.result();
      if (options.checksum !== undefined && digest !== options.checksum)
        throw new AppError('integrity', `digest mismatch ${digest}: ${options.checksum}`);
      const name = nameOf(response, url);
      const layer = await layers.make(Readable.from(tarOf(path, { name, response }), { objectMode: false }), [], {
        signal,
        protect: (id) => options.lease.protect(id),
        files: { removed: [] },
      });
      await sources.put(keyOf(url), {
        kind: 'source.http',
        description: `file of ${redactText(url)}`,
        layerId: layer.id,
        about: { validators: validatorsOf(response), name, digest },
      });
      return { name, chain: [layer.id] };
    } finally {
      await rm(path, { force: true });
    }
  }

  return {
    fetch,
    async open(url, options = {}) {
      const response = await ask(url, {}, options);
      checkStatus(response);
      return response.body;
    },
  };
}

function keyOf(url: string): string {
  return JSON.stringify(['http', url]);
}

function parseUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol === 'http:' || url?.protocol === 'https:') return url;
  throw new AppError('invalid', 'cannot fetch: want a URL that begins with http:// or https://');
}

function checkStatus({ status, url, body }: HttpResponse): void {
  if (status >= 200 && status < 300) return;
  body.destroy();
  const kind =
    status === 404 || status === 410 ? 'not-found' : status === 401 || status === 403 ? 'denied' : 'unavailable';
  throw new AppError(kind, `cannot fetch from ${originOf(url)}: invalid response status ${status}`);
}

function validatorsOf({ headers }: HttpResponse): Readonly<Record<string, string>> {
  const etag = headers.get('etag');
  const modified = headers.get('last-modified');
  if (etag !== null) return { 'if-none-match': etag };
  return modified === null ? {} : { 'if-modified-since': modified };
}

/** One plain name, whatever the server says. */
export function nameOf({ headers, url }: Pick<HttpResponse, 'headers' | 'url'>, asked: string): string {
  const disposition = headers.get('content-disposition') ?? '';
  const [, quoted, bare] = /;\s*filename=(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))/i.exec(disposition) ?? [];
  const said = (quoted?.replaceAll(/\\(.)/g, '$1') ?? bare ?? '').split('/').at(-1) ?? '';
  const candidates = [said, lastName(new URL(asked)), lastName(url)];
  return candidates.find(isPlainName) ?? NAME_DEFAULT;
}

function lastName({ pathname }: URL): string {
  const name = pathname.split('/').at(-1) ?? '';
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

function isPlainName(name: string): boolean {
  return name !== '' && name !== '.' && name !== '..' && !/[/\0]/.test(name) && Buffer.byteLength(name) <= 255;
}

async function* tarOf(path: string, { name, response }: { readonly name: string; readonly response: HttpResponse }) {
  const { size: sizeBytes } = await stat(path);
  const modified = Date.parse(response.headers.get('last-modified') ?? '');
  yield tarHeader({
    ...{ type: 'file', path: nameFromUtf8(name), linkPath: '', mode: 0o600, uid: 0, gid: 0, sizeBytes },
    ...{ mtimeSeconds: Number.isNaN(modified) ? 0 : Math.floor(modified / 1000), mtimeNanoseconds: 0 },
    ...{ major: 0, minor: 0, xattrs: undefined },
  });
  yield* createReadStream(path, { highWaterMark: 1 << 20 });
  yield tarPadding(sizeBytes);
  yield TAR_END;
}
