/**
 * Log: JSON lines `{ time, level, component, …fields, msg }` on stderr.
 *
 * `message` is a constant sentence; what varies goes into fields, so that lines can be searched. error = someone must
 * act; warn = degraded but handled; info = state changed; debug = the rest. An error is logged once, where it is
 * handled. Secrets are removed here, not by the callers.
 */
import { type DestinationStream, destination, pino, stdTimeFunctions } from 'pino';
import { redactValue } from './redact.ts';

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** For example requestId, repository, digest, containerId, durationMs; `error` may hold anything that was thrown. */
export type LogFields = Readonly<Record<string, unknown>>;

export interface Log {
  error(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  debug(message: string, fields?: LogFields): void;
  /** A log whose lines carry these fields too, for example `{ component: 'gc' }` or `{ requestId }`. */
  child(fields: LogFields): Log;
}

export interface LogOptions {
  readonly component: string;
  readonly level: LogLevel;
  /** stderr when absent. */
  readonly destination?: DestinationStream;
}

const STDERR = 2;

export function createLog(options: LogOptions): Log {
  const root = pino(
    {
      level: options.level,
      base: {},
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    options.destination ?? destination({ dest: STDERR, sync: true }),
  );
  const over = (fields: LogFields): Log => {
    const write = (level: Exclude<LogLevel, 'silent'>) => (message: string, more?: LogFields) => {
      if (root.isLevelEnabled(level)) root[level](redactValue({ ...fields, ...more }), message);
    };
    return {
      error: write('error'),
      warn: write('warn'),
      info: write('info'),
      debug: write('debug'),
      child: (more) => over({ ...fields, ...more }),
    };
  };
  return over({ component: options.component });
}

/** For tests, and for programs that talk to people instead. */
export function createSilentLog(): Log {
  const nothing = () => {};
  const log: Log = { error: nothing, warn: nothing, info: nothing, debug: nothing, child: () => log };
  return log;
}
