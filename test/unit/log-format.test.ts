import { expect, it } from 'vitest';
import { createLogDecoder, type DecodeOptions, findTail } from '../../runtime/containers/log-format.ts';

const at = (second: number) => `2026-11-22T03:15:${String(second).padStart(2, '0')}.794834690+00:00`;
const line = (text: string, options: { second?: number; tag?: 'F' | 'P'; stream?: 'stdout' | 'stderr' } = {}) =>
  `${at(options.second ?? 0)} ${options.stream ?? 'stdout'} ${options.tag ?? 'F'} ${text}\n`;

function decode(log: string | Buffer, options: DecodeOptions & { readonly step?: number } = {}) {
  const decoder = createLogDecoder(options);
  const bytes = Buffer.from(log);
  const step = options.step ?? bytes.length;
  const texts: string[] = [];
  let start = 0;
  for (let end = step; start < bytes.length; end += step) {
    const { chunks, consumed } = decoder.decode(bytes.subarray(start, end));
    start += consumed;
    texts.push(...chunks.map(({ stream, bytes: data }) => `${stream}:${data.toString('latin1')}`));
    if (end >= bytes.length) break;
  }
  return texts;
}

it('joins neighbours of one stream and keeps their order', () => {
  const log = line('a') + line('b') + line('e', { stream: 'stderr' }) + line('c', { tag: 'P' });
  expect(decode(log)).toEqual(['stdout:a\nb\n', 'stderr:e\n', 'stdout:c']);
});

it('gives the same bytes however the log is cut', () => {
  const log = line('first') + line('half', { tag: 'P' }) + line('e', { stream: 'stderr' }) + line(' done');
  for (let step = 1; step <= log.length; step += 7)
    expect(decode(log, { step }).join('').replaceAll('stdout:', '')).toBe('first\nhalfstderr:e\n done\n');
});

it('keeps binary bytes', () => {
  const payload = Buffer.from(Array.from({ length: 256 }, (_, i) => i).filter((byte) => byte !== 0x0a));
  const log = Buffer.concat([Buffer.from(`${at(0)} stdout P `), payload, Buffer.from('\n')]);
  expect(decode(log)).toEqual([`stdout:${payload.toString('latin1')}`]);
});

it('skips a torn record', () => {
  expect(decode(`:15:00 stdout F torn\n\n${line('whole')}`)).toEqual(['stdout:whole\n']);
});

it('writes the time once per line, not per part', () => {
  const log = line('one ', { tag: 'P' }) + line('line', { second: 1 }) + line('next', { second: 2 });
  expect(decode(log, { timestamps: true, prefix: 'a=1 ' }).join('')).toBe(
    'stdout:2026-11-22T03:15:00.794834690Z a=1 one line\n2026-11-22T03:15:02.794834690Z a=1 next\n',
  );
});

it('stays within since and until', () => {
  const log = [1, 2, 3, 4].map((second) => line(String(second), { second })).join('');
  const since = new Date('2026-11-22T03:15:02.000Z');
  const until = new Date('2026-11-22T03:15:04.000Z');
  expect(decode(log, { since, until })).toEqual(['stdout:2\n3\n']);
  expect(decode(log, { streams: new Set(['stderr']) })).toEqual([]);
});

it.each([
  [0, ''],
  [1, 'c'],
  [2, 'b\nc'],
  [3, 'a1a2\nb\nc'],
])('finds the last %i lines', (lines, expected) => {
  const log = Buffer.from(
    `\n${line('0')}${line('a1', { tag: 'P' })}${line('a2')}${line('b')}${line('c', { tag: 'P' })}`,
  );
  const { offset, found } = findTail(log, lines);
  expect(found).toBe(lines);
  expect(decode(log.subarray(offset)).join('').replace('stdout:', '')).toBe(expected);
});
