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
  /** Stable and unique; owns upload sessions and appears in logs. What it may do is looked up at each decision. */
  readonly id: string;
  readonly isAnonymous: boolean;
  /** Present = shown by a token, which allows no more than it says. */
  readonly token?: TokenRights;
}

export interface TokenRights {
  /** Our own tokens only narrow what the policy gives; an outside issuer's say what the policy cannot know. */
  readonly issuedBy: 'us' | 'outside';
  readonly grants: Grants;
}

export type RepositoryAction = 'pull' | 'push' | 'delete';

export interface Grants {
  readonly catalog: boolean;
  readonly repositories: ReadonlyMap<string, ReadonlySet<RepositoryAction>>;
}

export const ANONYMOUS: Identity = { id: 'anonymous', isAnonymous: true };

export type Action =
  | { readonly kind: 'probe' }
  | { readonly kind: 'catalog' }
  | { readonly kind: 'metrics' }
  | { readonly kind: RepositoryAction; readonly repository: string }
  /** To see its name in the catalog. */
  | { readonly kind: 'list'; readonly repository: string }
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
  /**
   * @throws OciError UNAUTHORIZED with a challenge when credentials are given and wrong (none given = anonymous),
   * TOOMANYREQUESTS with Retry-After
   */
  authenticate(caller: Caller): Promise<Identity>;
  decide(identity: Identity, action: Action): Decision;
}

export const ALLOWED: Decision = { allowed: true };

/** @throws OciError UNAUTHORIZED, DENIED */
export function assertAllowed(decision: Decision): void {
  if (decision.allowed) return;
  const { reason, challenge } = decision;
  if (challenge === undefined) throw new OciError('DENIED', reason);
  throw new OciError('UNAUTHORIZED', reason, { headers: { 'www-authenticate': challenge } });
}
