/**
 * Referrers: manifests whose subject is a digest, as an index. Never 404: what nobody refers to has an empty list.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers
 *
 * Clients that knew no referrers API kept such a list themselves, in an index under a tag made from the digest; those
 * entries are part of the answer too.
 */
import { algorithmOf, type Digest, hexOf } from '../../shared/digest.ts';
import { isKind } from '../../shared/errors.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { parseManifest } from '../../shared/oci.ts';
import { authorize, type Handlers, type RegistryPorts } from '../exchange.ts';
import type { ManifestIndex, Page, Paged, ReferrerDescriptor } from '../metadata/index.ts';
import { nextLink, parsePage } from '../paging.ts';

export function createReferrerHandlers({ index, access, limits }: RegistryPorts): Handlers<'referrers'> {
  return {
    async GET({ ctx, identity, query }, { repository, subject }) {
      authorize(access, identity, { kind: 'pull', repository });
      const artifactType = query.get('artifactType') || undefined;
      const page = parsePage(query, limits.pageDefaultEntries, limits);
      const stored = await index.referrers(repository, subject, { ...page, artifactType });
      const listed = await fallbackReferrers(index, { repository, subject }, { ...page, artifactType });
      const { entries, more } = fitting(merge(stored, listed, page), limits.referrersMaxBytes);

      const last = entries.at(-1);
      if (artifactType !== undefined) ctx.set('OCI-Filters-Applied', 'artifactType');
      if (more && last !== undefined)
        ctx.set(
          'Link',
          nextLink(`/v2/${repository}/referrers/${subject}`, {
            n: page.limit,
            last: last.digest,
            keep: artifactType === undefined ? {} : { artifactType },
          }),
        );
      ctx.set('Content-Type', MEDIA_TYPES.ociIndex);
      ctx.body = JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: entries });
    },
  };
}

/** The referrers tag schema: algorithm, a dash, and as much of the hex as a tag takes from it. */
export function fallbackTag(subject: Digest): string {
  return `${algorithmOf(subject).slice(0, 32)}-${hexOf(subject).slice(0, 64)}`;
}

/**
 * Ascending by digest, and one more than fits on the page: such a list may have thousands. Entries whose manifest is
 * gone are left out: deletes are visible at once.
 */
async function fallbackReferrers(
  index: ManifestIndex,
  { repository, subject }: { readonly repository: string; readonly subject: Digest },
  wanted: Page & { readonly artifactType: string | undefined },
): Promise<readonly ReferrerDescriptor[]> {
  const list = await index.resolve(repository, { tag: fallbackTag(subject) });
  if (list === undefined) return [];
  const entries = new Map(indexEntries(list.bytes, list.mediaType).map((entry) => [entry.digest, entry]));
  const present: ReferrerDescriptor[] = [];
  for (const entry of [...entries.values()].toSorted(byDigest)) {
    const { mediaType, digest, size, artifactType, annotations } = entry;
    if (present.length > wanted.limit) break;
    if (digest <= (wanted.after ?? '')) continue;
    if (wanted.artifactType !== undefined && wanted.artifactType !== artifactType) continue;
    if ((await index.resolve(repository, { digest })) === undefined) continue;
    present.push({
      mediaType,
      digest,
      size,
      ...(artifactType === undefined ? {} : { artifactType }),
      ...(annotations === undefined ? {} : { annotations }),
    });
  }
  return present;
}

function indexEntries(bytes: Uint8Array, mediaType: string) {
  try {
    const document = parseManifest(bytes, mediaType);
    return document.kind === 'index' ? document.manifests : [];
  } catch (error) {
    // Whatever carries such a tag and is no index is somebody's ordinary image.
    if (isKind(error, 'invalid', 'unsupported')) return [];
    throw error;
  }
}

function byDigest(a: Pick<ReferrerDescriptor, 'digest'>, b: Pick<ReferrerDescriptor, 'digest'>): number {
  return a.digest < b.digest ? -1 : a.digest > b.digest ? 1 : 0;
}

function merge(
  stored: Paged<ReferrerDescriptor>,
  listed: readonly ReferrerDescriptor[],
  { limit }: Page,
): Paged<ReferrerDescriptor> {
  const known = new Set(stored.entries.map(({ digest }) => digest));
  const lastStored = stored.more ? stored.entries.at(-1)?.digest : undefined;
  const more = listed.filter(({ digest }) => !known.has(digest) && (lastStored === undefined || digest < lastStored));
  const all = [...stored.entries, ...more].toSorted(byDigest);
  return { entries: all.slice(0, limit), more: limit > 0 && (stored.more || all.length > limit) };
}

/** As many entries as an index may have bytes, at least one. */
function fitting({ entries, more }: Paged<ReferrerDescriptor>, maxBytes: number): Paged<ReferrerDescriptor> {
  let bytes = 0;
  const count = entries.findIndex((entry, position) => {
    bytes += Buffer.byteLength(JSON.stringify(entry)) + 1;
    return position > 0 && bytes > maxBytes;
  });
  return count === -1 ? { entries, more } : { entries: entries.slice(0, count), more: true };
}
