import { hash } from 'bcrypt';
import { Keyv } from 'keyv';
import { describe, expect, it } from 'vitest';
import { createAccounts } from '../../../registry/access/accounts.ts';
import { parseBasic } from '../../../registry/access/authentication.ts';
import { createPasswordCheck, hashPassword, parseHtpasswd } from '../../../registry/access/passwords.ts';
import { parsePolicy } from '../../../registry/access/policy.ts';
import { createRateLimit, networkOf } from '../../../registry/access/rate-limit.ts';

/** A hash of something, as cheap as they are allowed to be. */
const COST = 4;
const BCRYPT = '$2y$04$ryGXE/3KsdI8YAF6Gtps..r9WVqo5bimHlHhkZKGqOuDoPlOOIc0K';

const checker = (queueMax = 100) =>
  createPasswordCheck({ cache: new Keyv({ throwOnErrors: true }), secret: Buffer.from('key'), queueMax });

describe('the password file', () => {
  it('is read', () => {
    const users = parseHtpasswd(`# people\r\nann:${BCRYPT}\n\nbob.b@example.com:${BCRYPT.replace('2y', '2a')}\n`);
    expect([...users.keys()]).toEqual(['ann', 'bob.b@example.com']);
  });

  it.each([
    ['ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=', 'line 1 of the password file: want a bcrypt hash'],
    ['ann:secret', 'want a bcrypt hash'],
    ['ann', 'want a bcrypt hash'],
    [`ann:${BCRYPT.replace('$04$', '$31$')}`, 'want a bcrypt hash'],
    [`robot+ci:${BCRYPT}`, 'a name has letters'],
    [`anonymous:${BCRYPT}`, 'who has not logged in'],
    [`ann:${BCRYPT}\nann:${BCRYPT}`, 'line 2 of the password file: "ann" is there twice'],
  ])('refuses %j', (text, message) => {
    expect(() => parseHtpasswd(text)).toThrow(message);
  });
});

describe('passwords', () => {
  it.each(['2a', '2b', '2y'])('are checked against $%s$ hashes', async (name) => {
    const check = checker();
    const storedHash = (await hash('secret', COST)).replace('$2b', `$${name}`);
    const ask = (password: string) => check({ name: 'ann', password, storedHash, network: 'n' });
    expect(await ask('secret')).toBe(true);
    expect(await ask('Secret')).toBe(false);
  });

  it('of unknown accounts are wrong, and so is an empty one', async () => {
    expect(await checker()({ name: 'x', password: '', storedHash: undefined, network: 'n' })).toBe(false);
  });

  it('are not remembered for another hash of the same account (CVE-2025-23208)', async () => {
    const [old, changed] = [await hash('old', COST), await hash('new', COST)];
    let users = new Map([['ann', old]]);
    const accounts = createAccounts({
      users: () => users,
      policy: () => parsePolicy(''),
      checkPassword: checker(),
      now: () => new Date(0),
    });
    const login = () => accounts.verify({ name: 'ann', password: 'old', network: 'n' });
    expect(await login()).toBe(true);
    const before = accounts.fingerprint('ann');
    users = new Map([['ann', changed]]);
    expect(await login()).toBe(false);
    expect(accounts.fingerprint('ann')).not.toBe(before);
    users = new Map();
    expect(await login()).toBe(false);
    expect(accounts.fingerprint('ann')).toBeUndefined();
  });

  it('of a robot end with its time', async () => {
    let time = Date.parse('2029-12-31');
    const secretHash = await hash('secret', COST);
    const policy = parsePolicy(`robots: { ci: { secretHash: ${secretHash}, expires: 2030-01-01 } }`);
    const accounts = createAccounts({
      users: () => new Map(),
      policy: () => policy,
      checkPassword: checker(),
      now: () => new Date(time),
    });
    const login = (name: string) => accounts.verify({ name, password: 'secret', network: 'n' });
    expect(await login('robot+ci')).toBe(true);
    expect(await login('ci')).toBe(false);
    time = Date.parse('2030-01-01');
    expect(await login('robot+ci')).toBe(false);
    expect(accounts.fingerprint('robot+ci')).toBeUndefined();
  });

  it('wait in a short line only, and equal questions are one', async () => {
    const check = checker(8);
    const storedHash = BCRYPT;
    const ask = (password: string, network: string) => check({ name: 'ann', password, storedHash, network });
    const same = Array.from({ length: 20 }, () => ask('same', 'a'));
    expect(await Promise.all(same)).toEqual(Array(20).fill(false));
    const many = await Promise.allSettled(Array.from({ length: 10 }, (_, index) => ask(`wrong ${index}`, 'a')));
    expect(many.filter(({ status }) => status === 'fulfilled')).toHaveLength(3);
    const others = await Promise.allSettled(['a', 'b', 'c'].map((network) => ask('wrong', network)));
    expect(others.every(({ status }) => status === 'fulfilled')).toBe(true);
  });

  it('are refused for hashing when bcrypt would ignore a part', async () => {
    await expect(hashPassword('x'.repeat(73))).rejects.toThrow('72 bytes');
    await expect(hashPassword('')).rejects.toThrow('72 bytes');
  });
});

describe('Basic', () => {
  const encode = (text: string) => Buffer.from(text).toString('base64');
  it.each([
    [encode('ann:se:cret'), { name: 'ann', password: 'se:cret' }],
    [encode('ann:'), { name: 'ann', password: '' }],
    [encode(':x'), undefined],
    [encode('ann'), undefined],
    ['', undefined],
    ['%%%', undefined],
    ['A'.repeat(5000), undefined],
  ])('%s', (text, expected) => {
    expect(parseBasic(text)).toEqual(expected);
  });
});

describe('rate limits', () => {
  it('allow a burst, then an even flow, by key', () => {
    let time = 0;
    const limit = createRateLimit({ perMinute: 60, now: () => new Date(time) });
    for (let count = 0; count < 60; count++) expect(limit.take('a')).toBe(0);
    expect(limit.take('a')).toBe(1000);
    expect(limit.take('b')).toBe(0);
    time = 999;
    expect(limit.waitMs('a')).toBe(1);
    time = 1000;
    expect(limit.take('a')).toBe(0);
    expect(limit.take('a')).toBe(1000);
  });

  it('forget what was noted before the clock went back', () => {
    let time = 3_600_000;
    const limit = createRateLimit({ perMinute: 60, now: () => new Date(time) });
    for (let count = 0; count < 60; count++) limit.take('a');
    time = 0;
    expect(limit.waitMs('a')).toBeLessThanOrEqual(1000);
  });

  it('are off at 0', () => {
    const limit = createRateLimit({ perMinute: 0, now: () => new Date(0) });
    for (let count = 0; count < 1000; count++) expect(limit.take('a')).toBe(0);
  });

  it.each([
    ['127.0.0.1', '127.0.0.1'],
    ['::ffff:10.0.0.1', '10.0.0.1'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
    ['2001:db8::1', '2001:db8:0:0::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    ['::1', '0:0:0:0::/64'],
    [undefined, ''],
  ])('take %s for %s', (address, network) => {
    expect(networkOf(address)).toBe(network);
  });
});
