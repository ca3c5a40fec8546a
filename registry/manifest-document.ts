/**
 * A pushed document as what the index stores: what it needs, what it describes, and what may be elsewhere. Pure.
 */
import type { Digest } from '../shared/digest.ts';
import { type AppError, isKind } from '../shared/errors.ts';
import { isForeignLayer } from '../shared/media-types.ts';
import { type Descriptor, type ManifestDocument, parseManifest, referencesOf } from '../shared/oci.ts';
import type { NewManifest, StoredManifest } from './metadata/index.ts';
import { OciError } from './oci-errors.ts';

/** @throws OciError MANIFEST_INVALID */
export function readManifest(bytes: Buffer, contentType: string): ManifestDocument {
  try {
    const document = parseManifest(bytes, contentType || undefined);
    for (const descriptor of referencesOf(document)) assertUrls(descriptor);
    return document;
  } catch (error) {
    if (isKind(error, 'invalid', 'unsupported')) throw invalid(error);
    throw error;
  }
}

/** `urls` make other people's machines fetch something: nothing but plain web addresses (CVE-2020-15157). */
function assertUrls({ digest, urls = [] }: Descriptor): void {
  for (const url of urls) {
    const parsed = URL.parse(url);
    if (parsed === null || !/^https?:$/.test(parsed.protocol) || parsed.hash !== '' || parsed.username !== '')
      throw new OciError(
        'MANIFEST_INVALID',
        `cannot accept urls of ${digest}: ${JSON.stringify(url)} is no web address`,
      );
  }
}

/** What the index stores of it. */
export function newManifest(document: ManifestDocument, stored: Omit<StoredManifest, 'mediaType'>): NewManifest {
  const descriptors = referencesOf(document);
  const isForeign = ({ mediaType, urls = [] }: Descriptor) => isForeignLayer(mediaType) && urls.length > 0;
  const digestsOf = (list: readonly Descriptor[]): readonly Digest[] => list.map(({ digest }) => digest);
  const { mediaType, subject, annotations } = document;
  const artifactType = document.artifactType ?? (document.kind === 'manifest' ? document.config.mediaType : undefined);
  return {
    ...stored,
    mediaType,
    references: digestsOf(descriptors.filter((descriptor) => !isForeign(descriptor))),
    foreign: digestsOf(descriptors.filter(isForeign)),
    subject: subject?.digest,
    artifactType,
    annotations,
  };
}

function invalid(error: AppError): OciError {
  return new OciError('MANIFEST_INVALID', error.message, { cause: error });
}
