/**
 * A container: its record, and its states with what may happen in each. Docker's words: created, running, paused,
 * restarting, exited, dead, removing.
 *
 * Pure. The record is what the engine's database keeps. What really runs is known to the supervisor, and after a crash
 * the supervisor is right.
 */
import type { Digest } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import type { ContainerConfig, EndpointRequest, HostConfig } from './request.ts';

export const STATUSES = ['created', 'running', 'paused', 'restarting', 'exited', 'removing', 'dead'] as const;
export type ContainerStatus = (typeof STATUSES)[number];

/** Why the last start did not come to be; `exitCode` is what `docker run` exits with: 125, 126 or 127. */
export interface StartFailure {
  readonly message: string;
  readonly exitCode: number;
}

/** How the last run ended. */
export interface Ended {
  readonly startedAt: Date;
  readonly finishedAt: Date;
  /** 128 + n after signal n. */
  readonly exitCode: number;
  readonly oomKilled: boolean;
}

export type ContainerState =
  | { readonly status: 'created'; readonly failure?: StartFailure | undefined }
  | { readonly status: 'running'; readonly startedAt: Date; readonly pid: number }
  | { readonly status: 'paused'; readonly startedAt: Date; readonly pid: number }
  /** Between two runs: the restart policy waits for its back-off. */
  | ({ readonly status: 'restarting' } & Ended)
  | ({ readonly status: 'exited'; readonly failure?: StartFailure | undefined } & Ended)
  /** Being removed; `last` is what it was, so that nothing is forgotten if that fails. */
  | { readonly status: 'removing'; readonly last: RestingState }
  /** Removing it failed half-way; removing it again is all that can be done with it. */
  | { readonly status: 'dead'; readonly last: RestingState; readonly error: string };

export type RestingState = Extract<ContainerState, { readonly status: 'created' | 'exited' }>;

/** A mount that the container gets besides its root, as `inspect` names it. */
export interface MountPoint {
  readonly type: 'bind' | 'tmpfs' | 'volume';
  /** Host path; empty for a tmpfs. */
  readonly source: string;
  /** Absolute and clean path inside. */
  readonly destination: string;
  /** The options as the user wrote them, for example `ro,z`. */
  readonly mode: string;
  readonly writable: boolean;
  readonly propagation: string;
  /** Set exactly for volumes. */
  readonly volume?: VolumeUse | undefined;
}

export interface VolumeUse {
  readonly name: string;
  /** Nobody named it: it is removed with the container, if that is removed with its volumes. */
  readonly isAnonymous: boolean;
  /** What of it is mounted; '' = all. */
  readonly subpath: string;
}

export interface ContainerRecord {
  /** 64 hexadecimal characters. */
  readonly id: string;
  /** Without Docker's leading slash. */
  readonly name: string;
  readonly createdAt: Date;
  readonly imageId: Digest;
  /** What the image was called when the container was made. */
  readonly imageName: string;
  /** Layers below the writable one, base first. */
  readonly chain: readonly Digest[];
  readonly platform: { readonly os: string; readonly architecture: string };
  /** The request merged over the image's config: what runs. */
  readonly config: ContainerConfig;
  readonly hostConfig: HostConfig;
  readonly endpoints: Readonly<Record<string, EndpointRequest>>;
  readonly mounts: readonly MountPoint[];
  readonly state: ContainerState;
  /** Restarts by policy since somebody last started it. */
  readonly restartCount: number;
  /** Somebody stopped it on purpose: `unless-stopped` and `always` leave it alone until somebody starts it. */
  readonly stoppedByUser: boolean;
}

export type ContainerEvent =
  | { readonly type: 'started'; readonly at: Date; readonly pid: number }
  | { readonly type: 'start-failed'; readonly failure: StartFailure }
  | { readonly type: 'paused' }
  | { readonly type: 'unpaused' }
  | { readonly type: 'exited'; readonly exitCode: number; readonly oomKilled: boolean; readonly at: Date }
  /** The same, and the restart policy wants another run. */
  | { readonly type: 'restarting'; readonly exitCode: number; readonly oomKilled: boolean; readonly at: Date }
  | { readonly type: 'restart-cancelled' }
  | { readonly type: 'removing' }
  | { readonly type: 'remove-failed'; readonly error: string };

/** What may happen in which state, and where it leads. Everything else is a conflict. */
export const TRANSITIONS = {
  created: { started: 'running', 'start-failed': 'created', removing: 'removing' },
  running: { paused: 'paused', exited: 'exited', restarting: 'restarting' },
  paused: { unpaused: 'running', exited: 'exited', restarting: 'restarting' },
  restarting: {
    started: 'running',
    'start-failed': 'exited',
    'restart-cancelled': 'exited',
    removing: 'removing',
  },
  exited: { started: 'running', 'start-failed': 'exited', removing: 'removing' },
  removing: { 'remove-failed': 'dead' },
  dead: { removing: 'removing' },
} as const satisfies Record<ContainerStatus, Partial<Record<ContainerEvent['type'], ContainerStatus>>>;

/** The state after event. @throws AppError 'conflict' when the table has no such transition */
export function transition(state: ContainerState, event: ContainerEvent): ContainerState {
  const row: Partial<Record<ContainerEvent['type'], ContainerStatus>> = TRANSITIONS[state.status];
  if (row[event.type] === undefined)
    throw new AppError('conflict', `cannot go from ${state.status} by ${event.type}: the container is ${state.status}`);
  switch (event.type) {
    case 'started':
      return { status: 'running', startedAt: event.at, pid: event.pid };
    case 'start-failed':
      return { ...resting(state), failure: event.failure };
    case 'paused':
    case 'unpaused':
      return { ...alive(state), status: event.type === 'paused' ? 'paused' : 'running' };
    case 'exited':
    case 'restarting':
      return {
        status: event.type,
        startedAt: alive(state).startedAt,
        finishedAt: event.at,
        exitCode: event.exitCode,
        oomKilled: event.oomKilled,
      };
    case 'restart-cancelled':
      return resting(state);
    case 'removing':
      return { status: 'removing', last: resting(state) };
    case 'remove-failed':
      return { status: 'dead', last: resting(state), error: event.error };
    default:
      throw event satisfies never;
  }
}

function alive(state: ContainerState): Extract<ContainerState, { readonly pid: number }> {
  if (state.status === 'running' || state.status === 'paused') return state;
  throw new AppError('conflict', `cannot find the process of a container that is ${state.status}`);
}

/** What it is when nothing of it runs. */
export function resting(state: ContainerState): RestingState {
  switch (state.status) {
    case 'created':
    case 'exited':
      return state;
    case 'restarting':
      return { ...state, status: 'exited' };
    case 'removing':
    case 'dead':
      return state.last;
    case 'running':
    case 'paused':
      throw new AppError('conflict', `cannot rest: the container is ${state.status}`);
    default:
      throw state satisfies never;
  }
}

/** running or paused: it has a process. */
export function isAlive(state: ContainerState): state is Extract<ContainerState, { readonly pid: number }> {
  return state.status === 'running' || state.status === 'paused';
}

/** The exit code that `inspect` and `wait` tell: of the last run, or of the failed start; 0 before any. */
export function exitCodeOf(state: ContainerState): number {
  if (isAlive(state)) return 0;
  const rest = resting(state);
  return rest.failure?.exitCode ?? (rest.status === 'exited' ? rest.exitCode : 0);
}

/** How the last run ended, undefined before the first end and while it runs. */
export function endedOf(state: ContainerState): Ended | undefined {
  if (isAlive(state)) return undefined;
  const rest = resting(state);
  return rest.status === 'exited' ? rest : undefined;
}
