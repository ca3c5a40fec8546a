/** An image store in a temp directory over the real content and layer stores, for tests. */

import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { arch, tmpdir } from 'node:os';
import { join } from 'node:path';
import type { EventBody } from '../../runtime/events.ts';
import type { Images, ImageUse } from '../../runtime/images/images.ts';
import { openImages } from '../../runtime/images/open.ts';
import { IMAGE_MIGRATIONS, type ImageTables } from '../../runtime/images/tables.ts';
import type { LayerStore } from '../../runtime/layers/layer-store.ts';
import { createLayerStore, LAYER_MIGRATIONS, type LayerTables } from '../../runtime/layers/layer-store-erofs.ts';
import { createFsBlobStore, type FsBlobStore } from '../../shared/blob-store-fs.ts';
import { type Database, openDatabase } from '../../shared/database.ts';
import type { Digest } from '../../shared/digest.ts';
import { createSilentLog } from '../../shared/log.ts';
import { createRegistryClient } from '../../shared/registry-client.ts';

export interface ImagesRig extends AsyncDisposable {
  readonly root: string;
  readonly images: Images;
  readonly blobs: FsBlobStore;
  readonly layers: LayerStore;
  readonly database: Database<ImageTables & LayerTables>;
  readonly events: EventBody[];
  /** Containers, by image; what tests put here is in use. */
  readonly users: Map<Digest, readonly ImageUse[]>;
  readonly heldLayers: Set<Digest>;
  /** Added to the clock, which otherwise tells the real time. */
  clockMs: number;
  /** Closes everything and opens it again, as another process would find it. */
  reopen(): Promise<void>;
}

/** In a new temp directory, which goes with it; or over one that is there, which stays. */
export async function openImagesRig(given?: string): Promise<ImagesRig> {
  const root = given ?? (await mkdtemp(join(tmpdir(), 'berth-images-')));
  const events: EventBody[] = [];
  const users = new Map<Digest, readonly ImageUse[]>();
  const heldLayers = new Set<Digest>();
  const clock = { ms: 0 };
  const now = () => new Date(Date.now() + clock.ms);
  const open = () => {
    const database = openDatabase<ImageTables & LayerTables>({
      path: join(root, 'berth.db'),
      migrations: [...LAYER_MIGRATIONS, ...IMAGE_MIGRATIONS],
    });
    const log = createSilentLog();
    const randomId = () => randomUUID();
    const blobs = createFsBlobStore({ root: join(root, 'content') });
    const layers = createLayerStore({ root, database, log, now, randomId, workers: 2 });
    const images = openImages({
      database,
      directory: root,
      blobs,
      layers,
      users: {
        usedBy: async (image) => users.get(image) ?? [],
        imagesInUse: async () => users,
        layersInUse: async () => heldLayers,
        cached: async () => ({ layers: new Set(), blobs: new Set() }),
      },
      events: { publish: (event) => events.push(event) },
      log,
      architecture: arch(),
      now,
      randomId,
      transferPatience: { afterMs: 300, leftMs: 3000 },
      connect: (host) => createRegistryClient({ host, retry: { attempts: 2, baseMs: 1, maxMs: 2 } }),
    });
    const close = async () => {
      await images.settled();
      await layers[Symbol.asyncDispose]();
      await database.close();
    };
    return { database, blobs, layers, images, close };
  };
  let opened = open();
  return {
    root,
    get images() {
      return opened.images;
    },
    get blobs() {
      return opened.blobs;
    },
    get layers() {
      return opened.layers;
    },
    get database() {
      return opened.database;
    },
    events,
    users,
    heldLayers,
    get clockMs() {
      return clock.ms;
    },
    set clockMs(ms) {
      clock.ms = ms;
    },
    async reopen() {
      await opened.close();
      opened = open();
      await opened.layers.sweep();
      await opened.images.sweep();
    },
    async [Symbol.asyncDispose]() {
      await opened.close();
      if (given === undefined) await rm(root, { recursive: true, force: true });
    },
  };
}
