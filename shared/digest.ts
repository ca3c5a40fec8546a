/**
 * Digests: `algorithm:hex` of exact bytes.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md#digests
 * parseDigest is the only way to obtain a Digest from text, so a Digest is always safe as a path component.
 */
import { AppError } from './errors.ts';

declare const digestBrand: unique symbol;
export type Digest = string & { readonly [digestBrand]: 'Digest' };

export const DIGEST_ALGORITHMS = ['sha256', 'sha512'] as const;
export type DigestAlgorithm = (typeof DIGEST_ALGORITHMS)[number];

const DIGEST = /^(?:sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$/;

/** @throws AppError 'invalid' */
export function parseDigest(text: string): Digest {
  if (!isDigest(text))
    throw new AppError(
      'invalid',
      `cannot parse digest ${JSON.stringify(text.slice(0, 200))}: want sha256 or sha512, a colon, then lower-case hex`,
    );
  return text;
}

export function isDigest(text: string): text is Digest {
  return DIGEST.test(text);
}

export function algorithmOf(digest: Digest): DigestAlgorithm {
  return digest.startsWith('sha256:') ? 'sha256' : 'sha512';
}

/** The hex part: what names a blob's file inside `blobs/<algorithm>/`. */
export function hexOf(digest: Digest): string {
  return digest.slice(7);
}

export function digestOf(bytes: Uint8Array | string, algorithm: DigestAlgorithm = 'sha256'): Digest {
  // Not imported: most commands of the CLI only read digests, and node:crypto is 10 ms of each of their starts.
  const { createHash } = process.getBuiltinModule('node:crypto');
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}` as Digest;
}

/** Wraps the hex that a node:crypto hash of `algorithm` produced. @throws AppError 'invalid' */
export function digestFromHex(algorithm: DigestAlgorithm, hex: string): Digest {
  return parseDigest(`${algorithm}:${hex}`);
}

/**
 * chainID of a stack of layers, base first: chainID(L0) = diffID0, chainID(Ln) = sha256(chainID(Ln-1) + " " + diffIDn).
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md#layer-chainid
 */
export function chainIdOf(diffIds: readonly Digest[]): Digest | undefined {
  let chain: Digest | undefined;
  for (const diffId of diffIds) chain = chain === undefined ? diffId : digestOf(`${chain} ${diffId}`);
  return chain;
}

/** The 12 hex characters that people read in lists. */
export function shortId(digest: string): string {
  return digest.replace(/^sha(?:256|512):/, '').slice(0, 12);
}
