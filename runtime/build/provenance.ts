/**
 * Provenance: how an image was made, as an in-toto statement with a SLSA predicate, in a manifest whose subject is the
 * image. https://slsa.dev/spec/v1.0/provenance, https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
 */
import { digestOf, hexOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import type { Descriptor } from '../../shared/oci.ts';
import { familiarName, parseReference } from '../../shared/reference.ts';
import type { Images, Lease } from '../images/images.ts';
import { platformText } from '../images/platform.ts';
import type { BuiltImage } from './builds.ts';

const STATEMENT_TYPE = 'https://in-toto.io/Statement/v1';
const PREDICATE_TYPE = 'https://slsa.dev/provenance/v1';
const IN_TOTO = 'application/vnd.in-toto+json';
const EMPTY_TYPE = 'application/vnd.oci.empty.v1+json';
const EMPTY = Buffer.from('{}');

/** Facts of one build; never a secret, and of arguments only their names, since values may be secrets. */
export interface Provenance {
  readonly builder: string;
  readonly dockerfile: { readonly name: string; readonly text: string };
  readonly target: string | undefined;
  readonly buildArgNames: readonly string[];
  /** The images that stages stand on, and what they were. */
  readonly bases: readonly { readonly reference: string; readonly id: string }[];
  readonly startedAt: Date;
  readonly finishedAt: Date;
}

/** A referrer of the image's manifest, put beside the images under the lease. */
export async function provenanceManifest(
  images: Images,
  {
    image,
    reference,
    provenance,
    lease,
  }: {
    readonly image: BuiltImage;
    readonly reference: string;
    readonly provenance: Provenance;
    readonly lease: Lease;
  },
): Promise<Descriptor> {
  const statement = {
    _type: STATEMENT_TYPE,
    subject: [{ name: familiarName(parseReference(reference)), digest: { sha256: hexOf(image.manifest.digest) } }],
    predicateType: PREDICATE_TYPE,
    predicate: predicateOf(provenance, image),
  };
  const put = (bytes: Uint8Array, mediaType: string) => images.putDocument(bytes, { mediaType, lease });
  const layer = await put(Buffer.from(JSON.stringify(statement)), IN_TOTO);
  const document = {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    artifactType: IN_TOTO,
    config: await put(EMPTY, EMPTY_TYPE),
    layers: [{ ...layer, annotations: { 'in-toto.io/predicate-type': PREDICATE_TYPE } }],
    subject: image.manifest,
  };
  return await put(Buffer.from(JSON.stringify(document)), MEDIA_TYPES.ociManifest);
}

function predicateOf(provenance: Provenance, { platform }: BuiltImage): unknown {
  const { builder, dockerfile, target, buildArgNames, bases, startedAt, finishedAt } = provenance;
  return {
    buildDefinition: {
      buildType: 'https://berth.dev/build/dockerfile/v1',
      externalParameters: {
        dockerfile: { name: dockerfile.name, digest: { sha256: hexOf(digestOf(dockerfile.text)) } },
        ...(target !== undefined && { target }),
        platform: platformText({ ...platform, variant: platform.variant }),
        buildArgs: buildArgNames,
      },
      resolvedDependencies: bases.map(({ reference, id }) => ({
        uri: `pkg:docker/${encodeURIComponent(reference)}`,
        digest: { sha256: id.slice(id.indexOf(':') + 1) },
      })),
    },
    runDetails: {
      builder: { id: builder },
      metadata: { startedOn: startedAt.toISOString(), finishedOn: finishedAt.toISOString() },
    },
  };
}
