/** Sizes and spans of time as people read and write them, in docker's forms. */
import { AppError } from './errors.ts';

const DECIMAL = ['B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB'] as const;
const BINARY = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'] as const;

function scaled(bytes: number, base: number, units: readonly string[], digits: number): string {
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= base && unit < units.length - 1) {
    value /= base;
    unit += 1;
  }
  return `${Number(value.toPrecision(digits))}${units[unit]}`;
}

/** `1.23MB`: powers of 1000, as `docker images` and `docker system df` print. `digits` significant ones. */
export function formatBytes(bytes: number, digits = 4): string {
  return scaled(bytes, 1000, DECIMAL, digits);
}

/** `1.17MiB`: powers of 1024, as `docker stats` prints. */
export function formatBinaryBytes(bytes: number): string {
  return scaled(bytes, 1024, BINARY, 4);
}

/** `64m`, `1.5g`, `512kb`, `100`: powers of 1024 in docker's flags. @throws AppError 'invalid' */
export function parseBytes(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?$/i.exec(text.trim());
  if (match === null)
    throw new AppError('invalid', `cannot parse size ${JSON.stringify(text)}: want a number and b, k, m, g or t`);
  const power = ['', 'k', 'm', 'g', 't', 'p'].indexOf((match[2] ?? '').toLowerCase());
  return Math.floor(Number(match[1]) * 1024 ** power);
}

/** As Go prints a duration: `50ms`, `1.5s`, `1m0s`. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${ms}ms`;
  const minutes = Math.floor(ms / 60_000);
  const seconds = `${(ms % 60_000) / 1000}s`;
  if (minutes < 60) return minutes === 0 ? seconds : `${minutes}m${seconds}`;
  return `${Math.floor(minutes / 60)}h${minutes % 60}m${seconds}`;
}

/** Go's duration form, `1h30m`, `250ms`, in milliseconds. @throws AppError 'invalid' */
export function parseDurationMs(text: string): number {
  const unitMs: Record<string, number> = { ns: 1e-6, us: 1e-3, µs: 1e-3, ms: 1, s: 1000, m: 60_000, h: 3_600_000 };
  let total = 0;
  // Go's only number without a unit.
  let rest = text.trim() === '0' ? '0s' : text.trim();
  while (rest !== '') {
    const match = /^(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)/.exec(rest);
    if (match === null)
      throw new AppError(
        'invalid',
        `cannot parse duration ${JSON.stringify(text)}: want a form such as 1h30m, 10s or 250ms`,
      );
    total += Number(match[1]) * (unitMs[match[2] ?? ''] ?? 0);
    rest = rest.slice(match[0].length);
  }
  if (text.trim() === '') throw new AppError('invalid', 'cannot parse duration "": it is empty');
  return total;
}

/** `About a minute`, `2 hours`, `3 weeks`: the wording of docker's CREATED and STATUS columns. */
export function formatSpan(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 1) return 'Less than a second';
  if (seconds === 1) return '1 second';
  if (seconds < 60) return `${seconds} seconds`;
  const minutes = Math.floor(seconds / 60);
  if (minutes === 1) return 'About a minute';
  if (minutes < 60) return `${minutes} minutes`;
  const hours = Math.round(seconds / 3600);
  if (hours === 1) return 'About an hour';
  if (hours < 48) return `${hours} hours`;
  if (hours < 24 * 14) return `${Math.floor(hours / 24)} days`;
  if (hours < 24 * 30 * 2) return `${Math.floor(hours / 24 / 7)} weeks`;
  if (hours < 24 * 365 * 2) return `${Math.floor(hours / 24 / 30)} months`;
  return `${Math.floor(seconds / 3600 / 24 / 365)} years`;
}
