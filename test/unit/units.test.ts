import { describe, expect, it } from 'vitest';
import {
  formatBinaryBytes,
  formatBytes,
  formatDuration,
  formatSpan,
  parseBytes,
  parseDurationMs,
} from '../../shared/units.ts';

const [SECOND, MINUTE, HOUR, DAY] = [1000, 60_000, 3_600_000, 86_400_000];

describe('units, as docker writes them', () => {
  it.each([
    [0, '0B'],
    [999, '999B'],
    [1000, '1kB'],
    [1024, '1.024kB'],
    [1_000_000, '1MB'],
    [1_048_576, '1.049MB'],
    [123_456_789, '123.5MB'],
    [3.42 * 1e9, '3.42GB'],
    [2 * 1e12, '2TB'],
  ])('%d bytes are %s', (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });

  it('takes fewer digits, as docker images does', () => {
    expect(formatBytes(123_456_789, 3)).toBe('123MB');
    expect(formatBytes(4_200_000, 3)).toBe('4.2MB');
  });

  it.each([
    [0, '0B'],
    [1023, '1023B'],
    [1024, '1KiB'],
    [1_500_000, '1.431MiB'],
    [2 ** 31, '2GiB'],
  ])('%d bytes of memory are %s', (bytes, text) => {
    expect(formatBinaryBytes(bytes)).toBe(text);
  });

  it.each([
    ['0', 0],
    ['32', 32],
    ['32b', 32],
    ['32k', 32 * 1024],
    ['32KB', 32 * 1024],
    ['32kib', 32 * 1024],
    ['32 m', 32 * 1024 ** 2],
    ['1.5g', 1.5 * 1024 ** 3],
    ['1T', 1024 ** 4],
  ])('%s is %d bytes', (text, bytes) => {
    expect(parseBytes(text)).toBe(bytes);
  });

  it.each(['', '-1', '1x', 'k', '1.2.3', '1e9', '0x10', ' ', '1 k k'])('%j is no size', (text) => {
    expect(() => parseBytes(text)).toThrow(expect.objectContaining({ kind: 'invalid' }));
  });

  it.each([
    ['0', 0],
    ['10s', 10_000],
    ['1h30m', 5_400_000],
    ['250ms', 250],
    ['1.5h', 5_400_000],
    ['1us', 0.001],
  ])('%s is %d ms', (text, ms) => {
    expect(parseDurationMs(text)).toBe(ms);
  });

  it.each(['', '10', 's', '1d', '1h 30m', '-1s'])('%j is no duration', (text) => {
    expect(() => parseDurationMs(text)).toThrow(expect.objectContaining({ kind: 'invalid' }));
  });

  it.each([
    [0, 'Less than a second'],
    [450, 'Less than a second'],
    [SECOND, '1 second'],
    [45 * SECOND, '45 seconds'],
    [46 * SECOND, '46 seconds'],
    [60 * SECOND, 'About a minute'],
    [90 * SECOND, 'About a minute'],
    [3 * MINUTE, '3 minutes'],
    [45 * MINUTE, '45 minutes'],
    [60 * MINUTE, 'About an hour'],
    [85 * MINUTE, 'About an hour'],
    [95 * MINUTE, '2 hours'],
    [24 * HOUR, '24 hours'],
    [47.4 * HOUR, '47 hours'],
    [47.6 * HOUR, '2 days'],
    [3 * DAY, '3 days'],
    [13.9 * DAY, '13 days'],
    [14 * DAY, '2 weeks'],
    [30 * DAY, '4 weeks'],
    [60 * DAY, '2 months'],
    [365 * DAY, '12 months'],
    [729 * DAY, '24 months'],
    [730 * DAY, '2 years'],
    [24 * 365 * 3 * HOUR, '3 years'],
  ])('%d ms ago is %s', (ms, text) => {
    expect(formatSpan(ms)).toBe(text);
  });
});

it.each([
  [50, '50ms'],
  [1500, '1.5s'],
  [60_000, '1m0s'],
  [5_400_000, '1h30m0s'],
])('prints %d ms as %s', (ms, text) => {
  expect(formatDuration(ms)).toBe(text);
});
