/**
 * The image store's tables. Rows only; the bytes they name are in the content store and the layer store.
 *
 *   imageName ──► image ◄── imageLayer      names, by tag and by digest; the chain, base first
 *                   ▲
 *              imageManifest ◄── manifestBlob ──► blob ◄── blobSource
 *
 * A row is written after the bytes it names are durable, and deleted before they are. A blob without a manifest, or
 * a layer without an image, is kept for a while: it was downloaded for a pull that did not finish.
 */

import type { Migration } from '../../shared/database.ts';
import type { Digest } from '../../shared/digest.ts';
import type { LayerId } from '../layers/layer-store.ts';

export interface ImageTables {
  image: {
    id: Digest;
    /** The config's exact text. */
    config: string;
    /** JSON object; copied out of the config so that lists need not parse it. */
    labels: string;
    createdMs: number;
    parentId: Digest | null;
    /** The manifest that named it last. */
    manifestDigest: Digest;
    taggedMs: number | null;
  };
  imageLayer: { imageId: Digest; position: number; diffId: Digest; layerId: LayerId };
  imageName: {
    /** Canonical: `host/repository:tag` or `host/repository@digest`. */
    name: string;
    /** `host/repository`. */
    repository: string;
    tag: string | null;
    /** For names by digest: of the manifest, or of the index that it was chosen from. */
    digest: Digest | null;
    imageId: Digest;
    manifestDigest: Digest;
  };
  imageManifest: { digest: Digest; imageId: Digest; mediaType: string; sizeBytes: number };
  manifestBlob: { manifestDigest: Digest; blobDigest: Digest };
  blob: { digest: Digest; sizeBytes: number; diskBytes: number; committedMs: number };
  /** Repositories that are known to hold a blob: where a push may mount it from. */
  blobSource: { blobDigest: Digest; repository: string };
}

export const IMAGE_MIGRATIONS: readonly Migration[] = [
  {
    name: 'images-1',
    statements: [
      `create table image (
        id text primary key,
        config text not null,
        labels text not null,
        createdMs integer not null,
        parentId text references image (id) on delete set null,
        manifestDigest text not null,
        taggedMs integer
      ) strict`,
      'create index imageParent on image (parentId)',
      `create table imageLayer (
        imageId text not null references image (id) on delete cascade,
        position integer not null,
        diffId text not null,
        layerId text not null,
        primary key (imageId, position)
      ) strict, without rowid`,
      'create index imageLayerLayer on imageLayer (layerId)',
      `create table imageManifest (
        digest text primary key,
        imageId text not null references image (id) on delete cascade,
        mediaType text not null,
        sizeBytes integer not null
      ) strict`,
      'create index imageManifestImage on imageManifest (imageId)',
      `create table imageName (
        name text primary key,
        repository text not null,
        tag text,
        digest text,
        imageId text not null references image (id) on delete cascade,
        manifestDigest text not null references imageManifest (digest)
      ) strict`,
      'create index imageNameImage on imageName (imageId)',
      'create index imageNameManifest on imageName (manifestDigest)',
      `create table blob (
        digest text primary key,
        sizeBytes integer not null,
        diskBytes integer not null,
        committedMs integer not null
      ) strict`,
      `create table manifestBlob (
        manifestDigest text not null references imageManifest (digest) on delete cascade,
        blobDigest text not null references blob (digest),
        primary key (manifestDigest, blobDigest)
      ) strict, without rowid`,
      'create index manifestBlobBlob on manifestBlob (blobDigest)',
      `create table blobSource (
        blobDigest text not null references blob (digest) on delete cascade,
        repository text not null,
        primary key (blobDigest, repository)
      ) strict, without rowid`,
    ],
  },
];
