/**
 * A repository as an OCI image layout in a directory, out and in: all its tags, untagged manifests and referrers. Blobs
 * stream and are verified on the way; index.json is written last, so that a directory that has one is whole. Layouts of
 * others, such as skopeo's, are taken, too. Neither side looks at rights: whoever runs this may read the files.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
 */
import { createReadStream, createWriteStream } from 'node:fs';
import { mkdir, readFile, rename, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { z } from 'zod';
import { syncFile, writeDurably } from '../shared/atomic-file.ts';
import type { BlobStore } from '../shared/blob-store.ts';
import { algorithmOf, DIGEST_ALGORITHMS, type Digest, digestOf, hexOf, isDigest } from '../shared/digest.ts';
import { AppError, hasCode, messageOf } from '../shared/errors.ts';
import { isIndexType, isManifestType, MEDIA_TYPES } from '../shared/media-types.ts';
import { MANIFEST_MAX_BYTES, referencesOf } from '../shared/oci.ts';
import { isTag } from '../shared/reference.ts';
import { verify } from '../shared/streams.ts';
import { newManifest, readManifest } from './manifest-document.ts';
import { walk } from './metadata/garbage.ts';
import type { MetadataIndex } from './metadata/index.ts';
import type { UpkeepIndex } from './metadata/upkeep.ts';
import { pinForPush } from './pinning.ts';

export interface LayoutPorts {
  readonly index: MetadataIndex & UpkeepIndex;
  readonly blobs: BlobStore;
  readonly now: () => Date;
  readonly randomId: () => string;
}

export interface LayoutReport {
  readonly tags: number;
  readonly manifests: number;
  /** Copied; those that were there already are left out. */
  readonly blobs: number;
  readonly bytes: number;
}

type Counts = { -readonly [K in keyof LayoutReport]: LayoutReport[K] };

const REF_NAME = 'org.opencontainers.image.ref.name';
const CHUNK_BYTES = 1 << 20;
/** How long an old copy of a blob may take to go away. */
const PIN_WAIT_MS = 5_000;

const indexFileSchema = z.looseObject({
  schemaVersion: z.literal(2),
  manifests: z.array(
    z.looseObject({
      mediaType: z.string().default(MEDIA_TYPES.ociManifest),
      digest: z.string().refine(isDigest, 'is no digest'),
      annotations: z.record(z.string(), z.string()).optional(),
    }),
  ),
});

interface Entry {
  readonly mediaType: string;
  readonly digest: Digest;
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>>;
}

/** @throws AppError 'not-found' for an unknown repository, 'already-exists' when the directory has an index.json */
export async function exportRepository(
  { index, blobs }: LayoutPorts,
  repository: string,
  directory: string,
): Promise<LayoutReport> {
  if ((await index.tags(repository, { limit: 1 })) === undefined)
    throw new AppError('not-found', `cannot export ${repository}: there is no such repository`);
  const indexPath = join(directory, 'index.json');
  if ((await sizeOf(indexPath)) !== undefined)
    throw new AppError('already-exists', `cannot export to ${JSON.stringify(directory)}: it has an index.json already`);
  for (const algorithm of DIGEST_ALGORITHMS) await mkdir(join(directory, 'blobs', algorithm), { recursive: true });

  const report: Counts = { tags: 0, manifests: 0, blobs: 0, bytes: 0 };
  const entries: Entry[] = [];
  const held = new Set<Digest>();
  const exported = new Map<Digest, Entry>();
  const exportManifest = async (digest: Digest): Promise<Entry | undefined> => {
    const known = exported.get(digest);
    if (known !== undefined) return known;
    const manifest = await index.resolve(repository, { digest });
    if (manifest === undefined) return undefined;
    for (const { digest: needed } of referencesOf(readManifest(Buffer.from(manifest.bytes), manifest.mediaType))) {
      held.add(needed);
      const blob = await index.blob(repository, needed);
      const path = blobPathIn(directory, needed);
      if (blob === undefined || (await sizeOf(path)) === blob.sizeBytes) continue;
      const partial = `${path}.partial`;
      await pipeline(
        await blobs.open(needed),
        verify(blob),
        createWriteStream(partial, { highWaterMark: CHUNK_BYTES }),
      );
      await syncFile(partial);
      await rename(partial, path);
      report.blobs += 1;
      report.bytes += blob.sizeBytes;
    }
    await writeDurably(blobPathIn(directory, digest), manifest.bytes);
    report.manifests += 1;
    const entry = { mediaType: manifest.mediaType, digest, size: manifest.bytes.length };
    exported.set(digest, entry);
    return entry;
  };

  for await (const { name, manifest } of walk((cursor) => index.tagRecords(repository, cursor))) {
    const entry = await exportManifest(manifest);
    if (entry === undefined) continue;
    entries.push({ ...entry, annotations: { [REF_NAME]: name } });
    report.tags += 1;
  }
  const untagged: Entry[] = [];
  for await (const { digest } of walk((cursor) => index.untaggedRecords(repository, cursor))) {
    const entry = await exportManifest(digest);
    if (entry !== undefined) untagged.push(entry);
  }
  // What an index holds is found through it; the rest, referrers among it, would be lost.
  entries.push(...untagged.filter(({ digest }) => !held.has(digest)));

  await writeDurably(join(directory, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }));
  const document = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: entries };
  await writeDurably(indexPath, JSON.stringify(document));
  return report;
}

