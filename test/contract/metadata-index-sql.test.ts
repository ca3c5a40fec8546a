import { expect, it } from 'vitest';
import { METADATA_MIGRATIONS, type MetadataTables } from '../../registry/metadata/schema.ts';
import { createSqlIndex } from '../../registry/metadata/sql.ts';
import { openDatabase } from '../../shared/database.ts';
import { GRACE_MS, metadataIndexContract } from './metadata-index.ts';

metadataIndexContract('node:sqlite', async ({ now }) => {
  const database = openDatabase<MetadataTables>({ path: ':memory:', migrations: METADATA_MIGRATIONS });
  const index = createSqlIndex(database, { now, gcGraceMs: GRACE_MS });
  return { ...index, [Symbol.asyncDispose]: () => database.close() };
});

it('gives a lease away that was taken before the clock went back', async () => {
  let time = 1_800_000_000_000;
  await using database = openDatabase<MetadataTables>({ path: ':memory:', migrations: METADATA_MIGRATIONS });
  const index = createSqlIndex(database, { now: () => new Date(time), gcGraceMs: GRACE_MS });
  expect(await index.takeLease('gc', { holder: 'killed', ttlMs: 5_000 })).toBe(true);
  time -= 4_000;
  expect(await index.takeLease('gc', { holder: 'next', ttlMs: 5_000 })).toBe(false);
  time -= 3_600_000;
  expect(await index.takeLease('gc', { holder: 'next', ttlMs: 5_000 })).toBe(true);
});
