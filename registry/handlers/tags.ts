/** Tags of a repository. https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags */
import { authorize, type Handlers, type RegistryPorts } from '../exchange.ts';
import { OciError } from '../oci-errors.ts';
import { nextLink, parsePage } from '../paging.ts';

export function createTagHandlers({ index, access, limits }: RegistryPorts): Handlers<'tags'> {
  return {
    async GET({ ctx, identity, query }, { repository }) {
      authorize(access, identity, { kind: 'pull', repository });
      const page = parsePage(query, limits.pageMaxEntries, limits);
      const tags = await index.tags(repository, page);
      if (tags === undefined) throw new OciError('NAME_UNKNOWN', `cannot find repository ${repository}`);
      const last = tags.entries.at(-1);
      if (tags.more && last !== undefined)
        ctx.set('Link', nextLink(`/v2/${repository}/tags/list`, { n: page.limit, last }));
      ctx.body = { name: repository, tags: tags.entries };
    },
  };
}
