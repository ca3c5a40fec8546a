/** Times as people give them to `--since` and `--until`. Pure. */
import { AppError } from '../../shared/errors.ts';
import { parseDurationMs } from '../../shared/units.ts';

/** `10m` is ten minutes ago; anything else is a date, or seconds since 1970 as they are. @throws AppError 'invalid' */
export function moment(value: string | undefined, nowMs: number): string | undefined {
  if (value === undefined || /^\d+(\.\d+)?$/.test(value)) return value;
  if (/^(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+$/.test(value)) {
    return ((nowMs - parseDurationMs(value)) / 1000).toFixed(3);
  }
  const time = Date.parse(value);
  if (Number.isNaN(time))
    throw new AppError(
      'invalid',
      `cannot parse time ${JSON.stringify(value)}: want a date such as 2026-01-02T15:04:05Z or a span such as 10m`,
    );
  return (time / 1000).toFixed(3);
}
