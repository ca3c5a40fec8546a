/**
 * Bearer tokens: signed JWTs whose `access` claim says what they allow. Keys are chosen by `kid` among those that we
 * have; key material and URLs in a token's head (jwk, jku, x5u, x5c) are never looked at (CVE-2025-24976), and the
 * algorithm is the one that is configured, whatever the head says.
 * https://distribution.github.io/distribution/spec/auth/jwt/
 */
import { createPublicKey, hash, type KeyObject } from 'node:crypto';
import { errors, jwtVerify, SignJWT } from 'jose';
import { z } from 'zod';
import { AppError, messageOf } from '../../shared/errors.ts';
import type { Grants, Identity } from './access.ts';
import type { TokenVerifier } from './authentication.ts';
import { parseAccessClaim, toAccessClaim } from './scopes.ts';
import { SIGNING_ALGORITHM, type SigningKeys } from './signing-keys.ts';

/** What an outside issuer may sign with: no `none`, and no HS*, with which a public key would be the secret. */
export const TOKEN_ALGORITHMS = ['ES256', 'ES384', 'ES512', 'EdDSA', 'RS256', 'RS384', 'RS512', 'PS256'] as const;
export type TokenAlgorithm = (typeof TOKEN_ALGORITHMS)[number];

/** How far clocks may be apart. */
const LEEWAY_S = 60;
const TOKEN_MAX_LENGTH = 16 * 1024;

export interface VerifyRules {
  readonly issuer: string;
  readonly audience: string;
  readonly algorithm: TokenAlgorithm;
  readonly keyOf: (kid: string | undefined) => KeyObject | undefined;
  readonly now: () => Date;
}

export interface TokenClaims {
  /** Empty = nobody in particular. */
  readonly subject: string;
  readonly grants: Grants;
}

interface Verified {
  readonly claims: TokenClaims;
  readonly seenAtMs: number;
  readonly expiresAtMs: number;
  readonly kid: string | undefined;
  readonly key: KeyObject | undefined;
}

/** Tokens remembered; a forgotten one only costs checking it again. */
const REMEMBERED_MAX = 10_000;

/**
 * A check that looks at a token's signature once for as long as the token and its key are valid: clients send it with
 * every request. Answers undefined for what is not valid, for whatever reason: a stranger learns nothing about which.
 */
export function createTokenCheck(rules: VerifyRules): (token: string) => Promise<TokenClaims | undefined> {
  const remembered = new Map<string, Verified>();
  const isValid = ({ seenAtMs, expiresAtMs, kid, key }: Verified) => {
    const at = rules.now().getTime();
    return seenAtMs <= at && at < expiresAtMs && rules.keyOf(kid) === key;
  };

  return async (token) => {
    const name = hash('sha256', token);
    const known = remembered.get(name);
    if (known !== undefined && isValid(known)) return known.claims;
    remembered.delete(name);
    const verified = await verify(token, rules);
    if (verified === undefined) return undefined;
    const oldest = remembered.keys().next();
    if (remembered.size >= REMEMBERED_MAX && oldest.done !== true) remembered.delete(oldest.value);
    remembered.set(name, verified);
    return verified.claims;
  };
}

async function verify(token: string, rules: VerifyRules): Promise<Verified | undefined> {
  if (token.length > TOKEN_MAX_LENGTH) return undefined;
  try {
    const { payload, protectedHeader } = await jwtVerify(token, ({ kid }) => known(rules.keyOf(kid)), {
      algorithms: [rules.algorithm],
      issuer: rules.issuer,
      audience: rules.audience,
      clockTolerance: LEEWAY_S,
      currentDate: rules.now(),
      requiredClaims: ['exp', 'iss', 'aud'],
    });
    const grants = parseAccessClaim(payload.access);
    if (grants === undefined) return undefined;
    const { kid } = protectedHeader;
    const expiresAtMs = (payload.exp ?? 0) * 1_000;
    const claims = { subject: payload.sub ?? '', grants };
    return { claims, seenAtMs: rules.now().getTime(), expiresAtMs, kid, key: rules.keyOf(kid) };
  } catch (error) {
    if (error instanceof errors.JOSEError) return undefined;
    throw error;
  }
}

function known(key: KeyObject | undefined): KeyObject {
  if (key === undefined) throw new errors.JWKSNoMatchingKey();
  return key;
}

export interface OwnTokenOptions {
  /** Where tokens come from, and what they say about it: the realm. */
  readonly issuer: string;
  readonly service: string;
  readonly lifeMs: number;
  readonly keys: () => SigningKeys;
  readonly now: () => Date;
  readonly randomId: () => string;
}

