/** Blobs from a registry: bounded, from any offset, and taken up again where a connection broke. */
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { AppError, isKind } from './errors.ts';
import type { HttpResponse } from './http-transport.ts';
import { backoffMs, isTransient, type RegistryEndpoint } from './registry-endpoint.ts';
import { type BlobName, inWords, type Name, pull, type RegistryPorts, withQuery } from './registry-target.ts';
import type { Cancelable } from './streams.ts';

/** Chunks of a blob that wait for its reader. */
const CHUNKS_AHEAD = 4;
const FOREIGN_URLS_MAX = 3;

export interface FetchBlobOptions extends Cancelable {
  /** Bytes that the caller has already. */
  readonly offset?: number;
}

export interface FetchedBlob {
  /**
   * From `offset` to the end of the blob; owned by the caller. A connection that breaks is taken up again where it
   * broke. Fails rather than ends when there are more or fewer bytes than the descriptor says. Not verified. Gives
   * buffers one by one as they came (object mode), which nobody else keeps.
   */
  readonly stream: Readable;
  readonly offset: number;
}

export async function fetchBlob(
  ports: RegistryPorts,
  name: BlobName,
  options: FetchBlobOptions = {},
): Promise<FetchedBlob> {
  const { offset = 0, signal } = options;
  const { size } = name.descriptor;
  if (offset < 0 || offset > size)
    throw new AppError(
      'range',
      `cannot fetch blob ${inWords(name, ports.origin.host)} from ${offset}: it has ${size} bytes`,
    );
  if (offset === size) return { stream: Readable.from([], { objectMode: false }), offset };
  const open = await blobSource(ports, name, { offset, signal });
  const stream = Readable.from(resumed(open, { name, offset, signal, retry: ports.origin.retry }), {
    highWaterMark: CHUNKS_AHEAD,
  });
  return { stream, offset };
}

/** A way to read the blob from an offset on, with its first answer already there. */
interface BlobSource {
  readonly first: HttpResponse;
  reopen(offset: number): Promise<HttpResponse>;
}

async function blobSource(
  ports: RegistryPorts,
  name: BlobName,
  { offset, signal }: { readonly offset: number; readonly signal: AbortSignal | undefined },
): Promise<BlobSource> {
  const action = `fetch blob ${inWords(name, ports.origin.host)}`;
  const headers = (from: number): Record<string, string> => (from === 0 ? {} : { range: `bytes=${from}-` });
  const accept = [200, 206];
  try {
    return await ports.read(async (endpoint, ns) => {
      const target = withQuery(`${name.repository}/blobs/${name.reference}`, ns);
      const reopen = (from: number) =>
        endpoint.send({ method: 'GET', target, action, scopes: pull(name), headers: headers(from), accept, signal });
      return { first: await reopen(offset), reopen };
    });
  } catch (error) {
    const urls = (name.descriptor.urls ?? []).filter((url) => URL.canParse(url)).slice(0, FOREIGN_URLS_MAX);
    if (!isKind(error, 'not-found') || urls.length === 0) throw error;
    for (const url of urls) {
      const reopen = (from: number) =>
        ports.origin.sendForeign({ method: 'GET', target: url, action, headers: headers(from), accept, signal });
      try {
        return { first: await reopen(offset), reopen };
      } catch (foreign) {
        if (!(foreign instanceof AppError)) throw foreign;
      }
    }
    throw error;
  }
}

interface Resumption extends Cancelable {
  readonly name: BlobName;
  readonly offset: number;
  readonly retry: RegistryEndpoint['retry'];
}

async function* resumed(source: BlobSource, { name, offset, signal, retry }: Resumption): AsyncGenerator<Buffer> {
  const { size } = name.descriptor;
  let at = offset;
  let response: HttpResponse | undefined = source.first;
  let failures = 0;
  for (;;) {
    try {
      response ??= await source.reopen(at);
      // A server that ignores the range sends what is here already.
      let skip = at - startOf(response, name);
      for await (const chunk of response.body) {
        const bytes: Buffer = chunk;
        const fresh = skip > 0 ? bytes.subarray(Math.min(skip, bytes.length)) : bytes;
        skip -= bytes.length - fresh.length;
        if (fresh.length === 0) continue;
        if (at + fresh.length > size)
          throw new AppError(
            'integrity',
            `cannot fetch blob ${name.reference}: it is longer than the ${size} bytes promised`,
          );
        at += fresh.length;
        failures = 0;
        yield fresh;
      }
      if (at === size) return;
      throw new AppError('unavailable', `cannot fetch blob ${name.reference}: it ended after ${at} of ${size} bytes`);
    } catch (error) {
      signal?.throwIfAborted();
      failures += 1;
      if (!isTransient(error) || failures >= retry.attempts) throw error;
      response = undefined;
      await sleep(backoffMs(retry, failures), undefined, { signal });
    } finally {
      response?.body.destroy();
    }
  }
}

/** First byte of a 200 or 206 answer. */
function startOf(response: HttpResponse, { reference }: Name): number {
  if (response.status !== 206) return 0;
  const start = /^bytes (\d+)-/.exec(response.headers.get('content-range') ?? '')?.[1];
  if (start !== undefined) return Number(start);
  throw new AppError('integrity', `cannot fetch blob ${reference}: the answer does not tell which part it is`);
}
