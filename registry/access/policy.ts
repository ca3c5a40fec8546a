/** The one place that says who may do what. Without users everybody is anonymous, and anonymous may write or may not. */
import type { Access, Action, Decision, Identity } from './access.ts';

const ANONYMOUS: Identity = { id: 'anonymous', isAnonymous: true };
const ALLOWED: Decision = { allowed: true };

const READS: ReadonlySet<Action['kind']> = new Set(['probe', 'catalog', 'metrics', 'pull']);

export interface OpenAccessOptions {
  /** Sensible on loopback, where whoever can connect could write to the files as well. */
  readonly anonymousWrites: boolean;
}

/** Access without users. */
export function createOpenAccess({ anonymousWrites }: OpenAccessOptions): Access {
  return {
    authenticate: async () => ANONYMOUS,
    decide(_identity, action) {
      if (anonymousWrites || READS.has(action.kind)) return ALLOWED;
      return { allowed: false, reason: `cannot ${action.kind}: this registry takes no anonymous writes` };
    },
  };
}
