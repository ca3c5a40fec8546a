/**
 * The audit log: one line for each write that was done and each request that was refused, with who, from where and
 * what. A first request without credentials that is asked for some is neither.
 */
import type { Context } from 'koa';
import type { Log } from '../../shared/log.ts';
import { type OciError, toOciError } from '../oci-errors.ts';
import type { Identity } from './access.ts';

export interface Audit {
  /** Runs the work of one request and notes when it is refused. `identity` is filled in as soon as it is known. */
  refusals(ctx: Context, who: { identity?: Identity }, work: () => Promise<void>): Promise<void>;
  /** The same, and notes when it has written something. */
  record(ctx: Context, who: { identity?: Identity }, work: () => Promise<void>): Promise<void>;
}

const READS: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS']);
const REFUSALS: ReadonlySet<number> = new Set([401, 403, 429]);

/** `log` should be a child with the component `audit`. */
export function createAudit(log: Log): Audit {
  const describe = (ctx: Context, { identity }: { identity?: Identity }) => ({
    identity: identity?.id,
    address: ctx.req.socket.remoteAddress,
    method: ctx.method,
    path: ctx.path.slice(0, 1_000),
  });

  const refusals: Audit['refusals'] = async (ctx, who, work) => {
    try {
      await work();
    } catch (thrown) {
      const error = toOciError(thrown);
      if (REFUSALS.has(error.status) && !isFirstAsk(ctx, error))
        log.warn('refused', { ...describe(ctx, who), status: error.status, reason: error.message });
      throw thrown;
    }
  };

  return {
    refusals,
    async record(ctx, who, work) {
      await refusals(ctx, who, work);
      if (READS.has(ctx.method)) return;
      const digest = ctx.response.get('Docker-Content-Digest') || undefined;
      log.info('written', { ...describe(ctx, who), status: ctx.status, digest });
    },
  };
}

/** How every login begins. */
function isFirstAsk(ctx: Context, { status }: OciError): boolean {
  return status === 401 && ctx.get('Authorization') === '' && READS.has(ctx.method);
}
