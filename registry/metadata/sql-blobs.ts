/** BlobIndex and UploadIndex over SQL. See schema.ts for the order of a push and what collection does meanwhile. */
import type { Kysely, Transaction } from 'kysely';
import type { Database } from '../../shared/database.ts';
import type { Digest } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import type { BlobIndex, LinkedBlob, UploadIndex } from './index.ts';
import type { MetadataTables } from './schema.ts';
import { ensureRepository, pagedNames, quotaExceeded, type SqlIndexOptions, touchIntervalMs } from './sql-manifests.ts';

export function createBlobIndex(database: Database<MetadataTables>, options: SqlIndexOptions): BlobIndex {
  const now = () => options.now().getTime();
  const { kysely } = database;

  const find = (repository: string, digest: Digest) =>
    kysely
      .selectFrom('repository')
      .innerJoin('repositoryBlob', 'repositoryBlob.repositoryId', 'repository.id')
      .innerJoin('blob', 'blob.digest', 'repositoryBlob.digest')
      .where('repository.name', '=', repository)
      .where('repositoryBlob.digest', '=', digest)
      .where('blob.quarantinedAt', 'is', null)
      .select(['blob.digest', 'blob.sizeBytes', 'repositoryBlob.repositoryId', 'repositoryBlob.touchedAt'])
      .executeTakeFirst();

  const link = async (transaction: Transaction<MetadataTables>, repository: string, digest: Digest) => {
    const at = now();
    await transaction
      .insertInto('repositoryBlob')
      .values({
        repositoryId: await ensureRepository(transaction, repository, at),
        digest,
        linkedAt: at,
        touchedAt: at,
      })
      .onConflict((conflict) => conflict.columns(['repositoryId', 'digest']).doUpdateSet({ touchedAt: at }))
      .execute();
  };

  return {
    async blob(repository, digest) {
      const found = await find(repository, digest);
      return found === undefined ? undefined : { digest, sizeBytes: found.sizeBytes };
    },

    async touchBlob(repository, digest) {
      const found = await find(repository, digest);
      if (found === undefined) return undefined;
      const answer: LinkedBlob = { digest, sizeBytes: found.sizeBytes };
      if (found.touchedAt > now() - touchIntervalMs(options)) return answer;
      return database.write(async (transaction) => {
        const { numUpdatedRows } = await transaction
          .updateTable('repositoryBlob')
          .set({ touchedAt: now() })
          .where('repositoryId', '=', found.repositoryId)
          .where('digest', '=', digest)
          .executeTakeFirst();
        return numUpdatedRows > 0n ? answer : undefined;
      });
    },

    async pinBlob(digest) {
      await database.write(async (transaction) => {
        const removal = await transaction
          .selectFrom('removal')
          .where('digest', '=', digest)
          .select('digest')
          .executeTakeFirst();
        if (removal !== undefined)
          throw new AppError('unavailable', `cannot store blob ${digest}: an old copy is being removed, try again`);
        const expiresAt = now() + options.gcGraceMs;
        await transaction
          .insertInto('blobPin')
          .values({ digest, expiresAt })
          .onConflict((conflict) => conflict.column('digest').doUpdateSet({ expiresAt }))
          .execute();
      });
    },

    async linkBlob(repository, { digest, sizeBytes }, { upload, quotaBytes } = {}) {
      const exceeded = await database.write(async (transaction) => {
        const over = await overQuota(transaction, { repository, digest, sizeBytes, quotaBytes });
        await transaction
          .insertInto('blob')
          .values({ digest, sizeBytes, createdAt: now() })
          // The bytes that were just committed are good, whatever was there before.
          .onConflict((conflict) => conflict.column('digest').doUpdateSet({ sizeBytes, quarantinedAt: null }))
          .execute();
        // The row without a link is how collection finds the bytes, which are there already.
        if (over === undefined) await link(transaction, repository, digest);
        if (upload !== undefined) await transaction.deleteFrom('upload').where('id', '=', upload).execute();
        return over;
      });
      if (exceeded !== undefined) throw exceeded;
    },

    async assertFits(repository, { digest, sizeBytes }, quotaBytes) {
      const exceeded = await overQuota(kysely, { repository, digest, sizeBytes, quotaBytes });
      if (exceeded !== undefined) throw exceeded;
    },

    async mountBlob(to, from, { digest, quotaBytes }) {
      return database.write(async (transaction) => {
        const source = await transaction
          .selectFrom('repository')
          .innerJoin('repositoryBlob', 'repositoryBlob.repositoryId', 'repository.id')
          .innerJoin('blob', 'blob.digest', 'repositoryBlob.digest')
          .where('repository.name', '=', from)
          .where('repositoryBlob.digest', '=', digest)
          .where('blob.quarantinedAt', 'is', null)
          .select('blob.sizeBytes')
          .executeTakeFirst();
        if (source === undefined) return undefined;
        const { sizeBytes } = source;
        const exceeded = await overQuota(transaction, { repository: to, digest, sizeBytes, quotaBytes });
        if (exceeded !== undefined) throw exceeded;
        await link(transaction, to, digest);
        return { digest, sizeBytes };
      });
    },

    async repositoriesWithBlob(digest, page) {
      const rows = await kysely
        .selectFrom('repositoryBlob')
        .innerJoin('repository', 'repository.id', 'repositoryBlob.repositoryId')
        .where('repositoryBlob.digest', '=', digest)
        .where('repository.name', '>', page.after ?? '')
        .orderBy('repository.name')
        .limit(page.limit + 1)
        .select('repository.name')
        .execute();
      return pagedNames(rows, page);
    },

    async unlinkBlob(repository, digest) {
      return database.write(async (transaction) => {
        const found = await transaction
          .selectFrom('repository')
          .innerJoin('repositoryBlob', 'repositoryBlob.repositoryId', 'repository.id')
          .where('repository.name', '=', repository)
          .where('repositoryBlob.digest', '=', digest)
          .select('repository.id')
          .executeTakeFirst();
        if (found === undefined) return false;
        const reference = await transaction
          .selectFrom('manifestReference')
          .where('repositoryId', '=', found.id)
          .where('digest', '=', digest)
          .select('manifest')
          .executeTakeFirst();
        if (reference !== undefined)
          throw new AppError('conflict', `cannot delete blob ${digest}: manifest ${reference.manifest} refers to it`);
        await transaction
          .deleteFrom('repositoryBlob')
          .where('repositoryId', '=', found.id)
          .where('digest', '=', digest)
          .execute();
        return true;
      });
    },
  };
}

