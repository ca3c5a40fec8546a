/**
 * Containers: everything that people do with a container, from create to remove.
 *
 * `name` below is a name, an id, or an unambiguous prefix of an id. Every method that takes one throws 'not-found'
 * (`No such container: x`) and 'invalid' (ambiguous prefix). Verbs on one container happen one after another, on
 * different ones at the same time. A verb that was interrupted by a crash has either happened or not.
 *
 * Where clients match Docker's messages, errors carry Docker's words.
 */
import type { Writable } from 'node:stream';
import type { Digest } from '../../shared/digest.ts';
import type { ImageRunConfig } from '../../shared/oci.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { Endpoint, SandboxState } from '../networks/networks.ts';
import type { ContainerRecord } from './container.ts';
import type { CreateRequest, EndpointRequest, ExecRequest, UpdateRequest } from './request.ts';

/** Parsed `filters=`: each key with the values asked for. */
export type Filters = Readonly<Record<string, readonly string[]>>;

export interface StartOptions extends Cancelable {
  /** More environment for this run alone; no record of the container has it. */
  readonly env?: readonly string[] | undefined;
}

export interface Containers {
  /**
   * @throws AppError 'invalid' (name, command, options), 'conflict' (name taken), 'not-found' (`No such image: x`),
   * 'unsupported' (an option by name)
   */
  create(request: CreateRequest, options?: CreateOptions): Promise<Created>;
  /**
   * false = it ran already. @throws AppError 'invalid' with Docker's words when the command cannot be run (a client
   * exits with 126 or 127), 'conflict' while it is paused, removing or dead
   */
  start(name: string, options?: StartOptions): Promise<boolean>;
  /** Stop signal, time to obey, SIGKILL. false = it did not run. Resolves when it has ended. */
  stop(name: string, options?: StopOptions): Promise<boolean>;
  restart(name: string, options?: StopOptions): Promise<void>;
  /** Sends a signal, by name (with or without SIG) or number. SIGKILL also waits for the end. @throws AppError 'conflict' when it does not run */
  kill(name: string, signal?: string): Promise<void>;
  pause(name: string): Promise<void>;
  unpause(name: string): Promise<void>;
  /** @throws AppError 'conflict' (name taken), 'invalid' (grammar) */
  rename(name: string, newName: string): Promise<void>;
  /** Changes limits of a running or resting container, and the restart policy. */
  update(name: string, request: UpdateRequest): Promise<{ readonly warnings: readonly string[] }>;
  /** Resolves as soon as the container is found, so that headers can be sent; the answer comes when it comes. */
  wait(name: string, options?: WaitOptions): Promise<{ readonly result: Promise<WaitResult> }>;
  /** @throws AppError 'conflict' while it runs, without force */
  remove(name: string, options?: RemoveOptions): Promise<void>;
  /** Removes a link of the default network, `PARENT/ALIAS`. @throws AppError 'not-found', 'conflict' for a name without alias */
  removeLink(name: string): Promise<void>;
  /** @throws AppError 'not-found', 'denied' (it is there already), 'invalid' (it has no network of its own) */
  connect(name: string, network: string, endpoint: EndpointRequest): Promise<void>;
  /** @throws AppError 'not-found', 'denied' (it is not there) */
  disconnect(name: string, network: string): Promise<void>;
  /** Removes what does not run. Filters: until, label, label!. */
  prune(filters?: Filters): Promise<{ readonly deleted: readonly string[]; readonly reclaimedBytes: number }>;

  /** Newest first. @throws AppError 'invalid' for an unknown filter */
  list(options?: ListOptions): Promise<readonly ContainerSummary[]>;
  inspect(name: string, options?: { readonly size?: boolean }): Promise<ContainerDetails>;
  /** What ps(1) tells of its processes. `psArguments` as in `ps -ef`, split at blanks. @throws AppError 'conflict' when it does not run */
  top(name: string, psArguments?: string): Promise<ProcessList>;
  /** One sample now. undefined = it does not run. */
  stats(name: string): Promise<StatsSample | undefined>;
  /** What changed in its filesystem. */
  changes(name: string): Promise<readonly FileChange[]>;

