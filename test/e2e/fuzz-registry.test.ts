/** The pure edges of the registry under inputs that nobody would send: refused, or exactly what they say. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { defaultLimits } from '../../registry/limits.ts';
import { newManifest, readManifest } from '../../registry/manifest-document.ts';
import { OciError } from '../../registry/oci-errors.ts';
import { nextLink, parsePage } from '../../registry/paging.ts';
import { parseChunkRange, parseRange } from '../../registry/ranges.ts';
import { blobPath, manifestPath, parseRoute, uploadPath } from '../../registry/routes.ts';
import { digestOf, isDigest } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { isRepository, isTag } from '../../shared/reference.ts';

const RUNS = { numRuns: 100_000 };
const limits = defaultLimits();

/** The result, or undefined for a refusal; anything else that is thrown is a bug. */
function attempt<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (error instanceof OciError && error.status >= 400 && error.status < 500) return undefined;
    throw error;
  }
}

function textOf(pieces: readonly string[], maxLength: number): fc.Arbitrary<string> {
  const piece = fc.oneof(
    { weight: 9, arbitrary: fc.constantFrom(...pieces) },
    { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 3 }) },
  );
  return fc.array(piece, { maxLength }).map((parts) => parts.join(''));
}

const digest = digestOf('a');
const path = textOf(
  [
    ...['/v2/', '/', '_catalog', 'a', 'b/c', 'A', '..', '.', '-', '__', ':', '%3a', '%2f', '%00', '\n', 'uploads'],
    ...['/blobs/', '/blobs/uploads/', '/manifests/', '/tags/list', '/referrers/', '_oci/ext/discover'],
    ...['_berth/repositories/', digest, digestOf('a', 'sha512'), 'sha256:', 'latest', 'x'.repeat(130)],
  ],
  8,
).map((text) => (text.startsWith('/v2') ? text : `/v2/${text}`));

describe('fuzz', () => {
  it('routes hold only what the grammar allows, and lead back to themselves', () => {
    fc.assert(
      fc.property(path, (text) => {
        const route = attempt(() => parseRoute(text));
        if (route === undefined) return;
        if ('repository' in route && route.repository !== undefined) expect(isRepository(route.repository)).toBe(true);
        switch (route.kind) {
          case 'blob':
            expect(parseRoute(blobPath(route.repository, route.digest))).toEqual(route);
            break;
          case 'upload':
            expect(route.id).toMatch(/^[\w-]+$/);
            expect(parseRoute(uploadPath(route.repository, route.id))).toEqual(route);
            break;
          case 'referrers':
            expect(isDigest(route.subject)).toBe(true);
            break;
          case 'manifest':
            if (route.reference.tag !== undefined) expect(isTag(route.reference.tag)).toBe(true);
            else expect(parseRoute(manifestPath(route.repository, route.reference.digest))).toEqual(route);
        }
      }),
      RUNS,
    );
  });

  const rangeText = textOf(
    ['bytes=', 'bytes', '=', '-', ',', ' ', '0', '1', '7', '99', '9'.repeat(30), '0-0', '5-'],
    12,
  );
  it('ranges lie within the blob and never overlap', () => {
    fc.assert(
      fc.property(rangeText, fc.nat(120), (header, sizeBytes) => {
        const answer = parseRange(header, sizeBytes, limits.rangeMaxParts);
        if (answer.kind !== 'parts') return;
        expect(answer.spans.length).toBeLessThanOrEqual(limits.rangeMaxParts);
        const seen = new Set<number>();
        for (const { start, end } of answer.spans) {
          expect(start >= 0 && start <= end && end < sizeBytes).toBe(true);
          for (let at = start; at <= end; at += 1) {
            expect(seen.has(at)).toBe(false);
            seen.add(at);
          }
        }
      }),
      RUNS,
    );
  });

  it('ranges of chunks are two numbers in order', () => {
    fc.assert(
      fc.property(rangeText, (header) => {
        const range = parseChunkRange(header);
        if (range === undefined) return;
        expect(Number.isSafeInteger(range.start) && Number.isSafeInteger(range.end)).toBe(true);
        expect(range.start >= 0 && range.start <= range.end).toBe(true);
      }),
      RUNS,
    );
  });

  const oddity = fc.constantFrom<unknown>(null, 1, '', [], {}, { a: 1 }, { a: 'b' }, ['http://a'], ['ftp://a', '']);
  const descriptor = fc.record(
    {
      mediaType: fc.constantFrom<unknown>(MEDIA_TYPES.ociLayer, MEDIA_TYPES.dockerForeignGzip, '', 1),
      digest: fc.constantFrom<unknown>(digest, digestOf('b', 'sha512'), 'sha256:../x', null),
      size: fc.constantFrom<unknown>(0, 1, -1, 1.5, '1', 2 ** 60),
      urls: oddity,
      annotations: oddity,
    },
    { requiredKeys: ['mediaType', 'digest', 'size'] },
  );
  const document = fc.record(
    {
      schemaVersion: fc.constantFrom<unknown>(2, 2, 2, 1),
      mediaType: fc.constantFrom<unknown>(MEDIA_TYPES.ociManifest, MEDIA_TYPES.ociIndex, 'x', 1),
      config: descriptor,
      layers: fc.array(descriptor, { maxLength: 3 }),
      manifests: fc.array(descriptor, { maxLength: 3 }),
      subject: descriptor,
      annotations: oddity,
    },
    { requiredKeys: ['schemaVersion'] },
  );
  it('pushed manifests are refused with 4xx, or name only digests', () => {
    const types = fc.constantFrom('', MEDIA_TYPES.ociManifest, MEDIA_TYPES.ociIndex, 'application/json', ';');
    fc.assert(
      fc.property(document, types, (json, type) => {
        const bytes = Buffer.from(JSON.stringify(json));
        const read = attempt(() => readManifest(bytes, type));
        if (read === undefined) return;
        const stored = newManifest(read, { digest, bytes });
        const named = [...stored.references, ...(stored.foreign ?? []), ...(stored.subject ? [stored.subject] : [])];
        expect(named.every(isDigest)).toBe(true);
      }),
      RUNS,
    );
  });

  it('pages are never larger than the limit, and links lead to the same page', () => {
    const query = fc.record(
      {
        n: textOf(['0', '1', '100', '-1', '1e3', '+5', ' ', '9'.repeat(40)], 3),
        last: fc.oneof(fc.string({ unit: 'binary', maxLength: 600 }), textOf(['a', '/', '&', '=', '%', '>', '"'], 6)),
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(query, (parts) => {
        const page = attempt(() => parsePage(new URLSearchParams(parts), 100, limits));
        if (page === undefined) return;
        expect(Number.isSafeInteger(page.limit) && page.limit >= 0).toBe(true);
        expect(page.limit).toBeLessThanOrEqual(limits.pageMaxEntries);
        if (page.after === undefined) return;
        const link = nextLink('/v2/_catalog', { n: page.limit, last: page.after });
        const target = /^<([^<>"\s]+)>; rel="next"$/.exec(link)?.[1] ?? '';
        const again = parsePage(new URL(target, 'http://localhost').searchParams, 100, limits);
        expect(again).toEqual({ ...page, after: page.after.toWellFormed() });
      }),
      RUNS,
    );
  });
});
