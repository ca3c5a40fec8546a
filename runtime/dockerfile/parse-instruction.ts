/** One logical line to one instruction: the grammar of each, its flags, and what Docker says of mistakes. Pure. */
import { isKind, messageOf } from '../../shared/errors.ts';
import { parseDurationMs } from '../../shared/units.ts';
import type {
  AddInstruction,
  ArgInstruction,
  CommandLine,
  CopyInstruction,
  FromInstruction,
  HealthcheckInstruction,
  InlineFile,
  Instruction,
  InstructionKind,
  OnbuildInstruction,
  Pair,
  RunCommand,
  RunInstruction,
} from './instructions.ts';
import { type Heredoc, heredocIn, heredocText, jsonWords, type LogicalLine, splitCommand } from './lines.ts';
import { mountSource } from './mounts.ts';
import { clip, didYouMean, errorAt } from './source.ts';
import type { Escape } from './words.ts';

type Written = Pick<Instruction, 'keyword' | 'text' | 'at' | 'comments'>;

/** What a grammar has before it. */
interface Statement {
  readonly kind: InstructionKind;
  readonly written: Written;
  readonly flags: Flags;
  /** Trimmed. */
  readonly rest: string;
  /** Words of the JSON form; undefined = it is not. */
  readonly json: readonly string[] | undefined;
  readonly heredocs: readonly Heredoc[];
  readonly escapeToken: Escape;
  readonly line: LogicalLine;
  /** The error points at `near`, when it stands in the line. */
  fail(message: string, near?: string): never;
}

type Grammar = (statement: Statement) => Instruction;

const GRAMMARS: Readonly<Record<InstructionKind, Grammar>> = {
  FROM: parseFrom,
  RUN: parseRun,
  COPY: parseCopy,
  ADD: parseAdd,
  ENV: (statement) => ({ kind: 'ENV', ...statement.written, pairs: pairsOf(statement) }),
  LABEL: (statement) => ({ kind: 'LABEL', ...statement.written, pairs: pairsOf(statement) }),
  ARG: parseArg,
  WORKDIR: (statement) => ({ kind: 'WORKDIR', ...statement.written, path: oneOf(statement) }),
  USER: (statement) => ({ kind: 'USER', ...statement.written, user: oneOf(statement) }),
  VOLUME(statement) {
    const paths = someOf(statement).map((path) => path.trim());
    if (paths.includes('')) statement.fail('VOLUME specified can not be an empty string');
    return { kind: 'VOLUME', ...statement.written, paths };
  },
  EXPOSE(statement) {
    if (statement.rest === '') statement.fail('EXPOSE requires at least one argument');
    return { kind: 'EXPOSE', ...statement.written, ports: blankSeparated(statement.rest).toSorted() };
  },
  CMD: (statement) => ({ kind: 'CMD', ...statement.written, command: commandOf(statement) }),
  ENTRYPOINT: (statement) => ({ kind: 'ENTRYPOINT', ...statement.written, command: commandOf(statement) }),
  MAINTAINER: (statement) => ({ kind: 'MAINTAINER', ...statement.written, name: oneOf(statement) }),
  STOPSIGNAL: (statement) => ({ kind: 'STOPSIGNAL', ...statement.written, signal: oneOf(statement) }),
  HEALTHCHECK: parseHealthcheck,
  SHELL(statement) {
    const { json, rest } = statement;
    if (rest === '' || json?.length === 0) statement.fail('SHELL requires at least one argument');
    if (json === undefined) return statement.fail('SHELL requires the arguments to be in JSON form', rest);
    return { kind: 'SHELL', ...statement.written, words: json };
  },
  ONBUILD: parseOnbuild,
};
const KINDS = Object.keys(GRAMMARS);

function isInstructionKind(word: string): word is InstructionKind {
  return Object.hasOwn(GRAMMARS, word);
}