  /**
   * Connects to stdin and to the output from now on (`logs`: from the beginning). Possible before start: output begins
   * with the first byte. Any number of attachments at once. @throws AppError 'conflict' while it is paused or restarting
   */
  attach(name: string, options: AttachOptions): Promise<Attachment>;
  /** Works on resting containers, too. @throws AppError 'invalid' when neither stream is asked for */
  logs(name: string, options: LogOptions): Promise<LogStream>;
  /** Rows and columns of its terminal. @throws AppError 'conflict' when it does not run */
  resize(name: string, size: TerminalSize): Promise<void>;

  /** @throws AppError 'conflict' when the container is paused or does not run */
  createExec(name: string, request: ExecRequest): Promise<string>;
  /**
   * Starts it once. Detached: `output` and `input` are undefined. A command that cannot be run is told in the output
   * and by the exit code (126, 127), as Docker does. @throws AppError 'not-found' (`No such exec instance: x`), 'conflict'
   */
  startExec(execId: string, options: ExecStartOptions): Promise<Attachment | undefined>;
  inspectExec(execId: string): Promise<ExecDetails>;
  resizeExec(execId: string, size: TerminalSize): Promise<void>;

  /** Before the first request after a start: finds again what runs, ends what ended meanwhile, restarts by policy, sweeps the rest. */
  adoptAll(): Promise<void>;
  /** Stops watching; every container goes on running. */
  close(): Promise<void>;
}

export interface CreateOptions {
  /** With or without Docker's leading slash; generated when absent. */
  readonly name?: string | undefined;
  /** `os/architecture[/variant]`, refused when the image is of another. */
  readonly platform?: string | undefined;
  /** What it stands on, instead of an image by the request's name: for a step of a build. The caller leases it. */
  readonly base?: ContainerBase | undefined;
}
export interface ContainerBase {
  /** What `ps` calls it made from. */
  readonly imageId: Digest;
  readonly config: ImageRunConfig;
  /** Base first. */
  readonly chain: readonly Digest[];
  readonly platform: { readonly os: string; readonly architecture: string };
}
export interface Created {
  readonly id: string;
  readonly warnings: readonly string[];
}

export interface StopOptions {
  /** Seconds until SIGKILL; -1 = never. Default: the container's own, else 10. */
  readonly timeoutSeconds?: number | undefined;
  /** Default: the container's stop signal, else SIGTERM. */
  readonly signal?: string | undefined;
}

export type WaitCondition = 'not-running' | 'next-exit' | 'removed';
export interface WaitOptions extends Cancelable {
  readonly condition?: WaitCondition;
}
export interface WaitResult {
  readonly exitCode: number;
  /** Why it could not be removed, if that is what ended the wait. */
  readonly error: string | undefined;
}

export interface RemoveOptions {
  /** SIGKILL first when it runs. */
  readonly force?: boolean;
  /** Its anonymous volumes, too. */
  readonly volumes?: boolean;
}

export interface ListOptions {
  /** Default: only running, paused and restarting ones; implied by a status or exited filter, `limit` and `before`/`since`. */
  readonly all?: boolean;
  /** The newest n, of any state. */
  readonly limit?: number | undefined;
  readonly size?: boolean;
  readonly filters?: Filters;
}

export interface ContainerSummary {
  readonly record: ContainerRecord;
  /** What it is listed as beside its own name: `NAME/ALIAS` of containers that are linked to it. */
  readonly linkNames: readonly string[];
  /** `Up 2 seconds (healthy)`, `Exited (0) 3 hours ago`: docker's STATUS column. */
  readonly statusText: string;
  readonly health: Health | undefined;
  readonly connections: readonly Connection[];
  /** While it runs, and has networks. */
  readonly sandbox: SandboxState | undefined;
  /** Only when asked for. */
  readonly size: ContainerSize | undefined;
}

/** A network that it is, or will be, in. */
export interface Connection {
  readonly networkName: string;
  /** undefined when there is no such network any more. */
  readonly networkId: string | undefined;
  readonly request: EndpointRequest;
  /** While it runs. */
  readonly endpoint: Endpoint | undefined;
}

export interface ContainerDetails extends ContainerSummary {
  /** Host paths; empty before the first start. */
  readonly paths: {
    readonly resolvConf: string;
    readonly hostname: string;
    readonly hosts: string;
    readonly log: string;
  };
  readonly execIds: readonly string[];
}

export interface ContainerSize {
  /** What the writable layer occupies. */
  readonly writableBytes: number;
  /** That and every layer below. */
  readonly totalBytes: number;
}

