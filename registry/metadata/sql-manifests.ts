/** ManifestIndex over SQL. See schema.ts for the invariants that each transaction here keeps. */
import type { CompiledQuery, Kysely, Transaction } from 'kysely';
import type { Database } from '../../shared/database.ts';
import type { Digest } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import type {
  ManifestIndex,
  NewManifest,
  Page,
  Paged,
  ReferrerDescriptor,
  StoredManifest,
  TagChange,
  TagGuard,
} from './index.ts';
import type { MetadataTables } from './schema.ts';

/** Parameters of one statement: far below SQLite's 32,766 and PostgreSQL's 65,535. */
const ROWS_PER_STATEMENT = 500;

export interface SqlIndexOptions {
  readonly now: () => Date;
  /** Age below which nothing is collected. */
  readonly gcGraceMs: number;
}

/** A touch younger than this is not worth a write. */
export function touchIntervalMs({ gcGraceMs }: SqlIndexOptions): number {
  return gcGraceMs / 4;
}

export function createManifestIndex(database: Database<MetadataTables>, options: SqlIndexOptions): ManifestIndex {
  const now = () => options.now().getTime();
  const { kysely } = database;
  // Compiled once: building these two by far outweighs running them, and every pull runs one. Values are replaced.
  const byDigest = selectManifest(kysely)
    .where('manifest.digest', '=', '' as Digest)
    .compile();
  const byTag = selectManifest(kysely)
    .innerJoin('tag', (join) =>
      join.onRef('tag.repositoryId', '=', 'manifest.repositoryId').onRef('tag.manifest', '=', 'manifest.digest'),
    )
    .where('tag.name', '=', '')
    .compile();

  return {
    async resolve(repository, reference) {
      const { tag, digest } = reference;
      const query: CompiledQuery<StoredManifest> =
        tag === undefined
          ? { ...byDigest, parameters: [repository, digest] }
          : { ...byTag, parameters: [repository, tag] };
      const { rows } = await kysely.executeQuery(query);
      return rows[0];
    },

    async putManifest(repository, manifest, { tags, guard, quotaBytes }) {
      await database.write(async (transaction) => {
        const repositoryId = await ensureRepository(transaction, repository, now());
        const references = await findReferences(transaction, repositoryId, manifest);
        await writeManifest(transaction, manifest, { repositoryId, references, at: now() });
        if (quotaBytes !== undefined) await assertWithinQuota(transaction, manifest, { repositoryId, quotaBytes });
        for (const tag of tags)
          await moveTag(transaction, { repositoryId, tag, to: manifest.digest, guard, at: now() });
      });
    },

    async removeTag(repository, tag, { guard }) {
      return database.write(async (transaction) => {
        const found = await transaction
          .selectFrom('tag')
          .innerJoin('repository', 'repository.id', 'tag.repositoryId')
          .where('repository.name', '=', repository)
          .where('tag.name', '=', tag)
          .select(['tag.repositoryId', 'tag.manifest'])
          .executeTakeFirst();
        if (found === undefined) return false;
        guard({ tag, from: found.manifest });
        await transaction
          .deleteFrom('tag')
          .where('repositoryId', '=', found.repositoryId)
          .where('name', '=', tag)
          .execute();
        return true;
      });
    },

    async removeManifest(repository, digest, { guard }) {
      return database.write(async (transaction) => {
        const found = await findManifest(transaction, repository, digest);
        if (found === undefined) return false;
        const { repositoryId } = found;
        for (const change of await tagsOver(transaction, repositoryId, digest)) guard(change);
        await deleteManifest(transaction, repositoryId, digest);
        return true;
      });
    },

    async touchManifest(repository, digest) {
      const found = await findManifest(kysely, repository, digest);
      if (found === undefined) return false;
      if (found.touchedAt > now() - touchIntervalMs(options)) return true;
      return database.write(async (transaction) => {
        const { numUpdatedRows } = await transaction
          .updateTable('manifest')
          .set({ touchedAt: now() })
          .where('repositoryId', '=', found.repositoryId)
          .where('digest', '=', digest)
          .executeTakeFirst();
        return numUpdatedRows > 0n;
      });
    },

    async tags(repository, page) {
      const found = await kysely
        .selectFrom('repository')
        .where('name', '=', repository)
        .select('id')
        .executeTakeFirst();
      if (found === undefined) return undefined;
      const rows = await kysely
        .selectFrom('tag')
        .where('repositoryId', '=', found.id)
        .where('name', '>', page.after ?? '')
        .orderBy('name')
        .limit(page.limit + 1)
        .select('name')
        .execute();
      return pagedNames(rows, page);
    },

    async referrers(repository, subject, filter) {
      let query = kysely
        .selectFrom('repository')
        .innerJoin('manifest', 'manifest.repositoryId', 'repository.id')
        .where('repository.name', '=', repository)
        .where('manifest.subject', '=', subject)
        .where('manifest.digest', '>', (filter.after ?? '') as Digest)
        .orderBy('manifest.digest')
        .limit(filter.limit + 1)
        .select(['digest', 'mediaType', 'sizeBytes', 'artifactType', 'annotations']);
      if (filter.artifactType !== undefined) query = query.where('manifest.artifactType', '=', filter.artifactType);
      const rows = await query.execute();
      const descriptors = rows.map(
        (row): ReferrerDescriptor => ({
          mediaType: row.mediaType,
          digest: row.digest,
          size: row.sizeBytes,
          ...(row.artifactType === null ? {} : { artifactType: row.artifactType }),
          ...(row.annotations === null ? {} : { annotations: JSON.parse(row.annotations) }),
        }),
      );
      return paged(descriptors, filter);
    },

    async repositories(page) {
      const rows = await kysely
        .selectFrom('repository')
        .where('name', '>', page.after ?? '')
        .where(({ exists, selectFrom }) =>
          exists(
            selectFrom('manifest').whereRef('manifest.repositoryId', '=', 'repository.id').select('manifest.digest'),
          ),
        )
        .orderBy('name')
        .limit(page.limit + 1)
        .select('name')
        .execute();
      return pagedNames(rows, page);
    },

    async recordPulls(pulls) {
      await database.write(async (transaction) => {
        for (const { repository, digest, at } of pulls)
          await transaction
            .updateTable('manifest')
            .set({ pulledAt: at.getTime() })
            .where('repositoryId', '=', ({ selectFrom }) =>
              selectFrom('repository').where('name', '=', repository).select('id'),
            )
            .where('digest', '=', digest)
            .execute();
      });
    },
  };
}

