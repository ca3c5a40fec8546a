/**
 * The catalog: `/v2/_catalog`, Docker's extension that lists repositories. Callers see those that they may pull, and
 * nothing of the others: neither in the list nor as the `last` of a Link.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { Identity } from '../access/access.ts';
import { authorize, type Handlers, isAllowed, type RegistryPorts } from '../exchange.ts';
import type { Page, Paged } from '../metadata/index.ts';
import { nextLink, parsePage } from '../paging.ts';

/** Names looked at in one turn of the event loop: about a millisecond. */
const LOOK_ENTRIES = 500;

export function createCatalogHandlers({ index, access, limits }: RegistryPorts): Handlers<'catalog'> {
  async function visible(identity: Identity, { limit, after }: Page): Promise<Paged<string>> {
    const found: string[] = [];
    let [cursor, more] = [after, limit > 0];
    while (more && found.length <= limit) {
      const looked = await index.repositories({ limit: Math.max(LOOK_ENTRIES, limit + 1), after: cursor });
      found.push(...looked.entries.filter((repository) => isAllowed(access, identity, { kind: 'list', repository })));
      [cursor, more] = [looked.entries.at(-1), looked.more];
      if (more && found.length <= limit) await turn();
    }
    return { entries: found.slice(0, limit), more: found.length > limit };
  }

  return {
    async GET({ ctx, identity, query }) {
      authorize(access, identity, { kind: 'catalog' });
      const page = parsePage(query, limits.pageDefaultEntries, limits);
      const { entries, more } = await visible(identity, page);
      const last = entries.at(-1);
      if (more && last !== undefined) ctx.set('Link', nextLink('/v2/_catalog', { n: page.limit, last }));
      ctx.body = { repositories: entries };
    },
  };
}
