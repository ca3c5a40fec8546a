/**
 * LayerStore: image layers as read-only filesystems that overlayfs can stack.
 *
 * A layer is made once from its tar stream and never changes. It is *settled* on the layers below it when it is made:
 * implied parent directories take the lower one's owner and mode, a path through a lower symlink follows it, hard
 * links to lower files become copies, whiteouts of nothing are dropped. A layer that needed its parents for that is
 * named by its chainID, any other by its diffID, and is then shared by every chain.
 *
 *   layers/<id hex>.erofs     backend 'erofs': one EROFS image       layers/<id hex>/   backend 'directory'
 *   layers/ingest/<random>    what is not whole yet
 *   layers/l/<number>         where it is mounted (base 36, at most 5 characters: they go into mount options)
 */

import type { Readable } from 'node:stream';
import type { Digest } from '../../shared/digest.ts';
import type { Compression } from '../../shared/media-types.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { LayerSource } from './layer-source.ts';
import type { FileNode, LayerTree } from './tree.ts';

/** diffID or chainID, see above. */
export type LayerId = Digest;
/** The layers of one filesystem, base first. */
export type Chain = readonly LayerId[];
export type LayerBackend = 'erofs' | 'directory';

export interface Layer {
  readonly id: LayerId;
  readonly diffId: Digest;
  readonly backend: LayerBackend;
  /** Short name for mounts; unique within the state directory. */
  readonly number: number;
  /** What it occupies: st_blocks × 512 of its image or directory, measured once. */
  readonly diskBytes: number;
  /** Sum of the sizes of its regular files, hard links once. */
  readonly apparentBytes: number;
  /** Names in the layer, whiteouts among them. */
  readonly entryCount: number;
  /** Attributes of `/` when the layer's tar had an entry for it; overlayfs shows the topmost layer's. */
  readonly root?: { readonly mode: number; readonly uid: number; readonly gid: number } | undefined;
  readonly createdAt: Date;
}

export interface LayerIngest {
  readonly diffId: Digest;
  readonly compression: Compression;
  /** The compressed blob, possibly still growing while it downloads. */
  readonly source: LayerSource;
  /** The chain below; its layers settle while this one already streams. Rejecting it fails this ingest too. */
  readonly lower: Promise<Chain>;
  /** Called with the compressed bytes consumed so far, at most every 100 ms. */
  readonly onProgress?: (consumedBytes: number) => void;
}

export interface MakeOptions extends Cancelable {
  /** Of the tar; default none. */
  readonly compression?: Compression | undefined;
  /**
   * Called with the layer's id before the layer can be seen, so that nothing collects it in between. When it resolves,
   * an equal layer that exists will not go either.
   */
  readonly protect?: ((id: LayerId) => Promise<void>) | undefined;
  /**
   * The tar holds plain files, not a changeset: a file called `.wh.x` is that, devices are refused. `removed` are the
   * paths below that the layer hides. Such a layer is no image's: its diffID is a name of its own.
   */
  readonly files?: { readonly removed: readonly string[] } | undefined;
}

export interface LayerStore {
  /** The layer of this diffID above this chain, if it is there already. */
  find(diffId: Digest, lower: Chain): Promise<Layer | undefined>;
  /**
   * Makes a layer from its tar. Idempotent; concurrent calls for the same layer share one unpack. Nothing is visible
   * before it is whole, verified against diffID and durable. Cancelling gives up waiting; the unpack itself ends when
   * nobody waits for it any more.
   * @throws AppError 'integrity' (diffID, truncation), 'invalid' (hostile or malformed tar), 'too-large' (bomb), 'unavailable' (disk full, download failed), 'timeout' (cancelled)
   */
  ingest(request: LayerIngest, options?: Cancelable): Promise<Layer>;
  /**
   * Makes a layer above a chain from a tar that nobody has named yet; what it turned out to be is in `diffId`. An equal
   * layer that exists answers instead. Reads `tar` at the pace of the disk and to its end, and destroys it on failure.
   * @throws AppError 'integrity' (truncation), 'invalid', 'unsupported', 'too-large', 'unavailable', 'timeout' as ingest; what the tar fails with
   */
  make(tar: Readable, lower: Chain, options?: MakeOptions): Promise<Layer>;
  get(id: LayerId): Promise<Layer | undefined>;
  /** Names, modes, owners, data ranges; no mount needed. */
  tree(id: LayerId): Promise<LayerTree>;
  /** Row first, bytes last. false = was absent. @throws AppError 'conflict' while it is mounted */
  remove(id: LayerId): Promise<boolean>;
  list(): Promise<readonly Layer[]>;
  /** The bytes of a file of its tree. The caller owns the stream. @throws AppError 'not-found' */
  openFile(layer: Layer, entry: { readonly path: string; readonly node: FileNode }): Promise<Readable>;
  /** Path of the image file or directory. */
  pathOf(layer: Layer): string;
  /** At start, before anything else: deletes what a crash left. Answers the bytes given back. */
  sweep(): Promise<number>;
}
