/**
 * The error vocabulary of both halves. Domain code throws an AppError of a kind and never knows HTTP; each edge
 * (registry/oci-errors.ts, runtime/api/errors.ts, the CLI) owns one table from kinds to what its clients expect.
 * Expected absence is `undefined`, a broken promise is a throw; there is no third state.
 */

export const ERROR_KINDS = [
  'invalid', // the caller's input cannot be what it should be
  'unauthenticated', // nobody has said who they are, or the proof is wrong
  'denied', // known, but not allowed
  'not-found',
  'already-exists',
  'conflict', // the state of the thing forbids it now
  'too-large',
  'range',
  'integrity', // bytes are not what their digest or size says
  'unsupported',
  'unavailable', // something we depend on is down or full; trying again may help
  'timeout',
] as const;
export type ErrorKind = (typeof ERROR_KINDS)[number];

export interface AppErrorOptions {
  readonly cause?: unknown;
  /** Machine-readable extras for the edge, for example `{ retryAfterMs: 1000 }`. Must be JSON. */
  readonly detail?: Readonly<Record<string, unknown>>;
}

/** Message style: lower case, no full stop, action first, quoted value, then state: `cannot commit upload "u1": got 12 bytes, want 40`. */
export class AppError extends Error {
  readonly kind: ErrorKind;
  readonly detail: Readonly<Record<string, unknown>> | undefined;

  constructor(kind: ErrorKind, message: string, options: AppErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'AppError';
    this.kind = kind;
    this.detail = options.detail;
  }
}

export function isKind(error: unknown, ...kinds: readonly ErrorKind[]): error is AppError {
  return error instanceof AppError && kinds.includes(error.kind);
}

/** True for a Node system error with one of these codes, for example `ENOENT`. */
export function hasCode(error: unknown, ...codes: readonly string[]): boolean {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && codes.includes(error.code);
}

/** The text of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
