import { describe, expect, it } from 'vitest';
import { createEventLog, type EngineEvent, matchesFilters } from '../../runtime/events.ts';

const AT = new Date('2026-01-02T03:04:05.006Z');
const NANO = BigInt(AT.getTime()) * 1_000_000n;

function started(name: string) {
  return { type: 'container', action: 'start', id: `${name}-id`, attributes: { name, image: 'busybox:1' } } as const;
}

async function collect(events: AsyncIterable<EngineEvent>): Promise<string[]> {
  const names: string[] = [];
  for await (const event of events) names.push(event.id);
  return names;
}

describe('EventLog', () => {
  it('gives events of one instant increasing times', async () => {
    const log = createEventLog({ now: () => AT });
    const follower = log.follow();
    log.publish(started('a'));
    log.publish(started('b'));
    expect((await follower.next()).value).toMatchObject({ id: 'a-id', timeNano: NANO });
    expect((await follower.next()).value).toMatchObject({ id: 'b-id', timeNano: NANO + 1n });
  });

  it('replays since, then goes on with what happens', async () => {
    const log = createEventLog({ now: () => AT });
    for (const name of ['a', 'b', 'c']) log.publish(started(name));
    const follower = log.follow({ sinceNano: NANO + 1n });
    log.publish(started('d'));
    log.close();
    expect(await collect(follower)).toEqual(['b-id', 'c-id', 'd-id']);
  });

  it('ends after the replay when until is in the past', async () => {
    const log = createEventLog({ now: () => AT });
    for (const name of ['a', 'b', 'c']) log.publish(started(name));
    expect(await collect(log.follow({ sinceNano: 0n, untilNano: NANO + 1n }))).toEqual(['a-id', 'b-id']);
    expect(log.listeners).toBe(0);
  });

  it('ends on abort and on return, and forgets the reader', async () => {
    const log = createEventLog({ now: () => AT });
    const abort = new AbortController();
    const follower = log.follow({ signal: abort.signal });
    const reading = collect(follower);
    abort.abort();
    expect(await reading).toEqual([]);
    await log.follow().return?.();
    expect(await collect(log.follow({ signal: abort.signal }))).toEqual([]);
    expect(log.listeners).toBe(0);
  });

  it('keeps a bounded number for replay', async () => {
    const log = createEventLog({ now: () => AT, keep: 2 });
    for (const name of ['a', 'b', 'c']) log.publish(started(name));
    const follower = log.follow({ sinceNano: 0n });
    log.close();
    expect(await collect(follower)).toEqual(['b-id', 'c-id']);
  });

  it('cuts off a reader that never reads', async () => {
    const log = createEventLog({ now: () => AT });
    const follower = log.follow();
    for (let n = 0; n < 9000; n++) log.publish(started('a'));
    await expect(follower.next()).rejects.toMatchObject({ kind: 'unavailable' });
    expect(log.listeners).toBe(0);
  });
});

describe('event filters', () => {
  const event: EngineEvent = {
    type: 'container',
    action: 'exec_create: sh -c x',
    id: 'abcdef',
    attributes: { name: 'web', image: 'host:5000/app:v1', tier: 'front' },
    timeNano: 1n,
  };
  const pull: EngineEvent = { type: 'image', action: 'pull', id: 'a/b:1', attributes: { name: 'a/b' }, timeNano: 1n };
  it.each([
    [event, {}, true],
    [event, { type: ['image', 'container'] }, true],
    [event, { type: ['image'] }, false],
    [event, { event: ['exec_create'] }, true],
    [event, { event: ['exec'] }, false],
    [event, { container: ['abc'] }, true],
    [event, { container: ['web'] }, true],
    [event, { container: ['db'] }, false],
    [event, { network: ['web'] }, false],
    [event, { image: ['host:5000/app'] }, true],
    [event, { image: ['host:5000/app:v1'] }, true],
    [event, { image: ['host'] }, false],
    [event, { label: ['tier'] }, true],
    [event, { label: ['tier=front'] }, true],
    [event, { label: ['tier=back'] }, false],
    [event, { label: ['constructor'] }, false],
    [event, { type: ['container'], event: ['die'] }, false],
    [event, { scope: ['local'] }, true],
    [pull, { image: ['a/b'] }, true],
    [pull, { image: ['a/b:1'] }, true],
  ])('%#: %o %o', (given, filters, expected) => {
    expect(matchesFilters(given, filters)).toBe(expected);
  });
});
