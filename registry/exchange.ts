/** What a handler gets: the request, who sent it, and the ports of the registry. Handlers throw; app.ts answers errors. */
import type { Context } from 'koa';
import type { Digest } from '../shared/digest.ts';
import type { Access, Action, Identity } from './access/access.ts';
import { assertAllowed } from './access/access.ts';
import type { Limits } from './limits.ts';
import type { Storage, TagGuard } from './metadata/index.ts';
import type { UpkeepIndex } from './metadata/upkeep.ts';
import type { Route } from './routes.ts';
import type { Turns } from './turns.ts';
import type { PullTimes } from './upkeep/pull-times.ts';
import type { EventSink } from './webhooks/events.ts';

export interface RegistryPorts extends Storage {
  readonly index: Storage['index'] & UpkeepIndex;
  readonly access: Access;
  /** Most bytes of a repository; undefined = no quota. */
  readonly quotaBytes?: ((repository: string) => number | undefined) | undefined;
  /** Who is told of what happens; nobody when absent. */
  readonly events?: EventSink | undefined;
  readonly limits: Limits;
  /** At upload sessions; absent = among the requests of this process. */
  readonly turns?: Turns | undefined;
  readonly pullTimes: PullTimes;
  /** Where blobs are, if they are files of this machine. */
  readonly blobPathOf?: (digest: Digest) => string;
  readonly now: () => Date;
  /** Unguessable, of `[A-Za-z0-9_-]`: whoever knows an upload's id may try to continue it. */
  readonly randomId: () => string;
}

export interface Exchange {
  readonly ctx: Context;
  readonly identity: Identity;
  readonly query: URLSearchParams;
}

export type Handler<K extends Route['kind']> = (
  exchange: Exchange,
  route: Extract<Route, { readonly kind: K }>,
) => Promise<void>;

export const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'] as const;
export type Method = (typeof METHODS)[number];

/** A missing one is answered 405. */
export type Handlers<K extends Route['kind']> = Readonly<Partial<Record<Method, Handler<K>>>>;

/** @throws OciError UNAUTHORIZED, DENIED */
export function authorize(access: Access, identity: Identity, action: Action): void {
  assertAllowed(access.decide(identity, action));
}

export function isAllowed(access: Access, identity: Identity, action: Action): boolean {
  return access.decide(identity, action).allowed;
}

/** Asks about each tag that a write moves, with what the transaction found. */
export function tagGuard(access: Access, identity: Identity, repository: string): TagGuard {
  return ({ tag, from, to }) => {
    const kind = to === undefined ? 'tag-delete' : from === undefined ? 'tag-create' : 'tag-overwrite';
    authorize(access, identity, { kind, repository, tag });
  };
}