export interface Health {
  readonly status: 'starting' | 'healthy' | 'unhealthy';
  readonly failingStreak: number;
  /** The last five, oldest first. */
  readonly log: readonly {
    readonly start: Date;
    readonly end: Date;
    readonly exitCode: number;
    readonly output: string;
  }[];
}

export interface ProcessList {
  readonly titles: readonly string[];
  readonly processes: readonly (readonly string[])[];
}

export interface FileChange {
  readonly path: string;
  readonly kind: 'modified' | 'added' | 'deleted';
}

/** Counters since the container's start; times in nanoseconds, sizes in bytes. */
export interface StatsSample {
  readonly at: Date;
  readonly cpu: {
    readonly totalNs: number;
    readonly kernelNs: number;
    readonly userNs: number;
    /** By processor; only cgroup v1 counts it. */
    readonly perCpuNs?: readonly number[] | undefined;
    /** Of the whole host, all states, all processors. */
    readonly systemNs: number;
    readonly onlineCpus: number;
    readonly periods: number;
    readonly throttledPeriods: number;
    readonly throttledNs: number;
  };
  readonly memory: {
    readonly usageBytes: number;
    /** The most it ever was; only with cgroup v1. */
    readonly maxUsageBytes?: number | undefined;
    /** The container's own limit, else the host's memory. */
    readonly limitBytes: number;
    /** memory.stat as the kernel spells it (v1: total_inactive_file …; v2: inactive_file …). */
    readonly details: Readonly<Record<string, number>>;
  };
  readonly pids: { readonly current: number; readonly limit: number | undefined };
  /** op: Read, Write, … */
  readonly blockIo: readonly {
    readonly major: number;
    readonly minor: number;
    readonly op: string;
    readonly bytes: number;
  }[];
  readonly networks: Readonly<Record<string, NetworkCounters>>;
}
export interface NetworkCounters {
  readonly rxBytes: number;
  readonly rxPackets: number;
  readonly rxErrors: number;
  readonly rxDropped: number;
  readonly txBytes: number;
  readonly txPackets: number;
  readonly txErrors: number;
  readonly txDropped: number;
}

export type OutputStream = 'stdout' | 'stderr';
/**
 * A run of bytes of one stream, in the order they were written; at most 1 MiB. Good until the reader asks for the next
 * one: their memory is used again.
 */
export interface OutputChunk {
  readonly stream: OutputStream;
  readonly bytes: Buffer;
}

export interface TerminalSize {
  readonly rows: number;
  readonly columns: number;
}

export interface AttachOptions extends Cancelable {
  readonly stdin?: boolean;
  readonly stdout?: boolean;
  readonly stderr?: boolean;
  /** Output since the beginning first. */
  readonly logs?: boolean;
  /** Output from now on, until the end. */
  readonly stream?: boolean;
  /** Docker's form, `ctrl-p,ctrl-q`; that is also the default for a terminal. */
  readonly detachKeys?: string | undefined;
}

/** One client's connection. Disposing it detaches: nothing happens to the container. */
export interface Attachment extends AsyncDisposable {
  /** Raw bytes without frames; all of it is stdout. */
  readonly terminal: boolean;
  /** Ends when the run ended and everything was read, or when the detach keys came. Read it at the client's speed. */
  readonly output: AsyncIterable<OutputChunk>;
  /** undefined when stdin was not asked for or is not open. Ending it is EOF for a container with StdinOnce. */
  readonly input: Writable | undefined;
}

export interface LogOptions extends Cancelable {
  readonly stdout?: boolean;
  readonly stderr?: boolean;
  readonly follow?: boolean;
  readonly since?: Date | undefined;
  readonly until?: Date | undefined;
  /** The last n lines; undefined = all. */
  readonly tail?: number | undefined;
  /** Each line begins with its time, nine digits of fraction, UTC. */
  readonly timestamps?: boolean;
  /** Each line begins with the attributes that the log options name. */
  readonly details?: boolean;
}
export interface LogStream {
  readonly terminal: boolean;
  readonly chunks: AsyncIterable<OutputChunk>;
}

export interface ExecStartOptions extends Cancelable {
  readonly detach?: boolean;
  /** Must agree with what the exec was created with. */
  readonly terminal?: boolean;
  readonly size?: TerminalSize | undefined;
}
export interface ExecDetails {
  readonly id: string;
  readonly containerId: string;
  readonly request: ExecRequest;
  readonly running: boolean;
  /** undefined before its end. */
  readonly exitCode: number | undefined;
  /** 0 before its start. */
  readonly pid: number;
}
