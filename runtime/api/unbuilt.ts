/** Docker's resources that this engine does not have: said by name, so that nobody takes them for a wrong path. */
import { AppError } from '../../shared/errors.ts';
import type { ApiRouter } from './context.ts';

// The docker CLI asks for an object of every kind in turn, and goes on where the answer says `not supported`.
const UNBUILT: readonly (readonly [path: RegExp, message: string])[] = [
  [/^\/(?:session|grpc)(?:\/|$)/, "BuildKit's sessions are not supported by this engine: set DOCKER_BUILDKIT=0"],
  [/^\/containers\/.+\/checkpoints(?:\/|$)/, 'checkpoints are not supported by this engine'],
  [/^\/images\/search$/, 'searching registries is not supported by this engine'],
  [/^\/(?:swarm|nodes|services|tasks|secrets|configs)(?:\/|$)/, 'swarm mode is not supported by this engine'],
  [/^\/plugins(?:\/|$)/, 'plugins are not supported by this engine'],
];

/** Last, so that it only sees what nobody else answers. */
export function addUnbuiltRoutes(router: ApiRouter): void {
  for (const [path, message] of UNBUILT)
    router.all(path, () => {
      throw new AppError('unsupported', message);
    });
}
