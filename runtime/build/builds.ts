/**
 * Builds: from a Dockerfile and a context to an image.
 *
 * Stages are a graph: what the target does not need is not run, independent stages run side by side. Each step is keyed
 * by content: its instruction, the chain below it, and the digests of the files that it sees, so a touched time is no
 * change and a changed base is. Results of steps are layers that the build cache holds until it is pruned; a build that
 * fails or is cancelled leaves them for the next try.
 *
 * Errors of a step say where in the Dockerfile it stands, and show the line; `detail` has BuildFailure.
 * https://docs.docker.com/reference/dockerfile/
 */
import type { Readable } from 'node:stream';
import type { Credentials } from '../../shared/credentials.ts';
import type { Descriptor, Platform } from '../../shared/oci.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { CheckWarning } from '../dockerfile/checks.ts';
import type { ImageId } from '../images/images.ts';
import type { BuildContext, Contexts } from './context.ts';

export interface Builds {
  /** Contexts that clients send, whole or by what changed. */
  readonly contexts: Contexts;
  /**
   * Builds the target for each platform. The result's images are leased until it is disposed; `tags` name them when all
   * platforms are built. @throws AppError 'invalid' (Dockerfile, arguments), 'not-found' (a base, a source of COPY),
   * 'unsupported' (by name; RUN where this host cannot run containers), 'conflict' (a command failed), 'timeout'
   */
  build(request: BuildRequest, options?: BuildOptions): Promise<BuildResult>;
  /** What the build checks say of a Dockerfile; builds nothing. @throws as build, for what cannot be parsed */
  check(
    request: Pick<BuildRequest, 'context' | 'dockerfile' | 'target' | 'buildArgs' | 'platforms' | 'namedContexts'>,
  ): Promise<readonly BuildWarning[]>;
  /** What the build cache holds. */
  usage(): Promise<CacheUsage>;
  /** Removes what no build uses now. */
  prune(filter?: CachePruneFilter): Promise<CachePruneResult>;
}

export interface BuildRequest {
  /** Where COPY and ADD read, and where the Dockerfile is when its text is not given. Stays the caller's. */
  readonly context: BuildContext;
  /**
   * `name` is for messages, and a path in the context when there is no text. `ignore` is the text of `.dockerignore`, for
   * messages, too; undefined = the context's own.
   */
  readonly dockerfile: {
    readonly name: string;
    readonly text?: string | undefined;
    readonly ignore?: string | undefined;
  };
  /** Name or number of a stage; undefined = the last. */
  readonly target?: string | undefined;
  readonly buildArgs?: Readonly<Record<string, string>> | undefined;
  readonly labels?: Readonly<Record<string, string>> | undefined;
  /** Of the manifest. */
  readonly annotations?: Readonly<Record<string, string>> | undefined;
  /** `os/architecture[/variant]`; none = this host's. */
  readonly platforms?: readonly string[] | undefined;
  /** `repository[:tag]` each. */
  readonly tags?: readonly string[] | undefined;
  /** Other trees for `FROM` and `--from` by name: `--build-context`. */
  readonly namedContexts?: Readonly<Record<string, NamedContext>> | undefined;
  /** Look up no step (true), or none of these stages. */
  readonly noCache?: boolean | readonly string[] | undefined;
  /** Ask the registry for each base, even when it is here. */
  readonly pull?: boolean | undefined;
  /** Images whose layers may answer for steps: `--cache-from` of the store's own images and inline caches. */
  readonly cacheFrom?: readonly CacheSource[] | undefined;
  readonly cacheTo?: readonly CacheTarget[] | undefined;
  /** What RUN may use. */
  readonly run?: RunOptions | undefined;
  /** By id. */
  readonly secrets?: ReadonlyMap<string, Buffer> | undefined;
  /** Path of an agent's socket on this host, by id. */
  readonly ssh?: ReadonlyMap<string, string> | undefined;
  /**
   * Seconds since 1970 that no time in the image exceeds: SOURCE_DATE_EPOCH. The argument of that name says it as well,
   * and is set by it.
   */
  readonly sourceDateEpoch?: number | undefined;
  /** What a registry wants to know before it gives a base, by host. */
  readonly credentials?: ((host: string) => Credentials | undefined) | undefined;
}

/** `image` is pulled when it is not here. */
export type NamedContext =
  | { readonly kind: 'context'; readonly context: BuildContext }
  | { readonly kind: 'image'; readonly reference: string };

export type CacheSource =
  | { readonly kind: 'registry'; readonly reference: string }
  | { readonly kind: 'local'; readonly directory: string };
export type CacheTarget =
  | { readonly kind: 'registry'; readonly reference: string; readonly mode: 'min' | 'max' }
  | { readonly kind: 'local'; readonly directory: string; readonly mode: 'min' | 'max' }
  | { readonly kind: 'inline' };

/** Units as in HostConfig of a container: bytes, nano-CPUs; undefined = not limited. */
export interface RunOptions {
  /** `default`, `none`, `host`, or a network's name. */
  readonly networkMode?: string | undefined;
  readonly extraHosts?: readonly string[] | undefined;
  readonly shmBytes?: number | undefined;
  readonly ulimits?: readonly { readonly Name: string; readonly Soft: number; readonly Hard: number }[] | undefined;
  readonly memoryBytes?: number | undefined;
  readonly memorySwapBytes?: number | undefined;
  readonly cpuShares?: number | undefined;
  readonly cpuPeriod?: number | undefined;
  readonly cpuQuota?: number | undefined;
  readonly cpusetCpus?: string | undefined;
  readonly cpusetMems?: string | undefined;
  readonly cgroupParent?: string | undefined;
  readonly securityOptions?: readonly string[] | undefined;
  /** What `RUN --network=host` and `RUN --security=insecure` need: `network.host`, `security.insecure`. */
  readonly allow?: readonly string[] | undefined;
}

