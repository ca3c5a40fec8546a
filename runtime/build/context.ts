/**
 * BuildContext: the files that a build may read, as read-only layers of the layer store. A context that a client sends
 * again is one more layer over the last: what changed, and whiteouts of what is gone. Nothing of it is ever unpacked on
 * the host, so a name or a link in it can lead nowhere but into its own tree.
 */
import type { Readable } from 'node:stream';
import type { Cancelable } from '../../shared/streams.ts';
import type { Chain } from '../layers/layer-store.ts';

/** Disposing gives it back: one without a name is deleted then. Its layers are protected until then. */
export interface BuildContext extends AsyncDisposable {
  /** Base first. */
  readonly chain: Chain;
  /** A file's text; undefined when there is none. @throws AppError 'too-large' */
  text(path: string, maxBytes: number): Promise<string | undefined>;
}

/** One name that a client's context has now; links are not followed. */
export interface ContextEntry {
  /** Relative, slashes between names. */
  readonly path: string;
  readonly kind: 'file' | 'directory' | 'symlink';
  /** Permission bits. */
  readonly mode: number;
  readonly sizeBytes: number;
  readonly mtimeNs: bigint;
  readonly target?: string | undefined;
}

export interface Contexts {
  /**
   * A whole context as a tar, plain or compressed (gzip, zstd, bzip2, xz). Leading `/` and `./` of its names are dropped;
   * a file called `.wh.x` is just that.
   * @throws AppError 'invalid' (`..` out of it, not a tar), 'unsupported' (a device), 'too-large', 'integrity' (cut off)
   */
  receive(tar: Readable, options?: Cancelable): Promise<BuildContext>;
  /**
   * What a URL has: a git repository (`URL#ref:directory`), an archive, or the text of a Dockerfile, which is then the
   * only file and called `Dockerfile`. @throws AppError 'invalid', 'not-found', 'too-large', 'unavailable'
   */
  fetch(url: string, options?: FetchContextOptions): Promise<BuildContext>;
  /** The same files but for these; a path that is not there is none of them. Disposing it leaves the other as it is. */
  without(context: BuildContext, paths: readonly string[]): Promise<BuildContext>;
  /** The context of no files. */
  empty(): Promise<BuildContext>;
  /**
   * Which of these files the engine does not have as they are, for the context that a client calls `name` (any words of
   * its own: a directory and a host). Answers paths in the order given. All entries that it will have come in one list.
   * A file is the same when kind, mode, size, time and link target are; a directory when its mode is.
   * @throws AppError 'invalid', 'too-large'
   */
  compare(name: string, entries: AsyncIterable<ContextEntry>): Promise<ContextDelta>;
  /** Bytes on disk of contexts that are kept for their next build. */
  diskBytes(): Promise<number>;
}

export interface FetchContextOptions extends Cancelable {
  /** Of the build: BUILDKIT_CONTEXT_KEEP_GIT_DIR keeps `.git`. */
  readonly buildArgs?: Readonly<Record<string, string>> | undefined;
}

export interface ContextDelta extends AsyncDisposable {
  readonly missing: readonly string[];
  /**
   * The missing files as a tar, plain or compressed; what the list had not is removed. Kept under the name from now on.
   * Once. @throws as receive; AppError 'invalid' when a missing file is not in the tar
   */
  complete(tar: Readable, options?: Cancelable): Promise<BuildContext>;
}