/** @throws AppError 'invalid' with its place */
export function parseInstruction(line: LogicalLine, escapeToken: Escape): Instruction {
  const fail = (message: string, near = ''): never => {
    const at = { ...line.locate(Math.max(0, line.text.indexOf(near))), endLine: line.at.endLine };
    throw errorAt(at, `dockerfile parse error on line ${line.at.line}: ${message}`);
  };
  try {
    return grammarOf(line, fail)(statementOf(line, escapeToken, fail));
  } catch (error) {
    // Of what it uses, without a place.
    if (isKind(error, 'invalid', 'unsupported') && error.detail?.line === undefined) return fail(messageOf(error));
    throw error;
  }
}

function grammarOf({ keyword }: LogicalLine, fail: Statement['fail']): Grammar {
  const kind = keyword.toUpperCase();
  if (isInstructionKind(kind)) return GRAMMARS[kind];
  const known = keyword === keyword.toLowerCase() ? KINDS.map((each) => each.toLowerCase()) : KINDS;
  const hint = didYouMean(keyword === keyword.toLowerCase() ? keyword : kind, known);
  return fail(`unknown instruction: ${clip(keyword)}${hint}`);
}

function statementOf(line: LogicalLine, escapeToken: Escape, fail: Statement['fail']): Statement {
  const kind = line.keyword.toUpperCase() as InstructionKind;
  const text = `${kind}${line.text.slice(line.keyword.length)}`;
  const { keyword, at, comments, rest, heredocs } = line;
  const flags = new Flags(line.flags, fail);
  const takesJson = ['RUN', 'COPY', 'ADD', 'CMD', 'ENTRYPOINT', 'VOLUME', 'SHELL'].includes(kind);
  const json = takesJson ? jsonWords(rest) : undefined;
  if (json === 'invalid') return fail('when using JSON array syntax, arrays must be comprised of strings only', rest);
  const statement = {
    kind,
    written: { keyword, text, at, comments },
    flags,
    rest,
    json,
    heredocs,
    escapeToken,
    line,
    fail,
  };
  if (!TAKES_FLAGS.includes(kind)) flags.end();
  return statement;
}

const TAKES_FLAGS: readonly string[] = ['FROM', 'RUN', 'COPY', 'ADD', 'HEALTHCHECK'];

/** What stands between the keyword and the arguments; each grammar takes what it knows, and ends the list. */
class Flags {
  readonly #given = new Map<string, (string | undefined)[]>();
  readonly #known: string[] = [];
  readonly #fail: Statement['fail'];

  constructor(flags: readonly string[], fail: Statement['fail']) {
    this.#fail = fail;
    for (const flag of flags) {
      const equals = flag.indexOf('=');
      const name = equals === -1 ? flag.slice(2) : flag.slice(2, equals);
      const values = this.#given.get(name) ?? [];
      values.push(equals === -1 ? undefined : flag.slice(equals + 1));
      this.#given.set(name, values);
    }
  }

  texts(name: string): readonly string[] {
    return this.#take(name).map((value) => value ?? this.#fail(`missing a value on flag: --${name}`, `--${name}`));
  }

  text(name: string): string | undefined {
    const values = this.texts(name);
    if (values.length > 1) this.#fail(`duplicate flag specified: --${name}`, `--${name}`);
    return values[0];
  }

  truth(name: string): boolean | undefined {
    const values = this.#take(name);
    if (values.length > 1) this.#fail(`duplicate flag specified: --${name}`, `--${name}`);
    if (values.length === 0) return undefined;
    const value = values[0];
    if (value === '') this.#fail(`missing a value on flag: --${name}`, `--${name}`);
    const word = value?.toLowerCase() ?? 'true';
    if (word !== 'true' && word !== 'false')
      this.#fail(`expecting boolean value for flag --${name}, not: ${clip(word)}`, `--${name}`);
    return word === 'true';
  }

  /** @throws for what nobody took */
  end(): void {
    for (const name of this.#given.keys())
      this.#fail(`unknown flag: --${clip(name)}${didYouMean(name, this.#known)}`, `--${name}`);
  }

  #take(name: string): readonly (string | undefined)[] {
    const values = this.#given.get(name) ?? [];
    this.#given.delete(name);
    this.#known.push(name);
    return values;
  }
}

