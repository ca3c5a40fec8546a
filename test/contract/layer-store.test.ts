import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createLayerStore, LAYER_MIGRATIONS, type LayerTables } from '../../runtime/layers/layer-store-erofs.ts';
import { openDatabase } from '../../shared/database.ts';
import { createLog } from '../../shared/log.ts';
import { CONTRACT_LIMITS, layerStoreContract } from './layer-store.ts';

layerStoreContract('erofs', async () => {
  const root = await mkdtemp(join(tmpdir(), 'berth-layers-'));
  const database = openDatabase<LayerTables>({ path: join(root, 'berth.db'), migrations: LAYER_MIGRATIONS });
  const mounted = new Set<number>();
  const store = createLayerStore({
    root,
    database,
    log: createLog({ component: 'test', level: 'silent' }),
    now: () => new Date(),
    randomId: randomUUID,
    workers: 2,
    limits: CONTRACT_LIMITS,
    isMounted: async (number) => mounted.has(number),
  });
  return {
    store,
    root,
    mounted,
    async [Symbol.asyncDispose]() {
      await store[Symbol.asyncDispose]();
      await database.close();
      await rm(root, { recursive: true });
    },
  };
});
