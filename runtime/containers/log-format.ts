/**
 * conmon's k8s-file records, `<time> <stdout|stderr> <F|P> <bytes>\n`, back into the bytes that were written: F ends a
 * line (its newline belongs to the output), P does not (its newline is conmon's). So output comes back to the byte, with
 * or without a final newline. Times have one width, since conmon is started with TZ=UTC.
 *
 * A record that a crash has torn is skipped up to its newline. Pure.
 * https://github.com/containers/conmon/blob/v2.1.6/src/ctr_logging.c
 */
import type { OutputChunk, OutputStream } from './containers.ts';

/** `2026-11-22T03:15:12.794834690+00:00`, then blanks around the stream's name and the tag. */
const TIME_BYTES = 35;
const FRACTION_END = 29;
const STREAM_AT = 36;
const TAG_AT = 43;
export const HEADER_BYTES = 45;
const NEWLINE = 0x0a;
const BLANK = 0x20;
const FULL = 0x46;
const PARTIAL = 0x50;
const ZULU = Buffer.from('Z ');
/** The letter that tells stdout from stderr: `stdo`, `stde`. */
const TELLING_AT = STREAM_AT + 3;
const LETTER_O = 0x6f;
const LETTER_E = 0x65;
/** conmon reads 8192 bytes at a time; a line longer than this was not written by it. Smaller than any reader's buffer. */
const RECORD_MAX_BYTES = 32 * 1024;

export interface DecodeOptions {
  /** Default: both. */
  readonly streams?: ReadonlySet<OutputStream> | undefined;
  /** Inclusive. */
  readonly since?: Date | undefined;
  /** Exclusive. */
  readonly until?: Date | undefined;
  readonly timestamps?: boolean | undefined;
  /** Written before each line, after its time. */
  readonly prefix?: string | undefined;
}

export interface Decoded {
  /** They share memory that the next call writes over, none with what was decoded. */
  readonly chunks: readonly OutputChunk[];
  /** Bytes that are done with; those behind them are the beginning of a record, to be given again with what follows. */
  readonly consumed: number;
}

export interface LogDecoder {
  /** Decodes as many whole records as there are. */
  decode(bytes: Buffer): Decoded;
  /** A record at or after `until` was seen: nothing more will come. */
  readonly isPast: boolean;
}

export function createLogDecoder(options: DecodeOptions = {}): LogDecoder {
  const { streams } = options;
  const since = options.since === undefined ? undefined : timeKey(options.since);
  const until = options.until === undefined ? undefined : timeKey(options.until);
  const prefix = Buffer.from(options.prefix ?? '');
  const decorated = options.timestamps === true || prefix.length > 0;
  // Per stream, since partial records of both may lie between each other.
  const atLineStart = { stdout: true, stderr: true };
  const out = createChunkWriter();
  let isPast = false;

  const isWanted = (bytes: Buffer, start: number, stream: OutputStream): boolean => {
    if (since !== undefined || until !== undefined) {
      const time = bytes.toString('latin1', start, start + FRACTION_END);
      if (until !== undefined && time >= until) isPast = true;
      if (isPast || (since !== undefined && time < since)) return false;
    }
    return streams === undefined || streams.has(stream);
  };

  return {
    get isPast() {
      return isPast;
    },
    decode(bytes) {
      out.begin(bytes.length);
      let start = 0;
      for (;;) {
        const newline = bytes.indexOf(NEWLINE, start);
        if (newline === -1 || isPast) break;
        const stream = streamOf(bytes, start, newline);
        if (stream !== undefined && isWanted(bytes, start, stream)) {
          if (decorated && atLineStart[stream]) {
            if (options.timestamps === true) {
              out.append(stream, bytes, { start, end: start + FRACTION_END });
              out.append(stream, ZULU, { start: 0, end: ZULU.length });
            }
            out.append(stream, prefix, { start: 0, end: prefix.length });
          }
          const isFull = bytes[start + TAG_AT] === FULL;
          atLineStart[stream] = isFull;
          out.append(stream, bytes, { start: start + HEADER_BYTES, end: isFull ? newline + 1 : newline });
        }
        start = newline + 1;
      }
      const isEndless = bytes.length - start > RECORD_MAX_BYTES;
      return { chunks: out.finish(), consumed: isEndless ? bytes.length : start };
    },
  };
}

/** The stream of the record at start, undefined when it is no record. */
function streamOf(bytes: Buffer, start: number, newline: number): OutputStream | undefined {
  if (newline - start < HEADER_BYTES || bytes[start + TIME_BYTES] !== BLANK || bytes[start + TAG_AT + 1] !== BLANK)
    return undefined;
  const tag = bytes[start + TAG_AT];
  if (tag !== FULL && tag !== PARTIAL) return undefined;
  const letter = bytes[start + TELLING_AT];
  return letter === LETTER_O ? 'stdout' : letter === LETTER_E ? 'stderr' : undefined;
}

/**
 * Joins neighbours of one stream, so that millions of short lines become few chunks. It keeps its buffer: one for each
 * piece of log would have the garbage collector, which counts such bytes, do more work than all the rest.
 */
function createChunkWriter() {
  let room: Buffer = Buffer.alloc(0);
  let buffer = room;
  let begin = 0;
  let end = 0;
  let current: OutputStream = 'stdout';
  let chunks: OutputChunk[] = [];
  const flush = () => {
    if (end > begin) chunks.push({ stream: current, bytes: buffer.subarray(begin, end) });
    begin = end;
  };
  return {
    begin(sizeHint: number) {
      if (room.length < sizeHint) room = Buffer.allocUnsafeSlow(sizeHint);
      buffer = room;
      begin = 0;
      end = 0;
      chunks = [];
    },
    append(stream: OutputStream, source: Buffer, range: { readonly start: number; readonly end: number }) {
      if (stream !== current) flush();
      current = stream;
      const size = range.end - range.start;
      if (end + size > buffer.length) {
        // Only decorations make the output longer than its records.
        flush();
        buffer = Buffer.allocUnsafe(Math.max(room.length, size));
        begin = 0;
        end = 0;
      }
      source.copy(buffer, end, range.start, range.end);
      end += size;
    },
    finish(): readonly OutputChunk[] {
      flush();
      return chunks;
    },
  };
}

/** The first 29 characters of a record's time; these compare as the times do. */
function timeKey(time: Date): string {
  return `${time.toISOString().slice(0, -1)}000000`;
}

/**
 * Where the last `lines` lines begin in `bytes`, the end of a log: an offset, and how many lines lie behind it. The
 * first bytes may be the end of a record whose beginning is elsewhere. An unended line counts as one.
 */
export function findTail(bytes: Buffer, lines: number): { readonly offset: number; readonly found: number } {
  let found = 0;
  let offset = bytes.length;
  let end = bytes.length;
  while (end > 0) {
    // A negative offset would count from the end.
    const start = end < 2 ? 0 : bytes.lastIndexOf(NEWLINE, end - 2) + 1;
    // Only with the newline before it is the beginning of the record known.
    if (start === 0) break;
    const isLine = bytes[start + TAG_AT] === FULL || end === bytes.length;
    if (isLine && found === lines) break;
    if (isLine) found += 1;
    offset = start;
    end = start;
  }
  return { offset, found };
}
