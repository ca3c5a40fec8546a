/** `RUN --mount`: what is there while a command runs. Pure. https://docs.docker.com/reference/dockerfile/#run---mount */
import { AppError } from '../../shared/errors.ts';
import { parseBytes } from '../../shared/units.ts';
import { clip, didYouMean } from './source.ts';

interface Placed {
  /** As written, before it is made absolute by the working directory; undefined = the working directory. */
  readonly target: string | undefined;
  readonly isReadOnly: boolean;
}
export interface BindMount extends Placed {
  readonly type: 'bind';
  /** Stage, image or named context; undefined = the build's context. */
  readonly from: string | undefined;
  readonly source: string | undefined;
}
export interface CacheMount extends Placed {
  readonly type: 'cache';
  /** undefined = the target. */
  readonly id: string | undefined;
  /** What the cache begins with. */
  readonly from: string | undefined;
  readonly source: string | undefined;
  readonly sharing: 'shared' | 'private' | 'locked';
  readonly mode: number | undefined;
  readonly uid: number | undefined;
  readonly gid: number | undefined;
}
export interface TmpfsMount extends Placed {
  readonly type: 'tmpfs';
  readonly sizeBytes: number | undefined;
}
export interface SecretMount {
  readonly type: 'secret';
  readonly id: string;
  /** undefined = `/run/secrets/ID`, unless the secret is only a variable. */
  readonly target: string | undefined;
  /** Variable that gets the value. */
  readonly env: string | undefined;
  readonly isRequired: boolean;
  readonly mode: number | undefined;
  readonly uid: number | undefined;
  readonly gid: number | undefined;
}
export interface SshMount {
  readonly type: 'ssh';
  readonly id: string;
  /** undefined = `/run/buildkit/ssh_agent.N`. */
  readonly target: string | undefined;
  readonly isRequired: boolean;
  readonly mode: number | undefined;
  readonly uid: number | undefined;
  readonly gid: number | undefined;
}
export type RunMount = BindMount | CacheMount | TmpfsMount | SecretMount | SshMount;

const TYPES = ['bind', 'cache', 'tmpfs', 'secret', 'ssh'] as const;
const SHARING = ['shared', 'private', 'locked'] as const;

/** Every spelling of a key, and the key. */
const KEYS: Readonly<Record<string, string>> = {
  type: 'type',
  from: 'from',
  source: 'source',
  src: 'source',
  target: 'target',
  dst: 'target',
  destination: 'target',
  readonly: 'ro',
  ro: 'ro',
  readwrite: 'rw',
  rw: 'rw',
  id: 'id',
  sharing: 'sharing',
  required: 'required',
  size: 'size',
  mode: 'mode',
  uid: 'uid',
  gid: 'gid',
  env: 'env',
};
const FLAGS = ['ro', 'rw', 'required'];

/** Which keys mean something to which type, beside `type`. */
const ALLOWED: Readonly<Record<RunMount['type'], readonly string[]>> = {
  bind: ['from', 'source', 'target', 'ro', 'rw'],
  cache: ['from', 'source', 'target', 'ro', 'rw', 'id', 'sharing', 'mode', 'uid', 'gid'],
  tmpfs: ['target', 'ro', 'rw', 'size'],
  secret: ['source', 'target', 'id', 'required', 'mode', 'uid', 'gid', 'env'],
  ssh: ['target', 'id', 'required', 'mode', 'uid', 'gid'],
};

function invalid(message: string): AppError {
  return new AppError('invalid', message);
}

/** The value of `from=`, which names what is built first and therefore takes no variables. @throws AppError 'invalid' */
export function mountSource(text: string): string | undefined {
  const value = fieldsOf(text).find(({ name }) => name === 'from')?.value;
  const dollar = value?.indexOf('$') ?? -1;
  if (value !== undefined && dollar !== -1 && dollar !== value.length - 1)
    throw invalid(`'from' doesn't support variable expansion, define alias stage instead`);
  return value;
}

/** @throws AppError 'invalid' naming what is wrong */
export function parseMount(text: string, expand: (value: string) => string): RunMount {
  const given = new Map<string, string>();
  for (const { field, name, value } of fieldsOf(text)) {
    const key = Object.hasOwn(KEYS, name) ? KEYS[name] : undefined;
    if (key === undefined)
      throw invalid(`unexpected key '${clip(name)}' in '${clip(field)}'${didYouMean(name, Object.keys(KEYS))}`);
    if (value === undefined && !FLAGS.includes(key))
      throw invalid(`invalid field '${clip(field)}' must be a key=value pair`);
    given.set(key, value === undefined ? 'true' : expand(value));
  }
  const type = oneOf(TYPES, given.get('type') ?? 'bind', (word) => `unsupported mount type ${word}`);
  for (const key of given.keys())
    if (key !== 'type' && !ALLOWED[type].includes(key))
      throw invalid(`unexpected key '${key}' for mount type '${type}'`);
  return mountOf(type, given);
}

