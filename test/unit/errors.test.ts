import { describe, expect, it } from 'vitest';
import { AppError, ERROR_KINDS, hasCode, isKind, messageOf } from '../../shared/errors.ts';

describe('AppError', () => {
  it('carries kind, message, detail and cause', () => {
    const cause = new Error('below');
    const error = new AppError('conflict', 'cannot remove "a": it is in use', { cause, detail: { by: 'b' } });
    expect(error).toMatchObject({ name: 'AppError', kind: 'conflict', detail: { by: 'b' }, cause });
    expect('cause' in new AppError('conflict', 'x')).toBe(false);
  });

  it('is told by kind, anything else is not', () => {
    for (const kind of ERROR_KINDS) expect(isKind(new AppError(kind, 'x'), kind)).toBe(true);
    expect(isKind(new AppError('denied', 'x'), 'not-found', 'conflict')).toBe(false);
    expect(isKind({ kind: 'denied' }, 'denied')).toBe(false);
  });

  it('reads what was thrown, whatever it is', () => {
    expect(hasCode(Object.assign(new Error('x'), { code: 'ENOENT' }), 'EPERM', 'ENOENT')).toBe(true);
    expect(hasCode({ code: 'ENOENT' }, 'ENOENT')).toBe(false);
    expect(hasCode(undefined, 'ENOENT')).toBe(false);
    expect([messageOf(new Error('a')), messageOf('b'), messageOf(undefined)]).toEqual(['a', 'b', 'undefined']);
  });
});
