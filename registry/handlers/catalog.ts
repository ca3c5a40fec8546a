/**
 * The catalog: `/v2/_catalog`, Docker's extension that lists repositories. Callers see those that they may pull; a page
 * may therefore be shorter than n, and its Link still leads on.
 */
import { authorize, type Handlers, isAllowed, type RegistryPorts } from '../exchange.ts';
import { nextLink, parsePage } from '../paging.ts';

export function createCatalogHandlers({ index, access, limits }: RegistryPorts): Handlers<'catalog'> {
  return {
    async GET({ ctx, identity, query }) {
      authorize(access, identity, { kind: 'catalog' });
      const page = parsePage(query, limits.pageDefaultEntries, limits);
      const { entries, more } = await index.repositories(page);
      const last = entries.at(-1);
      if (more && last !== undefined) ctx.set('Link', nextLink('/v2/_catalog', { n: page.limit, last }));
      ctx.body = {
        repositories: entries.filter((repository) => isAllowed(access, identity, { kind: 'pull', repository })),
      };
    },
  };
}