interface QuotaQuestion {
  readonly repository: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly quotaBytes: number | undefined;
}

/** What the repository has already costs nothing more. */
async function overQuota(
  source: Kysely<MetadataTables>,
  { repository, digest, sizeBytes, quotaBytes }: QuotaQuestion,
): Promise<AppError | undefined> {
  if (quotaBytes === undefined) return undefined;
  const found = await source
    .selectFrom('repository')
    .where('name', '=', repository)
    .select(['id', 'usedBytes'])
    .executeTakeFirst();
  const linked = await source
    .selectFrom('repositoryBlob')
    .where('repositoryId', '=', found?.id ?? -1)
    .where('digest', '=', digest)
    .select('digest')
    .executeTakeFirst();
  const usedBytes = found?.usedBytes ?? 0;
  if (linked !== undefined || usedBytes + sizeBytes <= quotaBytes) return undefined;
  return quotaExceeded(repository, { usedBytes, wantedBytes: sizeBytes, quotaBytes });
}

export function createUploadIndex(database: Database<MetadataTables>): UploadIndex {
  return {
    async createUpload(upload, { maxOpen }) {
      await database.write(async (transaction) => {
        const { open } = await transaction
          .selectFrom('upload')
          .where('owner', '=', upload.owner)
          .select(({ fn }) => fn.countAll<number>().as('open'))
          .executeTakeFirstOrThrow();
        if (open >= maxOpen)
          throw new AppError(
            'conflict',
            `cannot begin another upload: ${open} of yours are open, finish or cancel one`,
          );
        await transaction
          .insertInto('upload')
          .values({ ...upload, startedAt: upload.startedAt.getTime() })
          .execute();
      });
    },

    async upload(id, { repository, owner }) {
      const found = await database.kysely
        .selectFrom('upload')
        .where('id', '=', id)
        .where('repository', '=', repository)
        .where('owner', '=', owner)
        .selectAll()
        .executeTakeFirst();
      return found === undefined ? undefined : { ...found, startedAt: new Date(found.startedAt) };
    },

    async removeUpload(id) {
      return database.write(async (transaction) => {
        const { numDeletedRows } = await transaction.deleteFrom('upload').where('id', '=', id).executeTakeFirst();
        return numDeletedRows > 0n;
      });
    },
  };
}
