/**
 * ContainerSupervisor: starts, watches and finds again what runs. One conmon per container owns its stdio, log and exit
 * code (docs/adr/0004), so everything here works the same for a container that an earlier engine started.
 */
import type { Cancelable } from '../../shared/streams.ts';

export interface Exit {
  /** 128 + n after signal n. */
  readonly code: number;
  readonly oomKilled: boolean;
  readonly finishedAt: Date;
}

export interface LaunchRequest {
  readonly id: string;
  /** Directory with config.json; rootfs is mounted already. */
  readonly bundle: string;
  /** conmon's k8s-file log: the container's output stream. */
  readonly logPath: string;
  readonly terminal: boolean;
  readonly stdin: 'none' | 'once' | 'open';
  readonly cgroupParent?: string | undefined;
}

export interface Supervised {
  readonly id: string;
  /** The container's first process, as the host sees it. */
  readonly pid: number;
  readonly exited: Promise<Exit>;
  /** Runs the created process. @throws AppError 'invalid' with the runtime's words when the command cannot run */
  start(): Promise<void>;
  kill(signal: number): Promise<void>;
  resize(size: { readonly rows: number; readonly columns: number }): Promise<void>;
  /** A stream whose writes are the container's stdin; ending it is EOF when stdin is 'once'. */
  stdin(): Promise<import('node:stream').Writable>;
  /** Removes what the runtime and conmon keep of it, after it exited. Idempotent. */
  delete(): Promise<void>;
}

export interface ContainerSupervisor {
  /** conmon + runtime create: the process exists and waits. On failure nothing is left behind. */
  launch(request: LaunchRequest, options?: Cancelable): Promise<Supervised>;
  /** What an earlier engine started: running, or ended while nobody watched. undefined = there is no trace of it. */
  adopt(request: LaunchRequest): Promise<Supervised | undefined>;
  /** Removes traces (runtime state, cgroups, processes by id) of containers that are not in valid. */
  sweep(valid: ReadonlySet<string>): Promise<void>;
}
