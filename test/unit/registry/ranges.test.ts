import { describe, expect, it } from 'vitest';
import { parseChunkRange, parseRange, receivedRange } from '../../../registry/ranges.ts';

const parts = (...spans: readonly (readonly [number, number])[]) => ({
  kind: 'parts',
  spans: spans.map(([start, end]) => ({ start, end })),
});
const whole = { kind: 'whole' };
const unsatisfiable = { kind: 'unsatisfiable' };

// RFC 9110 section 14 and the rows of the conformance suite, on 2048 bytes and at most 4 parts.
const ROWS = [
  [undefined, whole],
  ['bytes=500-1499', parts([500, 1499])],
  ['bytes=500-', parts([500, 2047])],
  ['bytes=-500', parts([1548, 2047])],
  ['bytes=-5000', parts([0, 2047])],
  ['bytes=2000-5000', parts([2000, 2047])],
  ['BYTES=0-0', parts([0, 0])],
  ['bytes=2047-', parts([2047, 2047])],
  ['bytes=2048-', unsatisfiable],
  ['bytes=5000-10000', unsatisfiable],
  ['bytes=500-0', unsatisfiable],
  ['bytes=-0', unsatisfiable],
  ['bytes=0-99,200-299', parts([0, 99], [200, 299])],
  ['bytes=200-299, 0-99', parts([200, 299], [0, 99])],
  ['bytes=0-99,100-199', parts([0, 199])],
  ['bytes=0-99,50-60,-1', parts([0, 99], [2047, 2047])],
  ['bytes=0-99,5000-', parts([0, 99])],
  ['bytes=0-0,2-2,4-4,6-6,8-8', whole],
  [`bytes=${'0-,'.repeat(200)}0-`, parts([0, 2047])],
  [`bytes=${'0-,'.repeat(400)}0-`, whole],
  ['bytes=', whole],
  ['bytes=-', whole],
  ['bytes=a-b', whole],
  ['bytes=1-2-3', whole],
  ['items=0-5', whole],
] as const;

describe('parseRange', () => {
  it.each(ROWS)('reads %s', (header, answer) => {
    expect(parseRange(header, 2048, 4)).toEqual(answer);
  });

  it('satisfies no range of an empty blob', () => {
    for (const header of ['bytes=0-', 'bytes=-1', 'bytes=0-0']) expect(parseRange(header, 0, 4)).toEqual(unsatisfiable);
  });
});

describe('upload ranges', () => {
  it.each([
    ['0-0', { start: 0, end: 0 }],
    ['10-19', { start: 10, end: 19 }],
    ['19-10', undefined],
    ['bytes 0-1/2', undefined],
    ['-1', undefined],
    ['1-', undefined],
    ['9'.repeat(16).concat('-1'), undefined],
  ])('reads Content-Range %s', (header, span) => {
    expect(parseChunkRange(header)).toEqual(span);
  });

  it('says what was received', () => {
    expect([0, 1, 10].map(receivedRange)).toEqual(['0-0', '0-0', '0-9']);
  });
});
