/**
 * Snapshotter: the writable layer of a container or a build step, over a chain of read-only layers.
 * `key` is always an active snapshot (a container's id); committed layers are LayerStore's.
 *
 *   containers/<key>/upper  work  rootfs      overlayfs's directories and where the whole is mounted
 */
import type { Readable } from 'node:stream';
import type { Chain } from './layer-store.ts';

/** A snapshot that is mounted. Disposing unmounts it, and gives back the layers' mounts that nobody else uses. */
export interface MountedSnapshot extends AsyncDisposable {
  /** The merged filesystem. */
  readonly rootfs: string;
}

export interface Snapshotter {
  /** Makes an empty writable layer above chain. Idempotent for the same chain. @throws AppError 'not-found' for a missing layer */
  prepare(key: string, chain: Chain): Promise<void>;
  /** Mounts it (and, once per host, the layers below). Idempotent: a mounted one is adopted. */
  mount(key: string, options?: { readonly readOnly?: boolean }): Promise<MountedSnapshot>;
  /** Idempotent; also for snapshots that an earlier engine mounted. */
  unmount(key: string): Promise<void>;
  /** Path of the upper directory, for `diff` and sizes. */
  upperOf(key: string): string;
  /** The changes as a layer tar, reproducible to the byte. The caller owns the stream. */
  diff(key: string): Promise<Readable>;
  /** Bytes that the upper directory occupies now. */
  diskBytes(key: string): Promise<number>;
  /** Unmounts and deletes. false = was absent. */
  remove(key: string): Promise<boolean>;
  /** Unmounts layers that no active snapshot uses; at start also what an earlier engine left. */
  sweep(valid: ReadonlySet<string>): Promise<void>;
}
