/**
 * The seam between the wire and rights: who is asking, and may they. Every route passes decide() with the *resolved*
 * action: a manifest push is also a tag-create or a tag-overwrite, whichever it turns out to be inside the transaction
 * (CVE-2026-31801), and a delete by digest is also a delete of each tag that goes with it.
 *
 * decide() is synchronous and pure over the current policy, because tag decisions run inside a transaction.
 */
import type { IncomingHttpHeaders } from 'node:http';
import { OciError } from '../oci-errors.ts';

export interface Identity {
  /** Stable and unique; owns upload sessions and appears in logs. */
  readonly id: string;
  readonly isAnonymous: boolean;
}

export type Action =
  | { readonly kind: 'probe' }
  | { readonly kind: 'catalog' }
  | { readonly kind: 'metrics' }
  | { readonly kind: 'pull' | 'push' | 'delete'; readonly repository: string }
  | {
      readonly kind: 'tag-create' | 'tag-overwrite' | 'tag-delete';
      readonly repository: string;
      readonly tag: string;
    };

export type Decision =
  | { readonly allowed: true }
  | {
      readonly allowed: false;
      readonly reason: string;
      /** WWW-Authenticate. Present = saying who you are may help (401); absent = it will not (403). */
      readonly challenge?: string | undefined;
    };

export interface Caller {
  readonly headers: IncomingHttpHeaders;
  readonly remoteAddress: string | undefined;
}

export interface Access {
  /** @throws OciError UNAUTHORIZED with a challenge when credentials are given and wrong; none given = anonymous */
  authenticate(caller: Caller): Promise<Identity>;
  decide(identity: Identity, action: Action): Decision;
}

/** @throws OciError UNAUTHORIZED, DENIED */
export function assertAllowed(decision: Decision): void {
  if (decision.allowed) return;
  const { reason, challenge } = decision;
  if (challenge === undefined) throw new OciError('DENIED', reason);
  throw new OciError('UNAUTHORIZED', reason, { headers: { 'www-authenticate': challenge } });
}
