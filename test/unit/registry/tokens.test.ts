import { createHmac, createPrivateKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { createChallenger } from '../../../registry/access/challenge.ts';
import { formatScopes, intersect, parseAccessClaim, parseScopes } from '../../../registry/access/scopes.ts';
import type { SigningKeys } from '../../../registry/access/signing-keys.ts';
import { createOwnTokens, createTokenCheck, parsePublicKeys } from '../../../registry/access/tokens.ts';
import { parseChallenges } from '../../../shared/registry-auth.ts';

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
const ec = () => generateKeyPairSync('ec', { namedCurve: 'P-256' });
const NOW = 1_800_000_000_000;

describe('tokens', () => {
  const [first, second, strange] = [ec(), ec(), ec()];
  const keys: SigningKeys = {
    newest: { kid: 'two', privateKey: second.privateKey },
    publicKey: (kid) => ({ one: first.publicKey, two: second.publicKey })[kid],
  };
  let time = NOW;
  const issuer = 'https://registry.example.com/auth/token';
  const options = { issuer, service: 'here', lifeMs: 300_000, keys: () => keys, now: () => new Date(time) };
  const tokens = createOwnTokens({ ...options, randomId: () => 'id' });
  const grants = { catalog: false, repositories: new Map([['team/app', new Set(['pull', 'push'] as const)]]) };

  const claims = { iss: issuer, aud: 'here', sub: 'ann', exp: NOW / 1000 + 300, nbf: NOW / 1000, access: [] };
  /** Signs whatever it is told to, as an attacker would. */
  const forge = (head: object, body: object, key: KeyObject | string = first.privateKey) => {
    const text = `${encode(head)}.${encode(body)}`;
    const sign =
      typeof key === 'string' ? createHmac('sha256', key).update(text).digest('base64url') : ecSign(text, key);
    return `${text}.${sign}`;
  };

  it('say who and what, and are verified by any key that is there', async () => {
    time = NOW;
    const { token, expiresInS } = await tokens.issue({ subject: 'ann', grants });
    expect(expiresInS).toBe(300);
    expect(await tokens.verify(token)).toEqual({ subject: 'ann', grants });
    expect(await tokens.verify(forge({ alg: 'ES256', kid: 'one' }, claims))).toMatchObject({ subject: 'ann' });
  });

  it('are checked once, and again when their key has gone, is another, or the clock goes back', async () => {
    const current = new Map([['one', first.publicKey]]);
    let asked = 0;
    const check = createTokenCheck({
      issuer,
      audience: 'here',
      algorithm: 'ES256',
      keyOf: (kid) => {
        asked += 1;
        return current.get(kid ?? '');
      },
      now: () => new Date(time),
    });
    time = NOW;
    const token = forge({ alg: 'ES256', kid: 'one' }, claims);
    expect(await check(token)).toMatchObject({ subject: 'ann' });
    const once = asked;
    expect(await check(token)).toMatchObject({ subject: 'ann' });
    expect(asked).toBe(once + 1);
    time = NOW - 61_000;
    expect(await check(token)).toBeUndefined();
    time = NOW;
    expect(await check(token)).toBeDefined();
    current.set('one', strange.publicKey);
    expect(await check(token)).toBeUndefined();
    current.set('one', first.publicKey);
    expect(await check(token)).toBeDefined();
    current.delete('one');
    expect(await check(token)).toBeUndefined();
  });

  it('end 60 seconds after their time, which is how far clocks may be apart', async () => {
    time = NOW;
    const { token } = await tokens.issue({ subject: 'ann', grants });
    time = NOW + 359_000;
    expect(await tokens.verify(token)).toBeDefined();
    time = NOW + 361_000;
    expect(await tokens.verify(token)).toBeUndefined();
    time = NOW - 61_000;
    expect(await tokens.verify(token)).toBeUndefined();
    time = NOW;
  });

  const jwk = strange.publicKey.export({ format: 'jwk' });
  const pem = String(second.publicKey.export({ type: 'spki', format: 'pem' }));
  it.each<[string, string]>([
    ['nothing', ''],
    ['two parts', `${encode({})}.${encode({})}`],
    ['no kid', forge({ alg: 'ES256' }, claims)],
    ['an unknown kid', forge({ alg: 'ES256', kid: 'three' }, claims)],
    ['another key under a known kid', forge({ alg: 'ES256', kid: 'one' }, claims, strange.privateKey)],
    ['its own key as jwk (CVE-2025-24976)', forge({ alg: 'ES256', kid: 'one', jwk }, claims, strange.privateKey)],
    ['its own key as jwk without kid (CVE-2025-24976)', forge({ alg: 'ES256', jwk }, claims, strange.privateKey)],
    [
      'its own key by jku, x5u, x5c (CVE-2025-24976)',
      forge(
        { alg: 'ES256', kid: 'one', jku: 'http://127.0.0.1:1/', x5u: 'http://127.0.0.1:1/', x5c: ['AA=='] },
        claims,
        strange.privateKey,
      ),
    ],
    ['alg none', `${encode({ alg: 'none', kid: 'one' })}.${encode(claims)}.`],
    ['HS256 with our public key as the secret', forge({ alg: 'HS256', kid: 'two' }, claims, pem)],
    ['another algorithm', forge({ alg: 'ES384', kid: 'one' }, claims)],
    ['an unknown critical header', forge({ alg: 'ES256', kid: 'one', crit: ['x'], x: 1 }, claims)],
    ['another issuer', forge({ alg: 'ES256', kid: 'one' }, { ...claims, iss: 'https://example.com' })],
    ['another audience', forge({ alg: 'ES256', kid: 'one' }, { ...claims, aud: 'there' })],
    ['no audience', forge({ alg: 'ES256', kid: 'one' }, { ...claims, aud: undefined })],
    ['no end', forge({ alg: 'ES256', kid: 'one' }, { ...claims, exp: undefined })],
    ['a text as its end', forge({ alg: 'ES256', kid: 'one' }, { ...claims, exp: 'never' })],
    ['a bad access claim', forge({ alg: 'ES256', kid: 'one' }, { ...claims, access: 'all' })],
    ['too much', forge({ alg: 'ES256', kid: 'one' }, { ...claims, pad: 'x'.repeat(20_000) })],
  ])('with %s are not valid', async (_what, token) => {
    expect(await tokens.verify(token)).toBeUndefined();
  });

  it('without an access claim grant nothing', async () => {
    const verified = await tokens.verify(forge({ alg: 'ES256', kid: 'one' }, { ...claims, access: undefined }));
    expect(verified?.grants).toEqual({ catalog: false, repositories: new Map() });
  });

  it('of an outside issuer are verified by its keys: JWKS, or a PEM file', async () => {
    const token = forge({ alg: 'ES256', kid: 'one' }, claims);
    const jwks = JSON.stringify({ keys: [{ ...first.publicKey.export({ format: 'jwk' }), kid: 'one' }] });
    const asPem = String(first.publicKey.export({ type: 'spki', format: 'pem' }));
    for (const file of [jwks, asPem]) {
      const rules = { issuer, audience: 'here', keyOf: parsePublicKeys(file, 'ES256'), now: () => new Date(NOW) };
      expect(await createTokenCheck({ ...rules, algorithm: 'ES256' })(token)).toBeDefined();
      // The algorithm is ours to say, not the token's.
      expect(
        await createTokenCheck({ ...rules, algorithm: 'ES256' })(forge({ alg: 'HS256', kid: 'one' }, claims, asPem)),
      ).toBeUndefined();
    }
  });

  it.each([
    ['{"keys":[]}', 'want a key for ES256'],
    ['{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}', 'want a key for ES256'],
    [
      JSON.stringify({ keys: [generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' })] }),
      'want a key for ES256',
    ],
    [String(first.privateKey.export({ type: 'pkcs8', format: 'pem' })), 'it is a private key'],
    ['nothing', 'cannot use the keys'],
  ])('cannot be verified by %j', (text, message) => {
    expect(() => parsePublicKeys(text, 'ES256')).toThrow(message);
  });
});

function ecSign(text: string, key: KeyObject): string {
  const { sign } = process.getBuiltinModule('node:crypto');
  return sign('sha256', Buffer.from(text), {
    key: createPrivateKey(key.export({ type: 'pkcs8', format: 'pem' })),
    dsaEncoding: 'ieee-p1363',
  }).toString('base64url');
}

describe('scopes', () => {
  it.each([
    ['repository:a:pull', [{ type: 'repository', name: 'a', actions: ['pull'] }]],
    [
      'repository:localhost:5000/a:pull,push',
      [{ type: 'repository', name: 'localhost:5000/a', actions: ['pull', 'push'] }],
    ],
    ['repository(plugin):a/b:*', [{ type: 'repository', name: 'a/b', actions: ['*'] }]],
    ['registry:catalog:*', [{ type: 'registry', name: 'catalog', actions: ['*'] }]],
    ['', []],
    ['repository', []],
    ['repository:a', []],
    ['repository:a:', []],
    ['repository::pull', []],
    [`repository:${'a'.repeat(2000)}:pull`, []],
  ])('%s', (text, expected) => {
    expect(parseScopes([text])).toEqual(expected);
  });

  it('come in one text or in several, and not without end', () => {
    expect(parseScopes(['repository:a:pull repository:b:pull', 'repository:c:pull'])).toHaveLength(3);
    expect(parseScopes([Array(1000).fill('repository:a:pull').join(' ')])).toHaveLength(50);
  });

  it('give what is asked and allowed', () => {
    const scopes = parseScopes(['repository:a:pull,push repository:b:* repository:A/../b:pull registry:catalog:*']);
    const grants = intersect(scopes, {
      catalog: () => false,
      repository: (action, name) => name === 'b' || action === 'pull',
    });
    expect(formatScopes(grants)).toBe('repository:a:pull repository:b:pull,push,delete');
  });

  it('cannot be read from a claim of another form', () => {
    expect(parseAccessClaim({})).toBeUndefined();
    expect(parseAccessClaim([{ type: 'repository', name: 'a' }])).toBeUndefined();
    expect(parseAccessClaim(undefined)).toEqual({ catalog: false, repositories: new Map() });
  });
});

describe('challenges', () => {
  it('name the realm of the configuration, the scope and the error', () => {
    const challenge = createChallenger({ realm: 'https://r.example.com/auth/token', service: 's' });
    const [parsed] = parseChallenges(challenge({ kind: 'push', repository: 'a/b' }, 'insufficient_scope'));
    expect(parsed?.scheme).toBe('bearer');
    expect(Object.fromEntries(parsed?.parameters ?? [])).toEqual({
      realm: 'https://r.example.com/auth/token',
      service: 's',
      scope: 'repository:a/b:pull,push',
      error: 'insufficient_scope',
    });
    expect(challenge({ kind: 'probe' })).toBe('Bearer realm="https://r.example.com/auth/token",service="s"');
    expect(challenge({ kind: 'catalog' })).toContain('scope="registry:catalog:*"');
  });

  it('ask for a password where there is no token endpoint', () => {
    const challenge = createChallenger({ realm: undefined, service: 's' });
    expect(challenge({ kind: 'pull', repository: 'a' })).toBe('Basic realm="s",charset="UTF-8"');
  });
});
