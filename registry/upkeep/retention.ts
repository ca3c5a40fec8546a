/**
 * Retention: which tags and untagged manifests a registry keeps. The first rule whose patterns match a tag judges it;
 * a tag goes when none of the rule's keep clauses holds, and its manifest goes with its last tag, together with what
 * only that manifest held. What an index holds, what describes something that is there, immutable tags, and whatever
 * was pushed or asked for within the grace of collection always stay. Freeing the disk is left to gc.ts.
 */
import { setImmediate as turn } from 'node:timers/promises';
import { z } from 'zod';
import { structureOption } from '../../shared/config.ts';
import type { Digest } from '../../shared/digest.ts';
import { AppError, messageOf } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { parseDurationMs } from '../../shared/units.ts';
import { compileGlobs, type Matcher } from '../access/globs.ts';
import type { Batch, Cursor, GarbageIndex } from '../metadata/garbage.ts';
import type { ManifestIndex } from '../metadata/index.ts';
import type { TagRecord, UpkeepIndex } from '../metadata/upkeep.ts';
import { type Hold, withLease } from './lease.ts';

const duration = z.string().transform((text, context) => {
  try {
    return parseDurationMs(text);
  } catch (error) {
    context.addIssue(messageOf(error));
    return z.NEVER;
  }
});
const globs = z.array(z.string()).min(1);

interface KeepClauses {
  readonly keepLast?: number | undefined;
  readonly keepPushedWithin?: number | undefined;
  readonly keepPulledWithin?: number | undefined;
}

const ruleSchema = z
  .strictObject({
    repositories: globs,
    /** Which tags the rule judges. */
    tags: globs.default(['*']),
    /** The last so many by push, among the tags of a repository that this rule judges. */
    keepLast: z.int().nonnegative().optional(),
    keepPushedWithin: duration.optional(),
    keepPulledWithin: duration.optional(),
    removeUntaggedAfter: duration.optional(),
  })
  .refine(
    (rule) => judgesTags(rule) || rule.removeUntaggedAfter !== undefined,
    'says neither what to keep nor to remove',
  );
export type RetentionRule = z.infer<typeof ruleSchema>;

export const retentionOption = structureOption<readonly RetentionRule[]>({
  description:
    'which tags to keep: a list of repositories, tags, keepLast, keepPushedWithin, keepPulledWithin, removeUntaggedAfter; empty = all',
  default: [],
  schema: z.array(ruleSchema),
});

function judgesTags(rule: KeepClauses): boolean {
  return [rule.keepLast, rule.keepPushedWithin, rule.keepPulledWithin].some((clause) => clause !== undefined);
}

export interface Retention {
  /** Tags of one repository that go, out of all that it has. */
  judge(repository: string, tags: readonly TagRecord[], at: Date): readonly TagRecord[];
  /** Age from which a manifest without a tag goes; undefined = never. */
  untaggedAfterMs(repository: string): number | undefined;
}

/** Pure. @throws AppError 'invalid' for a pattern that is none */
export function createRetention(rules: readonly RetentionRule[]): Retention {
  const compiled = rules.map((rule) => ({
    ...rule,
    matchesRepository: compileGlobs(rule.repositories),
    matchesTag: compileGlobs(rule.tags),
  }));
  return {
    judge(repository, tags, at) {
      const candidates = compiled.filter((rule) => rule.matchesRepository(repository) && judgesTags(rule));
      const judged = new Map<RetentionRule & { matchesTag: Matcher }, TagRecord[]>();
      for (const tag of tags) {
        const rule = candidates.find(({ matchesTag }) => matchesTag(tag.name));
        if (rule === undefined) continue;
        const list = judged.get(rule);
        if (list === undefined) judged.set(rule, [tag]);
        else list.push(tag);
      }
      return [...judged].flatMap(([rule, list]) => goingBy(rule, list, at));
    },
    untaggedAfterMs: (repository) =>
      compiled.find((rule) => rule.removeUntaggedAfter !== undefined && rule.matchesRepository(repository))
        ?.removeUntaggedAfter,
  };
}

function goingBy(rule: RetentionRule, tags: readonly TagRecord[], at: Date): readonly TagRecord[] {
  const { keepLast = 0, keepPushedWithin, keepPulledWithin } = rule;
  const isWithin = (time: Date | undefined, span: number | undefined) =>
    time !== undefined && span !== undefined && time.getTime() > at.getTime() - span;
  const newestFirst = tags.toSorted(
    (a, b) => b.pushedAt.getTime() - a.pushedAt.getTime() || (a.name < b.name ? 1 : -1),
  );
  return newestFirst
    .slice(keepLast)
    .filter(({ pushedAt, pulledAt }) => !isWithin(pushedAt, keepPushedWithin) && !isWithin(pulledAt, keepPulledWithin));
}

