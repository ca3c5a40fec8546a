/** conmon's command line, and the conversation with one that has just been started. */
import { createInterface } from 'node:readline';
import { AppError } from '../../shared/errors.ts';
import type { StartedProgram } from '../kernel/launcher.ts';
import { type OciRuntime, runtimeFailure } from '../kernel/oci-runtime.ts';
import type { RunFiles } from './conmon-files.ts';
import type { StdinMode } from './supervisor.ts';

const CREATE_TIMEOUT_MS = 120_000;
const SIGKILL = 9;

export function commonArgs(
  request: { readonly bundle: string; readonly logPath: string; readonly stdin: StdinMode },
  context: { readonly id: string; readonly files: RunFiles; readonly runtime: OciRuntime },
): string[] {
  const { id, files, runtime } = context;
  return [
    '--api-version',
    ...['-c', id, '-u', id, '-n', id],
    ...['-r', runtime.program],
    ...runtime.globalArgs.flatMap((argument) => ['--runtime-arg', argument]),
    ...['-b', request.bundle],
    ...['-p', files.pid, '-P', files.conmonPid],
    ...['--exit-dir', files.exits, '--persist-dir', files.persist],
    '--full-attach',
    // A sync at every rotation would stop the container for as long as the disk takes.
    ...['-l', `k8s-file:${request.logPath}`, '--no-sync-log', '--log-level', 'error'],
    ...(request.stdin === 'none' ? [] : ['-i']),
    ...(request.stdin === 'open' ? ['--leave-stdin-open'] : []),
  ];
}

/** What conmon is given: 2 its words, 3 it tells a pid, 4 it waits for a byte, 5 it tells that its attach socket is open. */
export const CONMON_PIPES = { words: 2, reports: 3, start: 4, attach: 5 } as const;

/** The conversation with a conmon that has just been started. */
export class Conmon {
  readonly #id: string;
  readonly #program: StartedProgram;
  readonly #lines: AsyncIterator<string>;
  #stderr = '';

  constructor(id: string, program: StartedProgram) {
    this.#id = id;
    this.#program = program;
    this.#lines = createInterface({ input: program.output(CONMON_PIPES.reports) })[Symbol.asyncIterator]();
    program.output(CONMON_PIPES.words).on('data', (bytes: Buffer) => {
      this.#stderr = `${this.#stderr}${bytes}`.slice(-4096);
    });
  }

  /** One byte: first "you are in your cgroup", then, for an exec, "start it". */
  go(): void {
    this.#program.write(CONMON_PIPES.start, '\0');
  }

  async attachable(): Promise<void> {
    const lines = createInterface({ input: this.#program.output(CONMON_PIPES.attach) })[Symbol.asyncIterator]();
    const { done } = await lines.next();
    if (done === true) throw this.#failure('start', this.#stderr);
  }

  /** The next `{"data": n}`. A negative n is a failure, told in the runtime's words. */
  async nextNumber(verb: string, signal: AbortSignal | undefined): Promise<number> {
    const deadline = AbortSignal.any([
      AbortSignal.timeout(CREATE_TIMEOUT_MS),
      ...(signal === undefined ? [] : [signal]),
    ]);
    const aborted = Promise.withResolvers<never>();
    const onAbort = () =>
      aborted.reject(new AppError('timeout', `cannot ${verb} container ${JSON.stringify(this.#id)}: it was cancelled`));
    deadline.addEventListener('abort', onAbort, { once: true });
    try {
      const { done, value } = await Promise.race([this.#lines.next(), aborted.promise]);
      const report = done === true ? undefined : parseReport(value);
      if (report === undefined) throw this.#failure(verb, this.#stderr);
      if (report.data < 0) throw this.#failure(verb, report.message ?? this.#stderr);
      return report.data;
    } catch (error) {
      this.abandon();
      throw error;
    } finally {
      deadline.removeEventListener('abort', onAbort);
    }
  }

  /** Lets go: conmon goes on without us. */
  release(): void {
    this.#program.release();
  }

  /** Ends a conmon that has not started anything yet; one that has is ended by deleting its container. */
  abandon(): void {
    this.#program.kill(SIGKILL);
    this.release();
  }

  #failure(verb: string, words: string): AppError {
    return runtimeFailure(verb, this.#id, words);
  }
}

function parseReport(line: string): { readonly data: number; readonly message?: string } | undefined {
  const value: unknown = JSON.parse(line);
  if (typeof value !== 'object' || value === null || !('data' in value) || typeof value.data !== 'number')
    return undefined;
  return 'message' in value && typeof value.message === 'string'
    ? { data: value.data, message: value.message }
    : { data: value.data };
}
