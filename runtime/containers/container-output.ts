/**
 * What one container prints, over all of its runs: where its log is kept, who reads it back, who is attached to it. The
 * log is opened when it is first needed, and is one for all readers.
 */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { type AttachedRun, createAttachment } from './attachment.ts';
import { type ContainerRecord, isAlive } from './container.ts';
import type { Attachment, AttachOptions, LogOptions, LogStream, OutputStream } from './containers.ts';
import { forwardLog } from './log-forwarder.ts';
import {
  encodeMessage,
  JOURNAL_SOCKET,
  journalFieldName,
  type LogLine,
  type MessageSource,
  tagOf,
} from './log-forwarding.ts';
import { detailsOf, detailsPrefix, type LogPlan, planLog } from './log-options.ts';
import { createSink } from './log-sinks.ts';
import { type ContainerLog, type LogWriter, openContainerLog } from './logs.ts';

export interface OutputPlaces {
  /** The container's, on disk. */
  readonly directory: string;
  /** In memory: for what is not kept. */
  readonly runDirectory: string;
}

export interface OutputContext extends OutputPlaces {
  /** Of the host, in what is handed on. */
  readonly hostname: string;
  readonly warnings: Pick<Log, 'warn'>;
}

/** How long a container's end waits for what is still to be handed on. */
const DRAIN_MS = 5_000;

export class ContainerOutput {
  readonly #record: () => ContainerRecord;
  readonly #plan: LogPlan;
  /** Of the log; nothing else is in it. */
  readonly directory: string;
  readonly #context: OutputContext;
  #log: Promise<ContainerLog> | undefined;
  /** What is handed on: one run after another. */
  #forwarding: Promise<void> = Promise.resolve();
  readonly #abort = new AbortController();

  constructor(record: () => ContainerRecord, context: OutputContext) {
    const { directory, runDirectory } = context;
    this.#record = record;
    this.#context = context;
    const { id, hostConfig } = record();
    this.#plan = planLog(hostConfig.LogConfig);
    this.directory = this.#plan.isKept ? join(directory, 'log') : join(runDirectory, 'logs', id);
  }

  get path(): string {
    return join(this.directory, 'current');
  }

  /** @throws AppError 'unsupported' when the host has not got what its driver needs */
  async check(): Promise<void> {
    if (this.#plan.forward?.driver !== 'journald' || (await stat(JOURNAL_SOCKET).catch(() => undefined)) !== undefined)
      return;
    throw new AppError('unsupported', 'failed to initialize logging driver: journald is not enabled on this host');
  }

  /** Hands on what a run prints until it has ended, if its driver says so, and what is left of runs before. */
  forward(ended: Promise<unknown>): void {
    const plan = this.#plan.forward;
    if (plan === undefined) return;
    const { id, name, imageId, imageName, config } = this.#record();
    const { hostname, warnings, directory } = this.#context;
    const tag = tagOf(plan, { id, name, imageId, imageName });
    const source: MessageSource = {
      hostname,
      pid: process.pid,
      tag,
      fields: {
        ...Object.fromEntries([...detailsOf(this.#plan, config)].map(([key, value]) => [journalFieldName(key), value])),
        CONTAINER_ID: id.slice(0, 12),
        CONTAINER_ID_FULL: id,
        CONTAINER_NAME: name,
        IMAGE_NAME: imageName,
      },
    };
    this.#forwarding = this.#forwarding.then(async () => {
      const log = await this.open();
      const encode = (line: LogLine) => encodeMessage(plan, line, source);
      const options = { log, positionPath: join(directory, 'forwarded'), sink: createSink(plan), encode, warnings };
      await forwardLog(options, { ended, signal: this.#abort.signal });
    });
    this.#forwarding.catch((error) => warnings.warn('output could not be handed on', { containerId: id, error }));
  }

  /** Nothing is handed on after this; what is still to be gets a moment. */
  async drain(): Promise<void> {
    const timer = setTimeout(() => this.#abort.abort(), DRAIN_MS);
    await this.#forwarding.catch(() => {}).finally(() => clearTimeout(timer));
  }

  /** Stops handing on; the next engine goes on from there. */
  close(): void {
    this.#abort.abort();
  }

  open(): Promise<ContainerLog> {
    this.#log ??= openContainerLog(this.directory, this.#plan);
    return this.#log;
  }

  async diskBytes(): Promise<number> {
    return (await this.open()).diskBytes();
  }

  /** Begins a new segment when the old one is large enough. */
  async trim(writer: LogWriter): Promise<void> {
    if (this.#log !== undefined) await (await this.#log).rotate(writer);
  }

  /** @throws AppError 'conflict' while it is paused or restarting */
  async attach(run: AttachedRun, options: AttachOptions & { readonly onDetach: () => void }): Promise<Attachment> {
    const { id, state, config } = this.#record();
    if (state.status === 'paused')
      throw new AppError('conflict', `container ${id} is paused, unpause the container before attach`);
    if (state.status === 'restarting')
      throw new AppError('conflict', `container ${id} is restarting, wait until the container is running`);
    const log = await this.open();
    return createAttachment({
      log,
      from: options.logs === true ? await log.start() : await log.end(),
      run,
      terminal: config.Tty,
      isForeground: config.AttachStdout || config.AttachStderr,
      hasStdin: config.OpenStdin,
      options,
      onDetach: options.onDetach,
    });
  }

  /** `ended` is asked for when somebody follows what still runs. @throws AppError 'invalid', 'unsupported' */
  async logs(options: LogOptions, ended: () => Promise<unknown>): Promise<LogStream> {
    const streams = new Set<OutputStream>();
    if (options.stdout === true) streams.add('stdout');
    if (options.stderr === true) streams.add('stderr');
    if (streams.size === 0) throw new AppError('invalid', "must specify at least one of 'stdout' or 'stderr'");
    if (!this.#plan.isReadable) throw new AppError('unsupported', 'configured logging driver does not support reading');
    const log = await this.open();
    const { config, state } = this.#record();
    const isLive = isAlive(state) || state.status === 'restarting';
    const chunks = log.read({
      from: options.tail === undefined ? await log.start() : await log.tail(options.tail),
      streams,
      since: options.since,
      until: options.until,
      timestamps: options.timestamps,
      prefix: options.details === true ? detailsPrefix(this.#plan, config) : '',
      signal: options.signal,
      follow: options.follow === true && isLive ? ended() : undefined,
    });
    return { terminal: config.Tty, chunks };
  }
}
