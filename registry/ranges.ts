/**
 * Range headers, both of them: `Range: bytes=` on blob pulls (RFC 9110 section 14) and the bare `start-end` of
 * Content-Range on chunked pushes (distribution-spec, pushing a blob in chunks). Ends are inclusive.
 * Pure. Neighbouring and overlapping parts are joined before the limit is applied, so that a hostile header cannot
 * multiply the bytes we send (CVE-2011-3192 in Apache).
 */

export interface Span {
  readonly start: number;
  /** Inclusive. */
  readonly end: number;
}

export type RangeAnswer =
  | { readonly kind: 'whole' }
  | { readonly kind: 'parts'; readonly spans: readonly Span[] }
  | { readonly kind: 'unsatisfiable' };

const WHOLE: RangeAnswer = { kind: 'whole' };
const UNSATISFIABLE: RangeAnswer = { kind: 'unsatisfiable' };
/** Above this a header is noise, whatever its parts say. */
const HEADER_PARTS_MAX = 256;

/**
 * What a Range header asks of `sizeBytes` bytes. Units other than bytes and unreadable headers are ignored, as RFC
 * 9110 wants; `500-0` is unsatisfiable, which the conformance suite wants. More than maxParts joined parts: whole.
 */
export function parseRange(header: string | undefined, sizeBytes: number, maxParts: number): RangeAnswer {
  const list = /^bytes=(.*)$/i.exec(header?.trim() ?? '')?.[1];
  if (list === undefined) return WHOLE;
  const texts = list.split(',', HEADER_PARTS_MAX + 1);
  if (texts.length > HEADER_PARTS_MAX) return WHOLE;
  const spans: Span[] = [];
  for (const text of texts) {
    const match = /^\s*(\d*)-(\d*)\s*$/.exec(text);
    const [first, last] = [match?.[1] ?? '', match?.[2] ?? ''];
    if (first === '' && last === '') return WHOLE;
    const span = first === '' ? suffix(Number(last), sizeBytes) : between(Number(first), last, sizeBytes);
    if (span !== undefined) spans.push(span);
  }
  if (spans.length === 0) return UNSATISFIABLE;
  const joined = join(spans);
  return joined.length > maxParts ? WHOLE : { kind: 'parts', spans: joined };
}

function suffix(length: number, sizeBytes: number): Span | undefined {
  if (length === 0 || sizeBytes === 0) return undefined;
  return { start: Math.max(0, sizeBytes - length), end: sizeBytes - 1 };
}

function between(start: number, last: string, sizeBytes: number): Span | undefined {
  const end = last === '' ? sizeBytes - 1 : Math.min(Number(last), sizeBytes - 1);
  return start >= sizeBytes || end < start ? undefined : { start, end };
}

/** In the order asked, unless some touch: then ascending and joined. */
function join(spans: readonly Span[]): readonly Span[] {
  const sorted = spans.toSorted((a, b) => a.start - b.start);
  const joined: Span[] = [];
  for (const span of sorted) {
    const before = joined.at(-1);
    if (before !== undefined && span.start <= before.end + 1)
      joined[joined.length - 1] = { start: before.start, end: Math.max(before.end, span.end) };
    else joined.push(span);
  }
  return joined.length === spans.length ? spans : joined;
}

export function contentRange(span: Span, sizeBytes: number): string {
  return `bytes ${span.start}-${span.end}/${sizeBytes}`;
}

/** Content-Range of a chunk. undefined = unreadable. */
export function parseChunkRange(header: string): Span | undefined {
  const match = /^(\d{1,15})-(\d{1,15})$/.exec(header.trim());
  if (match === null) return undefined;
  const [start, end] = [Number(match[1]), Number(match[2])];
  return end < start ? undefined : { start, end };
}

/** Range of an upload's status. Nothing received yet is `0-0`, as in Distribution: the form has no empty range. */
export function receivedRange(offset: number): string {
  return `0-${Math.max(0, offset - 1)}`;
}