/** The blanks of the classic parser: no-break spaces are letters to it. */
function blankSeparated(text: string): readonly string[] {
  return text.split(/[\t\v\f\r ]+/);
}

function oneOf({ kind, rest, fail }: Statement): string {
  return rest === '' ? fail(`${kind} requires exactly one argument`) : rest;
}

function someOf({ kind, rest, json, fail }: Statement): readonly string[] {
  const words = json ?? (rest === '' ? [] : blankSeparated(rest));
  return words.length === 0 ? fail(`${kind} requires at least one argument`) : words;
}

function commandOf({ kind, rest, json, fail }: Statement): CommandLine {
  if (rest === '') return fail(`${kind} requires at least one argument`);
  return json === undefined ? { form: 'shell', script: rest } : { form: 'exec', words: json };
}

const STAGE_NAME = /^[a-z][a-z0-9-_.]*$/;

function parseFrom({ written, flags, rest, fail }: Statement): FromInstruction {
  const platform = flags.text('platform');
  flags.end();
  const [image = '', as, name, ...more] = rest === '' ? [] : blankSeparated(rest);
  const isNamed = as?.toLowerCase() === 'as' && name !== undefined && more.length === 0;
  if (image === '' || (as !== undefined && !isNamed)) return fail('FROM requires either one or three arguments');
  if (as === undefined || name === undefined)
    return { kind: 'FROM', ...written, image, platform, as: undefined, written: undefined };
  if (!STAGE_NAME.test(name.toLowerCase())) {
    const why = "name can't start with a number or contain symbols";
    return fail(`invalid name for build stage: ${JSON.stringify(clip(name))}, ${why}`, name);
  }
  return { kind: 'FROM', ...written, image, platform, as: name.toLowerCase(), written: { as, name } };
}

function parseRun(statement: Statement): RunInstruction {
  const { written, flags, heredocs, fail } = statement;
  const mountTexts = flags.texts('mount');
  const network = flags.text('network') ?? 'default';
  const security = flags.text('security') ?? 'sandbox';
  if (flags.texts('device').length > 0) fail('RUN --device is not supported', '--device');
  flags.end();
  if (network !== 'default' && network !== 'none' && network !== 'host')
    return fail(`invalid network mode ${JSON.stringify(clip(network))}`, '--network');
  if (security !== 'sandbox' && security !== 'insecure')
    return fail(`security ${JSON.stringify(clip(security))} is not valid`, '--security');
  const mountSources = mountTexts.map(mountSource);
  const command = withHeredocs(commandOf(statement), heredocs, fail);
  const [first] = heredocs;
  const isOnlyHeredoc = first !== undefined && heredocIn(statement.rest) !== undefined;
  const text = isOnlyHeredoc ? `${written.text} (${summary(first)})` : written.text;
  return { kind: 'RUN', ...written, text, command, mountTexts, mountSources, mounts: [], network, security };
}

function summary({ content }: Heredoc): string {
  const [first = '', ...more] = content.trim().split(/\r?\n/);
  return more.length > 0 ? `${first}...` : first;
}

/** Where all of the command is a here-document, its content is what runs; else the shell reads them itself. */
function withHeredocs(command: CommandLine, heredocs: readonly Heredoc[], fail: Statement['fail']): RunCommand {
  const [first] = heredocs;
  if (command.form === 'exec' || first === undefined) return command;
  if (heredocIn(command.script) === undefined) {
    const documents = heredocs.map(({ content, name }) => `\n${content}${name}`);
    return { form: 'shell', script: [command.script, ...documents].join('') };
  }
  const content = heredocText(first);
  if (!content.startsWith('#!')) return { form: 'shell', script: content };
  return { form: 'file', name: fileName(first.name, fail), content };
}

