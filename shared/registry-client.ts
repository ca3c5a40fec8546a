/**
 * RegistryClient: the OCI distribution API as a client: resolve, fetch, push, mount, list.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
 *
 * Manifests are verified here; blobs are bounded and resumed here but verified by whoever keeps them (a BlobStore does
 * at commit). Mirrors are tried in order for everything that reads, the registry itself last.
 */
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { algorithmOf, type Digest, digestOf, hexOf, isDigest, parseDigest } from './digest.ts';
import { AppError, isKind } from './errors.ts';
import type { HttpResponse } from './http-transport.ts';
import { ACCEPTED_MANIFESTS, isIndexType, isManifestType } from './media-types.ts';
import { type Descriptor, MANIFEST_MAX_BYTES, parseManifest } from './oci.ts';
import { isRepository, isTag } from './reference.ts';
import {
  backoffMs,
  createRegistryEndpoint,
  type EndpointOptions,
  isTransient,
  type RegistryEndpoint,
} from './registry-endpoint.ts';
import { type Cancelable, collect } from './streams.ts';

export interface RegistryClientOptions extends EndpointOptions {
  /** Tried before the registry for what only reads; each with its own credentials. */
  readonly mirrors?: readonly EndpointOptions[];
}

export interface ManifestOptions extends Cancelable {
  /** Media types; by default every manifest and index. */
  readonly accept?: readonly string[];
}

export interface FetchedManifest {
  readonly descriptor: Descriptor;
  /** The same as descriptor.mediaType. */
  readonly mediaType: string;
  /** Exactly as the registry has them: the digest is theirs. */
  readonly bytes: Buffer;
}

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

export interface PushBlobOptions extends Cancelable {
  /** The bytes from `offset` on; called again when a broken upload goes on or starts over. */
  readonly open: (offset: number) => Promise<Readable>;
  /** A repository of the same registry that has the blob already. */
  readonly mountFrom?: string | undefined;
  /** Called with the bytes sent so far; goes back when an upload starts over. */
  readonly onProgress?: (sentBytes: number) => void;
}
export type PushOutcome = 'existed' | 'mounted' | 'uploaded';

export interface PushedManifest {
  readonly digest: Digest;
  /** Whether the registry indexes the manifest's subject itself; if not, the referrers tag has to be kept by the client. */
  readonly isSubjectIndexed: boolean;
}

export interface LoginResult {
  /** To keep instead of the password, when the registry hands out such a thing. */
  readonly identityToken: string | undefined;
}

/**
 * Every method throws AppError 'unauthenticated', 'denied', 'unavailable', 'timeout', or 'invalid' for names outside
 * the grammar, and the signal's reason when cancelled.
 */
export interface RegistryClient extends Disposable {
  readonly host: string;
  /** Checks the credentials. */
  login(options?: Cancelable): Promise<LoginResult>;
  /** reference is a tag or a digest. @throws AppError 'not-found' */
  resolve(repository: string, reference: string, options?: ManifestOptions): Promise<Descriptor>;
  /** @throws AppError 'not-found', 'integrity' (other bytes than the digest says), 'too-large' */
  fetchManifest(repository: string, reference: string, options?: ManifestOptions): Promise<FetchedManifest>;
  hasBlob(repository: string, digest: Digest, options?: Cancelable): Promise<boolean>;
  /** Where the registry has no such blob, the descriptor's `urls` are tried, without credentials. @throws AppError 'not-found' */
  fetchBlob(repository: string, descriptor: Descriptor, options?: FetchBlobOptions): Promise<FetchedBlob>;
  /** Idempotent. */
  pushBlob(repository: string, descriptor: Descriptor, options: PushBlobOptions): Promise<PushOutcome>;
  /** @throws AppError 'integrity' when the registry has kept something else */
  pushManifest(repository: string, reference: string, options: PushManifestOptions): Promise<PushedManifest>;
  /** By tag only the tag, by digest the manifest with all its tags. false = was absent. @throws AppError 'unsupported' */
  removeManifest(repository: string, reference: string, options?: Cancelable): Promise<boolean>;
  /** In the registry's order. @throws AppError 'not-found' for an unknown repository */
  tags(repository: string, options?: Cancelable): AsyncIterable<string>;
  /** What refers to subject; none is an empty list. */
  listReferrers(repository: string, subject: Digest, options?: ReferrersOptions): Promise<readonly Descriptor[]>;
}

export interface PushManifestOptions extends Cancelable {
  readonly bytes: Uint8Array;
  readonly mediaType: string;
}

