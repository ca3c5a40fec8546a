/** Blobs to a registry: looked for first, mounted if it has them elsewhere, and sent on where a connection broke. */
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { algorithmOf } from './digest.ts';
import { AppError, isKind } from './errors.ts';
import type { HttpResponse } from './http-transport.ts';
import { backoffMs, isTransient, type RegistryEndpoint } from './registry-endpoint.ts';
import { type BlobName, inWords, type Name, nameOf, pull, pushAndPull, withQuery } from './registry-target.ts';
import type { Cancelable } from './streams.ts';

export interface PushBlobOptions extends Cancelable {
  /** The bytes from `offset` on; called again when a broken upload goes on or starts over. */
  readonly open: (offset: number) => Promise<Readable>;
  /** A repository of the same registry that has the blob already. */
  readonly mountFrom?: string | undefined;
  /** Called with the bytes sent so far; goes back when an upload starts over. */
  readonly onProgress?: (sentBytes: number) => void;
}
export type PushOutcome = 'existed' | 'mounted' | 'uploaded';

export async function pushBlob(
  endpoint: RegistryEndpoint,
  name: BlobName,
  options: PushBlobOptions,
): Promise<PushOutcome> {
  const { signal, mountFrom } = options;
  const scopes = [...pushAndPull(name), ...(mountFrom === undefined ? [] : pull(nameOf(mountFrom)))];
  if ((await headBlob(endpoint, name, { scopes, signal })) !== undefined) return 'existed';
  const upload: Upload = { endpoint, name, options, scopes, action: `push blob ${inWords(name, endpoint.host)}` };
  for (let failures = 0; ; ) {
    const started = await startUpload(upload, failures === 0 ? mountFrom : undefined);
    if (started === 'mounted') return 'mounted';
    try {
      await completeUpload(upload, await sendBytes(upload, started));
      return 'uploaded';
    } catch (error) {
      signal?.throwIfAborted();
      failures += 1;
      // A session that got lost (restart, other replica) is not the blob's end.
      const isLost = isTransient(error) || isKind(error, 'not-found', 'range');
      if (!isLost || failures >= endpoint.retry.attempts) throw error;
      await sleep(backoffMs(endpoint.retry, failures), undefined, { signal });
      if ((await headBlob(endpoint, name, { scopes, signal })) !== undefined) return 'uploaded';
    }
  }
}

interface Upload {
  readonly endpoint: RegistryEndpoint;
  readonly name: BlobName;
  readonly options: PushBlobOptions;
  readonly scopes: readonly string[];
  readonly action: string;
}

async function startUpload(upload: Upload, mountFrom: string | undefined): Promise<URL | 'mounted'> {
  const { endpoint, name, options, scopes, action } = upload;
  const query = new URLSearchParams();
  if (mountFrom !== undefined) {
    query.set('mount', name.descriptor.digest);
    query.set('from', nameOf(mountFrom).repository);
  } else if (algorithmOf(name.descriptor.digest) !== 'sha256')
    query.set('digest-algorithm', algorithmOf(name.descriptor.digest));
  const response = await endpoint.send({
    method: 'POST',
    target: withQuery(`${name.repository}/blobs/uploads/`, query.toString()),
    action,
    headers: { 'content-length': '0' },
    scopes,
    accept: [201, 202],
    signal: options.signal,
  });
  response.body.destroy();
  return response.status === 201 ? 'mounted' : locationOf(upload, response);
}

function locationOf({ endpoint, action }: Upload, response: HttpResponse): URL {
  const location = response.headers.get('location');
  if (location === null) throw new AppError('unsupported', `cannot ${action}: the registry names no upload location`);
  return endpoint.follow(response, location, action);
}

/** Sends everything as one chunk, which satisfies any OCI-Chunk-Min-Length, and what is missing after a failure. */
async function sendBytes(upload: Upload, started: URL): Promise<URL> {
  const { endpoint, name, options, scopes, action } = upload;
  const { size } = name.descriptor;
  let location = started;
  let offset = 0;
  for (let failures = 0; offset < size; ) {
    const from = offset;
    try {
      const response = await endpoint.send({
        method: 'PATCH',
        target: location,
        action,
        headers: {
          'content-type': 'application/octet-stream',
          'content-length': String(size - from),
          ...(from === 0 ? {} : { 'content-range': `${from}-${size - 1}` }),
        },
        body: async () => counted(await options.open(from), from, options.onProgress),
        timeoutMs: endpoint.timeouts.completionMs,
        scopes,
        accept: [202],
        isOnce: true,
        signal: options.signal,
      });
      response.body.destroy();
      location = locationOf(upload, response);
      offset = receivedBytes(response) ?? size;
    } catch (error) {
      options.signal?.throwIfAborted();
      failures += 1;
      if (!(isTransient(error) || isKind(error, 'range')) || failures >= endpoint.retry.attempts) throw error;
      await sleep(backoffMs(endpoint.retry, failures), undefined, { signal: options.signal });
      const status = await endpoint.send({
        method: 'GET',
        target: location,
        action,
        scopes,
        accept: [204],
        signal: options.signal,
      });
      status.body.destroy();
      if (status.headers.get('location') !== null) location = locationOf(upload, status);
      offset = receivedBytes(status) ?? 0;
    }
    if (offset > from) failures = 0;
    if (offset > size) throw new AppError('range', `cannot ${action}: the registry claims ${offset} of ${size} bytes`);
  }
  return location;
}

/** `Range: 0-<last>`; an empty upload says `0-0` too, which is then one byte that the digest will not miss. */
function receivedBytes(response: HttpResponse): number | undefined {
  const last = /^(?:bytes=)?0-(-?\d+)$/.exec(response.headers.get('range')?.trim() ?? '')?.[1];
  return last === undefined || last === '0' ? undefined : Number(last) + 1;
}

function counted(bytes: Readable, from: number, onProgress: PushBlobOptions['onProgress']): Readable {
  let sent = from;
  if (onProgress !== undefined)
    bytes.on('data', (chunk: Buffer) => {
      sent += chunk.length;
      onProgress(sent);
    });
  // Listening sets the stream flowing; nothing may flow before it has a reader.
  return bytes.pause();
}

async function completeUpload(upload: Upload, location: URL): Promise<void> {
  const { endpoint, name, options, scopes, action } = upload;
  const target = new URL(location);
  // By hand: URLSearchParams would write the registry's own query anew, in other letters.
  target.search = `${location.search === '' ? '?' : `${location.search}&`}digest=${encodeURIComponent(name.descriptor.digest)}`;
  const response = await endpoint.send({
    method: 'PUT',
    target,
    action,
    headers: { 'content-length': '0' },
    timeoutMs: endpoint.timeouts.completionMs,
    scopes,
    accept: [201],
    isOnce: true,
    signal: options.signal,
  });
  response.body.destroy();
}

export async function headBlob(
  endpoint: RegistryEndpoint,
  name: Name,
  { scopes, signal }: Cancelable & { readonly scopes: readonly string[] },
): Promise<HttpResponse | undefined> {
  const response = await endpoint.send({
    method: 'HEAD',
    target: `${name.repository}/blobs/${name.reference}`,
    action: `look for blob ${inWords(name, endpoint.host)}`,
    scopes,
    accept: [200, 404],
    signal,
  });
  response.body.destroy();
  return response.status === 200 ? response : undefined;
}
