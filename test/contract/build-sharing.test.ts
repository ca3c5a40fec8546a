/** What builds share: work that is under way, directories for `RUN --mount=type=cache`, contexts that are kept. */
import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { BuildEvent } from '../../runtime/build/builds.ts';
import {
  BUILD_CACHE_MIGRATIONS,
  type CacheTables,
  openBuildCache,
  type StepResult,
} from '../../runtime/build/cache.ts';
import {
  CACHE_MOUNT_MIGRATIONS,
  type CacheMountRequest,
  type CacheMounts,
  type CacheMountTables,
  openCacheMounts,
} from '../../runtime/build/cache-mounts.ts';
import { stepKey } from '../../runtime/build/step-key.ts';
import { Steps, type Underway, type Work } from '../../runtime/build/steps.ts';
import { type Database, openDatabase } from '../../shared/database.ts';
import { tarOf } from '../fixtures/tar.ts';
import { buildRig } from './build-rig.ts';

let root: string;
let database: Database<CacheMountTables & CacheTables>;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'berth-build-'));
  const migrations = [...CACHE_MOUNT_MIGRATIONS, ...BUILD_CACHE_MIGRATIONS];
  database = openDatabase<CacheMountTables & CacheTables>({ path: join(root, 'berth.db'), migrations });
});
afterEach(async () => {
  await database.close();
  await rm(root, { recursive: true, force: true });
});
const now = () => new Date();

