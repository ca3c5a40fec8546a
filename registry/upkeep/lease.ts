/** Work that only one process of a registry may do at a time, by a lease in the index that is renewed while it runs. */
import { AppError } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { GarbageIndex } from '../metadata/garbage.ts';

/** Much longer than any step and than clocks differ; a holder that died is waited for this long. */
export const LEASE_TTL_MS = 5_000;

/** Renews the lease when it is time to, or ends the work by throwing. Call it before each step. */
export type Hold = () => Promise<void>;

export interface LeaseOptions extends Cancelable {
  /** Whose it is: `gc` is whoever removes bytes. */
  readonly name: string;
  /** For the error: `collect garbage`. */
  readonly action: string;
  readonly now: () => Date;
  readonly randomId: () => string;
}

/** @throws AppError 'conflict' while another process has it; whatever signal.reason says */
export async function withLease<T>(
  index: Pick<GarbageIndex, 'takeLease' | 'releaseLease'>,
  { name, action, now, randomId, signal }: LeaseOptions,
  work: (hold: Hold) => Promise<T>,
): Promise<T> {
  const holder = randomId();
  let renewAt = 0;
  const hold = async () => {
    signal?.throwIfAborted();
    if (now().getTime() < renewAt) return;
    renewAt = now().getTime() + LEASE_TTL_MS / 2;
    if (!(await index.takeLease(name, { holder, ttlMs: LEASE_TTL_MS })))
      throw new AppError('conflict', `cannot ${action}: another process is at it`);
  };
  await hold();
  try {
    return await work(hold);
  } finally {
    await index.releaseLease(name, holder);
  }
}
