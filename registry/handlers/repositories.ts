/**
 * Removal of a repository, which the specification leaves to extensions: `DELETE /v2/_berth/repositories/<name>`. It
 * needs the right to delete there and each tag to be one that the caller may delete. Bytes go with the next collection.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/extensions/README.md
 */
import { authorize, type Handlers, type RegistryPorts, tagGuard } from '../exchange.ts';
import { OciError } from '../oci-errors.ts';
import { removeRepository } from '../upkeep/removal.ts';

export function createRepositoryHandlers({ index, access, events }: RegistryPorts): Handlers<'repository'> {
  return {
    async DELETE({ ctx, identity }, { repository }) {
      authorize(access, identity, { kind: 'delete', repository });
      const guard = tagGuard(access, identity, repository);
      const removed = await removeRepository(index, repository, { guard });
      if (removed === undefined) throw new OciError('NAME_UNKNOWN', `cannot find repository ${repository}`);
      await events?.emit({
        action: 'delete',
        repository,
        tags: [],
        actor: identity.id,
        request: {
          method: ctx.method,
          address: ctx.req.socket.remoteAddress,
          userAgent: ctx.get('User-Agent') || undefined,
        },
      });
      ctx.status = 202;
      ctx.body = '';
    },
  };
}
