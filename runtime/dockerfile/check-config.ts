/** What build checks are asked, and what a Dockerfile says of them: `# check=skip=RULE,…;error=true`. Pure. */
import type { Ignore } from '../../shared/dockerignore.ts';
import { AppError } from '../../shared/errors.ts';
import type { Dockerfile, Stage } from './dockerfile.ts';
import type { ScopeOptions } from './scope.ts';
import { clip, errorAt, type Location } from './source.ts';

export interface CheckOptions extends ScopeOptions {
  /** What of the context is out; undefined = nothing is known of it. */
  readonly ignore?: Ignore | undefined;
  /** Variables of the image that a stage begins with; undefined = not known, and nothing is said of undefined ones. */
  readonly environmentOf?: ((stage: Stage) => readonly string[] | undefined) | undefined;
  /** Numbers of the stages whose instructions are looked at; undefined = all. Stages' heads always are. */
  readonly stages?: ReadonlySet<number> | undefined;
}

export type Warn = (rule: string, message: string, at: Location) => void;

export interface CheckConfig {
  readonly skips: readonly string[] | 'all';
  readonly experimental: readonly string[] | 'all';
  /** A warning fails the build. */
  readonly isError: boolean;
}

const NOTHING: CheckConfig = { skips: [], experimental: [], isError: false };

/** Of the directive at the top. @throws AppError 'invalid' with the place */
export function checkConfigOf({ check, source }: Pick<Dockerfile, 'check' | 'source'>): CheckConfig {
  try {
    return check === undefined ? NOTHING : parseCheckConfig(check);
  } catch (cause) {
    if (!(cause instanceof AppError)) throw cause;
    const line = source.lines.findIndex((text) => /^\s*#\s*check\s*=/i.test(text)) + 1;
    throw errorAt({ source, line, column: 1, endLine: line }, cause.message, { cause });
  }
}

/** @throws AppError 'invalid' */
export function parseCheckConfig(text: string): CheckConfig {
  let config = NOTHING;
  for (const part of text.split(/\s/, 1)[0]?.split(';') ?? []) {
    const equals = part.indexOf('=');
    const key = part.slice(0, Math.max(0, equals)).trim();
    const value = part.slice(equals + 1).trim();
    if (key === 'skip') config = { ...config, skips: rulesIn(value) };
    else if (key === 'experimental') config = { ...config, experimental: rulesIn(value) };
    else if (key === 'error' && /^(?:1|t|true|0|f|false)$/i.test(value))
      config = { ...config, isError: /^[1t]/i.test(value) };
    else throw new AppError('invalid', `invalid check option ${JSON.stringify(clip(part))}`);
  }
  return config;
}

function rulesIn(text: string): CheckConfig['skips'] {
  return text === 'all' ? 'all' : text.split(',').map((rule) => rule.trim());
}

export function mergeCheckConfig(above: CheckConfig, own: CheckConfig): CheckConfig {
  const both = (a: CheckConfig['skips'], b: CheckConfig['skips']) =>
    a === 'all' || b === 'all' ? 'all' : [...a, ...b];
  return { ...above, skips: both(above.skips, own.skips), experimental: both(above.experimental, own.experimental) };
}
