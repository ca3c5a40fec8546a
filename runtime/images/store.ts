/**
 * ImageStore: the rows of images, their names, manifests and blobs.
 *
 * It knows names and reference counts and nothing of networks or tars. Every change is one transaction, so that a name
 * never points at nothing. Bytes are the callers' business: they are durable before put() is called, and are erased
 * after a removal has answered what nobody names any more.
 */
import { sql, type Transaction } from 'kysely';
import type { Database } from '../../shared/database.ts';
import { type Digest, isDigest } from '../../shared/digest.ts';
import { AppError, isKind } from '../../shared/errors.ts';
import { type Descriptor, type ImageConfig, parseImageConfig } from '../../shared/oci.ts';
import { canonicalReference, familiarReference, parseReference, type Reference } from '../../shared/reference.ts';
import type { LayerId } from '../layers/layer-store.ts';
import type { ImageId } from './images.ts';
import type { NamedReference } from './removal.ts';
import type { ImageTables } from './tables.ts';

export interface StoredLayer {
  readonly diffId: Digest;
  readonly layerId: LayerId;
}

export interface StoredName extends NamedReference {
  readonly manifestDigest: Digest;
}

/** What lists and sums need of an image; its config is read apart. */
export interface StoredImage {
  readonly id: ImageId;
  readonly parentId: ImageId | undefined;
  readonly createdAt: Date;
  readonly taggedAt: Date | undefined;
  readonly labels: Readonly<Record<string, string>>;
  /** Base first. */
  readonly layers: readonly StoredLayer[];
  /** In the order of names. */
  readonly names: readonly StoredName[];
  /** Of all its manifests: the manifests themselves, their configs and layers. */
  readonly blobs: readonly Digest[];
  readonly manifest: Descriptor;
}

export interface StoredBlob {
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly diskBytes: number;
  readonly committedMs: number;
}

/** An image that is whole: every layer is settled and every blob committed. */
export interface NewImage {
  readonly id: ImageId;
  /** The config's exact bytes. */
  readonly config: Uint8Array;
  readonly parentId?: ImageId | undefined;
  readonly manifest: Descriptor;
  readonly layers: readonly StoredLayer[];
  /** All that the manifest names, and the manifest itself. */
  readonly blobs: readonly StoredBlob[];
  /** With a tag or a digest, not both. */
  readonly names: readonly Reference[];
  /** `host/repository` that the blobs came from. */
  readonly source?: string | undefined;
  readonly now: Date;
}

/** What a removal left without a name. Layers may still be in use by containers. */
export interface Unnamed {
  readonly blobs: readonly StoredBlob[];
  readonly layers: readonly LayerId[];
}

export interface NameTarget {
  readonly id: ImageId;
  /** One of the image's. */
  readonly manifestDigest: Digest;
  readonly now: Date;
}

export interface FoundImage {
  readonly id: ImageId;
  /** The name it was found by; undefined = by id. */
  readonly name: StoredName | undefined;
}

type Reader = Pick<Transaction<ImageTables>, 'selectFrom'>;

export class ImageStore {
  readonly #database: Database<ImageTables>;
  /** Kept from one write to the next: lists and `df` ask for everything, and far more often than it changes. */
  #images: Promise<readonly StoredImage[]> | undefined;
  #blobBytes: Promise<ReadonlyMap<Digest, number>> | undefined;

  /** The only writer of its tables. */
  constructor(database: Database<ImageTables>) {
    this.#database = database;
  }

