/**
 * A whole Dockerfile: directives, arguments before the first stage, stages with their instructions. Pure; nothing is
 * looked up, expanded or checked against anything outside the text.
 * https://docs.docker.com/reference/dockerfile/
 */
import { AppError } from '../../shared/errors.ts';
import type { ArgInstruction, FromInstruction, Instruction } from './instructions.ts';
import { type Directives, type LogicalLine, readLines } from './lines.ts';
import { parseInstruction } from './parse-instruction.ts';
import { clip, errorAt, type Location, type Source } from './source.ts';

export interface Dockerfile extends Directives {
  readonly name: string;
  readonly source: Source;
  /** Before the first FROM. */
  readonly globalArgs: readonly ArgInstruction[];
  readonly stages: readonly Stage[];
  /** 1-based lines that are empty inside an instruction. */
  readonly emptyContinuations: readonly number[];
}

export interface Stage {
  readonly index: number;
  /** Lower case; undefined = only its number names it. */
  readonly name: string | undefined;
  readonly from: FromInstruction;
  /** Without FROM. */
  readonly instructions: readonly Exclude<Instruction, FromInstruction>[];
}

export const DOCKERFILE_MAX_BYTES = 1024 * 1024;
/** Each becomes an entry of the image's history. */
const INSTRUCTIONS_MAX = 10_000;
/** They are planned at once, and each may stand on the one above. */
const STAGES_MAX = 1000;

/** @throws AppError 'invalid' with name, line, column and the lines; 'unsupported' for a `# syntax=` that is no Dockerfile's */
export function parseDockerfile(text: string, { name }: { readonly name: string }): Dockerfile {
  if (text.length > DOCKERFILE_MAX_BYTES || Buffer.byteLength(text) > DOCKERFILE_MAX_BYTES)
    throw new AppError('invalid', `the Dockerfile (${clip(name)}) is larger than ${DOCKERFILE_MAX_BYTES} bytes`);
  const source = { name: clip(name), lines: text.replace(/^\ufeff/, '').split('\n') };
  if (text === '') throw new AppError('invalid', `the Dockerfile (${source.name}) cannot be empty`);
  const { directives, lines } = readLines(source);
  checkSyntax(source, directives);
  const last = lines[INSTRUCTIONS_MAX];
  if (last !== undefined) throw errorAt(last.at, `a Dockerfile has at most ${INSTRUCTIONS_MAX} instructions`);
  const globalArgs: ArgInstruction[] = [];
  const stages: (Stage & { readonly instructions: Exclude<Instruction, FromInstruction>[] })[] = [];
  for (const line of lines) {
    const instruction = parseInstruction(line, directives.escape);
    const stage = stages.at(-1);
    if (instruction.kind === 'FROM' && stages.length === STAGES_MAX)
      throw errorAt(line.at, `a Dockerfile has at most ${STAGES_MAX} stages`);
    if (instruction.kind === 'FROM')
      stages.push({ index: stages.length, name: instruction.as, from: instruction, instructions: [] });
    else if (stage !== undefined) stage.instructions.push(instruction);
    else if (instruction.kind === 'ARG') globalArgs.push(instruction);
    else throw errorAt(line.at, 'no build stage in current context');
  }
  if (stages.length === 0) {
    const end = source.lines.length;
    if (lines.length === 0) throw errorAt({ source, line: end, column: 1, endLine: end }, 'file with no instructions');
    throw errorAt(globalArgs.at(-1)?.at ?? whole(source), 'dockerfile contains no stages to build');
  }
  const emptyContinuations = lines.map((line) => line.emptyContinuation).filter((line) => line !== undefined);
  return { name: source.name, source, ...directives, globalArgs, stages, emptyContinuations };
}

function whole(source: Source): Location {
  return { source, line: 1, column: 1, endLine: 1 };
}

/**
 * `# syntax=` asks for a program that reads this file. Ours reads what Docker's does; another language cannot be built
 * here. Mirrors keep the repository's last name.
 */
function checkSyntax(source: Source, { syntax }: Directives): void {
  if (syntax === undefined || /^(?:[^\s/]+\/)*dockerfile(?:-upstream)?(?:[:@]\S*)?$/.test(syntax.split(/\s/)[0] ?? ''))
    return;
  const line = source.lines.findIndex((text) => /^\s*#\s*syntax\s*=/i.test(text)) + 1;
  throw errorAt(
    { source, line, column: 1, endLine: line },
    `cannot build with the syntax ${JSON.stringify(clip(syntax))}: only docker/dockerfile is supported`,
    { kind: 'unsupported' },
  );
}

/** An instruction that an image carries for builds upon it. Errors point at `at`: the FROM that brought it. */
export function parseTrigger(expression: string, at: Location): Exclude<Instruction, FromInstruction> {
  const source = { name: 'ONBUILD', lines: expression.split('\n') };
  const { directives, lines } = readLines(source);
  const [line] = lines;
  if (line === undefined || lines.length !== 1)
    throw errorAt(at, `onbuild trigger should be a single expression: ${clip(expression)}`);
  const moved: LogicalLine = { ...line, at, locate: () => at };
  const instruction = parseInstruction(moved, directives.escape);
  if (instruction.kind === 'FROM' || instruction.kind === 'ONBUILD' || instruction.kind === 'MAINTAINER')
    throw errorAt(at, `${instruction.kind} isn't allowed as an ONBUILD trigger`);
  return instruction;
}
