/**
 * What becomes of the images that a build has made: published under a reference, as an OCI layout, or as plain files.
 */
import { Readable } from 'node:stream';
import type { Credentials } from '../../shared/credentials.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import type { Descriptor } from '../../shared/oci.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { Images, Lease, PublishOptions } from '../images/images.ts';
import type { LayerStore } from '../layers/layer-store.ts';
import { openSubtree } from '../layers/subtree.ts';
import type { BuiltImage } from './builds.ts';
import { type Provenance, provenanceManifest } from './provenance.ts';

export interface OutputPorts {
  readonly images: Images;
  readonly layers: LayerStore;
}

export interface PushRequest extends Cancelable {
  readonly credentials?: Credentials | undefined;
  readonly onProgress?: PublishOptions['onProgress'];
  /** What to say of how the images were made; undefined = nothing. */
  readonly provenance: Provenance | undefined;
  readonly lease: Lease;
}

/** Answers what the reference names then: a manifest, or an index of several. @throws what the registry answers */
export async function pushImages(
  { images }: OutputPorts,
  built: readonly BuiltImage[],
  reference: string,
  request: PushRequest,
): Promise<Descriptor> {
  const { provenance, lease, credentials, onProgress, signal } = request;
  const manifests = built.map(({ manifest }) => manifest);
  const top = await topOf(images, built, lease);
  const about = [];
  if (provenance !== undefined)
    for (const image of built) about.push(await provenanceManifest(images, { image, reference, provenance, lease }));
  const isIndex = top.mediaType === MEDIA_TYPES.ociIndex;
  await images.publish(reference, [...(isIndex ? manifests : []), top], { credentials, onProgress, signal });
  for (const referrer of about) await images.publish(reference, [referrer], { credentials, signal, untagged: true });
  return top;
}

/** The one manifest, or an index of all. */
export async function topOf(images: Images, built: readonly BuiltImage[], lease: Lease): Promise<Descriptor> {
  const [first] = built;
  if (first !== undefined && built.length === 1) return first.manifest;
  const index = {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociIndex,
    manifests: built.map(({ manifest, platform }) => ({ ...manifest, platform })),
  };
  return await images.putDocument(Buffer.from(JSON.stringify(index)), { mediaType: MEDIA_TYPES.ociIndex, lease });
}

/** All files of an image as a tar, owners and modes as in a container of it. The caller owns the stream. */
export async function filesOf({ images, layers }: OutputPorts, { id }: BuiltImage): Promise<Readable> {
  const chain = (await images.layers(id)).map((layer) => layer.layerId);
  const root = await openSubtree(layers, chain, '/');
  // An image without any layer has no root either.
  const archive = root.kind === 'directory' ? root.archive() : [Buffer.alloc(1024)];
  return Readable.from(archive, { objectMode: false, highWaterMark: 1 << 20 });
}
