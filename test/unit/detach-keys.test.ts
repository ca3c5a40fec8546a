import { expect, it } from 'vitest';
import { createDetachScanner, DEFAULT_DETACH_KEYS, parseDetachKeys } from '../../runtime/containers/detach-keys.ts';

it.each([
  ['ctrl-p,ctrl-q', [0x10, 0x11]],
  ['ctrl-@', [0]],
  ['ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_', [0x1b, 0x1c, 0x1d, 0x1e, 0x1f]],
  ['a,ctrl-C', [0x61, 0x03]],
])('reads %s', (text, bytes) => {
  expect([...parseDetachKeys(text)]).toEqual(bytes);
});

it.each(['', 'ctrl-', 'ctrl-1', 'ab', 'a,,b', 'ctrl-pp'])('refuses %j', (text) => {
  expect(() => parseDetachKeys(text)).toThrow(/cannot parse detach keys/);
});

it.each([
  ['passes what is no sequence', ['ab', 'c'], 'abc', false],
  ['finds the sequence within other input', ['ab\x10\x11cd'], 'ab', true],
  ['finds it across reads', ['a\x10', '\x11'], 'a', true],
  ['gives back a sequence that breaks off', ['\x10', 'x'], '\x10x', false],
  ['starts again at once', ['\x10\x10\x11'], '\x10', true],
])('%s', (_name, reads, expected, detached) => {
  const scanner = createDetachScanner(parseDetachKeys(DEFAULT_DETACH_KEYS));
  const results = reads.map((text) => scanner.scan(Buffer.from(text)));
  expect(results.map(({ input }) => String(input)).join('')).toBe(expected);
  expect(results.some((result) => result.detached)).toBe(detached);
});
