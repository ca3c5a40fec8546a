import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { digestOf } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { parseImageConfig, parseManifest, referencesOf } from '../../shared/oci.ts';
import { canonicalReference, parseReference } from '../../shared/reference.ts';
import { parseChallenges } from '../../shared/registry-auth.ts';

const RUNS = { numRuns: 100_000 };

/** The result, or undefined for a refusal; anything else that is thrown is a bug. */
function attempt<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (error instanceof AppError) return undefined;
    throw error;
  }
}

/** Mostly pieces of the grammar, so that many inputs get far. */
const pieces = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.constantFrom(
      'a',
      'B',
      '0',
      '.',
      '_',
      '__',
      '-',
      '/',
      ':',
      '@',
      'sha256:',
      'f'.repeat(64),
      'docker.io',
      'localhost',
    ),
  },
  { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 3 }) },
);

const oddity = fc.constantFrom<unknown>(null, 1, '', 'x', [], {}, ['a'], { a: 1 }, { a: 'b' }, [digestOf('a')]);
const descriptor = fc.record(
  {
    mediaType: fc.constantFrom<unknown>(MEDIA_TYPES.ociLayer, MEDIA_TYPES.ociManifest, '', 1),
    digest: fc.constantFrom<unknown>(digestOf('a'), digestOf('b', 'sha512'), 'sha256:../x', null),
    size: fc.oneof(fc.nat(), fc.double(), fc.constant('1')),
    annotations: oddity,
  },
  { requiredKeys: ['mediaType', 'digest', 'size'] },
);
const document = fc.record(
  {
    schemaVersion: fc.constantFrom<unknown>(2, 2, 2, 1, '2'),
    mediaType: fc.constantFrom<unknown>(MEDIA_TYPES.ociManifest, MEDIA_TYPES.ociIndex, MEDIA_TYPES.dockerList, 'x', 1),
    config: descriptor,
    layers: fc.array(descriptor, { maxLength: 3 }),
    manifests: fc.array(descriptor, { maxLength: 3 }),
    subject: descriptor,
    rootfs: fc.record({ type: fc.constant('layers'), diff_ids: oddity }),
    os: oddity,
    architecture: oddity,
  },
  { requiredKeys: ['schemaVersion'] },
);

describe('fuzz', () => {
  it('references are refused, or are what they say', () => {
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 12 }), (parts) => {
        const reference = attempt(() => parseReference(parts.join('')));
        if (reference !== undefined) expect(parseReference(canonicalReference(reference))).toEqual(reference);
      }),
      RUNS,
    );
  });

  it('manifests are refused, or hold only digests and sizes that are some', () => {
    fc.assert(
      fc.property(document, fc.constantFrom(undefined, MEDIA_TYPES.ociManifest, MEDIA_TYPES.ociIndex), (json, type) => {
        const manifest = attempt(() => parseManifest(Buffer.from(JSON.stringify(json)), type));
        for (const { digest, size } of manifest === undefined ? [] : referencesOf(manifest)) {
          expect(digest).toMatch(/^sha(256|512):[0-9a-f]+$/);
          expect(Number.isSafeInteger(size) && size >= 0).toBe(true);
        }
      }),
      RUNS,
    );
  });

  it('bytes that are no document are refused as a manifest and as a config', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.uint8Array({ maxLength: 200 }),
          fc.json().map((text) => Buffer.from(text)),
        ),
        (bytes) => {
          attempt(() => parseManifest(bytes));
          attempt(() => parseImageConfig(bytes));
        },
      ),
      RUNS,
    );
  });

  it('challenges are read without failing', () => {
    const part = fc.oneof(
      fc.constantFrom('Bearer', 'Basic', ' ', ',', '=', '"', '\\', 'realm', 'https://a/b'),
      fc.string(),
    );
    fc.assert(
      fc.property(fc.array(part, { maxLength: 12 }), (parts) => {
        for (const { scheme } of parseChallenges(parts.join(''))) expect(scheme).toBe(scheme.toLowerCase());
      }),
      RUNS,
    );
  });
});