/**
 * Puts everything of a layout into a repository; its tags move where they exist. Can be repeated after a failure.
 * @throws AppError 'not-found' for a layout that lacks something, 'integrity', 'invalid'; OciError for bad manifests
 */
export async function importLayout(ports: LayoutPorts, directory: string, repository: string): Promise<LayoutReport> {
  const { index } = ports;
  const report: Counts = { tags: 0, manifests: 0, blobs: 0, bytes: 0 };
  const done = new Set<Digest>();
  const importManifest = async (digest: Digest, mediaType: string, tags: readonly string[]): Promise<void> => {
    if (done.has(digest) && tags.length === 0) return;
    const bytes = await readManifestFile(blobPathIn(directory, digest));
    const got = digestOf(bytes, algorithmOf(digest));
    if (got !== digest) throw new AppError('integrity', `cannot import ${digest}: its file holds ${got}`);
    const document = readManifest(bytes, mediaType);
    const manifest = newManifest(document, { digest, bytes });
    if (!done.has(digest)) {
      for (const reference of referencesOf(document)) {
        const isChild = isManifestType(reference.mediaType) || isIndexType(reference.mediaType);
        if (
          document.kind === 'index' &&
          isChild &&
          (await sizeOf(blobPathIn(directory, reference.digest))) !== undefined
        )
          await importManifest(reference.digest, reference.mediaType, []);
        else if (document.kind === 'manifest' || !isChild)
          await importBlob(ports, reference.digest, { directory, repository, report });
      }
      report.manifests += 1;
      done.add(digest);
    }
    await index.putManifest(repository, manifest, { tags, guard: () => {} });
    report.tags += tags.length;
  };

  for (const { digest, mediaType, annotations } of (await readIndexFile(directory)).manifests)
    await importManifest(digest, mediaType, tagsIn(annotations?.[REF_NAME]));
  return report;
}

interface ImportTarget {
  readonly directory: string;
  readonly repository: string;
  readonly report: Counts;
}

/** What neither the layout nor the repository has is missed by putManifest, unless it may be elsewhere. */
async function importBlob(ports: LayoutPorts, digest: Digest, target: ImportTarget): Promise<void> {
  const { index, blobs, now, randomId } = ports;
  const { directory, repository, report } = target;
  if ((await index.touchBlob(repository, digest)) !== undefined) return;
  const path = blobPathIn(directory, digest);
  const sizeBytes = await sizeOf(path);
  if (sizeBytes === undefined) return;
  await pinForPush(index, digest, { now, waitMs: PIN_WAIT_MS });
  await using ingest = await blobs.ingest(randomId(), { algorithm: algorithmOf(digest) });
  try {
    await ingest.append(createReadStream(path, { highWaterMark: CHUNK_BYTES }));
    await ingest.commit({ digest });
  } finally {
    // Nobody goes on with it. Does nothing after a commit.
    await ingest.abort();
  }
  await index.linkBlob(repository, { digest, sizeBytes });
  report.blobs += 1;
  report.bytes += sizeBytes;
}

/** Tools write a tag, or the whole reference that ends with one. */
function tagsIn(name: string | undefined): readonly string[] {
  if (name === undefined) return [];
  const tag = name.slice(name.lastIndexOf(':') + 1);
  if (!isTag(tag)) throw new AppError('invalid', `cannot import the name ${JSON.stringify(name)}: it has no tag`);
  return [tag];
}

async function readIndexFile(directory: string): Promise<z.infer<typeof indexFileSchema>> {
  const path = join(directory, 'index.json');
  let json: unknown;
  try {
    json = JSON.parse(await readFile(path, 'utf8'));
  } catch (cause) {
    throw new AppError('invalid', `cannot read ${JSON.stringify(path)}: ${messageOf(cause)}`, { cause });
  }
  const parsed = indexFileSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new AppError('invalid', `cannot use ${JSON.stringify(path)}: ${issue?.path.join('.')} ${issue?.message}`);
}

async function readManifestFile(path: string): Promise<Buffer> {
  const sizeBytes = await sizeOf(path);
  if (sizeBytes === undefined)
    throw new AppError('not-found', `cannot read ${JSON.stringify(path)}: the layout lacks it`);
  if (sizeBytes > MANIFEST_MAX_BYTES)
    throw new AppError(
      'too-large',
      `cannot read ${JSON.stringify(path)}: it is larger than ${MANIFEST_MAX_BYTES} bytes`,
    );
  return readFile(path);
}

function blobPathIn(directory: string, digest: Digest): string {
  return join(directory, 'blobs', algorithmOf(digest), hexOf(digest));
}

/** undefined = there is none. */
async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}
