/**
 * What happens during a pull, load or push, as data. Words and bars are made at the edges: the Engine API turns events
 * into Docker's JSON lines.
 */
import type { Digest } from '../../shared/digest.ts';

/** Steps of one layer in their order; `waiting` for a slot, `extracting` also while later bytes still arrive. */
export type PullLayerStatus =
  | 'pulling-fs-layer'
  | 'waiting'
  | 'downloading'
  | 'verifying-checksum'
  | 'download-complete'
  | 'extracting'
  | 'pull-complete'
  | 'already-exists';

export interface PullLayerEvent {
  readonly kind: 'layer';
  /** The layer's blob. */
  readonly digest: Digest;
  /** What people see of it: 12 characters. */
  readonly id: string;
  readonly status: PullLayerStatus;
  /** Compressed bytes. */
  readonly current?: number;
  readonly total?: number;
}

export type PullEvent =
  | { readonly kind: 'resolving'; readonly reference: string }
  /** `Pulling from <repository>` for `<tag>`. */
  | { readonly kind: 'pulling'; readonly repository: string; readonly tag: string }
  | PullLayerEvent
  /** `Digest: <digest>` */
  | { readonly kind: 'digest'; readonly digest: Digest }
  /** `Status: Downloaded newer image for …` or `Status: Image is up to date for …` */
  | { readonly kind: 'done'; readonly reference: string; readonly isNew: boolean };

export type PushLayerStatus = 'preparing' | 'waiting' | 'pushing' | 'pushed' | 'already-exists' | 'mounted' | 'skipped';

export interface PushLayerEvent {
  readonly kind: 'layer';
  readonly digest: Digest;
  readonly id: string;
  readonly status: PushLayerStatus;
  readonly current?: number;
  readonly total?: number;
  /** The repository that a `mounted` layer came from. */
  readonly from?: string;
}

export type PushEvent =
  /** `The push refers to repository [<repository>]` */
  | { readonly kind: 'pushing'; readonly repository: string }
  | PushLayerEvent
  /** `<tag>: digest: <digest> size: <size>` */
  | { readonly kind: 'done'; readonly tag: string; readonly digest: Digest; readonly sizeBytes: number };