export interface IssuedToken {
  readonly token: string;
  readonly issuedAt: Date;
  readonly expiresInS: number;
}

export interface OwnTokens {
  issue(claims: TokenClaims): Promise<IssuedToken>;
  readonly verify: (token: string) => Promise<TokenClaims | undefined>;
}

export function createOwnTokens({ issuer, service, lifeMs, keys, now, randomId }: OwnTokenOptions): OwnTokens {
  const expiresInS = Math.floor(lifeMs / 1_000);
  return {
    async issue({ subject, grants }) {
      const issuedAt = now();
      const seconds = Math.floor(issuedAt.getTime() / 1_000);
      const { kid, privateKey } = keys().newest;
      const token = await new SignJWT({ access: toAccessClaim(grants) })
        .setProtectedHeader({ alg: SIGNING_ALGORITHM, typ: 'JWT', kid })
        .setIssuer(issuer)
        .setAudience(service)
        .setSubject(subject)
        .setIssuedAt(seconds)
        .setNotBefore(seconds)
        .setExpirationTime(seconds + expiresInS)
        .setJti(randomId())
        .sign(privateKey);
      return { token, issuedAt, expiresInS };
    },
    verify: createTokenCheck({
      issuer,
      audience: service,
      algorithm: SIGNING_ALGORITHM,
      keyOf: (kid) => (kid === undefined ? undefined : keys().publicKey(kid)),
      now,
    }),
  };
}

/** Our own tokens as identities; `exists` because an account may go while its token lives. */
export function ownTokenVerifier(tokens: OwnTokens, exists: (name: string) => boolean): TokenVerifier {
  return async (token) => {
    const claims = await tokens.verify(token);
    if (claims === undefined || (claims.subject !== '' && !exists(claims.subject))) return undefined;
    return identityOf(claims, 'us');
  };
}

export function outsideTokenVerifier(rules: VerifyRules): TokenVerifier {
  const check = createTokenCheck(rules);
  return async (token) => {
    const claims = await check(token);
    return claims === undefined ? undefined : identityOf(claims, 'outside');
  };
}

function identityOf({ subject, grants }: TokenClaims, issuedBy: 'us' | 'outside'): Identity {
  const token = { issuedBy, grants };
  if (subject === '') return { id: 'anonymous', isAnonymous: true, token };
  // No name of the password file has a colon: an outside subject is nobody here.
  return { id: issuedBy === 'us' ? subject : `token:${subject}`, isAnonymous: false, token };
}

const jwksSchema = z.object({ keys: z.array(z.looseObject({ kid: z.string().optional() })) });

/** What a key must be for an algorithm. */
const KEY_OF_ALGORITHM: Readonly<Record<TokenAlgorithm, string>> = {
  ES256: 'ec prime256v1',
  ES384: 'ec secp384r1',
  ES512: 'ec secp521r1',
  EdDSA: 'ed25519',
  RS256: 'rsa',
  RS384: 'rsa',
  RS512: 'rsa',
  PS256: 'rsa',
};

/**
 * Keys of an outside issuer: a JWKS document, of which those for other algorithms are left out, or one public key or
 * certificate as PEM. @throws AppError 'invalid'
 */
export function parsePublicKeys(text: string, algorithm: TokenAlgorithm): VerifyRules['keyOf'] {
  try {
    if (text.includes('-----BEGIN')) {
      if (text.includes('PRIVATE KEY')) throw new Error('it is a private key');
      const only = createPublicKey(text);
      if (!isKeyFor(only, algorithm)) throw new Error(`want a key for ${algorithm}`);
      return () => only;
    }
    const { keys } = jwksSchema.parse(JSON.parse(text));
    const usable = keys.flatMap(({ kid, ...jwk }) => {
      // Symmetric ones are no public keys.
      if (jwk.kty === 'oct') return [];
      const key = createPublicKey({ key: jwk, format: 'jwk' });
      return isKeyFor(key, algorithm) ? [[kid, key] as const] : [];
    });
    if (usable.length === 0) throw new Error(`want a key for ${algorithm}`);
    const byKid = new Map(usable);
    return (kid) => byKid.get(kid);
  } catch (cause) {
    throw new AppError('invalid', `cannot use the keys of the token issuer: ${messageOf(cause)}`, { cause });
  }
}

function isKeyFor(key: KeyObject, algorithm: TokenAlgorithm): boolean {
  const { namedCurve } = key.asymmetricKeyDetails ?? {};
  const kind = namedCurve === undefined ? key.asymmetricKeyType : `${key.asymmetricKeyType} ${namedCurve}`;
  return kind === KEY_OF_ALGORITHM[algorithm];
}
