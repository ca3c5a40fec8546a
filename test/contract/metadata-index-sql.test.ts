import { METADATA_MIGRATIONS, type MetadataTables } from '../../registry/metadata/schema.ts';
import { createSqlIndex } from '../../registry/metadata/sql.ts';
import { openDatabase } from '../../shared/database.ts';
import { GRACE_MS, metadataIndexContract } from './metadata-index.ts';

metadataIndexContract('node:sqlite', async ({ now }) => {
  const database = openDatabase<MetadataTables>({ path: ':memory:', migrations: METADATA_MIGRATIONS });
  const index = createSqlIndex(database, { now, gcGraceMs: GRACE_MS });
  return { ...index, [Symbol.asyncDispose]: () => database.close() };
});