export interface BuildOptions extends Cancelable {
  readonly onEvent?: ((event: BuildEvent) => void) | undefined;
}

/** One line of the Dockerfile at work, or what comes before and after. Numbers are unique in a build, in the order of starts. */
export interface BuildStep {
  readonly id: number;
  /** As written, on one line: `RUN npm ci`; or `[internal] load metadata for debian:12`. */
  readonly text: string;
  /** Name or number of its stage; undefined for internal work. */
  readonly stage: string | undefined;
  /** 1-based number in its stage, and how many there are. */
  readonly position: { readonly index: number; readonly total: number } | undefined;
  /** Set when a build has several. */
  readonly platform: string | undefined;
  /** 1-based. */
  readonly line: number | undefined;
}

export type BuildEvent =
  /** Before the first step: the stages that the targets need, in the Dockerfile's order. One per platform. */
  | {
      readonly kind: 'planned';
      readonly platform: string | undefined;
      readonly stages: readonly { readonly name: string; readonly steps: number }[];
    }
  | { readonly kind: 'started'; readonly step: BuildStep }
  /** The command of a RUN has a container now. */
  | { readonly kind: 'running'; readonly step: BuildStep; readonly containerId: string }
  /** Raw bytes of a command's output; good until the call returns. */
  | { readonly kind: 'output'; readonly step: BuildStep; readonly stream: 'stdout' | 'stderr'; readonly bytes: Buffer }
  /** Bytes of downloads and copies; total undefined = not known. */
  | {
      readonly kind: 'progress';
      readonly step: BuildStep;
      readonly name: string;
      readonly current: number;
      readonly total: number | undefined;
    }
  | {
      readonly kind: 'ended';
      readonly step: BuildStep;
      readonly outcome: 'done' | 'cached' | 'failed' | 'canceled';
      readonly durationMs: number;
      readonly message: string | undefined;
      /** Hex digest that names what there is after the step: the base's image id after FROM, else the step's own key. */
      readonly result?: string | undefined;
    }
  /** A build check has found something. */
  | { readonly kind: 'warning'; readonly warning: BuildWarning };

/** Of the build checks, and what the build itself has found. */
export type BuildWarning = CheckWarning;

/** `detail` of the error of a step. */
export interface BuildFailure {
  readonly step: string;
  readonly file: string;
  readonly line: number;
  /** Of the command, when one failed. */
  readonly exitCode?: number | undefined;
  /** That command with its shell, words joined by spaces: `/bin/sh -c npm ci`. */
  readonly command?: string | undefined;
}

export interface BuiltImage {
  readonly id: ImageId;
  readonly platform: Platform;
  readonly manifest: Descriptor;
}

/** Disposing it ends the lease: what no tag names may go then. */
export interface BuildResult extends AsyncDisposable {
  /** In the order of the platforms. */
  readonly images: readonly BuiltImage[];
  readonly warnings: readonly BuildWarning[];
  /** The files of one image as a tar: `--output type=tar` and `type=local`. The caller owns the stream. */
  files(image: BuiltImage): Promise<Readable>;
  /** The images as an OCI layout with one index, in a tar: `--output type=oci`. The caller owns the stream. */
  layout(): Promise<Readable>;
  /** Publishes the images: one manifest, or an index of several. The digest is of what the tag names. */
  push(
    reference: string,
    options?: Cancelable & {
      readonly credentials?: Credentials | undefined;
      readonly onEvent?: ((event: BuildEvent) => void) | undefined;
      /** A SLSA provenance statement as a referrer of each manifest. */
      readonly provenance?: boolean | undefined;
    },
  ): Promise<Descriptor>;
}

export type CacheRecordKind = 'regular' | 'source.local' | 'source.git' | 'source.http' | 'exec.cachemount';

export interface CacheRecord {
  readonly id: string;
  readonly kind: CacheRecordKind;
  readonly description: string;
  /** Bytes on disk of what it holds. */
  readonly sizeBytes: number;
  /** What of this no image names: bytes on disk by layer, blob or directory. Two records may hold the same. */
  readonly parts: ReadonlyMap<string, number>;
  /** Images name the same bytes: pruning it frees nothing. */
  readonly isShared: boolean;
  /** A build works with it now. */
  readonly isInUse: boolean;
  readonly createdAt: Date;
  readonly usedAt: Date;
  readonly usedCount: number;
}

export interface CacheUsage {
  /** Newest use first. */
  readonly records: readonly CacheRecord[];
  /** On disk, for what only the build cache has; each thing once. */
  readonly diskBytes: number;
  /** Of these, what no build uses now: what pruning everything frees. */
  readonly reclaimableBytes: number;
}

export interface CachePruneFilter {
  /** Also what images share, and cache mounts. */
  readonly all?: boolean | undefined;
  /** Not used since this moment. */
  readonly unusedSince?: Date | undefined;
  /** Stop once the cache has no more than this. */
  readonly keepBytes?: number | undefined;
  /** Stop once the disk has this much free, too; alone it is the only reason to remove anything. */
  readonly minFreeBytes?: number | undefined;
  readonly kinds?: readonly string[] | undefined;
  readonly ids?: readonly string[] | undefined;
  /** Tell what would go, and do nothing. */
  readonly dryRun?: boolean | undefined;
}

export interface CachePruneResult {
  readonly deleted: readonly string[];
  readonly reclaimedBytes: number;
}
