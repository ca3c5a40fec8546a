/**
 * Scopes: what a token is asked to cover, `repository:team/app:pull,push` and `registry:catalog:*`. A name may hold
 * colons (a port), so the last one ends it. What is not understood is not granted, which is no error. Pure.
 * https://distribution.github.io/distribution/spec/auth/scope/
 */
import { z } from 'zod';
import { isRepository } from '../../shared/reference.ts';
import type { Grants, RepositoryAction } from './access.ts';

export interface Scope {
  readonly type: string;
  readonly name: string;
  readonly actions: readonly string[];
}

/** A mount asks for two repositories; nobody asks for this many. */
const SCOPES_MAX = 50;
const SCOPE_MAX_LENGTH = 1_024;

const REPOSITORY_ACTIONS: readonly RepositoryAction[] = ['pull', 'push', 'delete'];

/** Each text may hold several scopes between spaces. Beyond the limit the rest is left out. */
export function parseScopes(texts: readonly string[]): readonly Scope[] {
  const each = texts.slice(0, SCOPES_MAX).flatMap((text) => text.slice(0, SCOPES_MAX * SCOPE_MAX_LENGTH).split(' '));
  return each.slice(0, SCOPES_MAX).flatMap((text) => parseScope(text) ?? []);
}

function parseScope(text: string): Scope | undefined {
  const match = /^([a-z0-9]+)(?:\([a-z0-9]+\))?:(.+):([a-z*]+(?:,[a-z*]+)*)$/.exec(text);
  if (match === null || text.length > SCOPE_MAX_LENGTH) return undefined;
  const [, type = '', name = '', actions = ''] = match;
  return { type, name, actions: actions.split(',') };
}

export interface Judge {
  readonly catalog: () => boolean;
  readonly repository: (action: RepositoryAction, repository: string) => boolean;
}

/** The part of what is asked that is also allowed. */
export function intersect(scopes: readonly Scope[], allowed: Judge): Grants {
  const repositories = new Map<string, Set<RepositoryAction>>();
  let catalog = false;
  for (const { type, name, actions } of scopes) {
    const asks = (action: string) => actions.includes(action) || actions.includes('*');
    if (type === 'registry' && name === 'catalog') catalog ||= asks('*') && allowed.catalog();
    if (type !== 'repository' || !isRepository(name)) continue;
    const granted = REPOSITORY_ACTIONS.filter((action) => asks(action) && allowed.repository(action, name));
    repositories.set(name, new Set([...(repositories.get(name) ?? []), ...granted]));
  }
  return { catalog, repositories };
}

const claimSchema = z
  .array(z.object({ type: z.string(), name: z.string(), actions: z.array(z.string()).max(SCOPES_MAX) }))
  .max(SCOPES_MAX);

export function toAccessClaim({ catalog, repositories }: Grants): readonly Scope[] {
  const entries = [...repositories].filter(([, actions]) => actions.size > 0);
  return [
    ...entries.map(([name, actions]) => ({ type: 'repository', name, actions: [...actions] })),
    ...(catalog ? [{ type: 'registry', name: 'catalog', actions: ['*'] }] : []),
  ];
}

/** undefined = not an access claim. A token without one grants nothing. */
export function parseAccessClaim(claim: unknown): Grants | undefined {
  const parsed = claimSchema.safeParse(claim ?? []);
  return parsed.success ? intersect(parsed.data, { catalog: () => true, repository: () => true }) : undefined;
}

/** As the `scope` of a token answer. */
export function formatScopes(grants: Grants): string {
  return toAccessClaim(grants)
    .map(({ type, name, actions }) => `${type}:${name}:${actions.join(',')}`)
    .join(' ');
}