  async #write<T>(work: (trx: Transaction<ImageTables>) => Promise<T>): Promise<T> {
    try {
      return await this.#database.write(work);
    } finally {
      // Also what began to be read meanwhile is of before.
      this.#images = undefined;
      this.#blobBytes = undefined;
    }
  }

  /** @throws AppError 'not-found' in Docker's words, 'invalid' for what can be neither a name nor an id */
  async find(nameOrId: string): Promise<FoundImage> {
    const found = await this.#lookUp(nameOrId);
    if (found === undefined) throw noSuchImage(nameOrId);
    return found;
  }

  async #lookUp(text: string): Promise<FoundImage | undefined> {
    const database = this.#database.kysely;
    const hex = /^(?:sha256:)?([a-f0-9]{1,64})$/.exec(text)?.[1];
    if (hex === undefined || (hex.length < 64 && !text.startsWith('sha256:'))) {
      const { tag, digest, ...repository } = parseReference(text);
      // With a tag and a digest only the digest counts: that is what it means to write both.
      const name = canonicalReference(digest === undefined ? { ...repository, tag } : { ...repository, digest });
      const row = await database.selectFrom('imageName').selectAll().where('name', '=', name).executeTakeFirst();
      if (row !== undefined) return { id: row.imageId, name: toName(row) };
    }
    if (hex === undefined) return undefined;
    const rows = await database
      .selectFrom('image')
      .select('id')
      .where('id', '>=', `sha256:${hex}` as Digest)
      .where('id', '<', `sha256:${hex}g` as Digest)
      .limit(2)
      .execute();
    if (rows.length > 1)
      throw new AppError('invalid', `cannot find image ${JSON.stringify(text)}: the id is ambiguous`);
    return rows[0] && { id: rows[0].id, name: undefined };
  }

  async get(id: ImageId): Promise<StoredImage | undefined> {
    const [image] = await this.#database.read((snapshot) => readImages(snapshot, id));
    return image;
  }

  /** Newest first. */
  all(): Promise<readonly StoredImage[]> {
    this.#images ??= this.#database
      .read((snapshot) => readImages(snapshot))
      .catch((error) => {
        this.#images = undefined;
        throw error;
      });
    return this.#images;
  }

  async config(id: ImageId): Promise<ImageConfig> {
    const row = await this.#database.kysely
      .selectFrom('image')
      .select('config')
      .where('id', '=', id)
      .executeTakeFirst();
    if (row === undefined) throw noSuchImage(id);
    return parseImageConfig(Buffer.from(row.config));
  }

  /** Records an image and moves the names to it; one that is here already gains the names and the manifest. */
  put(image: NewImage): Promise<void> {
    const config = parseImageConfig(image.config);
    const { id, manifest, source } = image;
    return this.#write(async (trx) => {
      await trx
        .insertInto('image')
        .values({
          id,
          config: Buffer.from(image.config).toString('utf8'),
          labels: JSON.stringify(config.config.Labels ?? {}),
          createdMs: createdMs(config),
          parentId: image.parentId ?? null,
          manifestDigest: manifest.digest,
          taggedMs: null,
        })
        .onConflict((conflict) => conflict.column('id').doUpdateSet({ manifestDigest: manifest.digest }))
        .execute();
      for (const [position, layer] of image.layers.entries())
        await trx
          .insertInto('imageLayer')
          .values({ imageId: id, position, diffId: layer.diffId, layerId: layer.layerId })
          .onConflict((conflict) => conflict.doNothing())
          .execute();
      await trx
        .insertInto('imageManifest')
        .values({ digest: manifest.digest, imageId: id, mediaType: manifest.mediaType, sizeBytes: manifest.size })
        .onConflict((conflict) => conflict.doNothing())
        .execute();
      for (const blob of image.blobs) {
        await insertBlob(trx, blob);
        await trx
          .insertInto('manifestBlob')
          .values({ manifestDigest: manifest.digest, blobDigest: blob.digest })
          .onConflict((conflict) => conflict.doNothing())
          .execute();
        if (source !== undefined) await insertSource(trx, blob.digest, source);
      }
      for (const name of image.names)
        await insertName(trx, name, { id, manifestDigest: manifest.digest, now: image.now });
      await dropUnnamedManifests(trx);
    });
  }

  /** A download that is committed: from now on `df` counts it. */
  async putBlob(blob: StoredBlob): Promise<void> {
    await this.#write((trx) => insertBlob(trx, blob));
  }

  async putSource(digest: Digest, repository: string): Promise<void> {
    await this.#write(async (trx) => {
      // It may have been removed meanwhile: then there is nothing to remember.
      const blob = await trx.selectFrom('blob').select('digest').where('digest', '=', digest).executeTakeFirst();
      if (blob !== undefined) await insertSource(trx, digest, repository);
    });
  }

  async sources(digest: Digest): Promise<readonly string[]> {
    const rows = await this.#database.kysely
      .selectFrom('blobSource')
      .select('repository')
      .where('blobDigest', '=', digest)
      .orderBy('repository')
      .execute();
    return rows.map((row) => row.repository);
  }

  /** Points names (with a tag or a digest) at an image. @throws AppError 'not-found' when it is gone by now */
  setNames(names: readonly Reference[], target: NameTarget): Promise<void> {
    const { id, manifestDigest } = target;
    return this.#write(async (trx) => {
      const manifest = await trx
        .selectFrom('imageManifest')
        .select('digest')
        .where('imageId', '=', id)
        .where('digest', '=', manifestDigest)
        .executeTakeFirst();
      if (manifest === undefined) throw noSuchImage(id);
      for (const name of names) await insertName(trx, name, target);
      await dropUnnamedManifests(trx);
    });
  }

  /**
   * Deletes names and images in one transaction, and with them the rows of those newly unnamed blobs that `choose`
   * answers; it is asked inside the transaction, so it must wait for nothing but the database.
   */
  remove(
    gone: { readonly names: readonly string[]; readonly images: readonly ImageId[] },
    choose: (unnamed: Unnamed) => Promise<readonly Digest[]>,
  ): Promise<void> {
    return this.#write(async (trx) => {
      const before = await everyNamed(trx);
      for (const name of gone.names) await trx.deleteFrom('imageName').where('name', '=', name).execute();
      for (const id of gone.images) await trx.deleteFrom('image').where('id', '=', id).execute();
      await dropUnnamedManifests(trx);
      const after = await everyNamed(trx);
      const blobs = (await orphanBlobs(trx)).filter((blob) => before.blobs.has(blob.digest));
      const layers = [...before.layers.difference(after.layers)];
      await deleteBlobs(trx, await choose({ blobs, layers }));
    });
  }

  /** The same for what no image names, among `layers`, and for all blobs. */
  collect(layers: readonly LayerId[], choose: (unnamed: Unnamed) => Promise<readonly Digest[]>): Promise<void> {
    return this.#write(async (trx) => {
      const named = await everyNamed(trx);
      const blobs = await orphanBlobs(trx);
      await deleteBlobs(trx, await choose({ blobs, layers: layers.filter((id) => !named.layers.has(id)) }));
    });
  }

  blobs(): Promise<readonly StoredBlob[]> {
    return this.#database.kysely.selectFrom('blob').selectAll().execute();
  }

  /** What each blob occupies. */
  blobBytes(): Promise<ReadonlyMap<Digest, number>> {
    this.#blobBytes ??= this.#readBlobBytes().catch((error) => {
      this.#blobBytes = undefined;
      throw error;
    });
    return this.#blobBytes;
  }

  async #readBlobBytes(): Promise<ReadonlyMap<Digest, number>> {
    const rows = await this.#database.kysely.selectFrom('blob').select(['digest', 'diskBytes']).execute();
    return new Map(rows.map((row) => [row.digest, row.diskBytes]));
  }

  async blob(digest: Digest): Promise<StoredBlob | undefined> {
    return this.#database.kysely.selectFrom('blob').selectAll().where('digest', '=', digest).executeTakeFirst();
  }

  /** The manifests' own descriptors, by digest. */
  async manifest(digest: Digest): Promise<Descriptor | undefined> {
    const row = await this.#database.kysely
      .selectFrom('imageManifest')
      .selectAll()
      .where('digest', '=', digest)
      .executeTakeFirst();
    return row && { digest: row.digest, mediaType: row.mediaType, size: row.sizeBytes };
  }

  /** The tags of one repository (`host/repository`), in lexical order. */
  async tagsOf(repository: string): Promise<readonly (StoredName & { readonly tag: string })[]> {
    const rows = await this.#database.kysely
      .selectFrom('imageName')
      .selectAll()
      .where('repository', '=', repository)
      .where('tag', 'is not', null)
      .orderBy('tag')
      .execute();
    return rows.flatMap((row) => (row.tag === null ? [] : [{ ...toName(row), tag: row.tag }]));
  }
}

