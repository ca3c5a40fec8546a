/** `--log-driver` and `--log-opt`: what is kept of a container's output, and what is told with it. Pure. */
import { AppError } from '../../shared/errors.ts';
import { parseBytes } from '../../shared/units.ts';
import { type ForwardPlan, forwardOptionsOf, planForwarding } from './log-forwarding.ts';
import type { HostConfig } from './request.ts';

export interface LogPlan {
  /** Output is kept for `logs`; otherwise only attached clients see it. */
  readonly isKept: boolean;
  readonly maxBytes: number;
  readonly maxFiles: number;
  /** For `logs`. */
  readonly isReadable: boolean;
  /** To whom it is handed on besides. */
  readonly forward: ForwardPlan | undefined;
  /** For `logs --details`, and for entries of the journal: which labels and environment variables are told. */
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

/** Ours is one file format under all names; what is handed on is kept here, too. */
const DRIVERS = ['json-file', 'local', 'journald', 'syslog'];
/** A position in the log is sure across restarts of the engine only while an older segment is there. */
const FORWARDED_MIN_FILES = 2;

/** @throws AppError 'unsupported' for a driver or option that is not there, 'invalid' */
export function planLog({ Type, Config }: HostConfig['LogConfig']): LogPlan {
  const plan = { forward: planForwarding(Type, Config), labels: namesOf(Config.labels), env: namesOf(Config.env) };
  if (Type === 'none') return { ...plan, isKept: false, isReadable: false, maxBytes: UNKEPT_MAX_BYTES, maxFiles: 1 };
  if (!DRIVERS.includes(Type)) throw new AppError('invalid', `logger: no log driver named '${Type}' is registered`);
  const isForwarded = plan.forward !== undefined;
  const limits = isForwarded ? ['cache-max-size', 'cache-max-file'] : ['max-size', 'max-file'];
  const known = [
    ...limits,
    'labels',
    'env',
    'mode',
    ...(isForwarded ? ['cache-disabled', ...forwardOptionsOf(Type)] : []),
  ];
  for (const option of Object.keys(Config))
    if (!known.includes(option))
      throw new AppError('unsupported', `unknown log opt '${option}' for ${Type} log driver`);
  // The container never waits for a log: there is no other mode.
  if ((Config.mode ?? 'non-blocking') !== 'non-blocking')
    throw new AppError(
      'unsupported',
      `logging mode ${JSON.stringify(Config.mode)} is not supported: output never waits for its log`,
    );
  const [sizeOption = '', fileOption = ''] = limits;
  const maxSize = Config[sizeOption];
  const maxFile = Config[fileOption];
  // -1 is docker's word for no limit.
  const maxBytes = maxSize === undefined ? DEFAULT_MAX_BYTES : maxSize === '-1' ? Infinity : parseBytes(maxSize);
  const maxFiles = maxFile === undefined ? DEFAULT_MAX_FILES : Number(maxFile);
  if (!Number.isInteger(maxFiles) || maxFiles < 1) throw new AppError('invalid', `${fileOption} cannot be less than 1`);
  return {
    ...plan,
    isKept: true,
    isReadable: Config['cache-disabled'] !== 'true',
    maxBytes,
    maxFiles: isForwarded ? Math.max(maxFiles, FORWARDED_MIN_FILES) : maxFiles,
  };
}

function namesOf(text: string | undefined): readonly string[] {
  return (text ?? '').split(',').filter(Boolean);
}

/** Those labels and variables that the driver's options name. */
export function detailsOf(plan: LogPlan, config: Told): ReadonlyMap<string, string> {
  const pairs = new Map<string, string>();
  for (const name of plan.labels) if (config.Labels[name] !== undefined) pairs.set(name, config.Labels[name]);
  for (const entry of config.Env) {
    const at = entry.indexOf('=');
    if (at > 0 && plan.env.includes(entry.slice(0, at))) pairs.set(entry.slice(0, at), entry.slice(at + 1));
  }
  return pairs;
}

interface Told {
  readonly Labels: Readonly<Record<string, string>>;
  readonly Env: readonly string[];
}

/** `k=v,` pairs, sorted and URL-escaped, then a blank: what `--details` writes before a line. */
export function detailsPrefix(plan: LogPlan, config: Told): string {
  const encode = (text: string) => encodeURIComponent(text).replaceAll('%20', '+');
  return `${[...detailsOf(plan, config)]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => `${encode(name)}=${encode(value)}`)
    .join(',')} `;
}
