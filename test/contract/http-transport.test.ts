import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { createHttpTransport } from '../../shared/http-transport.ts';
import { collect } from '../../shared/streams.ts';

it('waits no longer for an answer that has come before the end of what was sent', async () => {
  const server = createServer((request, response) => {
    request.once('data', async () => {
      response.write('it ');
      await delay(1500);
      response.end('is here');
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  using transport = createHttpTransport({ userAgent: 'test', idleTimeoutMs: 5000 });
  try {
    // As a file: its end is one more read, which a busy disk answers late.
    async function* sent() {
      yield Buffer.from('bytes');
      await delay(100);
    }
    const { port } = server.address() as AddressInfo;
    const response = await transport.send({
      method: 'PUT',
      url: new URL(`http://127.0.0.1:${port}/`),
      headers: { 'content-length': '5' },
      body: Readable.from(sent(), { objectMode: false }),
      timeoutMs: 500,
    });
    expect((await collect(response.body, 100, { what: 'answer' })).toString()).toBe('it is here');
  } finally {
    server.closeAllConnections();
    server.close();
  }
});
