import { describe, expect, it } from 'vitest';
import { createRetention, type RetentionRule, retentionOption } from '../../../registry/upkeep/retention.ts';
import { digestOf } from '../../../shared/digest.ts';

const DAY_MS = 24 * 3_600_000;
const NOW = new Date(Date.UTC(2026, 5, 1));
const ago = (days: number) => new Date(NOW.getTime() - days * DAY_MS);

/** Name, age in days of its push, and of its last pull. */
function tag(name: string, pushed: number, pulled?: number) {
  const pulledAt = pulled === undefined ? undefined : ago(pulled);
  return { name, manifest: digestOf(name), pushedAt: ago(pushed), pulledAt, touchedAt: ago(pushed) };
}

const rule = (more: object) => retentionOption.schema.parse([{ repositories: ['**'], ...more }]);

describe('retention', () => {
  const tags = [tag('a', 1), tag('b', 2, 1), tag('c', 30, 2), tag('d', 40), tag('v1', 50)];
  it.each<[string, readonly RetentionRule[], readonly string[]]>([
    ['keeps all without rules', [], []],
    ['keeps the last by push', rule({ keepLast: 2 }), ['c', 'd', 'v1']],
    ['keeps what any clause keeps', rule({ keepLast: 1, keepPulledWithin: '72h' }), ['d', 'v1']],
    ['keeps by age of push', rule({ keepPushedWithin: '960h' }), ['d', 'v1']],
    ['judges the tags of its pattern only', rule({ tags: ['v*'], keepLast: 0 }), ['v1']],
    ['counts only what it judges', rule({ tags: ['c', 'd', 'v*'], keepLast: 1 }), ['d', 'v1']],
    ['lets the first rule decide', [...rule({ tags: ['v*'], keepLast: 9 }), ...rule({ keepLast: 3 })], ['d']],
    ['leaves other repositories alone', rule({ repositories: ['other/**'], keepLast: 0 }), []],
    ['judges no tag by a rule for untagged manifests', rule({ removeUntaggedAfter: '1h' }), []],
  ])('%s', (_name, rules, expected) => {
    const going = createRetention(rules).judge('r', tags, NOW);
    expect(going.map(({ name }) => name).toSorted()).toEqual(expected);
  });

  it('tells from when untagged manifests go', () => {
    const retention = createRetention([
      ...rule({ repositories: ['a/*'], removeUntaggedAfter: '2h' }),
      ...rule({ keepLast: 1 }),
    ]);
    expect(retention.untaggedAfterMs('a/b')).toBe(2 * 3_600_000);
    expect(retention.untaggedAfterMs('b')).toBeUndefined();
  });

  it.each([{}, { keepLast: -1 }, { keepPushedWithin: 'soon' }, { keepLast: 1, keep: 2 }])('refuses %j', (more) => {
    expect(() => rule(more)).toThrow();
  });
});
