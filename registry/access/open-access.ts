/** Access without users: everybody is anonymous, and anonymous may write or may not. */
import { type Access, type Action, ALLOWED, ANONYMOUS } from './access.ts';

const READS: ReadonlySet<Action['kind']> = new Set(['probe', 'catalog', 'metrics', 'pull']);

export interface OpenAccessOptions {
  /** Sensible on loopback, where whoever can connect could write to the files as well. */
  readonly anonymousWrites: boolean;
}

/** Never challenges: there is nobody whom one could be. */
export function createOpenAccess({ anonymousWrites }: OpenAccessOptions): Access {
  return {
    authenticate: async () => ANONYMOUS,
    decide(_identity, action) {
      if (anonymousWrites || READS.has(action.kind)) return ALLOWED;
      return { allowed: false, reason: `cannot ${action.kind}: this registry takes no anonymous writes` };
    },
  };
}
