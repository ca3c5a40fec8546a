import { describe, expect, it } from 'vitest';
import { AppError } from '../../shared/errors.ts';
import { createLog, type Log } from '../../shared/log.ts';
import { redactText } from '../../shared/redact.ts';

function capture(work: (log: Log) => void): Record<string, unknown>[] {
  const lines: string[] = [];
  work(createLog({ component: 'test', level: 'info', destination: { write: (line) => lines.push(line) } }));
  return lines.map((line) => JSON.parse(line));
}

describe('log', () => {
  it('writes one JSON line with time, level, component, fields and msg', () => {
    const [line] = capture((log) => log.child({ requestId: 'r1' }).info('blob committed', { durationMs: 3 }));
    expect(line).toEqual({
      time: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/),
      level: 'info',
      component: 'test',
      requestId: 'r1',
      durationMs: 3,
      msg: 'blob committed',
    });
  });

  it('drops what is below its level', () => {
    expect(capture((log) => log.debug('noise'))).toEqual([]);
  });

  it('writes errors with kind, detail and cause', () => {
    const cause = new Error('socket closed');
    const error = new AppError('unavailable', 'cannot reach "r"', { cause, detail: { retryAfterMs: 5 } });
    const [line] = capture((log) => log.error('push failed', { error }));
    expect(line?.error).toMatchObject({
      kind: 'unavailable',
      message: 'cannot reach "r"',
      detail: { retryAfterMs: 5 },
      cause: { message: 'socket closed' },
    });
  });

  it('removes secrets at any depth', () => {
    const [line] = capture((log) =>
      log.info('request', {
        headers: { Authorization: 'Bearer abc.def.ghi', 'x-api-key': 'k', accept: '*/*' },
        body: { refresh_token: 't', identityToken: 't', nested: [{ password: 'p' }] },
        url: 'https://user:pw@s3.example/b/k?X-Amz-Signature=deadbeef#f',
        error: new Error('GET https://s3.example/b?sig=1 answered 403'),
      }),
    );
    const text = JSON.stringify(line);
    for (const secret of ['abc.def', '"k"', '"t"', '"p"', 'pw', 'deadbeef', 'sig=1'])
      expect(text).not.toContain(secret);
    expect(text).toContain('*/*');
    expect(line?.url).toBe('https://s3.example/b/k?[redacted]');
  });

  it.each([
    ['plain text', 'plain text'],
    ['Authorization: Basic dXNlcjpwYXNz', 'Authorization: Basic [redacted]'],
    ['see http://a.example/x and https://u@b.example', 'see http://a.example/x and https://b.example'],
    ['"https://a.example/t?service=r&scope=s" said no', '"https://a.example/t?[redacted]" said no'],
  ])('redacts %s', (text, expected) => {
    expect(redactText(text)).toBe(expected);
  });
});
