import { randomUUID } from 'node:crypto';
import { mkdtempDisposable } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createOpenAccess } from '../../registry/access/open-access.ts';
import { PROGRAM } from '../../registry/config.ts';
import { startRegistry } from '../../registry/registry.ts';
import { loadConfig } from '../../shared/config.ts';
import { createSilentLog } from '../../shared/log.ts';
import { startMemoryRegistry } from './registry-memory.ts';
import { wireContract } from './registry-wire.ts';

wireContract('in memory', () => startMemoryRegistry(createOpenAccess({ anonymousWrites: true })));

wireContract('on disk', async () => {
  const directory = await mkdtempDisposable(join(tmpdir(), 'berth-wire-'));
  const { config } = loadConfig(PROGRAM, { argv: ['--root', directory.path, '--listen', '127.0.0.1:0'], env: {} });
  const registry = await startRegistry({
    config,
    log: createSilentLog(),
    now: () => new Date(),
    randomId: randomUUID,
  });
  return {
    url: registry.url,
    async [Symbol.asyncDispose]() {
      await registry[Symbol.asyncDispose]();
      await directory.remove();
    },
  };
});
