/** Records of the build cache in Docker's shape. Pure. */
import type { CacheRecord } from '../engine.ts';
import { goTime } from './context.ts';

export function cacheRecordJson(record: CacheRecord): Record<string, unknown> {
  return {
    ID: record.id,
    Type: record.kind,
    Description: record.description,
    InUse: record.isInUse,
    Shared: record.isShared,
    Size: record.sizeBytes,
    CreatedAt: goTime(record.createdAt),
    LastUsedAt: goTime(record.usedAt),
    UsageCount: record.usedCount,
  };
}