export interface ReferrersOptions extends Cancelable {
  readonly artifactType?: string;
}

/** Of a tags or referrers answer. */
const PAGE_MAX_BYTES = 16 << 20;
const PAGES_MAX = 10_000;
const FOREIGN_URLS_MAX = 3;
/** Chunks of a blob that wait for its reader. */
const CHUNKS_AHEAD = 4;

export function createRegistryClient(options: RegistryClientOptions): RegistryClient {
  const { mirrors = [], ...own } = options;
  const origin = createRegistryEndpoint(own);
  const readers: readonly RegistryEndpoint[] = [...mirrors.map((mirror) => createRegistryEndpoint(mirror)), origin];
  const ports: Ports = { origin, read: (work) => firstOf(readers, origin, work) };

  return {
    host: origin.host,
    login: (cancelable) => login(origin, cancelable),
    resolve: (repository, reference, cancelable) => resolve(ports, nameOf(repository, reference), cancelable),
    fetchManifest: (repository, reference, cancelable) =>
      fetchManifest(ports, nameOf(repository, reference), cancelable),
    hasBlob: (repository, digest, cancelable) => hasBlob(ports, nameOf(repository, digest), cancelable),
    fetchBlob: (repository, descriptor, blobOptions) =>
      fetchBlob(ports, { ...nameOf(repository, descriptor.digest), descriptor }, blobOptions),
    pushBlob: (repository, descriptor, pushOptions) =>
      pushBlob(origin, { ...nameOf(repository, descriptor.digest), descriptor }, pushOptions),
    pushManifest: (repository, reference, manifest) => pushManifest(origin, nameOf(repository, reference), manifest),
    removeManifest: (repository, reference, cancelable) =>
      removeManifest(origin, nameOf(repository, reference), cancelable),
    tags: (repository, cancelable) => tags(ports, nameOf(repository), cancelable),
    listReferrers: (repository, subject, filter) => listReferrers(ports, nameOf(repository, subject), filter),
    [Symbol.dispose]() {
      for (const endpoint of readers) endpoint[Symbol.dispose]();
    },
  };
}

interface Ports {
  readonly origin: RegistryEndpoint;
  /** Runs work against the mirrors and then the registry; ns is what a mirror must be told. */
  read<R>(work: (endpoint: RegistryEndpoint, ns: string) => Promise<R>): Promise<R>;
}

async function firstOf<R>(
  readers: readonly RegistryEndpoint[],
  origin: RegistryEndpoint,
  work: (endpoint: RegistryEndpoint, ns: string) => Promise<R>,
): Promise<R> {
  for (const endpoint of readers) {
    if (endpoint === origin) break;
    try {
      return await work(endpoint, `ns=${encodeURIComponent(origin.host)}`);
    } catch (error) {
      // Whatever is wrong with a mirror, the registry itself can still answer. Only a cancelled caller is no mirror's fault.
      if (!(error instanceof AppError)) throw error;
    }
  }
  return await work(origin, '');
}

interface Name {
  readonly repository: string;
  /** Tag or digest. */
  readonly reference: string;
}

function nameOf(repository: string, reference = ''): Name {
  if (!isRepository(repository))
    throw new AppError(
      'invalid',
      `cannot use ${JSON.stringify(repository.slice(0, 300))}: it is not a repository name`,
    );
  if (reference !== '' && !isTag(reference) && !isDigest(reference))
    throw new AppError(
      'invalid',
      `cannot use ${JSON.stringify(reference.slice(0, 300))}: it is neither tag nor digest`,
    );
  return { repository, reference };
}

const pull = ({ repository }: Name) => [`repository:${repository}:pull`];
const pushAndPull = ({ repository }: Name) => [`repository:${repository}:pull,push`];
const withQuery = (path: string, query: string) => (query === '' ? path : `${path}?${query}`);
const inWords = (name: Name, host: string) => `"${name.reference}" of ${host}/${name.repository}`;

async function login(endpoint: RegistryEndpoint, { signal }: Cancelable = {}): Promise<LoginResult> {
  const request = { method: 'GET', target: '', action: `log in to "${endpoint.host}"`, signal } as const;
  const probe = await endpoint.send({ ...request, scopes: [], accept: [200] });
  await collect(probe.body, PAGE_MAX_BYTES, { what: 'answer', signal });
  return { identityToken: await endpoint.identityToken() };
}

