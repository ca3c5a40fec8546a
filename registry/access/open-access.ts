/** Access without users: everybody is anonymous, and anonymous may write or may not. */
import { type Access, type Action, ALLOWED, ANONYMOUS } from './access.ts';
import { assertWithin, networkOf, type RateLimit } from './rate-limit.ts';

const READS: ReadonlySet<Action['kind']> = new Set(['probe', 'catalog', 'list', 'metrics', 'pull']);

export interface OpenAccessOptions {
  /** Sensible on loopback, where whoever can connect could write to the files as well. */
  readonly anonymousWrites: boolean;
  /** Requests, by network. */
  readonly requests?: RateLimit;
}

/** Never challenges: there is nobody whom one could be. */
export function createOpenAccess({ anonymousWrites, requests }: OpenAccessOptions): Access {
  return {
    async authenticate({ remoteAddress }) {
      if (requests !== undefined) assertWithin(requests.take(networkOf(remoteAddress)), 'too many requests');
      return ANONYMOUS;
    },
    decide(_identity, action) {
      if (anonymousWrites || READS.has(action.kind)) return ALLOWED;
      return { allowed: false, reason: `cannot ${action.kind}: this registry takes no anonymous writes` };
    },
  };
}
