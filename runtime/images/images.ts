/**
 * Images: what the engine keeps of other people's filesystems, and by which names.
 *
 * An image is its config (image id = digest of the config), one layer chain, and the manifests that name it. Every blob
 * of a manifest that the store names is in the content store, exactly as it came, so push and save give the same bytes
 * back. References move; images, layers and blobs never change, and go away when nothing names, leases or uses them.
 *
 * Messages of 'not-found' and 'conflict' are Docker's own words, because clients match them.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md
 */
import type { Readable } from 'node:stream';
import type { Credentials } from '../../shared/credentials.ts';
import type { Digest } from '../../shared/digest.ts';
import type { Descriptor, ImageConfig, ImageRunConfig, Platform } from '../../shared/oci.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { Chain, LayerId } from '../layers/layer-store.ts';
import type { GcPolicy } from './gc-policy.ts';
import type { PullEvent, PushEvent } from './progress.ts';

/** Digest of the image's config. */
export type ImageId = Digest;

export interface Images {
  /**
   * Finds an image by name, name:tag, name@digest, id (with or without `sha256:`) or unambiguous prefix of an id.
   * @throws AppError 'not-found' (`No such image: x`), 'invalid' (ambiguous prefix)
   */
  resolve(nameOrId: string): Promise<ResolvedImage>;
  /** In the order of creation, newest first. @throws AppError 'not-found' when `before` or `since` name no image */
  list(filter?: ImageFilter): Promise<readonly ImageSummary[]>;
  /** @throws as resolve */
  inspect(nameOrId: string): Promise<ImageDetail>;
  /** Newest step first. @throws as resolve */
  history(nameOrId: string): Promise<readonly HistoryStep[]>;
  /** Gives the image another name; a name that exists moves. @throws as resolve, 'invalid' (target with a digest) */
  tag(nameOrId: string, target: string): Promise<void>;
  /**
   * Docker's rmi: untags a name; removes the image when its last name goes or when it was given by id. Answers when the
   * image is gone; its bytes go right after, and usage() and prune() wait for them.
   * @throws as resolve, 'conflict' while containers, other repositories or child images need it
   */
  remove(nameOrId: string, options?: RemoveOptions): Promise<readonly Removal[]>;
  /**
   * Fetches and unpacks an image and names it. Concurrent pulls share transfers and unpacks; cancelling one does not
   * stop another. What was downloaded before a failure is kept for the next try.
   * @throws AppError 'not-found', 'unauthenticated', 'denied', 'integrity', 'invalid', 'unsupported', 'too-large', 'unavailable'
   */
  pull(reference: string, options?: PullOptions): Promise<PullResult>;
  /**
   * Pulls every tag of a repository, one after the other; `repository` has neither tag nor digest.
   * @throws as pull, at the first tag that fails; 'not-found' when there is none
   */
  pullAllTags(repository: string, options?: PullOptions): Promise<readonly PullResult[]>;
  /**
   * Uploads the exact bytes that the tag (every tag of the repository with `allTags`) names.
   * @throws AppError 'not-found' when there is no such local tag, and what the registry answers
   */
  push(reference: string, options?: PushOptions): Promise<readonly PushResult[]>;
  /** Exact sums of recorded sizes; walks no directory. */
  usage(): Promise<ImagesUsage>;
  /** Removes unused images, and every byte that nothing names any more. */
  prune(filter?: PruneFilter): Promise<PruneResult>;
  /**
   * Removes unused images by a policy, oldest first: what runs or is leased stays, and so do unfinished downloads.
   * With dryRun it tells what would go.
   */
  collectByPolicy(policy: GcPolicy, options?: { readonly dryRun?: boolean | undefined }): Promise<PruneResult>;
  /** A tar that is both a docker-archive and an OCI layout. The caller owns the stream. @throws as resolve */
  save(names: readonly string[], options?: Cancelable): Promise<Readable>;
  /** Reads such a tar, compressed or not. @throws AppError 'invalid', 'integrity' */
  load(tar: Readable, options?: LoadOptions): Promise<readonly LoadedImage[]>;
  /** Makes a one-layer image of a filesystem tar, plain or compressed by gzip, zstd, bzip2 or xz. */
  import(tar: Readable, options?: ImportOptions): Promise<ImageId>;
  /** Makes an image of a parent and one more layer: commit. */
  create(request: CreateRequest, options?: Cancelable): Promise<ImageId>;
  /** The layers of an image with their blobs, base first. @throws as resolve */
  layers(id: ImageId): Promise<readonly ImageLayer[]>;
  /**
   * Stores a layer that no image has yet: the result of a step of a build. `tar` is an uncompressed layer tar, consumed
   * whole. The lease protects what was stored.
   * @throws as LayerStore.ingest
   */
  putLayer(tar: Readable, options: PutLayerOptions): Promise<ImageLayer>;
  /** Brings a layer that no image here has from where a build cache was published, and unpacks it. @throws as pull */
  fetchLayer(origin: LayerOrigin, request: FetchLayerRequest): Promise<ImageLayer>;
  /** Keeps a document (an index, a manifest, what a manifest points at) beside the images, as long as the lease lives. */
  putDocument(bytes: Uint8Array, options: { readonly mediaType: string; readonly lease: Lease }): Promise<Descriptor>;
  /** The bytes of a document or of another blob that is here. The caller owns the stream. @throws AppError 'not-found' */
  openBlob(digest: Digest): Promise<Readable>;
  /**
   * Uploads manifests and indexes that are here with everything that they point at, in this order, each by its digest
   * and the one that `reference` is to name last. The caller leases them. @throws what the registry answers
   */
  publish(reference: string, documents: readonly Descriptor[], options?: PublishOptions): Promise<Descriptor>;
  /**
   * An OCI layout, in a tar, whose index names these documents; `name` is a reference. The caller leases them and owns the
   * stream.
   */
  layout(documents: readonly LayoutEntry[], options?: Cancelable): Promise<Readable>;
  /** Makes an image of layers that are here, by a config of the caller's. */
  assemble(request: AssembleRequest): Promise<{ readonly id: ImageId; readonly manifest: Descriptor }>;
  /**
   * Protects content from collection until disposed. Hold one from before content is looked up until a row or a
   * container names it. Leases live in memory: after a crash nothing is in progress.
   */
  lease(): Lease;
  /** What a committed blob occupies on disk. @throws AppError 'not-found' */
  blobBytes(digest: Digest): Promise<number>;
  /** Every layer and blob that an image names. */
  namedContent(): Promise<CachedContent>;
  /**
   * Removes layers and blobs that their owner, the build cache, has forgotten: those that no image, lease or container
   * keeps. Answers the bytes given back.
   */
  discard(content: CachedContent): Promise<number>;
  /** Removes bytes that nothing names any more: after a container is removed, or when a lease ends. */
  collect(): Promise<Collected>;
  /** Removes those of these layers that nothing names, leases or uses any more, in the background. */
  collectLayers(layers: readonly LayerId[]): Promise<void>;
  /** At start, before anything is pulled or run: removes what a crash left, and stale unfinished downloads. */
  sweep(): Promise<Collected>;
  /** Waits until the bytes of removed images are gone: before the stores are closed. */
  settled(): Promise<void>;
}

