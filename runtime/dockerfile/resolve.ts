/**
 * Instructions with their variables expanded, where Docker expands them and nowhere else: not in what shells will read
 * (RUN, CMD, ENTRYPOINT, HEALTHCHECK, ONBUILD), nor in `--from` and `--exclude`. Pure.
 * https://docs.docker.com/reference/dockerfile/#environment-replacement
 */
import { AppError, isKind } from '../../shared/errors.ts';
import type { Dockerfile } from './dockerfile.ts';
import type { InlineFile, Instruction, Pair } from './instructions.ts';
import { parseMount } from './mounts.ts';
import { Scope, type ScopeOptions } from './scope.ts';
import { clip, errorAt } from './source.ts';
import { createMeter, expandWord, expandWords, type LexOptions, type Names, type Variables } from './words.ts';

export interface Resolved<T extends Instruction> extends Names {
  readonly instruction: T;
}

/** Of the arguments before the first stage; FROM instructions are resolved in it, stages begin from it. */
export function globalScope(dockerfile: Dockerfile, { buildArgs = {}, predefined = {} }: ScopeOptions = {}): Scope {
  const given = new Map(Object.entries(buildArgs));
  const known = Object.entries(predefined).map(([name, value]) => [name, given.get(name) ?? value] as const);
  const scope = new Scope(
    { escape: dockerfile.escape, meter: createMeter() },
    { values: known, args: [], globals: new Map(), buildArgs: given },
  );
  for (const arg of dockerfile.globalArgs) scope.apply(resolveInstruction(arg, scope).instruction);
  return scope;
}

/** The scope is only read; `scope.apply` takes over what the result says. @throws AppError 'invalid' with the place */
export function resolveInstruction<T extends Instruction>(instruction: T, scope: Scope): Resolved<T> {
  const used = new Set<string>();
  const missing = new Set<string>();
  const noting = <E extends Names>(expanded: E): E => {
    for (const name of expanded.used) used.add(name);
    for (const name of expanded.missing) missing.add(name);
    return expanded;
  };
  const expander: Expander = {
    word: (text, variables = scope, options) => noting(expandWord(text, variables, options)).value,
    words: (text) => noting(expandWords(text, scope)).values,
  };
  try {
    return { instruction: expanded(instruction, expander, scope) as T, used, missing };
  } catch (cause) {
    if (!isKind(cause, 'invalid') || cause.detail?.line !== undefined) throw cause;
    throw errorAt(instruction.at, cause.message, { cause });
  }
}

interface Expander {
  word(text: string, variables?: Variables, options?: LexOptions): string;
  words(text: string): readonly string[];
}

function expanded(instruction: Instruction, expander: Expander, scope: Scope): Instruction {
  const word = (text: string) => expander.word(text);
  const maybe = (text: string | undefined) => (text === undefined ? undefined : word(text));
  switch (instruction.kind) {
    case 'FROM': {
      const image = word(instruction.image);
      if (image === '') throw invalid(`base name (${clip(instruction.image)}) should not be blank`);
      const platform = maybe(instruction.platform);
      if (platform === '') throw invalid(`empty platform value from expression ${clip(instruction.platform ?? '')}`);
      return { ...instruction, image, platform };
    }
    case 'RUN':
      return { ...instruction, mounts: instruction.mountTexts.map((text) => parseMount(text, word)) };
    case 'COPY':
    case 'ADD': {
      const { chown, chmod, sources, destination, files } = instruction;
      const copying = {
        chown: maybe(chown),
        chmod: maybe(chmod),
        sources: sources.map(word),
        destination: word(destination),
        files: files.map((file) => expandedFile(file, expander, scope)),
      };
      return instruction.kind === 'COPY'
        ? { ...instruction, ...copying }
        : { ...instruction, ...copying, checksum: maybe(instruction.checksum) };
    }
    case 'ENV':
      return { ...instruction, pairs: expandedPairs(instruction.pairs, word) };
    case 'LABEL':
      return { ...instruction, pairs: expandedPairs(instruction.pairs, word) };
    case 'ARG':
      return { ...instruction, arguments: expandedArguments(instruction.arguments, expander, scope) };
    case 'WORKDIR':
      return { ...instruction, path: word(instruction.path) };
    case 'USER':
      return { ...instruction, user: word(instruction.user) };
    case 'VOLUME': {
      const paths = instruction.paths.map(word);
      if (paths.includes('')) throw invalid('VOLUME specified can not be an empty string');
      return { ...instruction, paths };
    }
    case 'EXPOSE':
      return { ...instruction, ports: instruction.ports.flatMap((port) => expander.words(port)) };
    case 'STOPSIGNAL':
      return { ...instruction, signal: word(instruction.signal) };
    case 'CMD':
    case 'ENTRYPOINT':
    case 'HEALTHCHECK':
    case 'SHELL':
    case 'ONBUILD':
    case 'MAINTAINER':
      return instruction;
  }
}

function invalid(message: string): AppError {
  return new AppError('invalid', message);
}

function expandedPairs(pairs: readonly Pair[], word: (text: string) => string): readonly Pair[] {
  return pairs.map((pair) => {
    const name = word(pair.name);
    if (name === '') throw invalid(`the name ${JSON.stringify(clip(pair.name))} is empty`);
    return { ...pair, name, value: word(pair.value) };
  });
}

/** Quotes in a file are part of it, and its escape is always `\`. */
function expandedFile(file: InlineFile, { word }: Expander, scope: Scope): InlineFile {
  if (!file.expands) return file;
  const variables: Variables = { escape: '\\', meter: scope.meter, get: (name) => scope.get(name) };
  return { ...file, content: word(file.content, variables, { quotes: 'plain' }) };
}

type Arguments = readonly { readonly name: string; readonly value: string | undefined }[];

/** Each sees the ones before it on its line. */
function expandedArguments(given: Arguments, { word }: Expander, scope: Scope): Arguments {
  const own = new Map<string, string>();
  const { meter } = scope;
  const variables: Variables = { escape: scope.escape, meter, get: (name) => own.get(name) ?? scope.get(name) };
  return given.map(({ name, value: text }) => {
    const value = scope.given(name) ?? (text === undefined ? scope.inherited(name) : word(text, variables));
    if (value !== undefined) own.set(name, value);
    return { name, value };
  });
}
