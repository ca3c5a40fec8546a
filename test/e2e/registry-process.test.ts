import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempDisposable, readdir, readlink } from 'node:fs/promises';
import { request as httpRequest } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { digestOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { ask, descriptorOf, manifestJson } from '../contract/registry-http.ts';
import { wireContract } from '../contract/registry-wire.ts';
import { type Place, type RegistryProgram, run, startRegistry } from '../fixtures/programs.ts';

const MAIN = join(import.meta.dirname, '../../registry/main.ts');

async function makePlace(): Promise<Place & AsyncDisposable> {
  const directory = await mkdtempDisposable(join(tmpdir(), 'berth-e2e-'));
  return {
    root: directory.path,
    runDir: join(directory.path, 'run'),
    env: { PATH: process.env.PATH, HOME: directory.path },
    [Symbol.asyncDispose]: () => directory.remove(),
  };
}

const urlOf = ({ address }: RegistryProgram) => `http://${address}`;

async function beginUpload(program: RegistryProgram, repository: string): Promise<string> {
  const begun = await ask(urlOf(program), 'POST', `/v2/${repository}/blobs/uploads/`);
  expect(begun.status).toBe(202);
  return begun.headers.location ?? '';
}

/** Bytes received, as the status of the upload says. */
async function offsetOf(program: RegistryProgram, path: string): Promise<number> {
  const status = await ask(urlOf(program), 'GET', path);
  expect(status.status).toBe(204);
  const last = Number(/^0-(\d+)$/.exec(status.headers.range ?? '')?.[1]);
  return last === 0 ? 0 : last + 1;
}

/** An upload that has sent its first bytes and keeps its connection open. */
async function sendPart(program: RegistryProgram, path: string, { bytes, total }: { bytes: Buffer; total: number }) {
  const request = httpRequest(new URL(path, urlOf(program)), {
    method: 'PATCH',
    headers: { 'content-length': String(total) },
    agent: false,
  });
  request.on('error', () => {});
  request.write(bytes);
  for (const deadline = Date.now() + 30_000; (await offsetOf(program, path)) === 0; )
    if (Date.now() > deadline) throw new Error('no byte of the upload arrived in time');
  return request;
}

wireContract('berth-registry as a process', async () => {
  const place = await makePlace();
  const program = await startRegistry(place);
  return {
    url: urlOf(program),
    async [Symbol.asyncDispose]() {
      await program[Symbol.asyncDispose]();
      await place[Symbol.asyncDispose]();
    },
  };
});

describe('the process', () => {
  it('keeps what it answered 201 for, and resumes an upload, after SIGKILL in the middle of it', async () => {
    await using place = await makePlace();
    const bytes = randomBytes(6 << 20);
    const manifest = manifestJson(descriptorOf('{}', MEDIA_TYPES.ociEmpty), []);
    let path: string;
    {
      await using program = await startRegistry(place);
      await ask(urlOf(program), 'POST', `/v2/r/blobs/uploads/?digest=${digestOf('{}')}`, { body: '{}' });
      const headers = { 'content-type': MEDIA_TYPES.ociManifest };
      expect((await ask(urlOf(program), 'PUT', '/v2/r/manifests/v1', { headers, body: manifest })).status).toBe(201);
      path = await beginUpload(program, 'r');
      const half = { bytes: bytes.subarray(0, bytes.length / 2), total: bytes.length };
      await sendPart(program, path, half);
      await program.end('SIGKILL');
    }
    await using program = await startRegistry(place);
    const kept = await ask(urlOf(program), 'GET', '/v2/r/manifests/v1');
    expect(kept.body.equals(manifest)).toBe(true);

    const offset = await offsetOf(program, path);
    expect(offset).toBeGreaterThan(0);
    expect(offset).toBeLessThanOrEqual(bytes.length / 2);
    const digest = digestOf(bytes);
    expect((await ask(urlOf(program), 'HEAD', `/v2/r/blobs/${digest}`)).status).toBe(404);
    const rest = { headers: { 'content-range': `${offset}-${bytes.length - 1}` }, body: bytes.subarray(offset) };
    expect((await ask(urlOf(program), 'PATCH', path, rest)).status).toBe(202);
    expect((await ask(urlOf(program), 'PUT', `${path}?digest=${digest}`)).status).toBe(201);
    expect((await ask(urlOf(program), 'GET', `/v2/r/blobs/${digest}`)).body.equals(bytes)).toBe(true);
  });

  it('drains on SIGTERM: what is being uploaded is taken, then it ends with 0', async () => {
    await using place = await makePlace();
    await using program = await startRegistry(place);
    const bytes = randomBytes(1 << 20);
    const path = await beginUpload(program, 'r');
    const request = await sendPart(program, path, { bytes: bytes.subarray(0, 700_000), total: bytes.length });
    const ending = program.end('SIGTERM');
    const refused = async () => {
      for (const deadline = Date.now() + 30_000; Date.now() < deadline; )
        try {
          await ask(urlOf(program), 'GET', '/v2/');
        } catch {
          return true;
        }
      return false;
    };
    expect(await refused()).toBe(true);
    request.end(bytes.subarray(700_000));
    const [response] = await once(request, 'response');
    expect(response.statusCode).toBe(202);
    expect(response.headers.range).toBe(`0-${bytes.length - 1}`);
    response.resume();
    expect(await ending).toBe(0);
  });

  it('closes the file of a pull whose client hung up in the middle', async () => {
    await using place = await makePlace();
    await using program = await startRegistry(place);
    const bytes = randomBytes(32 << 20);
    const digest = digestOf(bytes);
    await ask(urlOf(program), 'POST', `/v2/r/blobs/uploads/?digest=${digest}`, { body: bytes });
    for (let pull = 0; pull < 5; pull += 1) {
      const request = httpRequest(new URL(`/v2/r/blobs/${digest}`, urlOf(program)), { agent: false });
      request.end();
      const [response] = await once(request, 'response');
      await once(response, 'readable');
      response.destroy();
    }
    const openBlobs = async () => {
      const links = await readdir(`/proc/${program.pid}/fd`);
      const targets = await Promise.all(links.map((fd) => readlink(`/proc/${program.pid}/fd/${fd}`).catch(() => '')));
      return targets.filter((target) => target.includes('/blobs/'));
    };
    let open = await openBlobs();
    for (const deadline = Date.now() + 30_000; open.length > 0 && Date.now() < deadline; open = await openBlobs())
      await ask(urlOf(program), 'GET', '/v2/');
    expect(open).toEqual([]);
  });

  it('refuses a root that another registry serves, until that one has ended', async () => {
    await using place = await makePlace();
    const first = await startRegistry(place);
    const second = await run(process.execPath, [MAIN, 'serve', '--root', first.directory, '--listen', '127.0.0.1:0'], {
      env: place.env,
    });
    expect(second).toMatchObject({ code: 1, stdout: '' });
    expect(second.stderr).toMatch(/the registry with process id \d+ is using it; end that one, or .*--workers N/);
    await first.end('SIGKILL');
    await using third = await startRegistry(place);
    expect((await ask(urlOf(third), 'GET', '/v2/')).status).toBe(200);
  });

  it('prints its configuration, its help, and what is wrong with a command line', async () => {
    await using place = await makePlace();
    const call = (...args: readonly string[]) => run(process.execPath, [MAIN, ...args], { env: place.env });
    const printed = await call('serve', '--print-config', '--upload-ttl-ms', '1h');
    expect(printed).toMatchObject({ code: 0 });
    expect(printed.stdout).toContain('uploadTtlMs: 3600000');
    expect((await call('--help')).stdout).toContain('--anonymous-writes');
    for (const args of [[], ['dance'], ['serve', '--nonsense'], ['serve', '--listen', 'nowhere']]) {
      const wrong = await call(...args);
      expect(wrong.code).toBe(2);
      expect(wrong.stderr).toMatch(/^berth-registry: cannot .+\n$/);
    }
  });

  it('takes nothing in read-only mode, and serves what it has', async () => {
    await using place = await makePlace();
    const digest = digestOf('{}');
    {
      await using program = await startRegistry(place);
      await ask(urlOf(program), 'POST', `/v2/r/blobs/uploads/?digest=${digest}`, { body: '{}' });
    }
    await using program = await startRegistry(place, { args: ['--read-only'] });
    expect((await ask(urlOf(program), 'GET', `/v2/r/blobs/${digest}`)).status).toBe(200);
    for (const [method, path] of [
      ['POST', '/v2/r/blobs/uploads/'],
      ['PUT', '/v2/r/manifests/v1'],
      ['DELETE', `/v2/r/blobs/${digest}`],
      ['DELETE', '/v2/_berth/repositories/r'],
    ] as const) {
      const reply = await ask(urlOf(program), method, path);
      expect(reply).toMatchObject({ status: 405, codes: ['UNSUPPORTED'], headers: { allow: 'GET, HEAD' } });
      expect(reply.body.toString()).toContain('read-only mode');
    }
  });

  it('says who is in the way when its port is taken', async () => {
    await using place = await makePlace();
    await using program = await startRegistry(place);
    const args = [MAIN, 'serve', '--root', join(place.root, 'other'), '--listen', program.address];
    const second = await run(process.execPath, args, { env: place.env });
    expect(second.code).toBe(1);
    expect(second.stderr).toContain(`cannot listen on ${program.address}: something listens there already`);
  });
});