export interface ResolvedImage {
  readonly id: ImageId;
  /** The familiar spelling (`debian:12`) it was found by; undefined when found by id. */
  readonly reference: string | undefined;
  readonly config: ImageConfig;
  /** Base first. */
  readonly chain: Chain;
}

export interface ImageSummary {
  readonly id: ImageId;
  /** Image that this one was made from here, by commit or a build. */
  readonly parentId: ImageId | undefined;
  /** Familiar `name:tag`; empty for a dangling image. */
  readonly repoTags: readonly string[];
  /** Familiar `name@digest`. */
  readonly repoDigests: readonly string[];
  readonly createdAt: Date;
  /** Everything that the image occupies, counted whole: its unpacked layers and its blobs. Bytes on disk. */
  readonly sizeBytes: number;
  /** Part of sizeBytes that other images name too. */
  readonly sharedBytes: number;
  readonly labels: Readonly<Record<string, string>>;
  /** Containers made from it, running or not. */
  readonly containers: number;
  /** Of the manifest that was pulled, loaded or made last; an index's platform manifest, not the index. */
  readonly manifest: Descriptor;
  /** What the manifest stands for; only when a list was asked for it. */
  readonly content?: ManifestContent | undefined;
}

/** Bytes on disk. */
export interface ManifestContent {
  readonly platform: Platform;
  readonly blobBytes: number;
  readonly layerBytes: number;
  readonly containerIds: readonly string[];
}