export function noSuchImage(text: string): AppError {
  let shown = text;
  try {
    if (!/^sha256:/.test(text) && !isDigest(`sha256:${text}`)) shown = familiarReference(parseReference(text));
  } catch (error) {
    if (!isKind(error, 'invalid')) throw error;
  }
  return new AppError('not-found', `No such image: ${shown}`);
}

async function readImages(snapshot: Reader, only?: ImageId): Promise<StoredImage[]> {
  const images = await snapshot
    .selectFrom('image')
    .innerJoin('imageManifest', 'imageManifest.digest', 'image.manifestDigest')
    .select(['image.id', 'image.labels', 'image.createdMs', 'image.parentId', 'image.taggedMs', 'image.manifestDigest'])
    .select(['imageManifest.mediaType', 'imageManifest.sizeBytes'])
    .$if(only !== undefined, (query) => query.where('image.id', '=', only ?? ('' as Digest)))
    .orderBy('image.createdMs', 'desc')
    .orderBy('image.id')
    .execute();
  // One row per image, not per layer: rows cost more than the bytes in them.
  const layers = await snapshot
    .selectFrom('imageLayer')
    .select('imageId')
    .select(sql<string>`group_concat(diffId, ' ' order by position)`.as('diffIds'))
    .select(sql<string>`group_concat(layerId, ' ' order by position)`.as('layerIds'))
    .$if(only !== undefined, (query) => query.where('imageId', '=', only ?? ('' as Digest)))
    .groupBy('imageId')
    .execute();
  const names = await snapshot
    .selectFrom('imageName')
    .selectAll()
    .$if(only !== undefined, (query) => query.where('imageId', '=', only ?? ('' as Digest)))
    .orderBy('name')
    .execute();
  const blobs = await snapshot
    .selectFrom('manifestBlob')
    .innerJoin('imageManifest', 'imageManifest.digest', 'manifestBlob.manifestDigest')
    .select('imageManifest.imageId')
    .select(sql<string>`group_concat(blobDigest, ' ')`.as('digests'))
    .$if(only !== undefined, (query) => query.where('imageManifest.imageId', '=', only ?? ('' as Digest)))
    .groupBy('imageManifest.imageId')
    .execute();
  const layersOf = new Map(layers.map((row) => [row.imageId, toLayers(row)]));
  const namesOf = Map.groupBy(names, (row) => row.imageId);
  const blobsOf = new Map(blobs.map((row) => [row.imageId, split(row.digests)]));
  return images.map((row) => ({
    id: row.id,
    parentId: row.parentId ?? undefined,
    createdAt: new Date(row.createdMs),
    taggedAt: row.taggedMs === null ? undefined : new Date(row.taggedMs),
    labels: JSON.parse(row.labels),
    layers: layersOf.get(row.id) ?? [],
    names: (namesOf.get(row.id) ?? []).map(toName),
    blobs: blobsOf.get(row.id) ?? [],
    manifest: { digest: row.manifestDigest, mediaType: row.mediaType, size: row.sizeBytes },
  }));
}