async function resolve(ports: Ports, name: Name, options: ManifestOptions = {}): Promise<Descriptor> {
  const { accept = ACCEPTED_MANIFESTS, signal } = options;
  const found = await ports.read(async (endpoint, ns) => {
    try {
      const response = await endpoint.send({
        method: 'HEAD',
        target: withQuery(`${name.repository}/manifests/${name.reference}`, ns),
        action: `resolve ${inWords(name, ports.origin.host)}`,
        headers: { accept: accept.join(', ') },
        scopes: pull(name),
        accept: [200],
        signal,
      });
      response.body.destroy();
      return describe(response, name);
    } catch (error) {
      // Some registries know no HEAD here.
      if (isKind(error, 'unsupported', 'invalid')) return undefined;
      throw error;
    }
  });
  return found ?? (await fetchManifest(ports, name, options)).descriptor;
}

/** undefined when the headers do not tell enough. */
function describe(response: HttpResponse, { reference }: Name): Descriptor | undefined {
  const digest = response.headers.get('docker-content-digest') ?? '';
  const size = response.headers.get('content-length') ?? '';
  const mediaType = mediaTypeOf(response);
  if (!isDigest(digest) || !/^\d+$/.test(size) || mediaType === undefined) return undefined;
  if (isDigest(reference) && reference !== digest) return undefined;
  return { mediaType, digest, size: Number(size) };
}

/** undefined for types that say nothing, as `text/plain` of a file server. */
function mediaTypeOf(response: HttpResponse): string | undefined {
  const type = response.headers.get('content-type')?.split(';')[0]?.trim() ?? '';
  return isManifestType(type) || isIndexType(type) || /^application\/vnd\./.test(type) ? type : undefined;
}

async function fetchManifest(ports: Ports, name: Name, options: ManifestOptions = {}): Promise<FetchedManifest> {
  const { accept = ACCEPTED_MANIFESTS, signal } = options;
  const action = `fetch manifest ${inWords(name, ports.origin.host)}`;
  return await ports.read(async (endpoint, ns) => {
    const response = await endpoint.send({
      method: 'GET',
      target: withQuery(`${name.repository}/manifests/${name.reference}`, ns),
      action,
      headers: { accept: accept.join(', ') },
      scopes: pull(name),
      accept: [200],
      signal,
    });
    const bytes = await collect(response.body, MANIFEST_MAX_BYTES, {
      what: `manifest ${inWords(name, ports.origin.host)}`,
      signal,
    });
    const claimed = response.headers.get('docker-content-digest') ?? '';
    const wanted = isDigest(name.reference) ? name.reference : isDigest(claimed) ? claimed : undefined;
    const digest = digestOf(bytes, wanted === undefined ? 'sha256' : algorithmOf(wanted));
    if (wanted !== undefined && digest !== wanted)
      throw new AppError('integrity', `cannot ${action}: the registry sent ${digest}, want ${wanted}`);
    const mediaType = mediaTypeOf(response) ?? parseManifest(bytes).mediaType;
    return { descriptor: { mediaType, digest, size: bytes.length }, mediaType, bytes };
  });
}

async function hasBlob(ports: Ports, name: Name, { signal }: Cancelable = {}): Promise<boolean> {
  return (await headBlob(ports.origin, name, { scopes: pull(name), signal })) !== undefined;
}

