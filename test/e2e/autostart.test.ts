import { readdir, readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { expect, it, vi } from 'vitest';
import { listens, startEngine } from '../../runtime/cli/autostart.ts';
import { openStateDirectory } from '../../runtime/state-directory.ts';
import { testHost } from '../kernel/leaks.ts';

/** Processes that were started with this argument. */
async function processesWith(argument: string): Promise<readonly number[]> {
  const found: number[] = [];
  for (const name of await readdir('/proc')) {
    const words = await readFile(join('/proc', name, 'cmdline'), 'utf8').catch(() => '');
    if (/^\d+$/.test(name) && words.split('\0').includes(argument)) found.push(Number(name));
  }
  return found;
}

it('starts one engine for commands that come at once', async () => {
  await using host = await testHost();
  vi.stubEnv('BERTH_ENGINE_ROOT', join(host.root, 'state'));
  const runDir = join(host.runDir, 'engine');
  const socket = join(runDir, 'berth.sock');
  try {
    await Promise.all([startEngine(socket), startEngine(socket), startEngine(socket)]);
    expect(await listens(socket)).toBe(true);
    await vi.waitFor(async () => expect(await processesWith(runDir)).toHaveLength(1), 10_000);
  } finally {
    for (const pid of await processesWith(runDir)) process.kill(pid, 'SIGTERM');
    await vi.waitFor(async () => expect(await processesWith(runDir)).toEqual([]), 10_000);
    vi.unstubAllEnvs();
  }
});

it('waits for an engine that has the directories and does not answer yet', async () => {
  await using host = await testHost();
  const root = join(host.root, 'state');
  vi.stubEnv('BERTH_ENGINE_ROOT', root);
  const runDir = join(host.runDir, 'engine');
  const socket = join(runDir, 'berth.sock');
  using _slow = await openStateDirectory({ root, runDir, randomId: () => 'slow00' });
  await using server = createServer();
  try {
    const started = startEngine(socket);
    started.catch(() => {});
    await vi.waitFor(
      async () => expect(await readFile(join(runDir, 'berthd.log'), 'utf8')).toContain('is using it'),
      10_000,
    );
    await vi.waitFor(async () => expect(await processesWith(runDir)).toEqual([]), 10_000);
    server.listen(socket);
    await started;
  } finally {
    vi.unstubAllEnvs();
  }
});
