import { expect, it } from 'vitest';
import { countToRemove } from '../../runtime/images/gc-policy.ts';

const NONE = { maxAgeMs: 0, maxBytes: 0, minFreeBytes: 0 };
/** Three images, the oldest first, of 10 bytes each; the second shares what it has with the third. */
const STATE = {
  agesMs: [300, 200, 100],
  actualBytes: 100,
  freeBytes: 50,
  freedBy: (count: number) => [0, 10, 10, 30][count] ?? 0,
};

it.each([
  ['nothing without a policy', NONE, 0],
  ['what is too old', { ...NONE, maxAgeMs: 150 }, 2],
  ['nothing that is just old enough', { ...NONE, maxAgeMs: 300 }, 0],
  ['as many as the size needs', { ...NONE, maxBytes: 95 }, 1],
  ['what shares with it, too', { ...NONE, maxBytes: 85 }, 3],
  ['all when that is not enough', { ...NONE, maxBytes: 1 }, 3],
  ['nothing when there is room', { ...NONE, maxBytes: 100, minFreeBytes: 50 }, 0],
  ['as many as free space needs', { ...NONE, minFreeBytes: 60 }, 1],
  ['the most that any limit asks for', { maxAgeMs: 150, maxBytes: 95, minFreeBytes: 60 }, 2],
])('removes %s', (_what, policy, count) => {
  expect(countToRemove(policy, STATE)).toBe(count);
});