function selectManifest(kysely: Kysely<MetadataTables>) {
  return kysely
    .selectFrom('repository')
    .innerJoin('manifest', 'manifest.repositoryId', 'repository.id')
    .where('repository.name', '=', '')
    .select(['manifest.digest', 'manifest.mediaType', 'manifest.bytes']);
}

export function pagedNames(rows: readonly { readonly name: string }[], page: Page): Paged<string> {
  return paged(
    rows.map(({ name }) => name),
    page,
  );
}

export function paged<T>(rows: readonly T[], { limit }: Page): Paged<T> {
  return { entries: rows.slice(0, limit), more: limit > 0 && rows.length > limit };
}

export async function ensureRepository(
  transaction: Transaction<MetadataTables>,
  name: string,
  createdAt: number,
): Promise<number> {
  const found = await transaction.selectFrom('repository').where('name', '=', name).select('id').executeTakeFirst();
  if (found !== undefined) return found.id;
  const made = await transaction
    .insertInto('repository')
    .values({ name, createdAt })
    .returning('id')
    .executeTakeFirstOrThrow();
  return made.id;
}

function findManifest(source: Kysely<MetadataTables>, repository: string, digest: Digest) {
  return source
    .selectFrom('manifest')
    .innerJoin('repository', 'repository.id', 'manifest.repositoryId')
    .where('repository.name', '=', repository)
    .where('manifest.digest', '=', digest)
    .select(['manifest.repositoryId', 'manifest.touchedAt'])
    .executeTakeFirst();
}

/** Tags that would lose something with this manifest: those on it, and those on indexes that hold it. */
async function tagsOver(
  transaction: Transaction<MetadataTables>,
  repositoryId: number,
  digest: Digest,
): Promise<readonly TagChange[]> {
  const seen = new Set([digest]);
  const changes: TagChange[] = [];
  // A set gives what is added to it while it is walked.
  for (const from of seen) {
    const tags = await transaction
      .selectFrom('tag')
      .where('repositoryId', '=', repositoryId)
      .where('manifest', '=', from)
      .select('name')
      .execute();
    changes.push(...tags.map(({ name }) => ({ tag: name, from })));
    const holders = await transaction
      .selectFrom('manifestReference')
      .where('repositoryId', '=', repositoryId)
      .where('digest', '=', from)
      .select('manifest')
      .execute();
    for (const { manifest } of holders) seen.add(manifest);
  }
  return changes;
}

/** Removes the row and what hangs on it. The caller has asked whether the tags may go. */
export async function deleteManifest(
  transaction: Transaction<MetadataTables>,
  repositoryId: number,
  digest: Digest,
): Promise<void> {
  await transaction.deleteFrom('tag').where('repositoryId', '=', repositoryId).where('manifest', '=', digest).execute();
  await transaction
    .deleteFrom('manifestReference')
    .where('repositoryId', '=', repositoryId)
    .where('manifest', '=', digest)
    .execute();
  await transaction
    .deleteFrom('manifest')
    .where('repositoryId', '=', repositoryId)
    .where('digest', '=', digest)
    .execute();
}

function batches<T>(items: readonly T[]): readonly (readonly T[])[] {
  const count = Math.ceil(items.length / ROWS_PER_STATEMENT);
  return Array.from({ length: count }, (_, index) =>
    items.slice(index * ROWS_PER_STATEMENT, (index + 1) * ROWS_PER_STATEMENT),
  );
}

