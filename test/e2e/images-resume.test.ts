/** A pull that is interrupted again and again goes on from where it was: each byte is downloaded once. */

import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { request } from 'node:http';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { type FixtureRegistry, startFixtureRegistry } from '../fixtures/fixture-registry.ts';
import { buildImage, buildLayer } from '../fixtures/images.ts';
import { type EngineProgram, run, startEngine } from '../fixtures/programs.ts';
import { testHost } from '../kernel/leaks.ts';

const MIB = 1 << 20;
const LAYERS = [64 * MIB, 48 * MIB];
/** Sent at a time, and how often: slow enough to be interrupted anywhere. */
const PIECE_BYTES = 256 << 10;
const PIECE_EVERY_MS = 5;
/** What a connection holds that nobody has read yet: a loaded host's kernel would keep megabytes, which break with it. */
const HELD_MAX_BYTES = PIECE_BYTES;

it('downloads each byte at most once, whatever interrupts it', async () => {
  await using host = await testHost();
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startFixtureRegistry());
  const wire = slowly(registry);
  const image = buildImage({
    layers: LAYERS.map((size, i) => buildLayer([{ name: `f${i}`, content: randomBytes(size) }], 'none')),
  });
  registry.add('app', '1', image);
  const total = image.layers.reduce((sum, layer) => sum + layer.descriptor.size, 0);
  let engine = await startEngine(host);
  undo.defer(() => engine[Symbol.asyncDispose]());

  // The client goes away.
  const leaving = new AbortController();
  const left = expect(pull(engine, registry, leaving.signal)).rejects.toThrow();
  await wire.after(total * 0.25);
  leaving.abort();
  await left;

  // The engine is killed.
  const killed = expect(pull(engine, registry)).rejects.toThrow();
  await wire.after(total * 0.5);
  await engine.end('SIGKILL');
  await killed;
  engine = await startEngine(host);

  // The registry drops every connection, as when it starts anew: the same pull goes on by itself.
  const last = pull(engine, registry);
  await wire.after(total * 0.75);
  wire.drop();
  expect(await last).toContain('Status: Downloaded newer image');
  expect(wire.sentBytes()).toBeGreaterThanOrEqual(total);
  expect(wire.sentBytes()).toBeLessThanOrEqual(total * 1.05);
  const listed = await run('docker', ['-H', engine.url, 'images', '-q'], { env: host.env });
  expect(listed.stdout.trim()).not.toBe('');
});

/** Answers what the engine said. */
function pull(engine: EngineProgram, registry: FixtureRegistry, signal?: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    const path = `/images/create?fromImage=${registry.host}/app&tag=1`;
    const asked = request({ socketPath: engine.socketPath, method: 'POST', path, signal }, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      answer.once('end', () => resolve(text)).once('error', reject);
    });
    asked.once('error', reject).end();
  });
}

interface Wire {
  /** Bytes of layers that have left the registry's process. */
  sentBytes(): number;
  /** Resolves once that many have. */
  after(bytes: number): Promise<void>;
  /** Breaks every answer that is under way. */
  drop(): void;
}

function slowly(registry: FixtureRegistry): Wire {
  let sent = 0;
  const waiting: { readonly bytes: number; readonly go: () => void }[] = [];
  const answers = new Set<{ destroy(): void }>();
  registry.onBlob = async ({ bytes, start }, response) => {
    if (bytes.length < MIB) return false;
    answers.add(response);
    const range = { 'content-range': `bytes ${start}-${bytes.length - 1}/${bytes.length}` };
    response.writeHead(start === 0 ? 200 : 206, { ...(start > 0 && range), 'content-length': bytes.length - start });
    const gone = once(response, 'close').then(
      () => false,
      () => false,
    );
    for (let at = start; at < bytes.length && !response.destroyed; at += PIECE_BYTES) {
      const piece = bytes.subarray(at, at + PIECE_BYTES);
      // Counted when the kernel has them: what a broken answer still held was never sent.
      const written = new Promise<boolean>((resolve) => response.write(piece, (error) => resolve(error == null)));
      const isSent = await Promise.race([written, gone]);
      if (!isSent) break;
      sent += piece.length;
      for (const waiter of waiting) if (sent >= waiter.bytes) waiter.go();
      do await sleep(PIECE_EVERY_MS);
      while (response.socket !== null && (await heldBytes(response.socket)) > HELD_MAX_BYTES);
    }
    answers.delete(response);
    response.end();
    return true;
  };
  return {
    sentBytes: () => sent,
    after: (bytes) => new Promise((go) => waiting.push({ bytes, go })),
    drop() {
      for (const answer of answers) answer.destroy();
    },
  };
}

/** Bytes of a connection of this host that the kernel has and its reader has not (proc_net_tcp: tx_queue, rx_queue). */
async function heldBytes({ localPort, remotePort }: Socket): Promise<number> {
  let held = 0;
  for (const line of (await readFile('/proc/net/tcp', 'utf8')).split('\n')) {
    const found = /^ *\d+: \w+:(\w+) \w+:(\w+) \w+ (\w+):(\w+)/.exec(line);
    if (found === null) continue;
    const [local, remote, sending, received] = found.slice(1).map((field) => Number.parseInt(field, 16));
    if (local === localPort && remote === remotePort) held += sending ?? 0;
    if (local === remotePort && remote === localPort) held += received ?? 0;
  }
  return held;
}
