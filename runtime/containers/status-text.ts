/** docker ps's STATUS column. Pure. */
import { formatSpan } from '../../shared/units.ts';
import type { ContainerState } from './container.ts';
import type { Health } from './containers.ts';

export function statusText(
  state: ContainerState,
  options: { readonly now: Date; readonly health?: Health | undefined },
): string {
  const { now, health } = options;
  const since = (then: Date) => formatSpan(now.getTime() - then.getTime());
  switch (state.status) {
    case 'running': {
      const word =
        health === undefined ? '' : health.status === 'starting' ? ' (health: starting)' : ` (${health.status})`;
      return `Up ${since(state.startedAt)}${word}`;
    }
    case 'paused':
      return `Up ${since(state.startedAt)} (Paused)`;
    case 'restarting':
      return `Restarting (${state.exitCode}) ${since(state.finishedAt)} ago`;
    case 'removing':
      return 'Removal In Progress';
    case 'dead':
      return 'Dead';
    case 'created':
      return 'Created';
    case 'exited':
      return `Exited (${state.failure?.exitCode ?? state.exitCode}) ${since(state.finishedAt)} ago`;
    default:
      throw state satisfies never;
  }
}
