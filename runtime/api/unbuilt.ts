/**
 * Docker's resources that this engine does not have. What would make one is refused by name, so that nobody takes it for
 * a wrong path; everything else gets what dockerd answers while there are none.
 */
import { AppError } from '../../shared/errors.ts';
import { type ApiContext, type ApiRouter, sendJson } from './context.ts';

// The docker CLI asks for an object of every kind in turn, and goes on where the answer says `not supported`.
const UNBUILT: readonly (readonly [path: RegExp, message: string])[] = [
  [/^\/(?:session|grpc)(?:\/|$)/, "BuildKit's sessions are not supported by this engine: set DOCKER_BUILDKIT=0"],
  [/^\/containers\/.+\/checkpoints(?:\/|$)/, 'checkpoints are not supported by this engine'],
  [/^\/images\/search$/, 'searching registries is not supported by this engine'],
  [/^\/swarm\/(?:init|join)$/, 'swarm mode is not supported by this engine'],
  [/^\/plugins\/(?:create|pull|privileges)$/, 'plugins are not supported by this engine'],
];

const NOT_IN_A_SWARM = 'This node is not part of a swarm';
const NOT_A_MANAGER =
  'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.';

/** Last, so that it only sees what nobody else answers. */
export function addUnbuiltRoutes(router: ApiRouter): void {
  for (const [path, message] of UNBUILT)
    router.all(path, () => {
      throw new AppError('unsupported', message);
    });
  router.post('/swarm/leave', (ctx) => refuseForSwarm(ctx, NOT_IN_A_SWARM));
  router.all(/^\/(?:swarm|nodes|services|tasks|secrets|configs)(?:\/|$)/, (ctx) => refuseForSwarm(ctx, NOT_A_MANAGER));
  router.get('/plugins', (ctx) => sendJson(ctx, []));
  router.all(/^\/plugins\/./, (ctx) => {
    const name = ctx.path.slice('/plugins/'.length).replace(/\/(?:json|enable|disable|push|upgrade|set)$/, '');
    throw new AppError('not-found', `plugin ${JSON.stringify(name)} not found`);
  });
}

/** Docker's status, which no kind has: nothing is broken here that would pass. */
function refuseForSwarm(ctx: ApiContext, message: string): void {
  sendJson(ctx, { message, kind: 'unsupported' }, 503);
}
