/**
 * The /v2 grammar: a path becomes a Route once, and everything behind it trusts the parts. A Route never holds text
 * that failed the grammar of names, tags or digests, so its parts are safe in a query or as a path component.
 * Endpoint ids: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#endpoints
 * Pure: no I/O, no HTTP types, no query string.
 */
import { type Digest, isDigest } from '../shared/digest.ts';
import { isRepository, isTag } from '../shared/reference.ts';
import { OciError } from './oci-errors.ts';

/** How a manifest is asked for. */
export type ManifestReference =
  | { readonly tag: string; readonly digest?: undefined }
  | { readonly digest: Digest; readonly tag?: undefined };

export type Route =
  | { readonly kind: 'base' }
  | { readonly kind: 'catalog' }
  | { readonly kind: 'blob'; readonly repository: string; readonly digest: Digest }
  | { readonly kind: 'manifest'; readonly repository: string; readonly reference: ManifestReference }
  | { readonly kind: 'uploads'; readonly repository: string }
  | { readonly kind: 'upload'; readonly repository: string; readonly id: string }
  | { readonly kind: 'tags'; readonly repository: string }
  | { readonly kind: 'referrers'; readonly repository: string; readonly subject: Digest }
  | { readonly kind: 'extensions'; readonly repository?: string }
  | { readonly kind: 'repository'; readonly repository: string };

/** Slashes are allowed in names, so the end of the path decides; the greedy name takes the rest. */
const SHAPES = [
  { kind: 'uploads', pattern: /^(.+)\/blobs\/uploads\/?$/ },
  { kind: 'upload', pattern: /^(.+)\/blobs\/uploads\/([^/]+)$/ },
  { kind: 'blob', pattern: /^(.+)\/blobs\/([^/]+)$/ },
  { kind: 'manifest', pattern: /^(.+)\/manifests\/([^/]+)$/ },
  { kind: 'tags', pattern: /^(.+)\/tags\/list$/ },
  { kind: 'referrers', pattern: /^(.+)\/referrers\/([^/]+)$/ },
  { kind: 'extensions', pattern: /^(.+)\/_oci\/ext\/discover$/ },
] as const;

/** Below the name of our extension, which no repository can have. */
const REPOSITORIES_PATH = '_berth/repositories/';

/** Ids of upload sessions: what randomId makes, and what a BlobStore takes. */
const UPLOAD_ID = /^[A-Za-z0-9_-]{1,128}$/;

/**
 * undefined = not a path of this API (404).
 * @throws OciError NAME_INVALID, DIGEST_INVALID, BLOB_UPLOAD_UNKNOWN, MANIFEST_INVALID for the right shape with bad parts
 */
export function parseRoute(path: string): Route | undefined {
  if (path === '/v2/' || path === '/v2') return { kind: 'base' };
  if (!path.startsWith('/v2/')) return undefined;
  // Some clients escape the colon of a digest. No other escape can be part of a legal name, tag or digest.
  const rest = path.slice(4).replace(/%3a/gi, ':');
  if (rest === '_catalog') return { kind: 'catalog' };
  if (rest === '_oci/ext/discover') return { kind: 'extensions' };
  if (rest.startsWith(REPOSITORIES_PATH))
    return { kind: 'repository', repository: parseName(rest.slice(REPOSITORIES_PATH.length)) };
  for (const { kind, pattern } of SHAPES) {
    const match = pattern.exec(rest);
    if (match === null) continue;
    const repository = parseName(match[1] ?? '');
    const last = match[2] ?? '';
    switch (kind) {
      case 'uploads':
      case 'tags':
      case 'extensions':
        return { kind, repository };
      case 'upload':
        if (!UPLOAD_ID.test(last)) throw new OciError('BLOB_UPLOAD_UNKNOWN', `cannot find upload ${quote(last)}`);
        return { kind, repository, id: last };
      case 'blob':
        return { kind, repository, digest: parseDigestPart(last) };
      case 'referrers':
        return { kind, repository, subject: parseDigestPart(last) };
      case 'manifest':
        return { kind, repository, reference: parseManifestReference(last) };
      default:
        kind satisfies never;
    }
  }
  return undefined;
}

/** @throws OciError NAME_INVALID */
export function parseName(text: string): string {
  if (!isRepository(text))
    throw new OciError('NAME_INVALID', `cannot use repository name ${quote(text)}: it is not lower-case path/to/name`);
  return text;
}

/** @throws OciError DIGEST_INVALID */
export function parseDigestPart(text: string): Digest {
  if (!isDigest(text))
    throw new OciError('DIGEST_INVALID', `cannot use digest ${quote(text)}: want sha256 or sha512 and lower-case hex`);
  return text;
}

/** @throws OciError MANIFEST_INVALID */
export function parseTag(text: string): string {
  if (!isTag(text))
    throw new OciError('MANIFEST_INVALID', `cannot use tag ${quote(text)}: want up to 128 of a-z A-Z 0-9 _ . -`);
  return text;
}

function parseManifestReference(text: string): ManifestReference {
  return text.includes(':') ? { digest: parseDigestPart(text) } : { tag: parseTag(text) };
}

function quote(text: string): string {
  return JSON.stringify(text.slice(0, 300));
}

/** Where things are, as paths of this server: what Location headers say. */
export function blobPath(repository: string, digest: Digest): string {
  return `/v2/${repository}/blobs/${digest}`;
}

export function manifestPath(repository: string, digest: Digest): string {
  return `/v2/${repository}/manifests/${digest}`;
}

export function uploadPath(repository: string, id: string): string {
  return `/v2/${repository}/blobs/uploads/${id}`;
}
