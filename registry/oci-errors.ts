/**
 * The error table of the wire: the 14 codes of the specification with the status we send for each, and UNKNOWN, which
 * is what Distribution answers when it is our fault. A body holds no other code.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes
 * Pure: knows neither Koa nor storage. Handlers choose the code, since only they know what was not found.
 */
import { AppError, type ErrorKind } from '../shared/errors.ts';

/** Statuses are Distribution's, which clients were written against. */
export const OCI_ERROR_CODES = {
  BLOB_UNKNOWN: 404,
  BLOB_UPLOAD_INVALID: 400,
  BLOB_UPLOAD_UNKNOWN: 404,
  DIGEST_INVALID: 400,
  MANIFEST_BLOB_UNKNOWN: 400,
  MANIFEST_INVALID: 400,
  MANIFEST_UNKNOWN: 404,
  NAME_INVALID: 400,
  NAME_UNKNOWN: 404,
  SIZE_INVALID: 400,
  UNAUTHORIZED: 401,
  DENIED: 403,
  UNSUPPORTED: 405,
  TOOMANYREQUESTS: 429,
  UNKNOWN: 500,
} as const;
export type OciErrorCode = keyof typeof OCI_ERROR_CODES;

export interface OciErrorOptions {
  /** Instead of the table's: 416 for a chunk out of order, 413 for a manifest over the limit. */
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly detail?: unknown;
  readonly cause?: unknown;
}

export class OciError extends Error {
  readonly code: OciErrorCode;
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly detail: unknown;

  constructor(code: OciErrorCode, message: string, options: OciErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'OciError';
    this.code = code;
    this.status = options.status ?? OCI_ERROR_CODES[code];
    this.headers = options.headers ?? {};
    this.detail = options.detail;
  }
}

export function errorBody(error: OciError): string {
  const { code, message, detail } = error;
  return JSON.stringify({ errors: [detail === undefined ? { code, message } : { code, message, detail }] });
}

interface Answer {
  readonly code: OciErrorCode;
  readonly status?: number;
}

/** What a kind means when no handler has said anything better. Kinds that are our own fault are absent. */
const ANSWER_OF_KIND: Partial<Record<ErrorKind, Answer>> = {
  unauthenticated: { code: 'UNAUTHORIZED' },
  denied: { code: 'DENIED' },
  'too-large': { code: 'SIZE_INVALID', status: 413 },
  unsupported: { code: 'UNSUPPORTED' },
  unavailable: { code: 'UNKNOWN', status: 503 },
  timeout: { code: 'UNKNOWN', status: 503 },
};

/** Anything that was thrown, as an answer. The text of an unexpected error stays inside. */
export function toOciError(error: unknown): OciError {
  if (error instanceof OciError) return error;
  if (error instanceof AppError) {
    const answer = ANSWER_OF_KIND[error.kind];
    if (answer !== undefined) {
      const headers = answer.status === 503 ? { 'retry-after': '1' } : {};
      const status = answer.status ?? OCI_ERROR_CODES[answer.code];
      // Of refusals the detail is meant for the client: how much a quota leaves.
      const detail = error.kind === 'denied' ? error.detail : undefined;
      return new OciError(answer.code, error.message, { status, headers, detail, cause: error });
    }
  }
  return new OciError('UNKNOWN', 'cannot answer: the registry failed, its log has the request id', { cause: error });
}