async function headBlob(
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

type BlobName = Name & { readonly descriptor: Descriptor };

async function fetchBlob(ports: Ports, name: BlobName, options: FetchBlobOptions = {}): Promise<FetchedBlob> {
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
  ports: Ports,
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

async function pushBlob(endpoint: RegistryEndpoint, name: BlobName, options: PushBlobOptions): Promise<PushOutcome> {
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

async function pushManifest(
  endpoint: RegistryEndpoint,
  name: Name,
  { bytes, mediaType, signal }: PushManifestOptions,
): Promise<PushedManifest> {
  const digest = digestOf(bytes, isDigest(name.reference) ? algorithmOf(name.reference) : 'sha256');
  const action = `push manifest ${inWords(name, endpoint.host)}`;
  if (isDigest(name.reference) && digest !== name.reference)
    throw new AppError('integrity', `cannot ${action}: its digest is ${digest}`);
  const response = await endpoint.send({
    method: 'PUT',
    target: `${name.repository}/manifests/${name.reference}`,
    action,
    headers: { 'content-type': mediaType, 'content-length': String(bytes.length) },
    body: async () => Buffer.from(bytes),
    timeoutMs: endpoint.timeouts.completionMs,
    scopes: pushAndPull(name),
    accept: [201],
    signal,
  });
  response.body.destroy();
  const kept = response.headers.get('docker-content-digest');
  if (kept !== null && isDigest(kept) && algorithmOf(kept) === algorithmOf(digest) && kept !== digest)
    throw new AppError('integrity', `cannot ${action}: the registry has kept ${kept}, want ${digest}`);
  return { digest, isSubjectIndexed: response.headers.get('oci-subject') !== null };
}

async function removeManifest(endpoint: RegistryEndpoint, name: Name, { signal }: Cancelable = {}): Promise<boolean> {
  const response = await endpoint.send({
    method: 'DELETE',
    target: `${name.repository}/manifests/${name.reference}`,
    action: `remove ${inWords(name, endpoint.host)}`,
    scopes: [`repository:${name.repository}:delete,pull`],
    accept: [202, 200, 204, 404],
    signal,
  });
  response.body.destroy();
  return response.status !== 404;
}

async function* tags(ports: Ports, name: Name, { signal }: Cancelable = {}): AsyncGenerator<string> {
  const action = `list tags of ${ports.origin.host}/${name.repository}`;
  // The first list, whole: half of a mirror's and the rest of the registry's would be neither.
  yield* await ports.read(async (endpoint, ns) => {
    const target = withQuery(`${name.repository}/tags/list`, ns);
    const found: string[] = [];
    for await (const page of pages(endpoint, { target, action, scopes: pull(name), signal })) {
      const list = page !== undefined && 'tags' in page ? (page.tags ?? []) : undefined;
      if (!Array.isArray(list)) throw new AppError('invalid', `cannot ${action}: the registry sent no list`);
      found.push(...list.filter((tag): tag is string => typeof tag === 'string' && isTag(tag)));
    }
    return found;
  });
}

async function listReferrers(
  ports: Ports,
  name: Name,
  { artifactType, signal }: ReferrersOptions = {},
): Promise<readonly Descriptor[]> {
  const { origin } = ports;
  const subject = parseDigest(name.reference);
  const action = `list referrers of ${inWords(name, origin.host)}`;
  const query = artifactType === undefined ? '' : `artifactType=${encodeURIComponent(artifactType)}`;
  const target = withQuery(`${name.repository}/referrers/${subject}`, query);
  const found: Descriptor[] = [];
  try {
    for await (const page of pages(origin, { target, action, scopes: pull(name), signal }))
      found.push(...referrersIn(Buffer.from(JSON.stringify(page ?? {}))));
  } catch (error) {
    if (!isKind(error, 'not-found', 'unsupported')) throw error;
    // https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#referrers-tag-schema
    const tag = `${algorithmOf(subject)}-${hexOf(subject).slice(0, 64)}`;
    try {
      found.push(...referrersIn((await fetchManifest(ports, { ...name, reference: tag }, { signal })).bytes));
    } catch (absent) {
      if (!isKind(absent, 'not-found')) throw absent;
    }
  }
  return artifactType === undefined ? found : found.filter((descriptor) => descriptor.artifactType === artifactType);
}

function referrersIn(bytes: Uint8Array): readonly Descriptor[] {
  const document = parseManifest(bytes);
  return document.kind === 'index' ? document.manifests : [];
}

interface PageRequest extends Cancelable {
  readonly target: string;
  readonly action: string;
  readonly scopes: readonly string[];
}

/** JSON objects, following `Link: <…>; rel="next"` within the registry. */
async function* pages(endpoint: RegistryEndpoint, request: PageRequest): AsyncGenerator<object | undefined> {
  const { signal, action } = request;
  const seen = new Set<string>();
  let target: string | URL = request.target;
  while (seen.size < PAGES_MAX) {
    const response = await endpoint.send({ ...request, method: 'GET', target, accept: [200] });
    const bytes = await collect(response.body, PAGE_MAX_BYTES, { what: `answer to "${action}"`, signal });
    yield parseObject(bytes, action);
    const next = /<([^>]+)>\s*;[^,]*\brel="?next"?/i.exec(response.headers.get('link') ?? '')?.[1];
    if (next === undefined) return;
    const url = endpoint.follow(response, next, action);
    if (url.origin !== response.url.origin || seen.has(url.href))
      throw new AppError(
        'denied',
        `cannot ${action}: the next page is ${seen.has(url.href) ? 'an earlier one' : 'elsewhere'}`,
      );
    seen.add(url.href);
    target = url;
  }
}

function parseObject(bytes: Buffer, action: string): object | undefined {
  try {
    const json: unknown = JSON.parse(bytes.toString('utf8'));
    return typeof json === 'object' && json !== null ? json : undefined;
  } catch (cause) {
    throw new AppError('invalid', `cannot ${action}: the registry did not send JSON`, { cause });
  }
}
