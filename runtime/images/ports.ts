/** What the image store is made of and what it asks of the rest of the engine; wired in open.ts. */
import type { FsBlobStore } from '../../shared/blob-store-fs.ts';
import type { Credentials } from '../../shared/credentials.ts';
import type { Digest } from '../../shared/digest.ts';
import type { Log } from '../../shared/log.ts';
import type { RegistryClient } from '../../shared/registry-client.ts';
import type { EventLog } from '../events.ts';
import type { LayerStore } from '../layers/layer-store.ts';
import type { Erasures } from './erasures.ts';
import type { ImageUsers } from './images.ts';
import type { Leases } from './leases.ts';
import type { WantedPlatform } from './platform.ts';
import type { ImageStore, StoredBlob } from './store.ts';
import type { Transfers } from './transfers.ts';

export interface ImagePorts {
  readonly store: ImageStore;
  readonly blobs: FsBlobStore;
  readonly layers: LayerStore;
  readonly leases: Leases;
  readonly erasures: Erasures;
  readonly transfers: Transfers;
  readonly users: ImageUsers;
  readonly events: Pick<EventLog, 'publish'>;
  readonly log: Log;
  /** The platform that images are chosen for. */
  readonly host: WantedPlatform;
  readonly now: () => Date;
  /** For names of unfinished writes: `[A-Za-z0-9_-]`, at most 40 characters. */
  readonly randomId: () => string;
  /** A client for one registry; whoever asked for it disposes it. */
  connect(host: string, credentials: Credentials | undefined): RegistryClient;
  /** What a committed blob occupies on disk. */
  measureBlob(digest: Digest): Promise<StoredBlob>;
}
