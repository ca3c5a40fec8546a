import { describe, expect, it } from 'vitest';
import { OciError } from '../../../registry/oci-errors.ts';
import { parseRoute, type Route } from '../../../registry/routes.ts';
import { digestOf } from '../../../shared/digest.ts';

const D256 = digestOf('a');
const D512 = digestOf('a', 'sha512');

// One row per endpoint of distribution-spec#endpoints; ids as there.
const ENDPOINTS: readonly (readonly [id: string, path: string, route: Route])[] = [
  ['end-1', '/v2/', { kind: 'base' }],
  ['end-1 without slash', '/v2', { kind: 'base' }],
  ['end-2', `/v2/a/blobs/${D256}`, { kind: 'blob', repository: 'a', digest: D256 }],
  ['end-2 sha512', `/v2/a/b/blobs/${D512}`, { kind: 'blob', repository: 'a/b', digest: D512 }],
  ['end-2 escaped colon', `/v2/a/blobs/${D256.replace(':', '%3A')}`, { kind: 'blob', repository: 'a', digest: D256 }],
  ['end-3 tag', '/v2/a/b/c/manifests/v1.0', { kind: 'manifest', repository: 'a/b/c', reference: { tag: 'v1.0' } }],
  ['end-3 digest', `/v2/a/manifests/${D512}`, { kind: 'manifest', repository: 'a', reference: { digest: D512 } }],
  ['end-4a', '/v2/a/b/blobs/uploads/', { kind: 'uploads', repository: 'a/b' }],
  ['end-4a without slash', '/v2/a/blobs/uploads', { kind: 'uploads', repository: 'a' }],
  ['end-5, 6, 13, 14', '/v2/a/blobs/uploads/x-1_Y', { kind: 'upload', repository: 'a', id: 'x-1_Y' }],
  ['end-8', '/v2/a__b/c-d/tags/list', { kind: 'tags', repository: 'a__b/c-d' }],
  ['end-12', `/v2/a/referrers/${D256}`, { kind: 'referrers', repository: 'a', subject: D256 }],
  ['a repository of the extension', '/v2/_berth/repositories/a/b', { kind: 'repository', repository: 'a/b' }],
  ['extensions', '/v2/_oci/ext/discover', { kind: 'extensions' }],
  ['extensions of a repository', '/v2/a/_oci/ext/discover', { kind: 'extensions', repository: 'a' }],
  ['catalog', '/v2/_catalog', { kind: 'catalog' }],
  ['names that look like routes', '/v2/blobs/uploads/tags/list', { kind: 'tags', repository: 'blobs/uploads' }],
  ['a repository called tags', '/v2/tags/tags/list', { kind: 'tags', repository: 'tags' }],
  ['a tag called list', '/v2/a/manifests/list', { kind: 'manifest', repository: 'a', reference: { tag: 'list' } }],
];

const REFUSED: readonly (readonly [path: string, code: string])[] = [
  ['/v2/A/tags/list', 'NAME_INVALID'],
  ['/v2/../tags/list', 'NAME_INVALID'],
  ['/v2/a/../b/tags/list', 'NAME_INVALID'],
  ['/v2/a%2fb/tags/list', 'NAME_INVALID'],
  ['/v2/a//b/tags/list', 'NAME_INVALID'],
  ['/v2/a..b/tags/list', 'NAME_INVALID'],
  ['/v2/a___b/tags/list', 'NAME_INVALID'],
  ['/v2/-a/tags/list', 'NAME_INVALID'],
  [`/v2/${'a/'.repeat(128)}a/tags/list`, 'NAME_INVALID'],
  ['/v2/a/manifests/.hidden', 'MANIFEST_INVALID'],
  [`/v2/a/manifests/${'t'.repeat(129)}`, 'MANIFEST_INVALID'],
  ['/v2/a/manifests/sha256:baddigeststring', 'DIGEST_INVALID'],
  ['/v2/a/manifests/%2e%2e', 'MANIFEST_INVALID'],
  [`/v2/a/manifests/${D256.toUpperCase()}`, 'DIGEST_INVALID'],
  ['/v2/a/blobs/sha256:..', 'DIGEST_INVALID'],
  [`/v2/a/blobs/md5:${'0'.repeat(32)}`, 'DIGEST_INVALID'],
  ['/v2/a/referrers/latest', 'DIGEST_INVALID'],
  ['/v2/a/blobs/uploads/a.b', 'BLOB_UPLOAD_UNKNOWN'],
  [`/v2/a/blobs/uploads/${'x'.repeat(129)}`, 'BLOB_UPLOAD_UNKNOWN'],
];

describe('parseRoute', () => {
  it.each(ENDPOINTS)('reads %s', (_id, path, route) => {
    expect(parseRoute(path)).toEqual(route);
  });

  it.each(REFUSED)('refuses %s with %s', (path, code) => {
    expect(() => parseRoute(path)).toThrow(OciError);
    expect(() => parseRoute(path)).toThrow(expect.objectContaining({ code }));
  });

  it.each(['/', '/v1/', '/v2x', '/v2/a', '/v2/a/tags', '/v2/a/tags/list/', '/v2/manifests/x', '/healthz', ''])(
    'does not know %j',
    (path) => {
      expect(parseRoute(path)).toBeUndefined();
    },
  );
});
