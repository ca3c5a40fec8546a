/**
 * Configuration of a program: one table of options, from which come flags, environment variables, the YAML file,
 * defaults, `--help` and `--print-config`. Precedence: flag > environment > file > default.
 *
 * The option `uploadTtlMs` is the flag `--upload-ttl-ms`, the variable `<PREFIX>UPLOAD_TTL_MS` and the key
 * `uploadTtlMs` of the file. Whatever is not in the table is an error. The result is frozen.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { AppError, messageOf } from './errors.ts';
import { REDACTED } from './redact.ts';
import { parseBytes, parseDurationMs } from './units.ts';

export interface Option<T> {
  readonly description: string;
  readonly default: T;
  /** Shown for the value in `--help`; undefined = a flag without value. */
  readonly placeholder: string | undefined;
  /** Printed as `[redacted]`. */
  readonly isSecret: boolean;
  /** Flags may be repeated. */
  readonly isList: boolean;
  /** Checks a value of the file, or what fromText made. */
  readonly schema: z.ZodType<T>;
  /** A flag's or a variable's text as the file would have it. */
  readonly fromText: (text: string) => unknown;
}
export type OptionTable = Readonly<Record<string, Option<unknown>>>;
export type Config<T extends OptionTable> = { readonly [K in keyof T]: T[K] extends Option<infer V> ? V : never };

interface Described<T> {
  readonly description: string;
  readonly default: T;
  readonly secret?: boolean;
}

function option<T>(
  described: Described<T>,
  form: { schema: z.ZodType<unknown>; placeholder?: string; fromText?: (text: string) => unknown; isList?: boolean },
): Option<T> {
  return {
    description: described.description,
    default: described.default,
    isSecret: described.secret === true,
    placeholder: form.placeholder,
    isList: form.isList === true,
    // The constructors below pair T with its schema.
    schema: form.schema as z.ZodType<T>,
    fromText: form.fromText ?? ((text) => text),
  };
}

export function textOption<T extends string | undefined>(described: Described<T>): Option<string | T> {
  return option<string | T>(described, { schema: z.string(), placeholder: 'TEXT' });
}

export function flagOption(described: Described<boolean>): Option<boolean> {
  const fromText = (text: string) => ({ true: true, '1': true, false: false, '0': false })[text.toLowerCase()] ?? text;
  return option(described, { schema: z.boolean(), fromText });
}

export interface IntegerRange {
  readonly min: number;
  readonly max: number;
}

export function integerOption(described: Described<number> & IntegerRange): Option<number> {
  const schema = z.int().min(described.min).max(described.max);
  const fromText = (text: string) => (/^-?\d+$/.test(text) ? Number(text) : text);
  return option(described, { schema, placeholder: 'NUMBER', fromText });
}

/** Bytes: `4194304`, `4m`, `1.5g`. Name it …Bytes. */
export function bytesOption(described: Described<number>): Option<number> {
  return option(described, { schema: unitSchema(parseBytes), placeholder: 'SIZE' });
}

/** Milliseconds in the file as a number, or a text such as `30s` or `1h30m`. Name it …Ms. */
export function durationOption(described: Described<number>): Option<number> {
  const schema = unitSchema((text) => (/^\d+$/.test(text) ? Number(text) : parseDurationMs(text)));
  return option(described, { schema, placeholder: 'DURATION' });
}

function unitSchema(parse: (text: string) => number): z.ZodType<number> {
  return z.union([z.number(), z.string()]).transform((value, context) => {
    try {
      const number = typeof value === 'number' ? value : parse(value);
      if (Number.isFinite(number) && number >= 0) return number;
      context.addIssue('must be a finite number, zero or more');
    } catch (error) {
      context.addIssue(messageOf(error));
    }
    return z.NEVER;
  });
}

export function choiceOption<const C extends string>(
  described: Described<NoInfer<C>> & { readonly choices: readonly C[] },
): Option<C> {
  return option<C>(described, { schema: z.enum(described.choices), placeholder: described.choices.join('|') });
}

/** A list of texts; flags may be repeated, and flags and variables take several separated by commas. */
export function listOption(described: Described<readonly string[]>): Option<readonly string[]> {
  const fromText = (text: string) => text.split(',').filter((item) => item !== '');
  return option(described, { schema: z.array(z.string()), placeholder: 'TEXT[,TEXT]', fromText, isList: true });
}

