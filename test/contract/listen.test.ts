import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { listen, parseListen } from '../../runtime/listen.ts';

let base = '';
beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), 'berth-listen-'));
});
afterEach(() => rm(base, { recursive: true }));

it('is for the owner and the group only, and is gone afterwards', async () => {
  const path = join(base, 'run', 's');
  const listening = await listen(createServer(), path);
  expect((await stat(path)).mode & 0o777).toBe(0o660);
  await listening[Symbol.asyncDispose]();
  await expect(stat(path)).rejects.toMatchObject({ code: 'ENOENT' });
});

it('refuses a socket that answers, and replaces one that a dead process left', async () => {
  const path = join(base, 's');
  const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => console.log('up'))`;
  const other = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(other.stdout, 'data');
  await expect(listen(createServer(), path)).rejects.toMatchObject({ kind: 'conflict' });
  other.kill('SIGKILL');
  await once(other, 'exit');
  await using _ = await listen(createServer(), path);
});

it('refuses a name that something else has', async () => {
  const path = join(base, 'file');
  await writeFile(path, 'precious');
  await expect(listen(createServer(), path)).rejects.toMatchObject({ kind: 'conflict' });
});

it.each([
  ['unix:///run/berth/berth.sock', '/run/berth/berth.sock'],
  ['/x', '/x'],
])('parses %s', (text, path) => {
  expect(parseListen(text)).toBe(path);
});

it.each(['tcp://0.0.0.0:2375', 'berth.sock', `/${'x'.repeat(107)}`])('refuses %s', (text) => {
  expect(() => parseListen(text)).toThrow('cannot listen on');
});
