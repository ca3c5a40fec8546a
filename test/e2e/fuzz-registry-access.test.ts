import { generateKeyPairSync } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseBasic } from '../../registry/access/authentication.ts';
import { parsePolicy } from '../../registry/access/policy.ts';
import { formatScopes, intersect, parseAccessClaim, parseScopes } from '../../registry/access/scopes.ts';
import { createTokenCheck } from '../../registry/access/tokens.ts';
import { isRepository } from '../../shared/reference.ts';

const RUNS = { numRuns: 100_000 };
const SLOW_MS = 300_000;

const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const rules = {
  issuer: 'i',
  audience: 'a',
  algorithm: 'ES256',
  keyOf: () => publicKey,
  now: () => new Date(1_800_000_000_000),
} as const;

const json = fc.oneof(
  fc.record(
    {
      alg: fc.constantFrom<unknown>('ES256', 'none', 'HS256', 'RS256', 1, null),
      kid: fc.oneof(fc.string(), fc.integer(), fc.constant('../../x')),
      typ: fc.constantFrom<unknown>('JWT', 'jwt', 1),
      crit: fc.constantFrom<unknown>(['b64'], [], ['exp'], 'x', null),
      b64: fc.boolean(),
      jwk: fc.jsonValue(),
      iss: fc.constantFrom<unknown>('i', ['i'], 1),
      aud: fc.constantFrom<unknown>('a', ['a'], {}, null),
      exp: fc.oneof(fc.double(), fc.maxSafeInteger(), fc.string()),
      access: fc.jsonValue(),
    },
    { requiredKeys: [] },
  ),
  fc.jsonValue(),
);
const encoded = json.map((value) => Buffer.from(JSON.stringify(value) ?? '').toString('base64url'));
const part = fc.oneof(
  { weight: 6, arbitrary: encoded },
  fc.base64String(),
  fc.string({ unit: 'binary', maxLength: 20 }),
);
const token = fc.oneof(
  { weight: 8, arbitrary: fc.tuple(encoded, part, part).map((parts) => parts.join('.')) },
  fc.array(part, { maxLength: 6 }).map((parts) => parts.join('.')),
);

describe('access control reads anything without failing', () => {
  it(
    'tokens: nobody gets in who has no key',
    async () => {
      const check = createTokenCheck(rules);
      await fc.assert(
        fc.asyncProperty(token, async (text) => {
          return (await check(text)) === undefined;
        }),
        RUNS,
      );
    },
    SLOW_MS,
  );

  const word = fc.constantFrom(
    'repository',
    'registry',
    ':',
    ',',
    ' ',
    '*',
    'pull',
    'push',
    'catalog',
    'a/b',
    'A',
    '..',
    '(x)',
    '/',
  );
  const scopeText = fc.oneof(
    { weight: 5, arbitrary: fc.array(word, { maxLength: 12 }).map((words) => words.join('')) },
    fc.string({ unit: 'binary', maxLength: 60 }),
  );
  it(
    'scopes: what is granted is a legal name, and reads back as itself',
    () => {
      fc.assert(
        fc.property(fc.array(scopeText, { maxLength: 3 }), (texts) => {
          const grants = intersect(parseScopes(texts), { catalog: () => true, repository: () => true });
          for (const name of grants.repositories.keys()) expect(isRepository(name)).toBe(true);
          const text = formatScopes(grants);
          const again = intersect(parseScopes([text]), { catalog: () => true, repository: () => true });
          expect(formatScopes(again)).toBe(text);
        }),
        RUNS,
      );
    },
    SLOW_MS,
  );

  it(
    'access claims and Basic',
    () => {
      fc.assert(
        fc.property(fc.jsonValue(), fc.oneof(fc.base64String(), fc.string({ unit: 'binary' })), (claim, text) => {
          parseAccessClaim(claim);
          const credentials = parseBasic(text);
          if (credentials !== undefined) expect(credentials.name).not.toBe('');
        }),
        RUNS,
      );
    },
    SLOW_MS,
  );

  it('policies of any form are refused with a reason', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (document) => {
        const isEmpty = document === null || (typeof document === 'object' && Object.keys(document).length === 0);
        if (isEmpty && !Array.isArray(document)) return;
        expect(() => parsePolicy(JSON.stringify(document))).toThrow(/^cannot (?:use|read) the policy/);
      }),
      { numRuns: 5_000 },
    );
  });
});