function fileName(name: string, fail: Statement['fail']): string {
  if (name.includes('/') || name === '.' || name === '..')
    return fail(`heredoc name ${JSON.stringify(clip(name))} is no file name`, '<<');
  return name;
}

function copyingOf({ kind, rest, json, heredocs, flags, fail }: Statement) {
  const chown = flags.text('chown');
  const chmod = flags.text('chmod');
  const link = flags.truth('link') ?? false;
  const exclude = flags.texts('exclude');
  flags.end();
  const words = json ?? (rest === '' ? [] : blankSeparated(rest));
  const destination = words.at(-1);
  if (destination === undefined || words.length < 2) {
    const why = 'but only one was provided. Destination could not be determined';
    return fail(`${kind} requires at least two arguments, ${why}`);
  }
  const isHeredoc = (word: string) => json === undefined && heredocIn(word) !== undefined;
  if (isHeredoc(destination)) fail(`${kind} cannot accept a heredoc as a destination`, destination);
  const contents = new Map(heredocs.map((heredoc) => [heredoc.name, heredoc]));
  const files: InlineFile[] = [];
  const sources: string[] = [];
  for (const word of words.slice(0, -1)) {
    const heredoc = isHeredoc(word) ? heredocIn(word) : undefined;
    const content = heredoc && contents.get(heredoc.name);
    if (heredoc === undefined || content === undefined) sources.push(word);
    else files.push({ name: fileName(heredoc.name, fail), content: heredocText(content), expands: heredoc.expands });
  }
  return { sources, files, destination, chown, chmod, link, exclude };
}

function parseCopy(statement: Statement): CopyInstruction {
  const { flags, written } = statement;
  const from = flags.text('from');
  const parents = flags.truth('parents') ?? false;
  return { kind: 'COPY', ...written, from, parents, ...copyingOf(statement) };
}

function parseAdd(statement: Statement): AddInstruction {
  const { flags, written } = statement;
  const checksum = flags.text('checksum');
  const keepGitDir = flags.truth('keep-git-dir');
  const unpack = flags.truth('unpack');
  return { kind: 'ADD', ...written, checksum, keepGitDir, unpack, ...copyingOf(statement) };
}

/** Words at blanks outside quotes; quotes and escapes stay for the expansion. */
function quotedWords(text: string, escapeToken: Escape): readonly string[] {
  const words: string[] = [];
  for (let at = 0; at < text.length; ) {
    while (at < text.length && /\s/.test(text[at] ?? '')) at += 1;
    const start = at;
    let quote = '';
    for (; at < text.length && (quote !== '' || !/\s/.test(text[at] ?? '')); at++) {
      const char = text[at] ?? '';
      if (char === escapeToken && quote !== "'") at += 1;
      else if (quote === '' ? char === '"' || char === "'" : char === quote) quote = quote === '' ? char : '';
    }
    if (at > start) words.push(text.slice(start, at));
  }
  const last = words.pop();
  if (last === undefined) return words;
  // An escape that escapes nothing is not there.
  const isDangling = last.endsWith(escapeToken) && !last.endsWith(escapeToken + escapeToken);
  return [...words, isDangling ? last.slice(0, -1) : last];
}

/** `NAME=value …`, or the old form: `NAME` and all the rest as its value. */
function pairsOf({ kind, rest, escapeToken, fail }: Statement): readonly Pair[] {
  const words = quotedWords(rest, escapeToken);
  const [first] = words;
  if (first === undefined) return fail(`${kind} requires at least one argument`);
  if (!first.includes('=')) {
    const blank = /[\t\v\f\r ]+/.exec(rest);
    if (blank === null) return fail(`${kind} must have two arguments`, first);
    const value = rest.slice(blank.index + blank[0].length);
    return [{ name: rest.slice(0, blank.index), value, isLegacy: true }];
  }
  return words.map((word) => {
    const equals = word.indexOf('=');
    if (equals === -1)
      return fail(
        `Syntax error - can't find = in ${JSON.stringify(clip(word))}. Must be of the form: name=value`,
        word,
      );
    if (equals === 0) return fail(`${kind} names can not be blank`, word);
    return { name: word.slice(0, equals), value: word.slice(equals + 1), isLegacy: false };
  });
}

