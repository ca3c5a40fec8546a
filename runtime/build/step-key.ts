/**
 * Keys of steps: equal keys promise equal results. A key is the digest of everything that the result can depend on and of
 * nothing else; times of files, secrets and the proxies of a build are not among it. Pure.
 */
import { type Digest, digestOf } from '../../shared/digest.ts';

/** Changes when the same step would give another layer than it did. */
const VERSION = 2;

/** JSON values only; their order counts. */
export type KeyPart =
  | string
  | number
  | boolean
  | null
  | undefined
  | readonly KeyPart[]
  | { readonly [name: string]: KeyPart };

export function stepKey(kind: 'run' | 'copy' | 'workdir', parts: KeyPart): Digest {
  return digestOf(JSON.stringify([VERSION, kind, parts]));
}
