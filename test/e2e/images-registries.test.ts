/** How the engine reaches registries: mirrors, proxies, insecure hosts, credentials, and every tag of a repository. */
import { once } from 'node:events';
import { mkdir, writeFile } from 'node:fs/promises';
import { createServer, request } from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import { hash } from 'bcrypt';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { busyboxImage, writeLayout } from '../fixtures/images.ts';
import {
  berth,
  type EngineProgram,
  type RegistryProgram,
  run,
  startEngine,
  startProgram,
  startRegistry,
  succeed,
} from '../fixtures/programs.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';

/** A name that only the proxy knows. */
const FAR = 'registry.test:5000';
const USER = { name: 'ann', password: 'secret of ann' };

let host: TestHost;
let registry: RegistryProgram;
let guarded: { readonly address: string };
let engine: EngineProgram;
let proxy: Proxy;
const undo = new AsyncDisposableStack();

beforeAll(async () => {
  host = undo.use(await testHost());
  registry = undo.use(await startRegistry(host));
  guarded = undo.use(await startGuardedRegistry(host));
  proxy = undo.use(await startProxy(registry.address));
  const layout = join(host.root, 'layout');
  await writeLayout(await busyboxImage(), layout);
  const copy = (to: string, ...args: readonly string[]) =>
    succeed('skopeo', ['copy', '-q', '--dest-tls-verify=false', ...args, `oci:${layout}:latest`, `docker://${to}`], {
      env: host.env,
    });
  for (const tag of ['1', '2']) await copy(`${registry.address}/library/mirrored:${tag}`);
  await copy(`${guarded.address}/private:1`, '--dest-creds', `${USER.name}:${USER.password}`);
  engine = undo.use(
    await startEngine(host, {
      args: [
        ...['--registry-mirrors', JSON.stringify({ 'docker.io': [`http://${registry.address}`] })],
        ...['--insecure-registries', FAR, '--http-proxy', proxy.url, '--no-proxy', 'elsewhere.test'],
      ],
      // By the other name, and with a password that must not be shown.
      env: { BERTH_ENGINE_HTTPS_PROXY: proxy.url.replace('//', '//user:hidden@') },
    }),
  );
});
afterAll(() => undo.disposeAsync());

const docker = (...args: readonly string[]) => run('docker', ['-H', engine.url, ...args], { env: host.env });

it('tells what is configured, without passwords', async () => {
  const info = JSON.parse((await docker('info', '--format', '{{json .}}')).stdout);
  expect(info).toMatchObject({
    HttpProxy: expect.stringMatching(/^http:\/\/127\.0\.0\.1:\d+\/?$/),
    NoProxy: 'elsewhere.test',
    RegistryConfig: {
      Mirrors: [`http://${registry.address}`],
      IndexConfigs: { [FAR]: { Secure: false }, 'docker.io': { Mirrors: [`http://${registry.address}`] } },
    },
  });
  expect(JSON.stringify(info)).not.toContain('hidden');
});

it('refuses a mirror that is no address', async () => {
  const args = ['--registry-mirrors', '{docker.io: [mirror.example/path]}'];
  await expect(startEngine(host, { name: 'refused', args })).rejects.toThrow(
    /cannot use --registry-mirrors: .*a mirror is https:/,
  );
});

it('pulls from a mirror of docker.io', async () => {
  expect((await docker('pull', 'mirrored:1')).stdout).toContain('Status: Downloaded newer image for mirrored:1');
  expect((await docker('images', '--format', '{{.Repository}}:{{.Tag}}', 'mirrored')).stdout).toBe('mirrored:1\n');
});

it('pulls every tag of a repository', async () => {
  const repository = `${registry.address}/library/mirrored`;
  expect(await berth(host, engine, ['pull', '--all-tags', repository])).toMatchObject({ code: 0 });
  const { stdout } = await docker('images', '--format', '{{.Tag}}', repository);
  expect(stdout.trim().split('\n').sort()).toEqual(['1', '2']);
  const none = await berth(host, engine, ['pull', '--all-tags', `${registry.address}/nothing/here`]);
  expect(none).toMatchObject({ code: 1, stderr: expect.stringContaining('nothing/here') });
});

