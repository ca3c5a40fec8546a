/** Token buckets by key, in memory: a burst of one minute's worth, then an even flow. */
import type { IncomingMessage } from 'node:http';
import { OciError } from '../oci-errors.ts';

export interface RateLimit {
  /** Takes one. 0 = taken; otherwise nothing was, and it is the milliseconds until there is one. */
  take(key: string): number;
  /** What take() would answer, without taking. */
  waitMs(key: string): number;
}

export interface RateLimitOptions {
  /** 0 = no limit. */
  readonly perMinute: number;
  readonly now: () => Date;
}

/** Keys remembered; a forgotten one begins with a full bucket again. */
const KEYS_MAX = 50_000;
const MINUTE_MS = 60_000;

/** The generic cell rate algorithm: all that is kept of a key is the time at which its bucket will be full again. */
export function createRateLimit({ perMinute, now }: RateLimitOptions): RateLimit {
  if (perMinute === 0) return { take: () => 0, waitMs: () => 0 };
  const intervalMs = MINUTE_MS / perMinute;
  const fullAt = new Map<string, number>();
  const look = (key: string) => {
    const at = now().getTime();
    // Nothing fuller than empty: a time further off was noted before the clock went back.
    const known = Math.min(fullAt.get(key) ?? 0, at + MINUTE_MS);
    const next = Math.max(known, at) + intervalMs;
    return { next, waitMs: Math.max(0, Math.ceil(next - at - MINUTE_MS)) };
  };

  return {
    waitMs: (key) => look(key).waitMs,
    take(key) {
      const { next, waitMs } = look(key);
      if (waitMs > 0) return waitMs;
      // Last in the order of insertion = used last: the first is the one to forget.
      fullAt.delete(key);
      fullAt.set(key, next);
      for (const oldest of fullAt.keys()) {
        if (fullAt.size <= KEYS_MAX) break;
        fullAt.delete(oldest);
      }
      return 0;
    },
  };
}

/** Who connects, for limits: an IPv4 address, or the /64 of an IPv6 one, of which everybody has as many as they like. */
export function networkOf(address: IncomingMessage['socket']['remoteAddress']): string {
  const text = (address ?? '').replace(/^::ffff:(?=\d+\.)/, '').replace(/%.*$/, '');
  if (!text.includes(':')) return text;
  const [head = '', tail] = text.split('::');
  const groups = head === '' ? [] : head.split(':');
  const after = tail === undefined || tail === '' ? [] : tail.split(':');
  const all = tail === undefined ? groups : [...groups, ...Array(8 - groups.length - after.length).fill('0'), ...after];
  return `${all.slice(0, 4).join(':')}::/64`;
}

/** `waitMs` is what a limit answered, 0 lets pass. @throws OciError TOOMANYREQUESTS with the seconds after which it may work */
export function assertWithin(waitMs: number, what: string): void {
  if (waitMs === 0) return;
  const seconds = Math.ceil(waitMs / 1_000);
  throw new OciError('TOOMANYREQUESTS', `cannot answer: ${what}, try again in ${seconds} s`, {
    headers: { 'retry-after': String(seconds) },
  });
}
