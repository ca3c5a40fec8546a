/** GarbageIndex over SQL. Walks go along primary keys, a batch at a time; a batch that finds nothing still moves on. */
import type { Kysely, Transaction } from 'kysely';
import type { Database } from '../../shared/database.ts';
import type { Digest } from '../../shared/digest.ts';
import { isIndexType } from '../../shared/media-types.ts';
import type { CollectedManifest, Cursor, GarbageIndex } from './garbage.ts';
import type { LinkedBlob } from './index.ts';
import type { MetadataTables } from './schema.ts';
import { deleteManifest } from './sql-manifests.ts';

/** Rows looked at in one transaction: some milliseconds. */
export const BATCH = 500;
/** Nobody takes a lease for as long: one that ends later was taken before the clock went back. */
const LEASE_MAX_MS = 600_000;

export function createGarbageIndex(
  database: Database<MetadataTables>,
  options: { readonly now: () => Date },
): GarbageIndex {
  const now = () => options.now().getTime();
  const { kysely } = database;

  return {
    async takeLease(name, { holder, ttlMs }) {
      return database.write(async (transaction) => {
        const at = now();
        const known = await transaction.selectFrom('lease').where('name', '=', name).selectAll().executeTakeFirst();
        const expiresAt = at + ttlMs;
        const isHeld = known !== undefined && known.expiresAt > at && known.expiresAt <= at + LEASE_MAX_MS;
        if (isHeld && known.holder !== holder) return false;
        await transaction
          .insertInto('lease')
          .values({ name, holder, expiresAt })
          .onConflict((conflict) => conflict.column('name').doUpdateSet({ holder, expiresAt }))
          .execute();
        return true;
      });
    },

    async releaseLease(name, holder) {
      await database.write(async (transaction) => {
        await transaction.deleteFrom('lease').where('name', '=', name).where('holder', '=', holder).execute();
      });
    },

    async collectManifests(before, cursor) {
      return database.write(async (transaction) => {
        const rows = await manifestsAfter(transaction, cursor);
        const found: CollectedManifest[] = [];
        for (const { repositoryId, digest, touchedAt, name } of rows) {
          if (touchedAt >= before.getTime()) continue;
          if (await isManifestNeeded(transaction, repositoryId, digest)) continue;
          await deleteManifest(transaction, repositoryId, digest);
          found.push({ repository: name, digest });
        }
        return { found, next: cursorAfter(rows) };
      });
    },

    async collectLinks(before, cursor) {
      return database.write(async (transaction) => {
        const rows = await linksAfter(transaction, cursor);
        const found: CollectedManifest[] = [];
        for (const { repositoryId, digest, touchedAt, name } of rows) {
          if (touchedAt >= before.getTime()) continue;
          const { numDeletedRows } = await transaction
            .deleteFrom('repositoryBlob')
            .where('repositoryId', '=', repositoryId)
            .where('digest', '=', digest)
            .where(({ not, exists, selectFrom }) =>
              not(
                exists(
                  selectFrom('manifestReference')
                    .where('manifestReference.repositoryId', '=', repositoryId)
                    .where('manifestReference.digest', '=', digest)
                    .select('manifestReference.digest'),
                ),
              ),
            )
            .executeTakeFirst();
          if (numDeletedRows > 0n) found.push({ repository: name, digest });
        }
        return { found, next: cursorAfter(rows) };
      });
    },

    async condemnBlobs(cursor) {
      return database.write(async (transaction) => {
        const rows = await blobsAfter(transaction, cursor);
        if (rows.length === 0) return { found: [], next: undefined };
        const free = await transaction
          .selectFrom('blob')
          .where(
            'blob.digest',
            'in',
            rows.map(({ digest }) => digest),
          )
          .where(({ not, exists, selectFrom }) =>
            not(
              exists(
                selectFrom('repositoryBlob')
                  .whereRef('repositoryBlob.digest', '=', 'blob.digest')
                  .select('repositoryBlob.digest'),
              ),
            ),
          )
          .where(({ not, exists, selectFrom }) =>
            not(
              exists(
                selectFrom('blobPin')
                  .whereRef('blobPin.digest', '=', 'blob.digest')
                  .where('blobPin.expiresAt', '>', now())
                  .select('blobPin.digest'),
              ),
            ),
          )
          .select(['blob.digest', 'blob.sizeBytes'])
          .execute();
        if (free.length > 0) {
          const digests = free.map(({ digest }) => digest);
          await transaction.deleteFrom('blob').where('digest', 'in', digests).execute();
          await condemn(transaction, free, now());
        }
        return { found: free, next: nextBlobs(rows) };
      });
    },

    async condemnUnknown(stored) {
      if (stored.length === 0) return [];
      return database.write(async (transaction) => {
        const digests = stored.map(({ digest }) => digest);
        const rows = [
          ...(await transaction.selectFrom('blob').where('digest', 'in', digests).select('digest').execute()),
          ...(await transaction.selectFrom('removal').where('digest', 'in', digests).select('digest').execute()),
          ...(await transaction
            .selectFrom('blobPin')
            .where('digest', 'in', digests)
            .where('expiresAt', '>', now())
            .select('digest')
            .execute()),
        ];
        const known = new Set(rows.map(({ digest }) => digest));
        const unknown = stored.filter(({ digest }) => !known.has(digest));
        if (unknown.length > 0) await condemn(transaction, unknown, now());
        return unknown;
      });
    },

    async removals() {
      return kysely.selectFrom('removal').select(['digest', 'sizeBytes']).limit(BATCH).execute();
    },

    async endRemoval(digest) {
      await database.write(async (transaction) => {
        await transaction.deleteFrom('removal').where('digest', '=', digest).execute();
      });
    },

    async uploadsBefore(before) {
      const rows = await kysely
        .selectFrom('upload')
        .where('startedAt', '<', before.getTime())
        .selectAll()
        .limit(BATCH)
        .execute();
      return rows.map((row) => ({ ...row, startedAt: new Date(row.startedAt) }));
    },

    async collectLeftovers(before) {
      await database.write(async (transaction) => {
        await transaction.deleteFrom('blobPin').where('expiresAt', '<=', now()).execute();
        const empty = transaction
          .deleteFrom('repository')
          .where('createdAt', '<', before.getTime())
          .where(({ not, exists, selectFrom }) =>
            not(
              exists(
                selectFrom('manifest')
                  .whereRef('manifest.repositoryId', '=', 'repository.id')
                  .select('manifest.digest'),
              ),
            ),
          )
          .where(({ not, exists, selectFrom }) =>
            not(
              exists(
                selectFrom('repositoryBlob')
                  .whereRef('repositoryBlob.repositoryId', '=', 'repository.id')
                  .select('repositoryBlob.digest'),
              ),
            ),
          );
        await empty.execute();
      });
    },

    async isBlobKnown(digest) {
      const found = await kysely.selectFrom('blob').where('digest', '=', digest).select('digest').executeTakeFirst();
      return found !== undefined;
    },

    async danglingReferences(cursor) {
      const [repositoryId, manifest, digest] = tripleOf(cursor);
      const rows = await kysely
        .selectFrom('manifestReference as reference')
        .innerJoin('repository', 'repository.id', 'reference.repositoryId')
        .innerJoin('manifest as parent', (join) =>
          join
            .onRef('parent.repositoryId', '=', 'reference.repositoryId')
            .onRef('parent.digest', '=', 'reference.manifest'),
        )
        .leftJoin('repositoryBlob', (join) =>
          join
            .onRef('repositoryBlob.repositoryId', '=', 'reference.repositoryId')
            .onRef('repositoryBlob.digest', '=', 'reference.digest'),
        )
        .leftJoin('manifest', (join) =>
          join
            .onRef('manifest.repositoryId', '=', 'reference.repositoryId')
            .onRef('manifest.digest', '=', 'reference.digest'),
        )
        .where(({ eb, refTuple, tuple }) =>
          eb(
            refTuple('reference.repositoryId', 'reference.manifest', 'reference.digest'),
            '>',
            tuple(repositoryId, manifest, digest),
          ),
        )
        .orderBy('reference.repositoryId')
        .orderBy('reference.manifest')
        .orderBy('reference.digest')
        .limit(BATCH)
        .select([
          'reference.repositoryId',
          'reference.manifest',
          'reference.digest',
          'repository.name',
          'repositoryBlob.digest as blob',
          'manifest.digest as child',
          'parent.mediaType',
        ])
        .execute();
      const last = rows.at(-1);
      return {
        found: rows
          .filter(({ blob, child, mediaType }) => blob === null && child === null && !isIndexType(mediaType))
          .map((row) => ({ repository: row.name, digest: row.manifest, missing: row.digest })),
        next: last === undefined || rows.length < BATCH ? undefined : [last.repositoryId, last.manifest, last.digest],
      };
    },
  };
}

