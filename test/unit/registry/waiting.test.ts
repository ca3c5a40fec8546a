import { describe, expect, it } from 'vitest';
import { coalesce } from '../../../registry/coalesce.ts';
import { createTurns } from '../../../registry/turns.ts';
import { createPullTimes } from '../../../registry/upkeep/pull-times.ts';
import { digestOf } from '../../../shared/digest.ts';

describe('coalesce', () => {
  it('answers everybody who asks in one turn with one read that starts after the last', async () => {
    let value = 0;
    let reads = 0;
    const read = coalesce(
      async (_key: string) => {
        reads += 1;
        return value;
      },
      (key) => key,
    );
    const first = read('a');
    value = 1;
    expect(await Promise.all([first, read('a'), read('b')])).toEqual([1, 1, 1]);
    expect(reads).toBe(2);
    value = 2;
    expect(await read('a')).toBe(2);
  });

  it('shares a failure and forgets it', async () => {
    let broken = true;
    const read = coalesce(
      async (_key: string) => {
        if (broken) throw new Error('down');
        return 'up';
      },
      (key) => key,
    );
    await expect(Promise.all([read('a'), read('a')])).rejects.toThrow('down');
    broken = false;
    expect(await read('a')).toBe('up');
  });
});

describe('turns', () => {
  it('lets holders of one key follow each other, and those of others pass', async () => {
    const turns = createTurns({ waitMs: 10_000 });
    const order: string[] = [];
    const first = await turns.take('a');
    const second = turns.take('a').then((turn) => {
      order.push('second');
      turn[Symbol.dispose]();
    });
    using _other = await turns.take('b');
    order.push('first');
    first[Symbol.dispose]();
    await second;
    expect(order).toEqual(['first', 'second']);
    using _again = await turns.take('a');
  });

  it('gives up behind a holder that does not end', async () => {
    const turns = createTurns({ waitMs: 5 });
    using _held = await turns.take('a');
    await expect(turns.take('a')).rejects.toMatchObject({ kind: 'unavailable' });
  });
});

describe('pull times', () => {
  it('writes a manifest once per resolution', async () => {
    let time = 1_000_000;
    const written: string[] = [];
    const index = {
      recordPulls: async (pulls: readonly { repository: string; at: Date }[]) => {
        written.push(...pulls.map(({ repository, at }) => `${repository} ${at.getTime()}`));
      },
    };
    const pulls = createPullTimes(index, { now: () => new Date(time), resolutionMs: 1000 });
    const digest = digestOf('m');
    pulls.note('a', digest);
    pulls.note('a', digest);
    pulls.note('b', digest);
    await pulls.flush();
    pulls.note('a', digest);
    await pulls.flush();
    time += 1001;
    pulls.note('a', digest);
    await pulls.flush();
    expect(written).toEqual(['a 1000000', 'b 1000000', 'a 1001001']);
  });
});
