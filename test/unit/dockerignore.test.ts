import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createIgnore, dockerignoreNames, keepBuildFiles, parseDockerignore } from '../../shared/dockerignore.ts';

describe('patterns', () => {
  it.each<[patterns: string[], path: string, ignored: boolean]>([
    [['a'], 'a', true],
    [['a'], 'a/b/c', true],
    [['a'], 'ab', false],
    [['/a/'], 'a/x', true],
    [['./a/../b'], 'b', true],
    [['a/b'], 'x/a/b', false],
    [['*.md'], 'README.md', true],
    [['*.md'], 'docs/README.md', false],
    [['*/*.md'], 'docs/README.md', true],
    [['**/*.md'], 'README.md', true],
    [['**/*.md'], 'a/b/c.md', true],
    [['**/x'], 'ax', false],
    [['**x'], 'ax', true],
    [['a/**'], 'a', false],
    [['a/**'], 'a/b', true],
    [['a**'], 'ab/c', true],
    [['a/**/b'], 'a/b', true],
    [['a/**/b'], 'a/x/y/b', true],
    [['a/**/b'], 'a/xb', false],
    [['**'], 'x/y', true],
    [['**/**'], 'x', true],
    [['file?'], 'file1', true],
    [['file?'], 'file', false],
    [['file[0-9a]'], 'file7', true],
    [['file[^0-9]'], 'file7', false],
    [['file[\\]]'], 'file]', true],
    [['a\\*b'], 'a*b', true],
    [['a\\*b'], 'axb', false],
    [['a.b'], 'axb', false],
    [['a+(b)|{c}$'], 'a+(b)|{c}$', true],
    [['ü?'], 'üß', true],
    [['..'], 'a', false],
    [['.'], 'a', false],
    [['*', '!keep'], 'keep', false],
    [['*', '!keep'], 'keep/x', false],
    [['*', '!keep/x'], 'keep/y', true],
    [['*', '!keep/x'], 'keep/x', false],
    [['*', '!**/*.ts'], 'src/deep/a.ts', false],
    [['*.md', '!README*.md', 'README-secret.md'], 'README-secret.md', true],
    [['*.md', 'README-secret.md', '!README*.md'], 'README-secret.md', false],
    [['!a', 'a'], 'a', true],
    // A directory that was not out when `!` was asked is not remembered as taken back.
    [['x/y', '!x'], 'x/y', true],
  ])('%j on %j: %j', (patterns, path, ignored) => {
    expect(createIgnore(patterns).ignores(path)).toBe(ignored);
  });

  it.each(['[', 'a[]', 'a[b-', 'a\\', '!'])('refuses %j', (pattern) => {
    expect(() => createIgnore([pattern])).toThrow(/pattern/);
  });

  it('never ignores the context itself', () => {
    expect(createIgnore(['**', '.', '']).root.isIgnored).toBe(false);
  });
});

it.each<[patterns: string[], directory: string, skippable: boolean]>([
  [['node_modules'], 'node_modules', true],
  [['node_modules', '!src'], 'node_modules', true],
  [['node_modules', '!node_modules/a'], 'node_modules', false],
  [['*', '!*.json'], 'src', true],
  [['*', '!s*/a/*.json'], 'src', false],
  [['*', '!s*/a/*.json'], 'test', true],
  [['*', '!**/a'], 'src', false],
  [['*', '!src/**/a'], 'test', true],
  [['*', '!src/[ab]'], 'test', true],
  [['a'], 'b', false],
])('with %j, can %j be skipped whole: %j', (patterns, directory, skippable) => {
  const state = directory.split('/').reduce((at, name) => at.enter(name), createIgnore(patterns).root);
  expect(state.isSkippable).toBe(skippable);
});

it('reads a file: comments, blanks, exceptions, CRLF and a byte order mark', () => {
  const text = '\ufeff# comment\r\n\r\n /a/b/ \r\n! /c \n #d\nx//y/./z\n/\n!';
  expect(parseDockerignore(text)).toEqual(['a/b', '!c', '#d', 'x/y/z', '/', '!']);
});

it('prefers the ignore file of the Dockerfile', () => {
  expect(dockerignoreNames('build/Dockerfile')).toEqual(['build/Dockerfile.dockerignore', '.dockerignore']);
});

it('takes back what a build needs, and only that', () => {
  expect(keepBuildFiles(['*'], ['Dockerfile', '.dockerignore'])).toEqual(['*', '!Dockerfile', '!.dockerignore']);
  expect(keepBuildFiles(['a'], ['Dockerfile'])).toEqual(['a']);
});

const piece = fc.constantFrom('a', 'b', '*', '**', '?', '/', '.', '[a]');
const pattern = fc.array(piece, { minLength: 1, maxLength: 8 }).map((pieces) => pieces.join(''));
const path = fc
  .array(fc.constantFrom('a', 'b', 'ab', '.a'), { minLength: 1, maxLength: 4 })
  .map((names) => names.join('/'));

it('agrees with the RegExp that Docker makes of a pattern', () => {
  fc.assert(
    fc.property(pattern, path, (text, name) => {
      const cleaned = parseDockerignore(text)[0] ?? '';
      fc.pre(cleaned !== '' && !/^\*\*[^/*?[]+$/.test(cleaned));
      const source = cleaned
        .replace(/\*\*\/?$/, '\u0001')
        .replace(/\*\*\/?/g, '\u0002')
        .replace(/[.]/g, '\\$&')
        .replace(/\*/g, '[^/]*')
        .replace(/\?/g, '[^/]')
        .replaceAll('\u0001', '.*')
        .replaceAll('\u0002', '(.*/)?');
      const above = name.split('/').map((_, index, names) => names.slice(0, index + 1).join('/'));
      expect(createIgnore([text]).ignores(name)).toBe(above.some((each) => new RegExp(`^${source}$`).test(each)));
    }),
  );
});

it('skips only directories in which nothing is wanted', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.boolean(), pattern), { maxLength: 4 }), path, (rules, name) => {
      const ignore = createIgnore(rules.map(([isException, text]) => (isException ? `!${text}` : text)));
      let state = ignore.root;
      let isSkipped = false;
      for (const part of name.split('/')) {
        state = state.enter(part);
        if (isSkipped) expect(state.isIgnored).toBe(true);
        isSkipped ||= state.isSkippable;
      }
    }),
    { numRuns: 500 },
  );
});

it('stays quick with patterns that make a RegExp explode', () => {
  const hostile = `${'**/*a*'.repeat(200)}b`;
  const started = performance.now();
  expect(createIgnore([hostile, '*a'.repeat(500), '?*'.repeat(500)]).ignores('a/'.repeat(400))).toBe(false);
  expect(performance.now() - started).toBeLessThan(2000);
});
