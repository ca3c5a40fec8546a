import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createManifestLists, indexOf, type Member } from '../../../runtime/cli/manifest-lists.ts';
import { digestOf } from '../../../shared/digest.ts';
import { MEDIA_TYPES } from '../../../shared/media-types.ts';
import { type Platform, parseManifest } from '../../../shared/oci.ts';
import { parseReference } from '../../../shared/reference.ts';

function member(name: string, platform?: Platform, mediaType: string = MEDIA_TYPES.ociManifest): Member {
  const descriptor = { mediaType, digest: digestOf(name), size: name.length, ...(platform && { platform }) };
  return { source: `r.test/${name}`, descriptor };
}
const amd64 = { os: 'linux', architecture: 'amd64' };
const armv7 = { os: 'linux', architecture: 'arm', variant: 'v7' };

describe('the document that a list is pushed as', () => {
  it('is an OCI index, the same for the same images', () => {
    const index = indexOf([member('a', amd64), member('b', { ...armv7, 'os.features': ['x'], 'os.version': '' })]);
    expect(index).toEqual(indexOf([member('a', amd64), member('b', { 'os.features': ['x'], ...armv7 })]));
    expect(parseManifest(index.bytes, MEDIA_TYPES.ociIndex)).toMatchObject({
      kind: 'index',
      manifests: [
        { digest: digestOf('a'), size: 1, platform: amd64 },
        { digest: digestOf('b'), platform: { ...armv7, 'os.features': ['x'] } },
      ],
    });
  });

  it("is Docker's list when all images are Docker's", () => {
    const docker = member('a', amd64, MEDIA_TYPES.dockerManifest);
    expect(indexOf([docker]).mediaType).toBe(MEDIA_TYPES.dockerList);
    expect(indexOf([docker, member('b', armv7)]).mediaType).toBe(MEDIA_TYPES.ociIndex);
  });

  it.each([
    ['an image without a platform', [member('a')], /its platform is not known/],
    ['an image with half a platform', [member('a', { os: 'linux', architecture: '' })], /its platform is not known/],
    ['two images for one platform', [member('a', amd64), member('b', amd64)], /same platform, linux\/amd64/],
  ])('cannot be made of %s', (_what, members, message) => {
    expect(() => indexOf(members)).toThrow(message);
  });

  it('takes several attestations', () => {
    const unknown = { os: 'unknown', architecture: 'unknown' };
    expect(() => indexOf([member('a', unknown), member('b', unknown)])).not.toThrow();
  });
});

describe('lists that are kept', () => {
  let base = '';
  beforeEach(() => {
    base = mkdtempSync(join(tmpdir(), 'berth-lists-'));
  });
  afterEach(() => rmSync(base, { recursive: true }));

  it('are made once, take images from several jobs at once, and are gone when removed', async () => {
    const lists = createManifestLists(join(base, 'deep'));
    const list = parseReference('r.test/app:1');
    expect(await lists.members(list)).toBeUndefined();
    await expect(lists.put(list, member('a'))).rejects.toMatchObject({ kind: 'not-found' });
    expect(await lists.create(list)).toBe(true);
    expect(await lists.create(list)).toBe(false);
    await Promise.all(['c', 'a', 'b'].map((name) => lists.put(list, member(name, amd64))));
    await lists.put(list, member('b', armv7));
    expect(await lists.members(list)).toEqual([member('a', amd64), member('b', armv7), member('c', amd64)]);
    expect(await lists.members(parseReference('r.test/app:2'))).toBeUndefined();
    expect(await lists.remove(list)).toBe(true);
    expect(await lists.remove(list)).toBe(false);
  });
});
