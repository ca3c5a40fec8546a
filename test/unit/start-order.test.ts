import { expect, it } from 'vitest';
import { startOrder } from '../../runtime/containers/start-order.ts';

it.each<[string, Record<string, readonly string[]>, readonly (readonly string[])[]]>([
  ['nobody', {}, []],
  ['those that share nothing, at once', { a: [], b: [] }, [['a', 'b']]],
  [
    'an owner before who joins it, and that before who joins that',
    { c: ['b'], b: ['a'], a: [] },
    [['a'], ['b'], ['c']],
  ],
  ['who joins one that is gone, at once', { a: ['gone'] }, [['a']]],
  ['a circle, last', { a: ['b'], b: ['a'], c: [] }, [['c'], ['a', 'b']]],
])('starts %s', (_name, joins, waves) => {
  expect(startOrder(new Map(Object.entries(joins)))).toEqual(waves);
});
