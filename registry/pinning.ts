/** Pinning a digest before its bytes are committed, also while an old copy of them is on its way out. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Digest } from '../shared/digest.ts';
import { isKind } from '../shared/errors.ts';
import type { BlobIndex } from './metadata/index.ts';

/** How long to wait between two looks. */
const RETRY_MS = 50;

/**
 * Until this has resolved and for a grace period after, nothing removes the bytes that a commit is about to publish.
 * Answers since when. @throws AppError 'unavailable' when the old copy is still there after waitMs
 */
export async function pinForPush(
  index: Pick<BlobIndex, 'pinBlob'>,
  digest: Digest,
  { now, waitMs }: { readonly now: () => Date; readonly waitMs: number },
): Promise<Date> {
  const until = now().getTime() + waitMs;
  for (;;) {
    try {
      await index.pinBlob(digest);
      return now();
    } catch (error) {
      if (!isKind(error, 'unavailable') || now().getTime() > until) throw error;
      await sleep(RETRY_MS);
    }
  }
}