function mountOf(type: RunMount['type'], given: ReadonlyMap<string, string>): RunMount {
  const said = (key: string) => given.get(key) || undefined;
  const truth = (key: string) => (given.has(key) ? parseBoolean(key, given.get(key) ?? '') : undefined);
  const target = said('target');
  const from = said('from');
  const source = said('source');
  const readOnly = truth('ro') ?? negated(truth('rw'));
  const owner = { mode: octal(given.get('mode')), uid: decimal('uid', given), gid: decimal('gid', given) };
  switch (type) {
    case 'bind':
      return { type, from, source, target, isReadOnly: readOnly ?? true };
    case 'cache': {
      const sharing = oneOf(SHARING, given.get('sharing') ?? 'shared', (word) => `unsupported sharing value ${word}`);
      const id = said('id');
      return { type, id, from, source, target, isReadOnly: readOnly ?? false, sharing, ...owner };
    }
    case 'tmpfs':
      return { type, target, isReadOnly: readOnly ?? false, sizeBytes: sizeOf(given.get('size')) };
    case 'secret': {
      const id = said('id');
      if (source !== undefined && id !== undefined) throw invalid("both source and id can't be set");
      const name = id ?? source ?? target?.split('/').findLast((part) => part !== '');
      if (name === undefined) throw invalid('invalid secret mount. one of source, target required');
      const env = given.has('env') ? said('env') || name : undefined;
      return { type, id: name, target, env, isRequired: truth('required') ?? false, ...owner };
    }
    case 'ssh':
      return { type, id: said('id') ?? 'default', target, isRequired: truth('required') ?? false, ...owner };
  }
}

function negated(value: boolean | undefined): boolean | undefined {
  return value === undefined ? undefined : !value;
}

function oneOf<T extends string>(known: readonly T[], value: string, message: (word: string) => string): T {
  const found = known.find((word) => word === value.toLowerCase());
  if (found !== undefined) return found;
  throw invalid(`${message(JSON.stringify(clip(value)))}${didYouMean(value, known)}`);
}

/** The words that Go takes for truth. */
function parseBoolean(key: string, value: string): boolean {
  if (['1', 't', 'T', 'TRUE', 'true', 'True'].includes(value)) return true;
  if (['0', 'f', 'F', 'FALSE', 'false', 'False'].includes(value)) return false;
  throw invalid(`invalid value for ${key}: ${clip(value)}`);
}

function octal(value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  if (!/^[0-7]{1,6}$/.test(value)) throw invalid(`invalid value ${clip(value)} for mode`);
  return Number.parseInt(value, 8);
}

function decimal(key: string, given: ReadonlyMap<string, string>): number | undefined {
  const value = given.get(key);
  if (value === undefined) return undefined;
  const number = /^\d{1,10}$/.test(value) ? Number(value) : Number.NaN;
  if (!(number < 2 ** 32)) throw invalid(`invalid value ${clip(value)} for ${key}`);
  return number;
}

function sizeOf(value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  try {
    return parseBytes(value);
  } catch (cause) {
    throw new AppError('invalid', `invalid value for size: ${clip(value)}`, { cause });
  }
}

interface Field {
  readonly field: string;
  readonly name: string;
  readonly value: string | undefined;
}

function fieldsOf(text: string): readonly Field[] {
  return splitCsv(text).map((field) => {
    const equals = field.indexOf('=');
    const name = (equals === -1 ? field : field.slice(0, equals)).toLowerCase();
    return { field, name, value: equals === -1 ? undefined : field.slice(equals + 1) };
  });
}

/** One record of comma-separated values; a field in double quotes may hold commas, and `""` for a quote. */
function splitCsv(text: string): readonly string[] {
  const fields: string[] = [];
  let at = 0;
  for (;;) {
    if (text[at] === '"') {
      const end = closingQuote(text, at);
      fields.push(text.slice(at + 1, end).replaceAll('""', '"'));
      at = end + 1;
    } else {
      const comma = text.indexOf(',', at);
      const end = comma === -1 ? text.length : comma;
      const field = text.slice(at, end);
      if (field.includes('"')) throw invalid(`failed to parse csv mounts: bare " in ${JSON.stringify(clip(field))}`);
      fields.push(field);
      at = end;
    }
    if (at >= text.length) return fields;
    at += 1;
  }
}

function closingQuote(text: string, start: number): number {
  let end = text.indexOf('"', start + 1);
  while (end !== -1 && text[end + 1] === '"') end = text.indexOf('"', end + 2);
  if (end === -1 || (end + 1 < text.length && text[end + 1] !== ','))
    throw invalid('failed to parse csv mounts: a quoted field is not closed');
  return end;
}
