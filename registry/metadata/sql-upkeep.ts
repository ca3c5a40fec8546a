/** UpkeepIndex over SQL. */
import type { Kysely } from 'kysely';
import type { Database } from '../../shared/database.ts';
import type { Digest } from '../../shared/digest.ts';
import type { MetadataTables } from './schema.ts';
import { BATCH, condemn, isManifestNeeded } from './sql-garbage.ts';
import { deleteManifest } from './sql-manifests.ts';
import type { TagRecord, UpkeepIndex } from './upkeep.ts';

export function createUpkeepIndex(
  database: Database<MetadataTables>,
  options: { readonly now: () => Date },
): UpkeepIndex {
  const now = () => options.now().getTime();
  const { kysely } = database;

  return {
    async progress(name) {
      const found = await kysely.selectFrom('progress').where('name', '=', name).selectAll().executeTakeFirst();
      if (found === undefined) return undefined;
      const { position, startedAt, endedAt } = found;
      return { position, startedAt: new Date(startedAt), endedAt: dateOf(endedAt) };
    },

    async setProgress(name, { position, startedAt, endedAt }) {
      const row = { position, startedAt: startedAt.getTime(), endedAt: endedAt?.getTime() ?? null };
      await database.write((transaction) =>
        transaction
          .insertInto('progress')
          .values({ name, ...row })
          .onConflict((conflict) => conflict.column('name').doUpdateSet(row))
          .execute(),
      );
    },

    async storedBlobs(after) {
      const rows = await kysely
        .selectFrom('blob')
        .where('digest', '>', after as Digest)
        .orderBy('digest')
        .limit(BATCH)
        .select(['digest', 'sizeBytes', 'quarantinedAt'])
        .execute();
      return rows.map((row) => ({ ...row, quarantinedAt: dateOf(row.quarantinedAt) }));
    },

    async quarantine(digest, isStill) {
      return database.write(async (transaction) => {
        const found = await transaction
          .selectFrom('blob')
          .where('digest', '=', digest)
          .select('digest')
          .executeTakeFirst();
        if (found === undefined || !isStill()) return false;
        await transaction.updateTable('blob').set({ quarantinedAt: now() }).where('digest', '=', digest).execute();
        return true;
      });
    },

    async condemnQuarantined(digest) {
      return database.write(async (transaction) => {
        const free = await transaction
          .selectFrom('blob')
          .where('blob.digest', '=', digest)
          .where('blob.quarantinedAt', 'is not', null)
          .where(({ not, exists, selectFrom }) =>
            not(
              exists(
                selectFrom('blobPin')
                  .where('blobPin.digest', '=', digest)
                  .where('blobPin.expiresAt', '>', now())
                  .select('blobPin.digest'),
              ),
            ),
          )
          .select(['digest', 'sizeBytes'])
          .executeTakeFirst();
        if (free === undefined) return false;
        await condemn(transaction, [free], now());
        return true;
      });
    },

    async manifestsWith(digest) {
      return kysely
        .selectFrom('manifestReference')
        .innerJoin('repository', 'repository.id', 'manifestReference.repositoryId')
        .where('manifestReference.digest', '=', digest)
        .where('manifestReference.repositoryId', 'in', ({ selectFrom }) =>
          selectFrom('repositoryBlob').where('digest', '=', digest).select('repositoryId'),
        )
        .orderBy('repository.name')
        .limit(BATCH)
        .select(['repository.name as repository', 'manifestReference.manifest as digest'])
        .execute();
    },

    async tagRecords(repository, cursor) {
      const rows = await kysely
        .selectFrom('repository')
        .innerJoin('tag', 'tag.repositoryId', 'repository.id')
        .innerJoin('manifest', (join) =>
          join.onRef('manifest.repositoryId', '=', 'tag.repositoryId').onRef('manifest.digest', '=', 'tag.manifest'),
        )
        .where('repository.name', '=', repository)
        .where('tag.name', '>', String(cursor?.[0] ?? ''))
        .orderBy('tag.name')
        .limit(BATCH)
        .select(['tag.name', 'tag.manifest', 'tag.updatedAt', 'manifest.pushedAt'])
        .select(['manifest.pulledAt', 'manifest.touchedAt'])
        .execute();
      const found = rows.map(
        ({ name, manifest, updatedAt, pushedAt, pulledAt, touchedAt }): TagRecord => ({
          name,
          manifest,
          pushedAt: new Date(Math.max(updatedAt, pushedAt)),
          pulledAt: dateOf(pulledAt),
          touchedAt: new Date(Math.max(updatedAt, touchedAt)),
        }),
      );
      const last = found.at(-1);
      return { found, next: last === undefined || found.length < BATCH ? undefined : [last.name] };
    },

    async untaggedRecords(repository, cursor) {
      const rows = await kysely
        .selectFrom('repository')
        .innerJoin('manifest', 'manifest.repositoryId', 'repository.id')
        .leftJoin('tag', (join) =>
          join.onRef('tag.repositoryId', '=', 'manifest.repositoryId').onRef('tag.manifest', '=', 'manifest.digest'),
        )
        .where('repository.name', '=', repository)
        .where('tag.name', 'is', null)
        .where('manifest.digest', '>', String(cursor?.[0] ?? '') as Digest)
        .orderBy('manifest.digest')
        .limit(BATCH)
        .select(['manifest.digest', 'manifest.pushedAt', 'manifest.pulledAt', 'manifest.touchedAt'])
        .execute();
      const found = rows.map(({ digest, pushedAt, pulledAt, touchedAt }) => ({
        digest,
        usedAt: new Date(Math.max(pushedAt, touchedAt, pulledAt ?? 0)),
      }));
      const last = found.at(-1);
      return { found, next: last === undefined || found.length < BATCH ? undefined : [last.digest] };
    },

    async dropTags(repository, tags) {
      return database.write(async (transaction) => {
        const repositoryId = await findRepository(transaction, repository);
        if (repositoryId === undefined) return [];
        const dropped: TagRecord[] = [];
        for (const tag of tags) {
          const current = await transaction
            .selectFrom('tag')
            .innerJoin('manifest', (join) =>
              join
                .onRef('manifest.repositoryId', '=', 'tag.repositoryId')
                .onRef('manifest.digest', '=', 'tag.manifest'),
            )
            .where('tag.repositoryId', '=', repositoryId)
            .where('tag.name', '=', tag.name)
            .select(['tag.manifest', 'tag.updatedAt', 'manifest.touchedAt', 'manifest.pulledAt'])
            .executeTakeFirst();
          if (
            current?.manifest !== tag.manifest ||
            Math.max(current.updatedAt, current.touchedAt) !== tag.touchedAt.getTime() ||
            (current.pulledAt ?? undefined) !== tag.pulledAt?.getTime()
          )
            continue;
          await transaction
            .deleteFrom('tag')
            .where('repositoryId', '=', repositoryId)
            .where('name', '=', tag.name)
            .execute();
          dropped.push(tag);
        }
        return dropped;
      });
    },

    async dropManifests(repository, manifests, before) {
      return database.write(async (transaction) => {
        const [dropped, freed]: [Digest[], Digest[]] = [[], []];
        const repositoryId = await findRepository(transaction, repository);
        if (repositoryId === undefined) return { dropped, freed };
        for (const digest of manifests) {
          const old = await transaction
            .selectFrom('manifest')
            .where('repositoryId', '=', repositoryId)
            .where('digest', '=', digest)
            .where('touchedAt', '<', before.getTime())
            .select('digest')
            .executeTakeFirst();
          if (old === undefined || (await isManifestNeeded(transaction, repositoryId, digest))) continue;
          if (await isSubjectOfTagged(transaction, repositoryId, digest)) continue;
          const held = await transaction
            .selectFrom('manifestReference')
            .where('repositoryId', '=', repositoryId)
            .where('manifest', '=', digest)
            .select('digest')
            .execute();
          const describing = await transaction
            .selectFrom('manifest')
            .where('repositoryId', '=', repositoryId)
            .where('subject', '=', digest)
            .select('digest')
            .execute();
          await deleteManifest(transaction, repositoryId, digest);
          dropped.push(digest);
          freed.push(...[...held, ...describing].map((row) => row.digest));
        }
        return { dropped, freed };
      });
    },

    async removeRepositoryPart(repository, { guard }) {
      return database.write(async (transaction) => {
        const repositoryId = await findRepository(transaction, repository);
        if (repositoryId === undefined) return undefined;
        const manifests = await transaction
          .selectFrom('manifest')
          .where('repositoryId', '=', repositoryId)
          .limit(BATCH)
          .select('digest')
          .execute();
        for (const { digest } of manifests) {
          const tags = await transaction
            .selectFrom('tag')
            .where('repositoryId', '=', repositoryId)
            .where('manifest', '=', digest)
            .select('name')
            .execute();
          for (const { name } of tags) guard({ tag: name, from: digest });
          await deleteManifest(transaction, repositoryId, digest);
        }
        if (manifests.length === BATCH) return { manifests: BATCH, done: false };
        const links = await transaction
          .deleteFrom('repositoryBlob')
          .where('repositoryId', '=', repositoryId)
          .where('digest', 'in', ({ selectFrom }) =>
            selectFrom('repositoryBlob').where('repositoryId', '=', repositoryId).limit(BATCH).select('digest'),
          )
          .executeTakeFirst();
        const done = links.numDeletedRows < BigInt(BATCH);
        if (done) await transaction.deleteFrom('repository').where('id', '=', repositoryId).execute();
        return { manifests: manifests.length, done };
      });
    },
  };
}

/** Whoever tagged a signature or an SBOM wants what it describes. */
async function isSubjectOfTagged(source: Kysely<MetadataTables>, repositoryId: number, digest: Digest) {
  const found = await source
    .selectFrom('manifest')
    .innerJoin('tag', (join) =>
      join.onRef('tag.repositoryId', '=', 'manifest.repositoryId').onRef('tag.manifest', '=', 'manifest.digest'),
    )
    .where('manifest.repositoryId', '=', repositoryId)
    .where('manifest.subject', '=', digest)
    .select('manifest.digest')
    .executeTakeFirst();
  return found !== undefined;
}

function dateOf(milliseconds: number | null): Date | undefined {
  return milliseconds === null ? undefined : new Date(milliseconds);
}

async function findRepository(source: Kysely<MetadataTables>, name: string): Promise<number | undefined> {
  const found = await source.selectFrom('repository').where('name', '=', name).select('id').executeTakeFirst();
  return found?.id;
}