export interface RetentionPorts {
  readonly index: UpkeepIndex & Pick<ManifestIndex, 'repositories'> & Pick<GarbageIndex, 'takeLease' | 'releaseLease'>;
  readonly now: () => Date;
  readonly randomId: () => string;
}

export interface RetentionOptions extends Cancelable {
  readonly retention: Retention;
  /** Nothing younger is removed. */
  readonly gcGraceMs: number;
  readonly isImmutable: (repository: string, tag: string) => boolean;
  readonly onDropped?: (dropped: { readonly repository: string; readonly tag: string }) => void;
}

export interface RetentionReport {
  readonly tags: number;
  readonly manifests: number;
}

const REPOSITORIES_BATCH = 1000;
/** Removed in one transaction: some milliseconds. */
const REMOVED_BATCH = 200;

/** @throws AppError 'conflict' while another process is at it */
export async function applyRetention(ports: RetentionPorts, options: RetentionOptions): Promise<RetentionReport> {
  const { index } = ports;
  const report = { tags: 0, manifests: 0 };
  const lease = { ...ports, name: 'retention', action: 'apply retention', signal: options.signal };
  await withLease(index, lease, async (hold) => {
    let after: string | undefined;
    do {
      const { entries, more } = await index.repositories({ limit: REPOSITORIES_BATCH, after });
      for (const repository of entries) await retain(ports, repository, { ...options, hold, report });
      after = more ? entries.at(-1) : undefined;
    } while (after !== undefined);
  });
  return report;
}

interface Run extends RetentionOptions {
  readonly hold: Hold;
  readonly report: { -readonly [K in keyof RetentionReport]: RetentionReport[K] };
}

async function retain({ index, now }: RetentionPorts, repository: string, run: Run): Promise<void> {
  const { retention, gcGraceMs, isImmutable, onDropped, hold, report } = run;
  const before = new Date(now().getTime() - gcGraceMs);
  const tags = await all((cursor) => index.tagRecords(repository, cursor), hold);
  const going = retention
    .judge(repository, tags, now())
    .filter(({ name, touchedAt }) => touchedAt < before && !isImmutable(repository, name));
  const candidates = new Set<Digest>();
  for (const batch of batches(going)) {
    await hold();
    for (const { name, manifest } of await index.dropTags(repository, batch)) {
      report.tags += 1;
      candidates.add(manifest);
      onDropped?.({ repository, tag: name });
    }
    await turn();
  }

  const untaggedAfterMs = retention.untaggedAfterMs(repository);
  if (untaggedAfterMs !== undefined) {
    const limit = now().getTime() - untaggedAfterMs;
    const untagged = await all((cursor) => index.untaggedRecords(repository, cursor), hold);
    for (const { digest, usedAt } of untagged) if (usedAt.getTime() < limit) candidates.add(digest);
  }
  // What goes may have been the last to need something else.
  for (let rest: readonly Digest[] = [...candidates]; rest.length > 0; ) {
    const next = new Set<Digest>();
    for (const batch of batches(rest)) {
      await hold();
      const { dropped, freed } = await index.dropManifests(repository, batch, before);
      report.manifests += dropped.length;
      for (const digest of freed) next.add(digest);
      await turn();
    }
    rest = [...next];
  }
}

async function all<T>(read: (cursor: Cursor | undefined) => Promise<Batch<T>>, hold: Hold): Promise<readonly T[]> {
  const every: T[] = [];
  let cursor: Cursor | undefined;
  do {
    await hold();
    const { found, next } = await read(cursor);
    every.push(...found);
    cursor = next;
    await turn();
  } while (cursor !== undefined);
  return every;
}

function batches<T>(items: readonly T[]): readonly (readonly T[])[] {
  return Array.from({ length: Math.ceil(items.length / REMOVED_BATCH) }, (_, i) =>
    items.slice(i * REMOVED_BATCH, (i + 1) * REMOVED_BATCH),
  );
}

/** For a run that is asked for while there are no rules. @throws AppError 'invalid' */
export function assertSome(rules: readonly RetentionRule[]): void {
  if (rules.length === 0)
    throw new AppError('invalid', 'cannot apply retention: there are no rules, set the option retention in the file');
}