/** By a tag, by an index that holds it, or by its subject, which it describes. */
export async function isManifestNeeded(
  transaction: Transaction<MetadataTables>,
  repositoryId: number,
  digest: Digest,
): Promise<boolean> {
  const needed = await transaction
    .selectFrom('manifest')
    .where('manifest.repositoryId', '=', repositoryId)
    .where('manifest.digest', '=', digest)
    .where(({ or, exists, selectFrom }) =>
      or([
        exists(
          selectFrom('tag')
            .where('tag.repositoryId', '=', repositoryId)
            .where('tag.manifest', '=', digest)
            .select('tag.name'),
        ),
        exists(
          selectFrom('manifestReference')
            .where('manifestReference.repositoryId', '=', repositoryId)
            .where('manifestReference.digest', '=', digest)
            .select('manifestReference.digest'),
        ),
        exists(
          selectFrom('manifest as subject')
            .where('subject.repositoryId', '=', repositoryId)
            .whereRef('subject.digest', '=', 'manifest.subject')
            .select('subject.digest'),
        ),
      ]),
    )
    .select('manifest.digest')
    .executeTakeFirst();
  return needed !== undefined;
}

function blobsAfter(source: Kysely<MetadataTables>, cursor: Cursor | undefined) {
  return source
    .selectFrom('blob')
    .where('digest', '>', String(cursor?.[0] ?? '') as Digest)
    .orderBy('digest')
    .limit(BATCH)
    .select(['digest', 'sizeBytes'])
    .execute();
}