export interface ImageDetail extends ImageSummary {
  readonly config: ImageConfig;
  readonly chain: Chain;
  readonly comment: string;
  /** When a name was last given to it here. */
  readonly lastTaggedAt: Date | undefined;
}

export interface HistoryStep {
  /** undefined is shown as `<missing>`: the step was made elsewhere. */
  readonly id: ImageId | undefined;
  readonly createdAt: Date | undefined;
  readonly createdBy: string;
  readonly comment: string;
  /** Sum of the file sizes in the step's layer; 0 for a step without one. */
  readonly sizeBytes: number;
  readonly tags: readonly string[];
}

/** Docker's filters of `GET /images/json`; several values of one filter are alternatives. Undefined = not asked. */
export interface ImageFilter {
  /** Also untagged images that others were made from. */
  readonly all?: boolean | undefined;
  readonly dangling?: boolean | undefined;
  /** `key` or `key=value`; all must hold. */
  readonly labels?: readonly string[] | undefined;
  /** Glob over familiar names. */
  readonly references?: readonly string[] | undefined;
  /** Created before, after this image. */
  readonly before?: string | undefined;
  readonly since?: string | undefined;
  /** Created before this moment. */
  readonly until?: Date | undefined;
  /** Each with what its manifest stands for. */
  readonly withContent?: boolean | undefined;
}

export interface RemoveOptions {
  readonly force?: boolean | undefined;
  /** Keep untagged parents. */
  readonly noPrune?: boolean | undefined;
}

export type Removal = { readonly untagged: string } | { readonly deleted: Digest };

export interface PullOptions extends Cancelable {
  /** As in `--platform`: `linux/arm64/v8`, `linux`, `arm64`. undefined = this host's. */
  readonly platform?: string | undefined;
  readonly credentials?: Credentials | undefined;
  /** The tag stays where it is, should it name another image here; the new one is named by its digest. */
  readonly keepsTag?: boolean | undefined;
  readonly onProgress?: ((event: PullEvent) => void) | undefined;
}

export interface PullResult {
  readonly id: ImageId;
  /** Familiar. */
  readonly reference: string;
  /** What the reference resolved to: of the index, if it named one. */
  readonly digest: Digest;
  readonly manifest: Descriptor;
  /** false = the image was here already, under this name. */
  readonly isNew: boolean;
}

export interface PushOptions extends Cancelable {
  readonly allTags?: boolean | undefined;
  readonly credentials?: Credentials | undefined;
  readonly onProgress?: ((event: PushEvent) => void) | undefined;
}

export interface PushResult {
  readonly tag: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
}

/** Bytes on disk (st_blocks × 512), measured once when each thing was written. */
export interface ImagesUsage {
  readonly images: readonly ImageUsageRow[];
  readonly activeCount: number;
  /** Every image counted whole. */
  readonly logicalBytes: number;
  /** Every layer and blob once, orphans included, without what only the build cache has: what the store occupies. */
  readonly actualBytes: number;
  /** What `prune` of all unused images frees. */
  readonly reclaimableBytes: number;
  readonly orphans: OrphanUsage;
}

export interface ImageUsageRow {
  readonly summary: ImageSummary;
  /** sizeBytes − sharedBytes. */
  readonly uniqueBytes: number;
}

/** What no image names: left by an interrupted removal, a running container's removed image, unfinished downloads. */
export interface OrphanUsage {
  readonly layers: number;
  readonly blobs: number;
  readonly ingests: number;
  readonly bytes: number;
}

export interface PruneFilter {
  /** true (default): only images without a tag. false: all that no container uses. */
  readonly dangling?: boolean | undefined;
  readonly until?: Date | undefined;
  /** `key` or `key=value`: must hold. */
  readonly labels?: readonly string[] | undefined;
  /** `key` or `key=value`: must not hold. */
  readonly labelsNot?: readonly string[] | undefined;
  /** Tell what would go, and do nothing. */
  readonly dryRun?: boolean | undefined;
}

export interface PruneResult {
  readonly removals: readonly Removal[];
  readonly reclaimedBytes: number;
}

export interface Collected {
  readonly layers: number;
  readonly blobs: number;
  readonly ingests: number;
  readonly bytes: number;
}

