import { describe, expect, it } from 'vitest';
import { errorBody, OCI_ERROR_CODES, OciError, toOciError } from '../../../registry/oci-errors.ts';
import { AppError, ERROR_KINDS } from '../../../shared/errors.ts';

// distribution-spec v1.1.1, table "Error Codes", code-1 to code-14.
const SPECIFIED = [
  ...['BLOB_UNKNOWN', 'BLOB_UPLOAD_INVALID', 'BLOB_UPLOAD_UNKNOWN', 'DIGEST_INVALID', 'MANIFEST_BLOB_UNKNOWN'],
  ...['MANIFEST_INVALID', 'MANIFEST_UNKNOWN', 'NAME_INVALID', 'NAME_UNKNOWN', 'SIZE_INVALID', 'UNAUTHORIZED'],
  ...['DENIED', 'UNSUPPORTED', 'TOOMANYREQUESTS'],
];

describe('error table', () => {
  it('holds the codes of the specification and UNKNOWN, nothing else', () => {
    expect(Object.keys(OCI_ERROR_CODES).sort()).toEqual([...SPECIFIED, 'UNKNOWN'].sort());
  });

  it('writes the body of the specification, with detail only if there is one', () => {
    expect(errorBody(new OciError('NAME_UNKNOWN', 'no'))).toBe('{"errors":[{"code":"NAME_UNKNOWN","message":"no"}]}');
    expect(JSON.parse(errorBody(new OciError('DENIED', 'no', { detail: { a: 1 } })))).toEqual({
      errors: [{ code: 'DENIED', message: 'no', detail: { a: 1 } }],
    });
  });

  it.each(ERROR_KINDS)('answers kind %s with a status of the table', (kind) => {
    const { status } = toOciError(new AppError(kind, 'x'));
    expect([400, 401, 403, 405, 413, 500, 503]).toContain(status);
  });

  it('says nothing of an unexpected error', () => {
    const answer = toOciError(new TypeError('secret path /var/lib'));
    expect(answer).toMatchObject({ code: 'UNKNOWN', status: 500 });
    expect(errorBody(answer)).not.toContain('secret');
  });

  it('does not blame the client for damage of ours', () => {
    expect(toOciError(new AppError('integrity', 'the file ends early')).status).toBe(500);
  });

  it('asks to try again when a dependency is down, and never says not found', () => {
    expect(toOciError(new AppError('unavailable', 'disk full'))).toMatchObject({
      status: 503,
      headers: { 'retry-after': '1' },
    });
    expect(toOciError(new AppError('not-found', 'x')).status).toBe(500);
  });
});