/** Anything deeper, as YAML; flags and variables take it as YAML or JSON text. */
export function structureOption<T>(described: Described<T> & { readonly schema: z.ZodType<T> }): Option<T> {
  return option(described, { schema: described.schema, placeholder: 'YAML', fromText: (text) => yaml().parse(text) });
}

export interface Program<T extends OptionTable> {
  readonly name: string;
  /** Of environment variables, with its final underscore: `BERTH_REGISTRY_`. */
  readonly envPrefix: string;
  readonly options: T;
}

export interface ConfigSources {
  /** Without the interpreter and the script. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  /** The file that is read when it exists and `--config` names none. */
  readonly defaultFile?: string;
}

export type Origin = 'flag' | 'environment' | 'file' | 'default';

export interface LoadedConfig<T extends OptionTable> {
  readonly config: Config<T>;
  readonly origins: Readonly<Record<string, Origin>>;
  /** What the command line asks for beside running: `--help`, `--print-config`. */
  readonly request: 'run' | 'help' | 'print-config';
  readonly positionals: readonly string[];
}

const kebab = (name: string) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
const envName = (prefix: string, name: string) => prefix + kebab(name).replaceAll('-', '_').toUpperCase();

/** @throws AppError 'invalid' naming the option and where it was set; 'not-found' for a missing --config file */
export function loadConfig<const T extends OptionTable>(program: Program<T>, sources: ConfigSources): LoadedConfig<T> {
  const flags = readFlags(program, sources.argv);
  const env = readEnvironment(program, sources.env);
  const file = readFile(program, flags.file ?? env.file, sources.defaultFile);

  const config: Record<string, unknown> = {};
  const origins: Record<string, Origin> = {};
  for (const [name, option] of Object.entries(program.options)) {
    const found =
      pick('flag', flags.values, name, `--${kebab(name)}`) ??
      pick('environment', env.values, name, envName(program.envPrefix, name)) ??
      pick('file', file.values, name, `${name} in ${file.path}`);
    config[name] = found === undefined ? option.default : check(option, found.value, found.where);
    origins[name] = found?.origin ?? 'default';
  }
  return {
    config: deepFreeze(config) as Config<T>,
    origins,
    request: flags.request,
    positionals: flags.positionals,
  };
}

function pick(origin: Origin, values: ReadonlyMap<string, unknown>, name: string, where: string) {
  return values.has(name) ? { origin, where, value: values.get(name) } : undefined;
}

function check(option: Option<unknown>, value: unknown, where: string): unknown {
  const result = option.schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const path = issue === undefined || issue.path.length === 0 ? '' : `${issue.path.join('.')}: `;
  throw new AppError('invalid', `cannot use ${where}: ${path}${issue?.message ?? 'it has an unexpected form'}`);
}

function textOf(option: Option<unknown>, text: string, where: string): unknown {
  try {
    return option.fromText(text);
  } catch (cause) {
    throw new AppError('invalid', `cannot use ${where}: ${messageOf(cause)}`, { cause });
  }
}

function readFlags(program: Program<OptionTable>, argv: readonly string[]) {
  type Flag = { type: 'boolean' | 'string'; multiple?: boolean; short?: string };
  const accepted: Record<string, Flag> = {
    config: { type: 'string' },
    help: { type: 'boolean', short: 'h' },
    'print-config': { type: 'boolean' },
  };
  for (const [name, option] of Object.entries(program.options))
    accepted[kebab(name)] = option.placeholder === undefined ? { type: 'boolean' } : { type: 'string', multiple: true };
  const parsed = (() => {
    try {
      return parseArgs({ args: [...argv], options: accepted, allowPositionals: true, allowNegative: true });
    } catch (cause) {
      throw new AppError('invalid', `cannot read the command line: ${messageOf(cause)}`, { cause });
    }
  })();

  const values = new Map<string, unknown>();
  for (const [name, option] of Object.entries(program.options)) {
    const given = parsed.values[kebab(name)];
    if (typeof given === 'boolean') values.set(name, given);
    if (!Array.isArray(given)) continue;
    const texts = given.map(String);
    const where = `--${kebab(name)}`;
    if (option.isList) values.set(name, textOf(option, texts.join(','), where));
    else values.set(name, textOf(option, texts.at(-1) ?? '', where));
  }
  const { config: file, help, 'print-config': print } = parsed.values;
  const request: LoadedConfig<OptionTable>['request'] =
    help === true ? 'help' : print === true ? 'print-config' : 'run';
  return { values, request, positionals: parsed.positionals, file: typeof file === 'string' ? file : undefined };
}

