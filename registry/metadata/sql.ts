/**
 * MetadataIndex over SQL: node:sqlite today. Queries go through kysely and use nothing that PostgreSQL lacks, so that
 * replicas can share one index later; names and digests must then compare by bytes (COLLATE "C").
 */
import type { Database } from '../../shared/database.ts';
import type { GarbageIndex } from './garbage.ts';
import type { MetadataIndex } from './index.ts';
import type { MetadataTables } from './schema.ts';
import { createBlobIndex, createUploadIndex } from './sql-blobs.ts';
import { createGarbageIndex } from './sql-garbage.ts';
import { createManifestIndex, type SqlIndexOptions } from './sql-manifests.ts';
import { createUpkeepIndex } from './sql-upkeep.ts';
import type { UpkeepIndex } from './upkeep.ts';

export interface SqlIndex extends MetadataIndex, GarbageIndex, UpkeepIndex {}

/** The caller owns the database, opened with METADATA_MIGRATIONS. */
export function createSqlIndex(database: Database<MetadataTables>, options: SqlIndexOptions): SqlIndex {
  return {
    ...createManifestIndex(database, options),
    ...createBlobIndex(database, options),
    ...createUploadIndex(database),
    ...createGarbageIndex(database, options),
    ...createUpkeepIndex(database, options),
  };
}