function parseArg({ written, rest, escapeToken, fail }: Statement): ArgInstruction {
  const words = quotedWords(rest, escapeToken);
  if (words.length === 0) return fail('ARG requires at least one argument');
  const args = words.map((word) => {
    const equals = word.indexOf('=');
    if (equals === 0) return fail('ARG names can not be blank', word);
    return equals === -1
      ? { name: word, value: undefined }
      : { name: word.slice(0, equals), value: word.slice(equals + 1) };
  });
  return { kind: 'ARG', ...written, arguments: args };
}

const INTERVALS = {
  interval: 'Interval',
  timeout: 'Timeout',
  'start-period': 'StartPeriod',
  'start-interval': 'StartInterval',
} as const;

function parseHealthcheck({ written, flags, rest, fail }: Statement): HealthcheckInstruction {
  const [, type = '', blanksAndCommand = ''] = /^(\S*)(.*)$/s.exec(rest) ?? [];
  const command = blanksAndCommand.trim();
  const healthcheck: Record<string, number> = {};
  for (const [flag, name] of Object.entries(INTERVALS)) {
    const nanoseconds = intervalOf(flag, flags.text(flag), fail);
    if (nanoseconds !== 0) healthcheck[name] = nanoseconds;
  }
  const retries = flags.text('retries') || '0';
  if (!/^\d{1,9}$/.test(retries))
    fail(`--retries must be a number that is not negative (${clip(retries)})`, '--retries');
  if (Number(retries) !== 0) healthcheck.Retries = Number(retries);
  flags.end();
  if (type === '') return fail('HEALTHCHECK requires at least one argument');
  if (type.toUpperCase() === 'NONE') {
    if (command !== '') return fail('HEALTHCHECK NONE takes no arguments', command);
    return { kind: 'HEALTHCHECK', ...written, healthcheck: { Test: ['NONE'] } };
  }
  if (type.toUpperCase() !== 'CMD')
    return fail(`Unknown type ${JSON.stringify(clip(type.toUpperCase()))} in HEALTHCHECK (try CMD)`, type);
  const json = jsonWords(command);
  if (json === 'invalid')
    return fail('when using JSON array syntax, arrays must be comprised of strings only', command);
  if (command === '' || json?.length === 0) return fail('Missing command after HEALTHCHECK CMD');
  const Test = json === undefined ? ['CMD-SHELL', command] : ['CMD', ...json];
  return { kind: 'HEALTHCHECK', ...written, healthcheck: { Test, ...healthcheck } };
}

/** In nanoseconds; 0 = the default. */
function intervalOf(flag: string, text: string | undefined, fail: Statement['fail']): number {
  if (text === undefined || text === '') return 0;
  const ms = parseDurationMs(text);
  if (ms !== 0 && ms < 1) fail(`Interval ${JSON.stringify(flag)} cannot be less than 1ms`, `--${flag}`);
  return Math.round(ms * 1e6);
}

function parseOnbuild({ written, rest, heredocs, escapeToken, line, fail }: Statement): OnbuildInstruction {
  if (rest === '') return fail('ONBUILD requires at least one argument');
  const command = splitCommand(rest, escapeToken);
  const kind = command.keyword.toUpperCase();
  if (kind === 'ONBUILD') return fail("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed", command.keyword);
  if (kind === 'MAINTAINER' || kind === 'FROM')
    return fail(`${kind} isn't allowed as an ONBUILD trigger`, command.keyword);
  const shift = line.text.length - rest.length;
  const locate = (offset: number) => line.locate(offset + shift);
  const trigger = parseInstruction({ ...line, ...command, text: rest, locate, comments: [] }, escapeToken);
  const documents = heredocs.map(({ content, name }) => `\n${content}${name}`);
  return { kind: 'ONBUILD', ...written, expression: [rest, ...documents].join(''), trigger };
}
