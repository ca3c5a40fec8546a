/** What `builder prune` and `builder du` do. */
import { formatBytes, formatSpan } from '../../shared/units.ts';
import { filterQuery } from './filters.ts';
import { formatRows, print } from './output.ts';
import { confirm } from './question.ts';
import type { Session } from './session.ts';
import { list, number, object, strings, text } from './values.ts';

export interface BuilderPruneFlags {
  readonly all?: boolean;
  readonly filter?: readonly string[];
  readonly force?: boolean;
  readonly keepStorage?: string;
  readonly reservedSpace?: string;
  readonly maxUsedSpace?: string;
  readonly minFreeSpace?: string;
}

export async function pruneCache(session: Session, flags: BuilderPruneFlags): Promise<void> {
  const what = flags.all === true ? 'all build cache' : 'all dangling build cache';
  if (!(await confirm(`WARNING! This will remove ${what}.\nAre you sure you want to continue?`, flags.force))) return;
  const answer = object(
    await session.engine.call('POST', '/build/prune', {
      query: {
        all: flags.all === true ? 1 : undefined,
        filters: filterQuery(flags.filter),
        'keep-storage': flags.keepStorage,
        'reserved-space': flags.reservedSpace,
        'max-used-space': flags.maxUsedSpace,
        'min-free-space': flags.minFreeSpace,
      },
    }),
  );
  const deleted = strings(answer.CachesDeleted);
  if (deleted.length > 0) print(`Deleted build cache objects:\n${deleted.join('\n')}\n`);
  print(`Total reclaimed space: ${formatBytes(number(answer.SpaceReclaimed))}`);
}

export interface CacheUsageFlags {
  readonly format?: string;
  readonly verbose?: boolean;
}

export async function cacheUsage(session: Session, flags: CacheUsageFlags): Promise<void> {
  const answer = object(await session.engine.call('GET', '/berth/v1/builds/cache'));
  const records = list(answer.records).map(object);
  const rows = records.map((record) => ({
    ID: text(record.ID),
    Type: text(record.Type),
    Reclaimable: String(record.InUse !== true && record.Shared !== true),
    Shared: String(record.Shared === true),
    Size: formatBytes(number(record.Size)),
    LastAccessed: `${formatSpan(session.now() - Date.parse(text(record.LastUsedAt)))} ago`,
    UsageCount: text(record.UsageCount),
    Description: text(record.Description),
  }));
  const columns: (readonly [string, string])[] = [
    ['ID', 'ID'],
    ['Reclaimable', 'RECLAIMABLE'],
    ['Size', 'SIZE'],
    ['LastAccessed', 'LAST ACCESSED'],
    ...(flags.verbose === true
      ? ([
          ['Type', 'TYPE'],
          ['Shared', 'SHARED'],
          ['UsageCount', 'USAGE'],
          ['Description', 'DESCRIPTION'],
        ] as const)
      : []),
  ];
  print(formatRows(rows, columns, { format: flags.format }));
  if (flags.format !== undefined) return;
  const bytes = (some: typeof records) => some.reduce((sum, record) => sum + number(record.Size), 0);
  const shared = records.filter((record) => record.Shared === true);
  const free = records.filter((record) => record.Shared !== true && record.InUse !== true);
  print(
    [
      `Shared: ${formatBytes(bytes(shared))}`,
      `Private: ${formatBytes(bytes(records) - bytes(shared))}`,
      `Reclaimable: ${formatBytes(bytes(free))}`,
      `Total: ${formatBytes(bytes(records))}`,
    ].join('\n'),
  );
}
