/**
 * Passwords: bcrypt hashes, checked in libuv's threads, never on the event loop. A check is slow on purpose, clients
 * send their password with every request, and strangers send as many as they like; so a success is remembered for a
 * minute under a keyed hash of name, password and stored hash (a changed hash is another key), equal questions are one
 * check, and only a few checks run at a time, fewer for one network than for all.
 */
import { createHmac } from 'node:crypto';
import { compare, hash } from 'bcrypt';
import type { Keyv } from 'keyv';
import { AppError } from '../../shared/errors.ts';

const HASH = /^\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}$/;
/** Above, one check occupies a thread for seconds. */
const COST_MAX = 15;
const COST_DEFAULT = 10;
/** Of libuv's four threads, which files need as well. */
const CHECKS_AT_ONCE = 2;
const CHECKS_PER_NETWORK = 1;
const REMEMBERED_MS = 60_000;
/** What bcrypt looks at; more would be ignored in silence. */
const PASSWORD_MAX_BYTES = 72;

export function isPasswordHash(text: string): boolean {
  const cost = Number(HASH.exec(text)?.[1] ?? 0);
  return cost >= 4 && cost <= COST_MAX;
}

/** @throws AppError 'invalid' */
export async function hashPassword(password: string): Promise<string> {
  if (password === '' || Buffer.byteLength(password) > PASSWORD_MAX_BYTES || password.includes('\0'))
    throw new AppError('invalid', `cannot hash the password: want 1 to ${PASSWORD_MAX_BYTES} bytes`);
  return hash(password, COST_DEFAULT);
}

/** Users and their hashes from a file in the form of Apache's htpasswd. @throws AppError 'invalid' naming the line */
export function parseHtpasswd(text: string): ReadonlyMap<string, string> {
  const users = new Map<string, string>();
  for (const [position, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const refuse = (why: string) =>
      new AppError('invalid', `cannot use line ${position + 1} of the password file: ${why}`);
    const [name = '', stored = ''] = line.split(':');
    if (!/^[A-Za-z0-9._@-]{1,128}$/.test(name)) throw refuse('a name has letters, digits and . _ @ - only');
    if (name === 'anonymous') throw refuse('"anonymous" is who has not logged in');
    if (!isPasswordHash(stored))
      throw refuse('want a bcrypt hash, as berth-registry hash-password or htpasswd -B makes');
    if (users.has(name)) throw refuse(`${JSON.stringify(name)} is there twice`);
    users.set(name, stored);
  }
  return users;
}

export interface PasswordCheckOptions {
  readonly cache: Keyv<boolean>;
  /** Of this process: who can read the cache must not be able to test passwords against it. */
  readonly secret: Uint8Array;
  /** Checks that may wait, a quarter of them from one network; beyond, answering late would only make it worse. */
  readonly queueMax: number;
}

export interface PasswordQuestion {
  readonly name: string;
  readonly password: string;
  /** undefined = there is no such account; takes as long as if there were. */
  readonly storedHash: string | undefined;
  /** Where the question comes from, for limits. */
  readonly network: string;
}

/** @throws AppError 'unavailable' when too many are waiting */
export type PasswordCheck = (question: PasswordQuestion) => Promise<boolean>;

export function createPasswordCheck({ cache, secret, queueMax }: PasswordCheckOptions): PasswordCheck {
  const slots = createSlots(queueMax);
  const running = new Map<string, Promise<boolean>>();
  // A hash that nothing matches. It costs what the last real one cost, so that time does not tell who exists.
  let dummy = `$2b$${COST_DEFAULT}$${'.'.repeat(53)}`;

  return async ({ name, password, storedHash, network }) => {
    const key = createHmac('sha256', secret)
      .update(JSON.stringify([name, password, storedHash]))
      .digest('base64url');
    if ((await cache.get(key)) === true) return true;
    const known = running.get(key);
    if (known !== undefined) return known;
    if (storedHash !== undefined) dummy = `${storedHash.slice(0, 7)}${'.'.repeat(53)}`;
    const stored = (storedHash ?? dummy).replace(/^\$2y/, '$2b');
    const check = slots(network, () => compare(password, stored));
    running.set(key, check);
    try {
      const isRight = (await check) && storedHash !== undefined;
      if (isRight) await cache.set(key, true, REMEMBERED_MS);
      return isRight;
    } finally {
      running.delete(key);
    }
  };
}

/** Runs a few at once, fewer per key, and lets a few wait in line. */
function createSlots(queueMax: number): <T>(key: string, work: () => Promise<T>) => Promise<T> {
  const busy = new Map<string, number>();
  const waiting: { readonly key: string; readonly start: () => void }[] = [];
  let total = 0;
  const isFree = (key: string) => total < CHECKS_AT_ONCE && (busy.get(key) ?? 0) < CHECKS_PER_NETWORK;
  const count = (key: string, change: 1 | -1) => {
    total += change;
    const own = (busy.get(key) ?? 0) + change;
    if (own === 0) busy.delete(key);
    else busy.set(key, own);
  };
  const next = () => {
    const position = waiting.findIndex(({ key }) => isFree(key));
    if (position === -1) return;
    const [first] = waiting.splice(position, 1);
    if (first === undefined) return;
    count(first.key, 1);
    first.start();
  };

  return async (key, work) => {
    if (isFree(key)) count(key, 1);
    else if (waiting.length < queueMax && waiting.filter((other) => other.key === key).length < queueMax / 4)
      await new Promise<void>((start) => waiting.push({ key, start }));
    else throw new AppError('unavailable', 'cannot check the password: too many logins are waiting');
    try {
      return await work();
    } finally {
      count(key, -1);
      next();
    }
  };
}
