/**
 * One client's connection to a container: the log from a position as output, a lazily connected stdin as input. Works
 * before the container has started. Leaving it leaves the container as it is.
 *
 * A foreground container waits for its slowest attached reader: when that one is 16 MiB behind, its brake holds.
 */
import { Writable } from 'node:stream';
import type { Attachment, AttachOptions, OutputChunk, OutputStream } from './containers.ts';
import { createDetachScanner, DEFAULT_DETACH_KEYS, parseDetachKeys } from './detach-keys.ts';
import type { ContainerLog, LogPosition } from './logs.ts';
import type { Brake, Monitored } from './supervisor.ts';

const LAG_MAX_BYTES = 16 * 1024 * 1024;
const LAG_LOW_BYTES = 8 * 1024 * 1024;

export interface AttachedRun {
  /** Resolves when there is something to write to; rejects when the run does not come to be. */
  readonly launched: Promise<Monitored>;
  /** Resolves when the run is over and all of its output is in the log. */
  readonly ended: Promise<unknown>;
}

export interface AttachmentRequest {
  readonly log: ContainerLog;
  readonly from: LogPosition;
  readonly run: AttachedRun;
  readonly terminal: boolean;
  /** Something runs in the foreground of this client: nothing that it has not read is dropped. */
  readonly isForeground: boolean;
  readonly hasStdin: boolean;
  readonly options: AttachOptions;
  /** The keys came: stdin stays as it is for the next client. */
  readonly onDetach: () => void;
}

/** @throws AppError 'invalid' for detach keys that are none */
export function createAttachment(request: AttachmentRequest): Attachment {
  const { options, run, terminal } = request;
  const left = new AbortController();
  const signal = options.signal === undefined ? left.signal : AbortSignal.any([left.signal, options.signal]);
  const leave = () => {
    left.abort();
    request.onDetach();
  };
  const keys = terminal ? parseDetachKeys(options.detachKeys || DEFAULT_DETACH_KEYS) : undefined;
  const input = options.stdin === true && request.hasStdin ? createInput(run, { keys, onDetach: leave }) : undefined;
  const brake = request.isForeground ? createLagBrake(run) : undefined;
  return {
    terminal,
    output: output(request, { signal, onLag: brake?.onLag }),
    input,
    [Symbol.asyncDispose]: async () => {
      left.abort();
      input?.destroy();
      brake?.close();
    },
  };
}

async function* output(
  { log, from, run, options, isForeground }: AttachmentRequest,
  context: { readonly signal: AbortSignal; readonly onLag: ((bytes: number) => void) | undefined },
): AsyncGenerator<OutputChunk, void, undefined> {
  const streams = new Set<OutputStream>();
  if (options.stdout === true) streams.add('stdout');
  if (options.stderr === true) streams.add('stderr');
  const { signal, onLag } = context;
  try {
    if (streams.size === 0) await untilAborted(run.ended, signal);
    else
      yield* log.read({
        from,
        streams,
        signal,
        follow: options.stream === true ? run.ended : undefined,
        pin: isForeground,
        onLag,
      });
  } catch (error) {
    // Somebody left: that is an end, not a failure.
    if (!signal.aborted) throw error;
  }
}

function untilAborted(ended: Promise<unknown>, signal: AbortSignal): Promise<unknown> {
  return Promise.race([ended, new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))]);
}

/** Connects when there is something to say, and no sooner than there is somebody to say it to. */
function createInput(
  run: AttachedRun,
  options: { readonly keys: Buffer | undefined; readonly onDetach: () => void },
): Writable {
  const scanner = options.keys === undefined ? undefined : createDetachScanner(options.keys);
  let connection: Promise<Writable> | undefined;
  const connect = () => {
    connection ??= run.launched.then((monitored) => monitored.stdin());
    return connection;
  };
  let isDetached = false;
  const input = new Writable({
    highWaterMark: 256 * 1024,
    write(chunk: Buffer, _encoding, done) {
      const { input: bytes, detached } = scanner?.scan(chunk) ?? { input: chunk, detached: false };
      connect().then((stdin) => {
        if (detached) {
          isDetached = true;
          options.onDetach();
        }
        // Who has closed its stdin, or has ended, reads no more: what is written then goes nowhere.
        if (bytes.length === 0 || stdin.destroyed) done();
        else stdin.write(bytes, () => done());
      }, done);
    },
    final(done) {
      // Also without a word before: an end is something to say.
      connect().then((stdin) => {
        if (stdin.destroyed || isDetached) done();
        else stdin.end(() => done());
      }, done);
    },
    destroy(error, done) {
      // After the detach keys stdin stays connected, since closing it would be EOF.
      if (!isDetached) void connection?.then((stdin) => stdin.destroy()).catch(() => {});
      done(error);
    },
  });
  // A run that does not come to be has no stdin; whoever started it is told why.
  return input.on('error', () => {});
}

function createLagBrake(run: AttachedRun): { onLag(bytes: number): void; close(): void } {
  let brake: Brake | undefined;
  let isHolding = false;
  void run.launched.then(
    (monitored) => {
      brake = monitored.brake();
    },
    () => {},
  );
  return {
    onLag(bytes) {
      if (!isHolding && bytes > LAG_MAX_BYTES) {
        isHolding = true;
        brake?.hold();
      } else if (isHolding && bytes < LAG_LOW_BYTES) {
        isHolding = false;
        brake?.release();
      }
    },
    close() {
      // Closing its connection could close stdin, too: it reads on, and ends with the run.
      brake?.release();
      void run.ended.then(() => brake?.close());
    },
  };
}
