import { describe, expect, it } from 'vitest';
import { parseChallenges } from '../../shared/registry-auth.ts';

describe('WWW-Authenticate', () => {
  it.each([
    ['Basic realm="x"', [['basic', { realm: 'x' }]]],
    [
      'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"',
      [['bearer', { realm: 'https://a/t', service: 's', scope: 'repository:a/b:pull,push' }]],
    ],
    [
      'bearer REALM = https://a/t , error=invalid_token',
      [['bearer', { realm: 'https://a/t', error: 'invalid_token' }]],
    ],
    ['Bearer realm="a \\"b\\" \\\\"', [['bearer', { realm: 'a "b" \\' }]]],
    [
      'Negotiate, Basic realm="x", Bearer realm="y"',
      [
        ['negotiate', {}],
        ['basic', { realm: 'x' }],
        ['bearer', { realm: 'y' }],
      ],
    ],
    ['', []],
    ['realm="orphan"', []],
    ['"', []],
    ['Bearer realm="unterminated', [['bearer', { realm: '' }]]],
    [`Bearer realm="${'\\'.repeat(5)}`, expect.anything()],
  ])('reads %j', (header, expected) => {
    expect(parseChallenges(header).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)])).toEqual(
      expected,
    );
  });

  it('takes no longer for a longer riddle', () => {
    expect(parseChallenges(`Bearer realm="${'\\"'.repeat(50_000)}`).length).toBeLessThan(3);
  });
});
