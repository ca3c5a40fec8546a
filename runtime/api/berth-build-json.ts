/** What a build says over `/berth/v1/builds`, as JSON; and the lists of files that clients send. Pure. */
import { isUtf8 } from 'node:buffer';
import type { Readable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import type { BuildEvent, BuildResult, ContextEntry } from '../engine.ts';

/** Steps are told whole when they start, then by their number. */
export function eventJson(event: BuildEvent): Record<string, unknown> {
  switch (event.kind) {
    case 'planned':
    case 'warning':
    case 'started':
      return { ...event };
    case 'output': {
      const { kind, step, stream, bytes } = event;
      // A chunk may end within a character.
      const content = isUtf8(bytes) ? { text: bytes.toString('utf8') } : { base64: bytes.toString('base64') };
      return { kind, step: step.id, stream, ...content };
    }
    case 'running':
    case 'progress':
    case 'ended':
      return { ...event, step: event.step.id };
    default:
      throw event satisfies never;
  }
}

export function resultJson({ images, warnings }: BuildResult): Record<string, unknown> {
  return { images: images.map(({ id, platform, manifest }) => ({ id, platform, manifest })), warnings };
}

/** A line holds so many entries at most; each is far smaller than this. */
const LINE_MAX_CHARACTERS = 16 << 20;
const KINDS = { f: 'file', d: 'directory', l: 'symlink' } as const;

/**
 * A list of files, as lines of JSON: each a list of entries `[kind, path, mode, sizeBytes, mtimeNs, target?]`, where kind
 * is `f`, `d` or `l` and mtimeNs is text. @throws AppError 'invalid'
 */
export async function* readContextEntries(body: Readable): AsyncGenerator<ContextEntry> {
  for await (const line of lines(body)) {
    let batch: unknown;
    try {
      batch = JSON.parse(line);
    } catch {
      throw new AppError('invalid', 'cannot read the list of files: a line is not JSON');
    }
    if (!Array.isArray(batch)) throw new AppError('invalid', 'cannot read the list of files: a line is not a list');
    for (const item of batch) yield entryOf(item);
  }
}

function entryOf(item: unknown): ContextEntry {
  if (Array.isArray(item)) {
    const [letter, path, mode, sizeBytes, mtimeNs, target] = item;
    const kind = KINDS[letter as keyof typeof KINDS];
    if (
      kind !== undefined &&
      isName(path) &&
      Number.isInteger(mode) &&
      Number.isSafeInteger(sizeBytes) &&
      typeof mtimeNs === 'string' &&
      /^-?\d{1,20}$/.test(mtimeNs) &&
      (kind === 'symlink' ? isName(target) : target === undefined)
    )
      return { kind, path, mode, sizeBytes, mtimeNs: BigInt(mtimeNs), ...(kind === 'symlink' && { target }) };
  }
  throw new AppError('invalid', `cannot read the list of files: ${JSON.stringify(item)?.slice(0, 200)} is no entry`);
}

function isName(value: unknown): value is string {
  return typeof value === 'string' && value !== '' && !value.includes('\0');
}

async function* lines(body: Readable): AsyncGenerator<string> {
  let rest = '';
  body.setEncoding('utf8');
  for await (const chunk of body) {
    const parts = (rest + chunk).split('\n');
    rest = parts.pop() ?? '';
    if (rest.length > LINE_MAX_CHARACTERS)
      throw new AppError('too-large', `cannot read the list of files: a line is longer than ${LINE_MAX_CHARACTERS}`);
    for (const part of parts) if (part !== '') yield part;
  }
  if (rest !== '') yield rest;
}