export interface LoadOptions extends Cancelable {
  readonly platform?: string | undefined;
  readonly onProgress?: ((event: PullEvent) => void) | undefined;
}

export interface LoadedImage {
  readonly id: ImageId;
  /** Familiar; undefined when the archive names it by id only. */
  readonly reference: string | undefined;
}

export interface ImportOptions extends Cancelable {
  /** `repository[:tag]`. */
  readonly name?: string | undefined;
  readonly message?: string | undefined;
  readonly config?: ImageRunConfig | undefined;
  /** Dockerfile instructions, applied to the config: `--change`. */
  readonly changes?: readonly string[] | undefined;
  readonly platform?: string | undefined;
}

export interface CreateRequest {
  /** undefined = from scratch. */
  readonly parent?: ImageId | undefined;
  /** The changes as an uncompressed layer tar; undefined = metadata only. Consumed whole. */
  readonly layer?: Readable | undefined;
  readonly config: ImageRunConfig;
  /** Dockerfile instructions, applied to the config: `--change`. @throws AppError 'invalid' for others than the classic ones */
  readonly changes?: readonly string[] | undefined;
  /** For an image from scratch; a child has its parent's. */
  readonly platform?: Platform | undefined;
  readonly author?: string | undefined;
  readonly comment?: string | undefined;
  readonly createdBy: string;
  /** `repository[:tag]`, familiar or full. */
  readonly name?: string | undefined;
}

/** A layer of an image: unpacked, and as the blob that its manifest names. */
export interface ImageLayer {
  readonly diffId: Digest;
  readonly layerId: LayerId;
  readonly descriptor: Descriptor;
}

export interface PutLayerOptions extends Cancelable {
  /** Base first. */
  readonly lower: readonly ImageLayer[];
  readonly lease: Lease;
}

/** Where the bytes of blobs come from. */
export interface LayerOrigin {
  /** For messages: what was asked for. */
  readonly name: string;
  /** The registry, archive or directory: where one of its blobs is slow, the others are. */
  readonly place: string;
  /** The stream gives the bytes from `start` on, or fails. */
  blob(descriptor: Descriptor, start: number, options: Cancelable): Promise<Readable>;
}

export interface FetchLayerRequest extends PutLayerOptions {
  readonly descriptor: Descriptor;
  readonly diffId: Digest;
}

export interface PublishOptions extends Cancelable {
  readonly credentials?: Credentials | undefined;
  readonly onProgress?: ((event: PushEvent) => void) | undefined;
  /** Without a tag: `reference` only says where. */
  readonly untagged?: boolean | undefined;
}

export interface LayoutEntry {
  readonly descriptor: Descriptor;
  /** References that the index names it by. */
  readonly names: readonly string[];
}

export interface AssembleRequest {
  /** Base first. */
  readonly layers: readonly ImageLayer[];
  /** All of the config but `rootfs`, which follows from the layers. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly annotations?: Readonly<Record<string, string>> | undefined;
  /** `repository[:tag]`, familiar or full. */
  readonly names?: readonly string[] | undefined;
  readonly lease: Lease;
}

export interface Lease extends AsyncDisposable {
  /** Resolves once the digest (of an image, a blob or a layer) cannot be collected; then look it up. */
  protect(digest: Digest): Promise<void>;
  /** Protects an image with all of its layers. */
  protectImage(image: ResolvedImage): Promise<void>;
}

/** What containers and builds tell about their use of images; asked at every removal, never cached. */
export interface ImageUsers {
  /** Containers of this image, running ones first. */
  usedBy(image: ImageId): Promise<readonly ImageUse[]>;
  /** Every image that a container was made from, with its containers. */
  imagesInUse(): Promise<ReadonlyMap<ImageId, readonly ImageUse[]>>;
  /** Layers below writable layers that exist, whether or not an image still names them. */
  layersInUse(): Promise<ReadonlySet<LayerId>>;
  /** What is kept for another purpose than images, and counted there: layers and blobs of the build cache. */
  cached(): Promise<CachedContent>;
}

/** Layers and blobs by digest. */
export interface CachedContent {
  readonly layers: ReadonlySet<LayerId>;
  readonly blobs: ReadonlySet<Digest>;
}

export interface ImageUse {
  readonly containerId: string;
  readonly running: boolean;
}
