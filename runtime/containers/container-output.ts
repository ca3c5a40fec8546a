/**
 * What one container prints, over all of its runs: where its log is kept, who reads it back, who is attached to it. The
 * log is opened when it is first needed, and is one for all readers.
 */
import { join } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import { type AttachedRun, createAttachment } from './attachment.ts';
import { type ContainerRecord, isAlive } from './container.ts';
import type { Attachment, AttachOptions, LogOptions, LogStream, OutputStream } from './containers.ts';
import { detailsPrefix, type LogPlan, planLog } from './log-options.ts';
import { type ContainerLog, type LogWriter, openContainerLog } from './logs.ts';

export interface OutputPlaces {
  /** The container's, on disk. */
  readonly directory: string;
  /** In memory: for what is not kept. */
  readonly runDirectory: string;
}

export class ContainerOutput {
  readonly #record: () => ContainerRecord;
  readonly #plan: LogPlan;
  /** Of the log; nothing else is in it. */
  readonly directory: string;
  #log: Promise<ContainerLog> | undefined;

  constructor(record: () => ContainerRecord, { directory, runDirectory }: OutputPlaces) {
    this.#record = record;
    const { id, hostConfig } = record();
    this.#plan = planLog(hostConfig.LogConfig);
    this.directory = this.#plan.isKept ? join(directory, 'log') : join(runDirectory, 'logs', id);
  }

  get path(): string {
    return join(this.directory, 'current');
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
    if (!this.#plan.isKept) throw new AppError('unsupported', 'configured logging driver does not support reading');
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