// Kubernetes sets these for a Service that has the program's name; they are not meant for us.
const KUBERNETES_LINK = /^(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)?)$/;

function readEnvironment({ envPrefix, options }: Program<OptionTable>, env: ConfigSources['env']) {
  const byVariable = new Map(Object.keys(options).map((name) => [envName(envPrefix, name), name]));
  const values = new Map<string, unknown>();
  let file: string | undefined;
  for (const [variable, text] of Object.entries(env)) {
    if (text === undefined || !variable.startsWith(envPrefix)) continue;
    const name = byVariable.get(variable);
    const option = name === undefined ? undefined : options[name];
    if (name !== undefined && option !== undefined) values.set(name, textOf(option, text, variable));
    else if (variable === `${envPrefix}CONFIG`) file = text;
    else if (!KUBERNETES_LINK.test(variable.slice(envPrefix.length)))
      throw new AppError('invalid', `cannot use ${variable}: there is no such option; see --help`);
  }
  return { values, file };
}

function readFile({ options }: Program<OptionTable>, named: string | undefined, defaultFile: string | undefined) {
  const path = named ?? defaultFile;
  const values = new Map<string, unknown>();
  if (path === undefined) return { path: '', values };
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    if (named === undefined) return { path, values };
    throw new AppError('not-found', `cannot read configuration file ${JSON.stringify(path)}: ${messageOf(cause)}`, {
      cause,
    });
  }
  let document: unknown;
  try {
    document = yaml().parse(text);
  } catch (cause) {
    throw new AppError('invalid', `cannot read configuration file ${JSON.stringify(path)}: ${messageOf(cause)}`, {
      cause,
    });
  }
  if (document === null || document === undefined) return { path, values };
  if (typeof document !== 'object' || Array.isArray(document))
    throw new AppError('invalid', `cannot read configuration file ${JSON.stringify(path)}: want options as keys`);
  for (const [name, value] of Object.entries(document)) {
    if (!Object.hasOwn(options, name))
      throw new AppError('invalid', `cannot use ${name} in ${path}: there is no such option; see --help`);
    values.set(name, value);
  }
  return { path, values };
}

/** Loaded only where there is YAML: most programs start without a file, and would keep it in memory for ever. */
function yaml(): typeof import('yaml') {
  return createRequire(import.meta.url)('yaml');
}

function deepFreeze<V>(value: V): V {
  if (typeof value !== 'object' || value === null) return value;
  for (const item of Object.values(value)) deepFreeze(item);
  return Object.freeze(value);
}

/** The configuration as a YAML file that could be used as one, telling where each value comes from. */
export function printConfig<T extends OptionTable>(program: Program<T>, loaded: LoadedConfig<T>): string {
  const lines = [`# ${program.name}: flag > environment (${program.envPrefix}…) > file > default`];
  for (const [name, option] of Object.entries(program.options)) {
    const value = loaded.config[name];
    lines.push('', `# ${option.description} (${loaded.origins[name]})`);
    if (value === undefined) lines.push(`# ${name}:`);
    else
      lines.push(
        yaml()
          .stringify({ [name]: option.isSecret ? REDACTED : value })
          .trimEnd(),
      );
  }
  return `${lines.join('\n')}\n`;
}

/** The options part of `--help`. */
export function describeOptions(program: Program<OptionTable>): string {
  const rows = Object.entries(program.options).map(([name, option]) => {
    const left = `  --${kebab(name)}${option.placeholder === undefined ? '' : ` ${option.placeholder}`}`;
    const shown = option.isSecret || option.default === undefined ? '' : ` (default ${JSON.stringify(option.default)})`;
    return { left, right: `${option.description}${shown}` };
  });
  rows.push(
    { left: '  --config FILE', right: 'YAML file with these options, named as printed by --print-config' },
    { left: '  --print-config', right: 'print the resulting configuration and exit' },
    { left: '  -h, --help', right: 'print this and exit' },
  );
  const width = Math.min(34, Math.max(...rows.map(({ left }) => left.length)));
  return rows.map(({ left, right }) => `${left.padEnd(width)}  ${right}\n`).join('');
}