it('goes through proxies, to a registry that speaks plain http', async () => {
  const { code, stderr } = await docker('pull', `${FAR}/library/mirrored:1`);
  expect(stderr).toBe('');
  expect(code).toBe(0);
  // First as https ought to be, then what the insecure registry speaks.
  expect(proxy.requests[0]).toBe(`CONNECT ${FAR}`);
  expect(proxy.requests).toContainEqual(expect.stringMatching(`^GET http://${FAR}/v2/library/mirrored/manifests/1`));
});

it('signs in with what the client sends', async () => {
  const image = `${guarded.address}/private:1`;
  // Not docker's client: it would ask for a password, and wait.
  const anonymous = await berth(host, engine, ['pull', image]);
  expect(anonymous).toMatchObject({ code: 1, stderr: expect.stringContaining('401') });
  const wrong = await docker('login', '-u', USER.name, '-p', 'wrong', guarded.address);
  expect(wrong).toMatchObject({ code: 1, stderr: expect.stringContaining('401') });
  expect((await docker('login', '-u', USER.name, '-p', USER.password, guarded.address)).stdout).toContain('Succeeded');
  expect(await docker('pull', '-q', image)).toMatchObject({ code: 0 });
  expect(await docker('tag', image, `${guarded.address}/again:1`)).toMatchObject({ code: 0 });
  expect(await docker('push', '-q', `${guarded.address}/again:1`)).toMatchObject({ code: 0 });
  await docker('logout', guarded.address);
  expect(await berth(host, engine, ['push', `${guarded.address}/again:1`])).toMatchObject({ code: 1 });
});

async function startGuardedRegistry(place: TestHost) {
  const directory = join(place.root, 'guarded');
  await mkdir(directory);
  const htpasswd = join(directory, 'htpasswd');
  await writeFile(htpasswd, `${USER.name}:${(await hash(USER.password, 4)).replace('$2b$', '$2y$')}\n`);
  const config = join(directory, 'config.json');
  await writeFile(
    config,
    JSON.stringify({
      version: '0.1',
      storage: { filesystem: { rootdirectory: join(directory, 'data') } },
      http: { addr: '127.0.0.1:0' },
      auth: { htpasswd: { realm: 'guarded', path: htpasswd } },
    }),
  );
  return await startProgram(place, {
    name: 'guarded',
    command: 'docker-registry',
    args: ['serve', config],
    ready: (program) => {
      const address = /listening on (127\.0\.0\.1:\d+)/.exec(program.output())?.[1];
      return address === undefined ? undefined : { ...program, address };
    },
  });
}

interface Proxy extends AsyncDisposable {
  readonly url: string;
  /** `GET http://…` and `CONNECT host:port`, in order. */
  readonly requests: string[];
}

/** A proxy for which every host is the one at `address`. */
async function startProxy(address: string): Promise<Proxy> {
  const [hostname = '', port = ''] = address.split(':');
  const requests: string[] = [];
  const server = createServer((incoming, outgoing) => {
    requests.push(`${incoming.method} ${incoming.url}`);
    const { pathname, search } = new URL(incoming.url ?? '');
    const { method, headers } = incoming;
    const onward = request({ hostname, port, method, headers, path: pathname + search }, (answer) => {
      outgoing.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(outgoing);
    });
    onward.once('error', () => outgoing.destroy());
    incoming.pipe(onward);
  });
  server.on('connect', (incoming, socket) => {
    requests.push(`CONNECT ${incoming.url}`);
    const onward = connect(Number(port), hostname, () => {
      socket.write('HTTP/1.1 200 Connected\r\n\r\n');
      socket.pipe(onward).pipe(socket);
    });
    socket.on('error', () => onward.destroy());
    onward.on('error', () => socket.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const bound = server.address();
  return {
    url: `http://127.0.0.1:${typeof bound === 'object' ? bound?.port : ''}`,
    requests,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}
