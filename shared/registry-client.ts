/**
 * RegistryClient: the OCI distribution API as a client: resolve, fetch, push, mount, list.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
 *
 * Manifests are verified here; blobs are bounded and resumed here but verified by whoever keeps them (a BlobStore does
 * at commit). Mirrors are tried in order for everything that reads, the registry itself last.
 */
import { type FetchBlobOptions, type FetchedBlob, fetchBlob } from './blob-download.ts';
import { headBlob, type PushBlobOptions, type PushOutcome, pushBlob } from './blob-upload.ts';
import { algorithmOf, type Digest, digestOf, hexOf, isDigest, parseDigest } from './digest.ts';
import { AppError, isKind } from './errors.ts';
import type { HttpResponse } from './http-transport.ts';
import { ACCEPTED_MANIFESTS, isIndexType, isManifestType } from './media-types.ts';
import { type Descriptor, MANIFEST_MAX_BYTES, parseManifest } from './oci.ts';
import { isTag } from './reference.ts';
import { createRegistryEndpoint, type EndpointOptions, type RegistryEndpoint } from './registry-endpoint.ts';
import { pages } from './registry-pages.ts';
import {
  firstOf,
  inWords,
  type Name,
  nameOf,
  pull,
  pushAndPull,
  type RegistryPorts,
  withQuery,
} from './registry-target.ts';
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

const LOGIN_ANSWER_MAX_BYTES = 16 << 20;

export function createRegistryClient(options: RegistryClientOptions): RegistryClient {
  const { mirrors = [], ...own } = options;
  const origin = createRegistryEndpoint(own);
  const readers: readonly RegistryEndpoint[] = [...mirrors.map((mirror) => createRegistryEndpoint(mirror)), origin];
  const ports: RegistryPorts = { origin, read: (work) => firstOf(readers, origin, work) };

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

async function login(endpoint: RegistryEndpoint, { signal }: Cancelable = {}): Promise<LoginResult> {
  const request = { method: 'GET', target: '', action: `log in to "${endpoint.host}"`, signal } as const;
  const probe = await endpoint.send({ ...request, scopes: [], accept: [200] });
  await collect(probe.body, LOGIN_ANSWER_MAX_BYTES, { what: 'answer', signal });
  return { identityToken: await endpoint.identityToken() };
}

async function resolve(ports: RegistryPorts, name: Name, options: ManifestOptions = {}): Promise<Descriptor> {
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

async function fetchManifest(
  ports: RegistryPorts,
  name: Name,
  options: ManifestOptions = {},
): Promise<FetchedManifest> {
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

async function hasBlob(ports: RegistryPorts, name: Name, { signal }: Cancelable = {}): Promise<boolean> {
  return (await headBlob(ports.origin, name, { scopes: pull(name), signal })) !== undefined;
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

async function* tags(ports: RegistryPorts, name: Name, { signal }: Cancelable = {}): AsyncGenerator<string> {
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
  ports: RegistryPorts,
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
