import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { createWatch, type RulesCheck } from '../../../runtime/networks/watch.ts';
import { createSilentLog } from '../../../shared/log.ts';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

it('looks for changes while nothing can listen, and tries to listen once a minute', async () => {
  const monitors: PromiseWithResolvers<string>[] = [];
  const checks: RulesCheck[] = [];
  const watch = () => {
    const monitor = Promise.withResolvers<string>();
    monitors.push(monitor);
    return { ended: monitor.promise, [Symbol.asyncDispose]: async () => monitor.resolve('disposed') };
  };
  const check = async (rules: RulesCheck) => void checks.push(rules);
  await using looked = createWatch({
    nft: { watch },
    tableName: 'berth',
    isNeeded: () => true,
    check,
    log: createSilentLog(),
  });
  looked.begin();
  await vi.advanceTimersByTimeAsync(11_000);
  expect(checks).toEqual(['doubt', 'trust']);
  monitors[0]?.resolve('killed');
  await vi.advanceTimersByTimeAsync(45_000);
  expect(monitors).toHaveLength(1);
  expect(checks.slice(2)).toEqual(Array(9).fill('doubt'));
  await vi.advanceTimersByTimeAsync(15_000);
  expect(monitors).toHaveLength(2);
  // What has listened for long is followed by another at the next tick.
  await vi.advanceTimersByTimeAsync(90_000);
  monitors[1]?.resolve('killed');
  await vi.advanceTimersByTimeAsync(5000);
  expect(monitors).toHaveLength(3);
});
