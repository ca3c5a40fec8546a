/** `--log-driver` and `--log-opt`: what is kept of a container's output, and what is told with it. Pure. */
import { AppError } from '../../shared/errors.ts';
import { parseBytes } from '../../shared/units.ts';
import type { HostConfig } from './request.ts';

export interface LogPlan {
  /** Output is kept for `logs`; otherwise only attached clients see it. */
  readonly isKept: boolean;
  readonly maxBytes: number;
  readonly maxFiles: number;
  /** For `logs --details`: which labels and environment variables are told. */
  readonly labels: readonly string[];
  readonly env: readonly string[];
}

/**
 * 100 MB in five files, as docker's `local` driver: docker's default driver keeps everything, and full disks are what
 * people complain about most.
 */
const DEFAULT_MAX_BYTES = 20_000_000;
const DEFAULT_MAX_FILES = 5;
/** What the driver `none` needs for the clients that are attached. */
const UNKEPT_MAX_BYTES = 4_000_000;

/** Drivers that keep a log which can be read back; ours is one file format under both names. */
const KEEPING = ['json-file', 'local'];
const OPTIONS = ['max-size', 'max-file', 'labels', 'env'];

/** @throws AppError 'unsupported' for a driver or option that is not there, 'invalid' */
export function planLog({ Type, Config }: HostConfig['LogConfig']): LogPlan {
  if (Type === 'none') return { isKept: false, maxBytes: UNKEPT_MAX_BYTES, maxFiles: 1, labels: [], env: [] };
  if (!KEEPING.includes(Type))
    throw new AppError(
      'unsupported',
      `cannot create container: the log driver ${JSON.stringify(Type)} is not supported; use json-file, local or none`,
    );
  for (const option of Object.keys(Config))
    if (!OPTIONS.includes(option))
      throw new AppError('unsupported', `unknown log opt '${option}' for ${Type} log driver`);
  const maxSize = Config['max-size'];
  const maxFile = Config['max-file'];
  // -1 is docker's word for no limit.
  const maxBytes = maxSize === undefined ? DEFAULT_MAX_BYTES : maxSize === '-1' ? Infinity : parseBytes(maxSize);
  const maxFiles = maxFile === undefined ? DEFAULT_MAX_FILES : Number(maxFile);
  if (!Number.isInteger(maxFiles) || maxFiles < 1) throw new AppError('invalid', 'max-file cannot be less than 1');
  const names = (text: string | undefined) => (text ?? '').split(',').filter(Boolean);
  return { isKept: true, maxBytes, maxFiles, labels: names(Config.labels), env: names(Config.env) };
}

/** `k=v,` pairs, sorted and URL-escaped, then a blank: what `--details` writes before a line. */
export function detailsPrefix(
  plan: LogPlan,
  config: { readonly Labels: Readonly<Record<string, string>>; readonly Env: readonly string[] },
): string {
  const pairs = new Map<string, string>();
  for (const name of plan.labels) if (config.Labels[name] !== undefined) pairs.set(name, config.Labels[name]);
  for (const entry of config.Env) {
    const at = entry.indexOf('=');
    if (at > 0 && plan.env.includes(entry.slice(0, at))) pairs.set(entry.slice(0, at), entry.slice(at + 1));
  }
  const encode = (text: string) => encodeURIComponent(text).replaceAll('%20', '+');
  return `${[...pairs]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => `${encode(name)}=${encode(value)}`)
    .join(',')} `;
}
