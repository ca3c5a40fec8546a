/**
 * Removal of a whole repository: manifests and tags, then links to blobs, in batches. Its bytes go with the next
 * collection, unless other repositories have them, too.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { ManifestIndex, TagGuard } from '../metadata/index.ts';
import type { UpkeepIndex } from '../metadata/upkeep.ts';

const TAGS_BATCH = 1000;

/** Answers how many manifests went; undefined = no such repository. A tag that guard refuses ends it before it begins. */
export async function removeRepository(
  index: UpkeepIndex & Pick<ManifestIndex, 'tags'>,
  repository: string,
  { guard }: { readonly guard: TagGuard },
): Promise<number | undefined> {
  let after: string | undefined;
  do {
    const page = await index.tags(repository, { limit: TAGS_BATCH, after });
    if (page === undefined) return undefined;
    for (const tag of page.entries) guard({ tag });
    after = page.more ? page.entries.at(-1) : undefined;
    await turn();
  } while (after !== undefined);

  let count = 0;
  for (;;) {
    const part = await index.removeRepositoryPart(repository, { guard });
    count += part?.manifests ?? 0;
    // Somebody else may have ended what two have begun.
    if (part === undefined || part.done) return count;
    await turn();
  }
}
