/** Docker's resources that this engine does not have: said by name, so that nobody takes them for a wrong path. */
import { AppError } from '../../shared/errors.ts';
import type { ApiRouter } from './context.ts';

const UNBUILT: readonly (readonly [path: RegExp, what: string])[] = [
  [/^\/networks(?:\/|$)/, 'networks: containers have --network none or host'],
  [/^\/volumes(?:\/|$)/, 'volumes: bind a directory of the host instead'],
  [/^\/(?:build|session|grpc)(?:\/|$)/, 'building images'],
  [/^\/commit$/, 'making an image of a container'],
  [/^\/containers\/.+\/(?:archive|export)$/, 'copying files out of and into containers'],
  [/^\/containers\/.+\/attach\/ws$/, 'attaching over a websocket'],
  [/^\/containers\/.+\/checkpoints(?:\/|$)/, 'checkpoints'],
  [/^\/images\/search$/, 'searching registries'],
  [/^\/(?:swarm|nodes|services|tasks|secrets|configs)(?:\/|$)/, 'swarm mode'],
  [/^\/plugins(?:\/|$)/, 'plugins'],
];

/** Last, so that it only sees what nobody else answers. */
export function addUnbuiltRoutes(router: ApiRouter): void {
  for (const [path, what] of UNBUILT)
    router.all(path, () => {
      throw new AppError('unsupported', `this engine does not support ${what}`);
    });
}
