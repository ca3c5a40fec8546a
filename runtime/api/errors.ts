/**
 * The error edge of the Engine API: one table from kinds to statuses, and the body that every client reads.
 *
 * Docker's clients look at the status and at `message`; ours also reads `kind` and `detail` to get the same AppError
 * back. Where clients match Docker's texts, whoever throws uses Docker's words. Texts of unexpected errors stay inside.
 */
import { AppError, type ErrorKind } from '../../shared/errors.ts';

export const STATUS_OF_KIND: Readonly<Record<ErrorKind, number>> = {
  invalid: 400,
  unauthenticated: 401,
  denied: 403,
  'not-found': 404,
  'already-exists': 409,
  conflict: 409,
  'too-large': 413,
  range: 416,
  integrity: 500,
  unsupported: 501,
  unavailable: 503,
  timeout: 504,
};

export interface ErrorBody {
  readonly message: string;
  readonly kind?: ErrorKind;
  readonly detail?: Readonly<Record<string, unknown>>;
}

export interface ErrorAnswer {
  readonly status: number;
  readonly body: ErrorBody;
  /** Somebody has to look at it: it is not the caller's doing. */
  readonly isFault: boolean;
}

/** What a client gets for anything that was thrown. Pure. */
export function answerOf(error: unknown): ErrorAnswer {
  // What went wrong first is the answer; that cleaning up after it failed as well is for the log.
  if (error instanceof SuppressedError) return answerOf(error.suppressed);
  if (error instanceof AppError) {
    const { kind, message, detail } = error;
    const status = STATUS_OF_KIND[kind];
    return {
      status,
      body: detail === undefined ? { message, kind } : { message, kind, detail },
      isFault: status >= 500 && kind !== 'unsupported',
    };
  }
  return {
    status: 500,
    body: { message: 'cannot answer the request: an internal error has been logged by berthd' },
    isFault: true,
  };
}

/** The body as it goes over the wire: clients read until the newline. */
export function encodeJson(value: unknown): string {
  return `${JSON.stringify(value)}\n`;
}