/** Whether a promise has come to an end; what is ready by then has run. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  promise.then(
    () => (settled = true),
    () => (settled = true),
  );
  await database.write(async () => {});
  return settled;
}

describe('cache mounts', () => {
  const open = (): Promise<CacheMounts> =>
    openCacheMounts({
      ...{ database, directory: join(root, 'mounts'), now },
      measure: async (path) => 100 * (await readdir(path)).length,
    });
  const request = (name: string, more: Partial<CacheMountRequest> = {}): CacheMountRequest => ({
    ...{ name, sharing: 'shared', mode: 0o1777, uid: 3, gid: 4, seed: undefined },
    ...more,
  });
  const locked = (name: string) => request(name, { sharing: 'locked' });

  it('are the same for one name, with the mode and owner of the first', async () => {
    const mounts = await open();
    await using one = await mounts.acquire(request('a'));
    await using two = await mounts.acquire(request('a', { mode: 0o700 }));
    await using other = await mounts.acquire(request('b'));
    expect(two.path).toBe(one.path);
    expect(other.path).not.toBe(one.path);
    expect(await stat(one.path)).toMatchObject({ mode: 0o041777, uid: 3, gid: 4 });
  });

  it('lead nowhere by their names (CVE-2024-9675)', async () => {
    const mounts = await open();
    for (const name of ['../../../../etc', '/etc', '..', '', '\0', 'a/../../b']) {
      await using mount = await mounts.acquire(request(name));
      expect(mount.path).toMatch(/\/mounts\/[0-9a-f]{24}$/);
    }
  });

  it('are private by a copy each, which the next one takes again', async () => {
    const mounts = await open();
    const own = request('a', { sharing: 'private' });
    const one = await mounts.acquire(own);
    await using two = await mounts.acquire(own);
    expect(two.path).not.toBe(one.path);
    await one[Symbol.asyncDispose]();
    await using three = await mounts.acquire(own);
    expect(three.path).toBe(one.path);
  });

  it('that are locked are one command’s at a time, also against those that share', async () => {
    const mounts = await open();
    const shared = await mounts.acquire(request('a'));
    const first = mounts.acquire(locked('a'));
    const second = mounts.acquire(locked('a'));
    const sharing = mounts.acquire(request('a'));
    await using _ = await sharing;
    expect([await isSettled(first), await isSettled(second)]).toEqual([false, false]);
    await shared[Symbol.asyncDispose]();
    expect(await isSettled(first)).toBe(false);
    await (await sharing)[Symbol.asyncDispose]();
    const held = await first;
    const late = mounts.acquire(request('a'));
    expect([await isSettled(second), await isSettled(late)]).toEqual([false, false]);
    await held[Symbol.asyncDispose]();
    await (await second)[Symbol.asyncDispose]();
    await (await late)[Symbol.asyncDispose]();
    expect(mounts.records()).toMatchObject([{ isInUse: false, usedCount: 5 }]);
  });

  it('are not waited for by who was cancelled', async () => {
    const mounts = await open();
    const held = await mounts.acquire(locked('a'));
    const cancel = new AbortController();
    const waiting = mounts.acquire(locked('a'), { signal: cancel.signal });
    cancel.abort(new Error('enough'));
    await expect(waiting).rejects.toThrow('enough');
    await held[Symbol.asyncDispose]();
    await using _ = await mounts.acquire(locked('a'));
  });

  it('come back when their row cannot be written', async () => {
    const mounts = await open();
    const held = await mounts.acquire(locked('a'));
    const { promise, resolve } = Promise.withResolvers<void>();
    const busy = database.write(() => promise);
    const closing = database.close();
    resolve();
    await busy;
    await closing;
    await expect((async () => await held[Symbol.asyncDispose]())()).rejects.toThrow();
    expect(mounts.records()).toMatchObject([{ isInUse: false }]);
  });

  it('that are filled from a tree are whole or not there', async () => {
    const mounts = await open();
    const seeded = (fill: (directory: string) => Promise<void>) => request('a', { seed: { key: 'k', fill } });
    const broken = seeded(async (directory) => {
      await writeFile(join(directory, 'half'), '');
      throw new Error('cut off');
    });
    await expect(mounts.acquire(broken)).rejects.toThrow('cut off');
    await using mount = await mounts.acquire(seeded((directory) => writeFile(join(directory, 'whole'), '')));
    expect(await readdir(mount.path)).toEqual(['whole']);
    await using again = await mounts.acquire(broken);
    expect(again.path).toBe(mount.path);
    await using other = await mounts.acquire(request('a'));
    expect(other.path).not.toBe(mount.path);
  });

  it('are removed but for those that a build has, and who wants one meanwhile gets a new one', async () => {
    const mounts = await open();
    await using held = await mounts.acquire(request('held'));
    const gone = await mounts.acquire(request('gone'));
    await writeFile(join(gone.path, 'old'), '');
    await gone[Symbol.asyncDispose]();
    const removing = mounts.remove(new Set(mounts.records().map(({ id }) => id)));
    await using again = await mounts.acquire(request('gone'));
    expect((await removing).bytes).toBe(100);
    expect(again.path).toBe(gone.path);
    expect(await readdir(again.path)).toEqual([]);
    expect(await readdir(held.path)).toEqual([]);
  });

  it('are measured again when a crash left them, and what no row names goes', async () => {
    const before = await open();
    const mount = await before.acquire(request('a'));
    await writeFile(join(mount.path, 'file'), '');
    await writeFile(join(root, 'mounts', 'left.new'), '');
    const after = await open();
    expect(after.records()).toMatchObject([{ sizeBytes: 0 }]);
    await after.sweep();
    expect(after.records()).toMatchObject([{ sizeBytes: 100, isInUse: false }]);
    expect(await readdir(join(root, 'mounts'))).toHaveLength(1);
    expect((await open()).records()).toMatchObject([{ sizeBytes: 100 }]);
  });
});

describe('work that is under way', () => {
  const nothing: StepResult = { layer: undefined, createdAt: new Date(0) };

  async function openSteps(importResult: () => Promise<StepResult | undefined> = async () => undefined) {
    const cache = await openBuildCache({
      database,
      layers: { get: async () => undefined, list: async () => [] },
      images: {
        blobBytes: async () => 0,
        discard: async () => 0,
        namedContent: async () => ({ layers: new Set(), blobs: new Set() }),
      },
      now,
    });
    const underway: Underway = new Map();
    const events: BuildEvent[] = [];
    const build = () => {
      const user = new AsyncDisposableStack();
      const lease = { protect: async () => {}, protectImage: async () => {}, [Symbol.asyncDispose]: async () => {} };
      const onEvent = (event: BuildEvent) => events.push(event);
      const steps = new Steps({ cache, underway, lease, user, now, onEvent, importResult, onResult: () => {} });
      return { steps, user };
    };
    return { cache, build, events };
  }
  const work = (make: Work['make'], more: Partial<Work> = {}): Work => ({
    ...{ key: stepKey('run', 'x'), isFresh: false, lower: [], make },
    ...more,
  });
  const never = () => Promise.reject(new Error('this must not run'));

  it('is done once for two builds, and found by the third', async () => {
    const { build, cache } = await openSteps();
    const { promise, resolve } = Promise.withResolvers<StepResult>();
    const first = build();
    const made = first.steps.obtain(
      work(() => promise),
      'RUN x',
      {},
    );
    const waiting = build().steps.obtain(work(never), 'RUN x', {});
    expect(await isSettled(waiting)).toBe(false);
    resolve(nothing);
    expect([await made, await waiting]).toMatchObject([{ isCached: false }, { isCached: true }]);
    expect(await build().steps.obtain(work(never), 'RUN x', {})).toMatchObject({ isCached: true });
    expect(await cache.records()).toMatchObject([{ isInUse: true, usedCount: 2, description: 'RUN x' }]);
    await first.user.disposeAsync();
    expect((await cache.remove(new Set((await cache.records()).map(({ id }) => id)))).removed).toEqual([]);
  });

  it('is taken over when the build that did it fails', async () => {
    const { build } = await openSteps();
    const { promise, reject } = Promise.withResolvers<StepResult>();
    const failing = build().steps.obtain(
      work(() => promise),
      'RUN x',
      {},
    );
    const waiting = build().steps.obtain(
      work(async () => nothing),
      'RUN x',
      {},
    );
    reject(new Error('cancelled'));
    await expect(failing).rejects.toThrow('cancelled');
    expect(await waiting).toMatchObject({ isCached: false });
  });

  it('is not waited for by a build that was cancelled, which stops nobody else', async () => {
    const { build } = await openSteps();
    const { promise, resolve } = Promise.withResolvers<StepResult>();
    const made = build().steps.obtain(
      work(() => promise),
      'RUN x',
      {},
    );
    const cancel = new AbortController();
    const waiting = build().steps.obtain(work(never), 'RUN x', { signal: cancel.signal });
    expect(await isSettled(waiting)).toBe(false);
    cancel.abort(new Error('enough'));
    await expect(waiting).rejects.toThrow('enough');
    resolve(nothing);
    expect(await made).toMatchObject({ isCached: false });
  });

  it('is done again by a build that looks nothing up', async () => {
    const { build, cache } = await openSteps();
    await build().steps.obtain(
      work(async () => nothing),
      'RUN x',
      {},
    );
    const again = { layer: undefined, createdAt: new Date(5000) };
    expect(
      await build().steps.obtain(
        work(async () => again, { isFresh: true }),
        'RUN x',
        {},
      ),
    ).toMatchObject(again);
    expect(await build().steps.obtain(work(never), 'RUN x', {})).toMatchObject({ ...again, isCached: true });
    expect(await cache.records()).toHaveLength(1);
  });

  it('is looked for elsewhere first', async () => {
    const { build } = await openSteps(async () => nothing);
    expect(await build().steps.obtain(work(never), 'RUN x', {})).toMatchObject({ isCached: true });
    const fresh = work(async () => ({ layer: undefined, createdAt: now() }), { isFresh: true });
    expect(await build().steps.obtain(fresh, 'RUN x', {})).toMatchObject({ isCached: false });
  });

  it('is told to its end, whatever that is', async () => {
    const { build, events } = await openSteps();
    const { steps } = build();
    const about = { text: 'RUN x', stage: 's', position: undefined, platform: undefined, line: 1 };
    await steps.during(about, async () => ({ isCached: true }));
    await expect(steps.during(about, () => Promise.reject(new Error('no')))).rejects.toThrow('no');
    await expect(steps.during(about, () => Promise.reject(AbortSignal.abort().reason))).rejects.toThrow();
    expect(events).toMatchObject([
      { kind: 'started', step: { id: 1 } },
      { kind: 'ended', step: { id: 1 }, outcome: 'cached' },
      { kind: 'started', step: { id: 2 } },
      { kind: 'ended', step: { id: 2 }, outcome: 'failed', message: 'no' },
      { kind: 'started', step: { id: 3 } },
      { kind: 'ended', step: { id: 3 }, outcome: 'canceled' },
    ]);
  });
});

describe('a kept context', () => {
  it('keeps nothing when what was missing did not come', async () => {
    await using rig = await buildRig();
    const { contexts } = rig;
    const entry = (path: string) => ({ path, kind: 'file', mode: 0o644, sizeBytes: 1, mtimeNs: 0n }) as const;
    async function* entries(...paths: readonly string[]) {
      for (const path of paths) yield entry(path);
    }
    const tar = (path: string) => Readable.from([tarOf([{ name: path, content: 'x' }])]);
    await using first = await contexts.compare('work', entries('a'));
    await (await first.complete(tar('a')))[Symbol.asyncDispose]();
    await using second = await contexts.compare('work', entries('a', 'b'));
    await expect(second.complete(tar('other'))).rejects.toThrow('"b" is not in the tar');
    expect(contexts.records()).toMatchObject([{ isInUse: false }]);
    expect(await rig.layers.list()).toHaveLength(1);
    // Nothing leases the layers of the first any more.
    await contexts.remove(new Set(contexts.records().map(({ id }) => id)));
    expect(await rig.layers.list()).toEqual([]);
  });
});
