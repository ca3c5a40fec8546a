import { describe, expect, it } from 'vitest';
import { hasLabels, matchesReference } from '../../runtime/images/filters.ts';

describe('matchesReference', () => {
  it.each([
    ['debian:12', 'debian', true],
    ['debian:12', 'debian:12', true],
    ['debian:12', 'deb*', true],
    ['debian:12', '*:12', true],
    ['debian:12', 'debian:1', false],
    ['debian:12', 'debia?', true],
    ['debian:12', 'debian:[0-9]2', true],
    ['debian:12', 'debian:[^0-9]2', false],
    ['host:5000/a/b:1', '*', false],
    ['host:5000/a/b:1', 'host:5000/a/*', true],
    ['host:5000/a/b:1', 'host:5000/*', false],
    ['debian:12', '[z-a]', false],
    ['debian:12', 'debian.12', false],
    ['debian:12', '(debian)', false],
  ])('%s against %s: %s', (familiar, pattern, expected) => {
    expect(matchesReference(familiar, pattern)).toBe(expected);
  });
});

describe('hasLabels', () => {
  it.each([
    [['a'], true],
    [['a=1'], true],
    [['a=2'], false],
    [['a', 'b='], true],
    [['c'], false],
    [['toString'], false],
  ])('%j: %s', (wanted, expected) => {
    expect(hasLabels({ a: '1', b: '' }, wanted)).toBe(expected);
  });
});