function toLayers(row: { readonly diffIds: string; readonly layerIds: string }): StoredLayer[] {
  const layerIds = split(row.layerIds);
  return split(row.diffIds).flatMap((diffId, index) => {
    const layerId = layerIds[index];
    return layerId === undefined ? [] : [{ diffId, layerId }];
  });
}

/** Digests that were joined by spaces, out of our own columns. */
function split(digests: string): Digest[] {
  return digests.split(' ') as Digest[];
}

function toName(row: ImageTables['imageName']): StoredName {
  const { name, repository, digest, manifestDigest } = row;
  const familiar = familiarReference(parseReference(name));
  return { name, familiar, repository, byDigest: digest !== null, manifestDigest };
}

/** Images from elsewhere may have no date, or one that is none. */
function createdMs(config: ImageConfig): number {
  const parsed = Date.parse(config.created ?? '');
  return Number.isNaN(parsed) ? 0 : parsed;
}

async function insertBlob(trx: Transaction<ImageTables>, blob: StoredBlob): Promise<void> {
  const { digest, sizeBytes, diskBytes, committedMs } = blob;
  await trx
    .insertInto('blob')
    .values({ digest, sizeBytes, diskBytes, committedMs })
    .onConflict((conflict) => conflict.doNothing())
    .execute();
}

async function insertSource(trx: Transaction<ImageTables>, blobDigest: Digest, repository: string): Promise<void> {
  await trx
    .insertInto('blobSource')
    .values({ blobDigest, repository })
    .onConflict((conflict) => conflict.doNothing())
    .execute();
}

async function insertName(trx: Transaction<ImageTables>, reference: Reference, target: NameTarget): Promise<void> {
  const { id: imageId, manifestDigest, now } = target;
  const row = {
    repository: `${reference.host}/${reference.repository}`,
    tag: reference.tag ?? null,
    digest: reference.digest ?? null,
    imageId,
    manifestDigest,
  };
  await trx
    .insertInto('imageName')
    .values({ name: canonicalReference(reference), ...row })
    .onConflict((conflict) => conflict.column('name').doUpdateSet(row))
    .execute();
  if (reference.tag !== undefined)
    await trx.updateTable('image').set({ taggedMs: now.getTime() }).where('id', '=', imageId).execute();
}

interface Named {
  readonly blobs: ReadonlySet<Digest>;
  readonly layers: ReadonlySet<LayerId>;
}

async function everyNamed(trx: Transaction<ImageTables>): Promise<Named> {
  const blobs = await trx.selectFrom('manifestBlob').select('blobDigest').distinct().execute();
  const layers = await trx.selectFrom('imageLayer').select('layerId').distinct().execute();
  return { blobs: new Set(blobs.map((row) => row.blobDigest)), layers: new Set(layers.map((row) => row.layerId)) };
}

/** A name that moved to another manifest of the same image leaves one behind that nobody can ask for. */
async function dropUnnamedManifests(trx: Transaction<ImageTables>): Promise<void> {
  const named = trx.selectFrom('imageName').select('manifestDigest');
  const current = trx.selectFrom('image').select('manifestDigest');
  await trx.deleteFrom('imageManifest').where('digest', 'not in', named).where('digest', 'not in', current).execute();
}

function orphanBlobs(trx: Transaction<ImageTables>): Promise<StoredBlob[]> {
  return trx
    .selectFrom('blob')
    .selectAll()
    .where(({ not, exists, selectFrom }) =>
      not(
        exists(selectFrom('manifestBlob').select('blobDigest').whereRef('manifestBlob.blobDigest', '=', 'blob.digest')),
      ),
    )
    .execute();
}

async function deleteBlobs(trx: Transaction<ImageTables>, digests: readonly Digest[]): Promise<void> {
  for (const digest of digests) await trx.deleteFrom('blob').where('digest', '=', digest).execute();
}