/** What the manifest will keep alive. An index may hold blobs (BuildKit's cache does), so either kind satisfies. */
async function findReferences(
  transaction: Transaction<MetadataTables>,
  repositoryId: number,
  { digest, references, foreign = [] }: NewManifest,
): Promise<readonly Digest[]> {
  const wanted = new Set([...references, ...foreign]);
  const found = new Set<Digest>();
  const unfound = () => batches([...wanted].filter((reference) => !found.has(reference)));
  for (const batch of unfound()) {
    const rows = await transaction
      .selectFrom('repositoryBlob')
      .innerJoin('blob', 'blob.digest', 'repositoryBlob.digest')
      .where('repositoryBlob.repositoryId', '=', repositoryId)
      .where('repositoryBlob.digest', 'in', batch)
      .where('blob.quarantinedAt', 'is', null)
      .select('repositoryBlob.digest')
      .execute();
    for (const row of rows) found.add(row.digest);
  }
  for (const batch of unfound()) {
    const rows = await transaction
      .selectFrom('manifest')
      .where('repositoryId', '=', repositoryId)
      .where('digest', 'in', batch)
      .select('digest')
      .execute();
    for (const row of rows) found.add(row.digest);
  }
  const missing = [...new Set(references)].filter((reference) => !found.has(reference));
  if (missing.length > 0)
    throw new AppError('not-found', `cannot store manifest ${digest}: the repository lacks ${missing[0]}`, {
      detail: { missing },
    });
  return [...found];
}

interface ManifestWrite {
  readonly repositoryId: number;
  readonly references: readonly Digest[];
  readonly at: number;
}

async function writeManifest(
  transaction: Transaction<MetadataTables>,
  manifest: NewManifest,
  { repositoryId, references, at }: ManifestWrite,
): Promise<void> {
  const { digest, mediaType, bytes } = manifest;
  const known = await transaction
    .selectFrom('manifest')
    .where('repositoryId', '=', repositoryId)
    .where('digest', '=', digest)
    .select('mediaType')
    .executeTakeFirst();
  // The same bytes under two types would make what a digest means depend on who asked (CVE-2021-41190).
  if (known !== undefined && known.mediaType !== mediaType)
    throw new AppError(
      'conflict',
      `cannot store manifest ${digest} as ${mediaType}: it is there as ${known.mediaType}`,
    );
  if (known !== undefined) {
    await transaction
      .updateTable('manifest')
      .set({ pushedAt: at, touchedAt: at })
      .where('repositoryId', '=', repositoryId)
      .where('digest', '=', digest)
      .execute();
    return;
  }
  await transaction
    .insertInto('manifest')
    .values({
      repositoryId,
      digest,
      mediaType,
      bytes,
      sizeBytes: bytes.length,
      subject: manifest.subject ?? null,
      artifactType: manifest.artifactType ?? null,
      annotations: manifest.annotations === undefined ? null : JSON.stringify(manifest.annotations),
      pushedAt: at,
      touchedAt: at,
      pulledAt: null,
    })
    .execute();
  const rows = references.map((reference) => ({ repositoryId, manifest: digest, digest: reference }));
  for (const batch of batches(rows)) await transaction.insertInto('manifestReference').values(batch).execute();
}

/** @throws AppError 'denied' when the repository now holds too much, which undoes the write */
async function assertWithinQuota(
  transaction: Transaction<MetadataTables>,
  { bytes }: NewManifest,
  { repositoryId, quotaBytes }: { readonly repositoryId: number; readonly quotaBytes: number },
): Promise<void> {
  const { name, usedBytes } = await transaction
    .selectFrom('repository')
    .where('id', '=', repositoryId)
    .select(['name', 'usedBytes'])
    .executeTakeFirstOrThrow();
  if (usedBytes > quotaBytes)
    throw quotaExceeded(name, { usedBytes: usedBytes - bytes.length, wantedBytes: bytes.length, quotaBytes });
}

export interface Usage extends Readonly<Record<string, number>> {
  readonly usedBytes: number;
  readonly wantedBytes: number;
  readonly quotaBytes: number;
}

export function quotaExceeded(repository: string, usage: Usage): AppError {
  const { usedBytes, wantedBytes, quotaBytes } = usage;
  return new AppError(
    'denied',
    `cannot store ${wantedBytes} bytes in ${repository}: it holds ${usedBytes} of its quota of ${quotaBytes} bytes`,
    { detail: usage },
  );
}

interface TagMove {
  readonly repositoryId: number;
  readonly tag: string;
  readonly to: Digest;
  readonly guard: TagGuard;
  readonly at: number;
}

async function moveTag(transaction: Transaction<MetadataTables>, move: TagMove): Promise<void> {
  const { repositoryId, tag, to, at } = move;
  const known = await transaction
    .selectFrom('tag')
    .where('repositoryId', '=', repositoryId)
    .where('name', '=', tag)
    .select('manifest')
    .executeTakeFirst();
  if (known?.manifest === to) return;
  move.guard({ tag, from: known?.manifest, to });
  await transaction
    .insertInto('tag')
    .values({ repositoryId, name: tag, manifest: to, createdAt: at, updatedAt: at })
    .onConflict((conflict) => conflict.columns(['repositoryId', 'name']).doUpdateSet({ manifest: to, updatedAt: at }))
    .execute();
}
