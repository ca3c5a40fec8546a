/** What a client hears when the disk no longer has what the metadata promise, or when it sends on after a refusal. */
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempDisposable, truncate } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { PROGRAM } from '../../registry/config.ts';
import { startRegistry } from '../../registry/registry.ts';
import { createFsBlobStore } from '../../shared/blob-store-fs.ts';
import { loadConfig } from '../../shared/config.ts';
import { digestOf } from '../../shared/digest.ts';
import { createSilentLog } from '../../shared/log.ts';
import { ask } from './registry-http.ts';

async function start(root: string) {
  const { config } = loadConfig(PROGRAM, { argv: ['--root', root, '--listen', '127.0.0.1:0'], env: {} });
  return startRegistry({ config, log: createSilentLog(), now: () => new Date(), randomId: randomUUID });
}

it.each([
  ['whole', {}],
  ['a range', { range: 'bytes=1-2' }],
])('answers an error for a blob whose file is too short: %s', async (_, headers) => {
  await using directory = await mkdtempDisposable(join(tmpdir(), 'berth-damage-'));
  await using registry = await start(directory.path);
  const digest = digestOf('bytes');
  await ask(registry.url, 'POST', `/v2/r/blobs/uploads/?digest=${digest}`, { body: 'bytes' });
  await truncate(createFsBlobStore({ root: directory.path }).pathOf(digest), 0);

  const reply = await ask(registry.url, 'GET', `/v2/r/blobs/${digest}`, { headers });
  expect(reply).toMatchObject({ status: 500, codes: ['UNKNOWN'] });
  expect(reply.headers['content-range']).toBeUndefined();
  expect(reply.headers['docker-content-digest']).toBeUndefined();
});

it('closes the connection of a client that sends on after a refusal', async () => {
  await using directory = await mkdtempDisposable(join(tmpdir(), 'berth-damage-'));
  await using registry = await start(directory.path);
  const { port } = new URL(registry.url);
  const socket = connect(Number(port), '127.0.0.1');
  const closed = once(socket, 'close');
  socket.on('error', () => {});
  socket.write('PUT /v2/r/manifests/t HTTP/1.1\r\nHost: r\r\nContent-Length: 1000000000\r\n\r\nsome of it');
  const [head] = await once(socket, 'data');
  expect(String(head)).toMatch(/^HTTP\/1\.1 413 /);
  expect(String(head)).toMatch(/\r\nConnection: close\r\n/i);
  await closed;
});
