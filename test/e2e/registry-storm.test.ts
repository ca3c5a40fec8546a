/** Pushes, collection, scrub and sudden death all at once: what was answered 201 stays, and nothing dangles. */
import { randomBytes } from 'node:crypto';
import { mkdtempDisposable } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { digestOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { ask, descriptorOf, manifestJson, type Reply } from '../contract/registry-http.ts';
import { type RegistryProgram, run, startRegistry } from '../fixtures/programs.ts';

const MAIN = join(import.meta.dirname, '../../registry/main.ts');
const STORM_MS = 30_000;
const CLIENTS = 8;
const KILLS = 20;
/** Each as a part of STORM_MS. Most kills follow one another closely; a few leave time for the lease of a dead collector. */
const SHORT_GAP_MAX = 1 / 40;
const LONG_GAP_MIN = 1 / 10;
const LONG_GAP_EVERY = 4;
/** Shorter than a push under load, so that collection really meets pushes; clients then push again. */
const UPKEEP = [
  ...['--gc-grace-ms', '300ms', '--gc-interval-ms', '50ms', '--upload-ttl-ms', '2s', '--gc-untagged'],
  ...['--scrub-interval-ms', '1ms', '--scrub-bytes-per-second', '0'],
];

it(
  'survives a storm of pushes with collection and SIGKILL',
  async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), 'berth-storm-'));
    const place = {
      root: directory.path,
      runDir: join(directory.path, 'run'),
      env: { PATH: process.env.PATH, HOME: directory.path },
    };
    let program: RegistryProgram = await startRegistry(place, { args: UPKEEP });
    await using undo = new AsyncDisposableStack();
    undo.defer(() => program[Symbol.asyncDispose]());
    const stop = Date.now() + STORM_MS;
    const pushed = new Map<string, Buffer>();
    let output = '';

    /** undefined = the registry died under the request. */
    const tryAsk = async (...[method, path, options]: [string, string, Parameters<typeof ask>[3]?]) => {
      try {
        return await ask(`http://${program.address}`, method, path, options);
      } catch {
        return undefined;
      }
    };
    const succeeded = (reply: Reply | undefined) => reply !== undefined && reply.status < 300;

    const pushOnce = async (repository: string, tag: string): Promise<void> => {
      const layer = randomBytes(50_000);
      const shared = Buffer.from('a layer that everybody pushes');
      for (const bytes of [layer, shared, Buffer.from('{}')]) {
        const path = `/v2/${repository}/blobs/uploads/?digest=${digestOf(bytes)}`;
        if (!succeeded(await tryAsk('POST', path, { body: bytes }))) return;
      }
      const layers = [descriptorOf(layer, MEDIA_TYPES.ociLayer), descriptorOf(shared, MEDIA_TYPES.ociLayer)];
      const manifest = manifestJson(descriptorOf('{}', MEDIA_TYPES.ociEmpty), layers);
      const headers = { 'content-type': MEDIA_TYPES.ociManifest };
      const path = `/v2/${repository}/manifests/${tag}`;
      if (!succeeded(await tryAsk('PUT', path, { headers, body: manifest }))) return;
      pushed.set(path, manifest);
      // Half of them become garbage again. A removal that got no answer may have happened or not: nothing is asked of it.
      if (randomBytes(1).readUInt8() % 2 === 0) {
        pushed.delete(path);
        await tryAsk('DELETE', path);
      }
    };
    const client = async (number: number) => {
      for (let round = 0; Date.now() < stop; round += 1) await pushOnce(`storm/c${number % 2}`, `t${number}-${round}`);
    };
    const killer = async () => {
      for (let kill = 1; kill <= KILLS; kill += 1) {
        const share = kill % LONG_GAP_EVERY === 0 ? LONG_GAP_MIN : Math.random() * SHORT_GAP_MAX;
        await delay(share * STORM_MS);
        output += program.output();
        await program.end('SIGKILL');
        program = await startRegistry(place, { args: UPKEEP });
      }
    };
    await Promise.all([killer(), ...Array.from({ length: CLIENTS }, (_, number) => client(number))]);

    output += program.output();
    // It was not only pushes.
    expect(output).toContain('garbage collected');
    expect(output).toContain('blobs scrubbed');
    expect(output).not.toContain('blob quarantined');
    expect(pushed.size).toBeGreaterThan(CLIENTS);
    for (const [path, manifest] of pushed) {
      const reply = await ask(`http://${program.address}`, 'GET', path);
      expect([path, reply.status]).toEqual([path, 200]);
      expect(reply.body.equals(manifest)).toBe(true);
      const document: { layers: { digest: string }[] } = JSON.parse(manifest.toString());
      for (const { digest } of document.layers) {
        const blob = await ask(`http://${program.address}`, 'GET', `${path.replace(/manifests.*/, 'blobs')}/${digest}`);
        expect(digestOf(blob.body)).toBe(digest);
      }
    }
    expect(await program.end('SIGTERM')).toBe(0);

    const call = (...args: readonly string[]) =>
      run(
        process.execPath,
        [MAIN, ...args, '--root', program.directory, '--upload-ttl-ms', '0s', '--gc-grace-ms', '0s'],
        {
          env: place.env,
        },
      );
    const before = await call('fsck');
    expect(before).toMatchObject({ code: 0, stdout: expect.stringMatching(/^0 broken, /m) });
    const planned = await call('gc', '--dry-run');
    const done = await call('gc');
    expect(done.code).toBe(0);
    expect(planned.stdout.replaceAll('would remove', 'removed').replaceAll('would free', 'freed')).toBe(done.stdout);
    expect(await call('fsck')).toMatchObject({ code: 0, stdout: '0 broken, 0 orphans\n' });
    expect(await call('scrub')).toMatchObject({ code: 0 });
  },
  4 * STORM_MS,
);
