/**
 * Snapshotter: the writable layer of a container or a build step, over a chain of read-only layers.
 * `key` is always an active snapshot (a container's id); committed layers are LayerStore's.
 *
 *   containers/<key>/lowers   symbolic link whose target lists the layers' short names, topmost first: `c:b:a`
 *                    upper  work  rootfs      overlayfs's directories and where the whole is mounted
 */
import type { Chain, Layer, LayerId } from './layer-store.ts';

/** A snapshot that is mounted. Disposing unmounts it. */
export interface MountedSnapshot extends AsyncDisposable {
  /** The merged filesystem. */
  readonly rootfs: string;
}

export interface SnapshotMountOptions {
  /** Shows what was written before, and takes no more. */
  readonly readOnly?: boolean;
  /**
   * Nothing that is written is ever synced, neither by fsync(2) nor when it is unmounted. For what is deleted after it
   * ran: after a power loss the writable layer is worthless.
   */
  readonly throwAway?: boolean;
}

/** Disposing ends the work that was begun in the background; what is mounted stays. */
export interface Snapshotter extends AsyncDisposable {
  /** Makes an empty writable layer above chain. Idempotent for the same chain. @throws AppError 'not-found' for a missing layer, 'conflict' for another chain */
  prepare(key: string, chain: Chain): Promise<void>;
  /**
   * A layer that will probably be mounted soon: begins in the background what its first mount would have to wait for. What
   * fails is tried again by the mount, which tells.
   */
  anticipate(layer: Layer): void;
  /**
   * Mounts it, and first the layers below, each once per host. Idempotent: a mounted one is adopted.
   * @throws AppError 'not-found' for a key that was never prepared or a layer that is gone
   */
  mount(key: string, options?: SnapshotMountOptions): Promise<MountedSnapshot>;
  /** Idempotent; also for snapshots that an earlier engine mounted. Layers that nobody uses stay mounted for the next one. */
  unmount(key: string): Promise<void>;
  /** Path of the upper directory, for sizes and changes. */
  upperOf(key: string): string;
  /** Bytes that the upper directory occupies now. */
  diskBytes(key: string): Promise<number>;
  /** Bytes that copies of layers as directories occupy, beside the layers; 0 where images are mounted. */
  unpackedBytes(): Promise<number>;
  /** Unmounts and deletes the writable layer; whatever else lies in containers/<key> stays. false = was absent. */
  remove(key: string): Promise<boolean>;
  /** Unmounts these layers so that they can be removed. @throws AppError 'conflict' while a snapshot uses one */
  release(layers: readonly LayerId[]): Promise<void>;
  /** Unmounts all layers that no snapshot uses: at the end of an engine, when there is no next one to keep them for. */
  releaseUnused(): Promise<void>;
  /** Removes snapshots that are not in valid, whoever made them, and unmounts all layers that no snapshot uses. */
  sweep(valid: ReadonlySet<string>): Promise<void>;
}
