/**
 * ContainerSupervisor: starts, watches and finds again what runs. One conmon per container owns its stdio, log and exit
 * code (docs/adr/0004), so everything here works the same for a container that an earlier engine started.
 */
import type { Writable } from 'node:stream';
import type { Cancelable } from '../../shared/streams.ts';
import type { TerminalSize } from './containers.ts';

export interface Exit {
  /** 128 + n after signal n. */
  readonly code: number;
  readonly oomKilled: boolean;
  readonly finishedAt: Date;
}

/** none: reads EOF. once: closed when the first writer ends or goes. open: never closed. */
export type StdinMode = 'none' | 'once' | 'open';

export interface LaunchRequest {
  readonly id: string;
  /** An existing directory; config.json is there, and the root mounted, when `ready` resolves. */
  readonly bundle: string;
  /** conmon is started meanwhile. Its rejection is the launch's. */
  readonly ready?: Promise<unknown> | undefined;
  /** conmon's k8s-file log: the container's output stream. */
  readonly logPath: string;
  readonly terminal: boolean;
  readonly stdin: StdinMode;
  /** The container's, when it is not below the engine's own parent: where to look for what is left of it. */
  readonly cgroup?: string | undefined;
}

/** An extra process in a running container, on a terminal. */
export interface ExecLaunchRequest {
  /** Unique among everything that was ever launched here. */
  readonly execId: string;
  readonly containerId: string;
  /** Directory with process.json; belongs to this exec alone. */
  readonly bundle: string;
  readonly logPath: string;
  readonly stdin: StdinMode;
}

/** Makes the writer of the output wait. */
export interface Brake {
  hold(): void;
  release(): void;
  close(): void;
}

/** What conmon does for whatever it watches. */
export interface Monitored {
  readonly id: string;
  /** Resolves once, never rejects; all output is in the log then. */
  readonly exited: Promise<Exit>;
  /** @throws AppError 'conflict' when it has ended */
  resize(size: TerminalSize): Promise<void>;
  /** Writes go to stdin; ending it is EOF when stdin is 'once'. @throws AppError 'conflict' when it has ended */
  stdin(): Promise<Writable>;
  /** While it holds, output blocks. Never close it before the end when stdin is 'once': that would be EOF. */
  brake(): Brake;
  /** Makes conmon leave the log that it has open and open the log's path anew. */
  reopenLog(): Promise<void>;
}

export interface Supervised extends Monitored {
  /** The container's first process, as the host sees it. */
  readonly pid: number;
  /** Runs the created process. @throws AppError 'invalid' with the runtime's words when the command cannot run */
  start(): Promise<void>;
  /** A paused one gets it when it goes on. @throws AppError 'conflict' when it has ended */
  kill(signal: number): Promise<void>;
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** `resources` as in config.json's linux.resources. */
  update(resources: unknown): Promise<void>;
  /** Removes what the runtime and conmon keep of it; kills it if it still runs. Idempotent. */
  delete(): Promise<void>;
}

export interface SupervisedExec extends Monitored {
  /** Runs it, once. Answers its pid. @throws AppError 'invalid' with the runtime's words when the command cannot run */
  start(): Promise<number>;
  /** Removes what conmon keeps of it, after it ended. Idempotent. */
  delete(): Promise<void>;
}

export interface Adopted {
  readonly supervised: Supervised;
  readonly status: 'running' | 'paused' | 'ended';
}

export interface ContainerSupervisor {
  /** conmon + runtime create: the process exists and waits. On failure nothing is left behind. */
  launch(request: LaunchRequest, options?: Cancelable): Promise<Supervised>;
  /** conmon waits with its attach socket open; nothing runs before start(). */
  launchExec(request: ExecLaunchRequest): Promise<SupervisedExec>;
  /** What an earlier engine started: running, or ended while nobody watched. undefined = it was never started, and no trace is left. */
  adopt(request: LaunchRequest): Promise<Adopted | undefined>;
  /** Removes traces (runtime state, cgroups, processes by id) of containers that are not in valid. */
  sweep(valid: ReadonlySet<string>): Promise<void>;
  /** Stops watching; what runs goes on running. */
  close(): Promise<void>;
}