function nextBlobs(rows: readonly LinkedBlob[]): Cursor | undefined {
  const last = rows.at(-1);
  return last === undefined || rows.length < BATCH ? undefined : [last.digest];
}

function manifestsAfter(source: Kysely<MetadataTables>, cursor: Cursor | undefined) {
  const [repositoryId, after] = pairOf(cursor);
  return source
    .selectFrom('manifest')
    .innerJoin('repository', 'repository.id', 'manifest.repositoryId')
    .where(({ eb, refTuple, tuple }) =>
      eb(refTuple('manifest.repositoryId', 'manifest.digest'), '>', tuple(repositoryId, after)),
    )
    .orderBy('manifest.repositoryId')
    .orderBy('manifest.digest')
    .limit(BATCH)
    .select(['manifest.repositoryId', 'manifest.digest', 'manifest.touchedAt', 'repository.name'])
    .execute();
}

function linksAfter(source: Kysely<MetadataTables>, cursor: Cursor | undefined) {
  const [repositoryId, after] = pairOf(cursor);
  return source
    .selectFrom('repositoryBlob')
    .innerJoin('repository', 'repository.id', 'repositoryBlob.repositoryId')
    .where(({ eb, refTuple, tuple }) =>
      eb(refTuple('repositoryBlob.repositoryId', 'repositoryBlob.digest'), '>', tuple(repositoryId, after)),
    )
    .orderBy('repositoryBlob.repositoryId')
    .orderBy('repositoryBlob.digest')
    .limit(BATCH)
    .select(['repositoryBlob.repositoryId', 'repositoryBlob.digest', 'repositoryBlob.touchedAt', 'repository.name'])
    .execute();
}

function cursorAfter(rows: readonly { readonly repositoryId: number; readonly digest: Digest }[]): Cursor | undefined {
  const last = rows.at(-1);
  return last === undefined || rows.length < BATCH ? undefined : [last.repositoryId, last.digest];
}

/** Cursors are made above, of these parts; a digest that is none sorts before all. */
function pairOf(cursor: Cursor | undefined): [number, Digest] {
  return [Number(cursor?.[0] ?? 0), String(cursor?.[1] ?? '') as Digest];
}

function tripleOf(cursor: Cursor | undefined): [number, Digest, Digest] {
  return [...pairOf(cursor), String(cursor?.[2] ?? '') as Digest];
}

export async function condemn(
  transaction: Transaction<MetadataTables>,
  blobs: readonly LinkedBlob[],
  decidedAt: number,
): Promise<void> {
  const rows = blobs.map(({ digest, sizeBytes }) => ({ digest, sizeBytes, decidedAt }));
  await transaction
    .insertInto('removal')
    .values(rows)
    .onConflict((conflict) => conflict.column('digest').doNothing())
    .execute();
}
