import { expect, it } from 'vitest';
import { namesMatching } from '../../runtime/containers/name-pattern.ts';

it.each<[string, readonly string[]]>([
  ['web', ['web', 'web-2']],
  ['^web$', ['web']],
  ['^/web$', ['web']],
  ['^/(web|db)$', ['web', 'db']],
  ['-\\d+', ['web-2']],
  ['nobody', []],
])('%j finds', (pattern, found) => {
  expect([...namesMatching(pattern, ['web', 'web-2', 'db'])]).toEqual(found);
});

it('refuses an expression that is none, and one that takes for ever', () => {
  expect(() => namesMatching('(', ['a'])).toThrow("invalid filter 'name=('");
  const startedAt = performance.now();
  expect(() => namesMatching('^(a+)+$', [`${'a'.repeat(60)}!`])).toThrow('it takes too long');
  expect(performance.now() - startedAt).toBeLessThan(5000);
});
