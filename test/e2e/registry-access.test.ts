/** The sample configurations of deploy/registry, each started as it is, under the clients of others. */
import { createHash, X509Certificate } from 'node:crypto';
import { copyFile, mkdir, mkdtempDisposable, readdir, readFile, writeFile } from 'node:fs/promises';
import { createServer as createHttpServer } from 'node:http';
import { type AgentOptions, request as httpsRequest } from 'node:https';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, type TLSSocket } from 'node:tls';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ask } from '../contract/registry-http.ts';
import { buildImage, buildLayer, type Image, writeLayout } from '../fixtures/images.ts';
import { type RegistryProgram, run, startRegistry, succeed } from '../fixtures/programs.ts';

const SAMPLES = join(import.meta.dirname, '../../deploy/registry');
const MAIN = join(import.meta.dirname, '../../registry/main.ts');

let stack: AsyncDisposableStack;
let root: string;
let env: NodeJS.ProcessEnv;
let image: Image;
let large: Image;

beforeAll(async () => {
  stack = new AsyncDisposableStack();
  const directory = await mkdtempDisposable(join(tmpdir(), 'berth-access-'));
  stack.defer(() => directory.remove());
  root = directory.path;
  const authFile = join(root, 'auth.json');
  await writeFile(authFile, '{}');
  env = { PATH: process.env.PATH, HOME: root, XDG_RUNTIME_DIR: join(root, 'run'), REGISTRY_AUTH_FILE: authFile };
  image = buildImage({ layers: [buildLayer([{ name: 'file', content: 'x' }])] });
  await writeLayout(image, join(root, 'layout'));
  // Bytes that do not compress: above the quota of the sample.
  const blocks = Array.from({ length: 24_000 }, (_, index) => createHash('sha512').update(String(index)).digest());
  const content = Buffer.concat(blocks);
  large = buildImage({ layers: [buildLayer([{ name: 'large', content }], 'none')] });
  await writeLayout(large, join(root, 'large'));
});
afterAll(() => stack.disposeAsync());
beforeEach(() => writeFile(join(root, 'auth.json'), '{}'));

const tool = (command: string, ...args: readonly string[]) => succeed(command, args, { env });
const attempt = async (command: string, ...args: readonly string[]) => {
  const { code, stdout, stderr } = await run(command, args, { env });
  return { code, text: stdout + stderr };
};
const oci = (name: string) => `oci:${join(root, name)}:latest`;

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const address = server.address();
  server.close();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

/** Starts a sample with its own words; only where it listens and where its files are is the test's. */
async function startSample(name: string, moved: Readonly<Record<string, string>> = {}): Promise<RegistryProgram> {
  const port = await freePort();
  const etc = join(root, `etc-${name}`);
  await mkdir(etc, { recursive: true });
  const move = (text: string) =>
    text.replaceAll('/etc/berth', etc).replaceAll(/(0\.0\.0\.0|127\.0\.0\.1):5000/g, `127.0.0.1:${port}`);
  const movedBy = (text: string) =>
    Object.entries(moved).reduce((all, [from, to]) => all.replaceAll(from, to), move(text));
  for (const file of await readdir(SAMPLES))
    await writeFile(join(etc, file), movedBy(await readFile(join(SAMPLES, file), 'utf8')));
  for (const file of ['registry.crt', 'registry.key'])
    if ((await readdir(root)).includes(file)) await copyFile(join(root, file), join(etc, file));
  const users = ['ann', 'bob', 'carl'].map((user) =>
    succeed(process.execPath, [MAIN, 'hash-password', user], { env, input: `${user}-secret\n` }),
  );
  await writeFile(join(etc, 'users'), (await Promise.all(users)).join(''));
  const config = ['--config', join(etc, `${name}.yaml`), '--listen', `127.0.0.1:${port}`];
  return startRegistry({ root, runDir: join(root, 'run'), env }, { name: `registry-${name}`, args: config });
}

describe('users.yaml', () => {
  let registry: RegistryProgram;
  beforeAll(async () => {
    registry = stack.use(await startSample('users'));
  });
  const login = (command: string, password: string) =>
    attempt(command, 'login', '--tls-verify=false', '-u', 'ann', '-p', password, registry.address);
  const copy = (...more: readonly string[]) =>
    attempt(
      'skopeo',
      '--insecure-policy',
      'copy',
      '-q',
      '--dest-tls-verify=false',
      ...more,
      oci('layout'),
      `docker://${registry.address}/app:v1`,
    );

  it.each(['skopeo', 'podman', 'buildah'])('%s logs in with the right password only', async (command) => {
    expect((await login(command, 'wrong')).text).toMatch(/invalid username\/password|unauthorized/i);
    expect(await login(command, 'ann-secret')).toMatchObject({ code: 0 });
  });

  it('docker logs in, and keeps a refresh token in place of the password', async () => {
    const config = join(root, 'docker');
    const dockerLogin = (password: string) =>
      run(
        'docker',
        [
          '--config',
          config,
          '-H',
          `unix://${root}/none.sock`,
          'login',
          '-u',
          'ann',
          '--password-stdin',
          registry.address,
        ],
        {
          env,
          input: password,
        },
      );
    expect((await dockerLogin('wrong')).code).not.toBe(0);
    const { code, stdout, stderr } = await dockerLogin('ann-secret');
    expect(stdout + stderr).toContain('Login Succeeded');
    expect(code).toBe(0);
    const { auths } = JSON.parse(await readFile(join(config, 'config.json'), 'utf8'));
    const kept = auths[registry.address];
    expect(Buffer.from(kept.auth, 'base64').toString()).not.toContain('ann-secret');
    expect(kept.identitytoken).toHaveLength(43);

    const address = `http://${registry.address}/auth/token`;
    const redeem = () =>
      ask(address, 'POST', address, {
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
        body: `grant_type=refresh_token&service=berth-registry&client_id=test&refresh_token=${kept.identitytoken}`,
      });
    expect((await redeem()).status).toBe(200);
    const said = await tool(process.execPath, MAIN, 'tokens', 'revoke', 'ann', '--root', registry.directory);
    expect(said).toMatch(/^\d+ refresh tokens of "ann" revoked/);
    expect((await redeem()).status).toBe(401);
  });

  it('skopeo pushes and pulls with a password and not without', async () => {
    expect((await copy()).text).toMatch(/denied|unauthorized/);
    expect(await copy('--dest-creds', 'ann:ann-secret')).toMatchObject({ code: 0 });
    const inspect = ['inspect', '--tls-verify=false', `docker://${registry.address}/app:v1`];
    expect((await attempt('skopeo', ...inspect)).code).not.toBe(0);
    expect(await attempt('skopeo', ...inspect, '--creds', 'bob:bob-secret')).toMatchObject({ code: 0 });
  });

  it('curl gets a token and pulls with it', async () => {
    const url = `http://${registry.address}`;
    const answer = await tool('curl', '-sf', '-u', 'ann:ann-secret', `${url}/auth/token?scope=repository:app:pull`);
    const { token } = JSON.parse(answer);
    const manifest = `${url}/v2/app/manifests/v1`;
    expect(await tool('curl', '-sf', '-H', `Authorization: Bearer ${token}`, manifest)).toBe(image.manifest.toString());
    expect((await attempt('curl', '-sf', manifest)).code).toBe(22);
  });
});

describe('policy.yaml and rules.yaml', () => {
  let registry: RegistryProgram;
  beforeAll(async () => {
    registry = stack.use(await startSample('policy'));
  });
  const push = (creds: string, name: string, from = 'layout') =>
    attempt(
      'skopeo',
      '--insecure-policy',
      'copy',
      '-q',
      '--dest-tls-verify=false',
      '--dest-creds',
      creds,
      oci(from),
      `docker://${registry.address}/${name}`,
    );

  it('lets developers and robots push, and strangers pull what is public', async () => {
    expect(await push('bob:bob-secret', 'public/app:v1')).toMatchObject({ code: 0 });
    expect(await push('robot+ci:secret', 'team/app:build')).toMatchObject({ code: 0 });
    expect((await push('carl:carl-secret', 'team/app:mine')).code).not.toBe(0);
    const inspect = (name: string) =>
      attempt('skopeo', 'inspect', '--tls-verify=false', `docker://${registry.address}/${name}`);
    expect(await inspect('public/app:v1')).toMatchObject({ code: 0 });
    expect((await inspect('team/app:build')).text).toMatch(/unauthorized|denied|authentication required/i);
  });

  it('keeps immutable tags from being moved or deleted (CVE-2026-31801, PROJQUAY-10504)', async () => {
    await push('ann:ann-secret', 'public/fixed:v1');
    expect((await push('ann:ann-secret', 'public/fixed:v1', 'large')).text).toMatch(/denied/i);
    const remove = [
      'delete',
      '--tls-verify=false',
      '--creds',
      'ann:ann-secret',
      `docker://${registry.address}/public/fixed:v1`,
    ];
    expect((await attempt('skopeo', ...remove)).code).not.toBe(0);
    expect(
      await attempt('skopeo', 'inspect', '--tls-verify=false', `docker://${registry.address}/public/fixed:v1`),
    ).toMatchObject({ code: 0 });
  });

  it('refuses what is above the quota, and says how much there is', async () => {
    expect((await push('bob:bob-secret', 'team/quota:v1', 'large')).text).toMatch(/quota of 1048576 bytes/);
    expect(await push('bob:bob-secret', 'team/large/app:v1', 'large')).toMatchObject({ code: 0 });
  });
});

describe('webhooks.yaml', () => {
  it('tells the receiver of a push, also one that starts later', async () => {
    const port = await freePort();
    const etc = join(root, 'etc-webhooks');
    await mkdir(etc, { recursive: true });
    await writeFile(join(etc, 'webhook-secret'), 'sixteen bytes or more\n');
    const registry = stack.use(await startSample('webhooks', { '127.0.0.1:8080': `127.0.0.1:${port}` }));
    const target = `docker://${registry.address}/team/app:v1`;
    await tool('skopeo', '--insecure-policy', 'copy', '-q', '--dest-tls-verify=false', oci('layout'), target);
    const { promise, resolve } = Promise.withResolvers<string>();
    const receiver = createHttpServer(async (request, response) => {
      resolve(String(await buffer(request)));
      response.end();
    }).listen(port, '127.0.0.1');
    stack.defer(() => void receiver.close());
    const [event] = JSON.parse(await promise).events;
    expect(event).toMatchObject({ action: 'push', target: { repository: 'team/app', tag: 'v1' } });
  });
});

describe('tls.yaml', () => {
  let registry: RegistryProgram;
  const certificate = async (name: string, ...more: readonly string[]) => {
    const [key, csr, crt] = ['key', 'csr', 'crt'].map((extension) => join(root, `${name}.${extension}`));
    await tool(
      'openssl',
      'req',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-subj',
      `/CN=${name}`,
      '-keyout',
      String(key),
      '-out',
      String(csr),
    );
    const extensions = join(root, `${name}.ext`);
    await writeFile(extensions, 'subjectAltName=IP:127.0.0.1\n');
    await tool(
      'openssl',
      'x509',
      '-req',
      '-in',
      String(csr),
      '-days',
      '1',
      '-extfile',
      extensions,
      '-out',
      String(crt),
      ...more,
    );
  };
  const signedByUs = () => ['-CA', join(root, 'ca.crt'), '-CAkey', join(root, 'ca.key'), '-CAcreateserial'];
  const certDirectory = () => join(root, 'certs');

  beforeAll(async () => {
    await tool(
      'openssl',
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-days',
      '1',
      '-subj',
      '/CN=ca',
      '-keyout',
      join(root, 'ca.key'),
      '-out',
      join(root, 'ca.crt'),
    );
    await certificate('registry', ...signedByUs());
    await mkdir(certDirectory());
    await copyFile(join(root, 'ca.crt'), join(certDirectory(), 'ca.crt'));
    registry = stack.use(await startSample('tls'));
  });

  const push = (...more: readonly string[]) =>
    attempt('skopeo', '--insecure-policy', 'copy', '-q', ...more, oci('layout'), `docker://${registry.address}/app:v1`);

  it('is trusted by those who trust its authority', async () => {
    expect((await push()).text).toMatch(/certificate signed by unknown authority/);
    // Nobody may write beyond loopback without a name unless it is configured; this test is on loopback.
    expect(await push('--dest-cert-dir', certDirectory())).toMatchObject({ code: 0 });
    const storage = ['--root', join(root, 'podman'), '--runroot', join(root, 'podman-run'), '--storage-driver', 'vfs'];
    await tool('podman', ...storage, 'pull', '-q', '--cert-dir', certDirectory(), `${registry.address}/app:v1`);
    const url = `https://${registry.address}/v2/app/manifests/v1`;
    expect(await tool('curl', '-sf', '--cacert', join(root, 'ca.crt'), url)).toBe(image.manifest.toString());
    expect((await attempt('curl', '-sf', `http://${registry.address}/v2/`)).code).not.toBe(0);
  });

  const openSocket = async (options: AgentOptions = {}): Promise<TLSSocket> => {
    const [host, port] = registry.address.split(':');
    const socket = connect({
      host: String(host),
      port: Number(port),
      ca: await readFile(join(root, 'ca.crt')),
      ...options,
    });
    await new Promise((resolve, reject) => socket.once('secureConnect', resolve).once('error', reject));
    return socket;
  };

  it('takes a new certificate for new connections and goes on with the old ones', async () => {
    const etc = join(root, 'etc-tls');
    const old = await openSocket();
    const before = old.getPeerX509Certificate()?.serialNumber;
    await certificate('renewed', ...signedByUs());
    await copyFile(join(root, 'renewed.key'), join(etc, 'registry.key'));
    await copyFile(join(root, 'renewed.crt'), join(etc, 'registry.crt'));
    const { serialNumber } = new X509Certificate(await readFile(join(root, 'renewed.crt')));
    expect(serialNumber).not.toBe(before);
    const deadline = Date.now() + 30_000;
    for (;;) {
      const fresh = await openSocket();
      const isRenewed = fresh.getPeerX509Certificate()?.serialNumber === serialNumber;
      fresh.destroy();
      if (isRenewed) break;
      if (Date.now() > deadline) throw new Error('the certificate was not renewed in time');
      await sleep(100);
    }
    const answer = new Promise<string>((resolve, reject) => {
      old
        .setEncoding('utf8')
        .once('data', resolve)
        .once('close', () => reject(new Error('closed')));
    });
    old.write(`GET /v2/ HTTP/1.1\r\nHost: ${registry.address}\r\n\r\n`);
    expect(await answer).toMatch(/^HTTP\/1\.1 200 /);
    old.destroy();
  });

  it('lets in only clients with a certificate, if it is told so', async () => {
    await certificate('client', ...signedByUs());
    await using guarded = await startRegistry(
      { root, runDir: join(root, 'run'), env },
      {
        name: 'registry-mutual',
        args: [
          '--tls-certificate-file',
          join(root, 'registry.crt'),
          '--tls-key-file',
          join(root, 'registry.key'),
          '--tls-client-ca-file',
          join(root, 'ca.crt'),
        ],
      },
    );
    const ca = await readFile(join(root, 'ca.crt'));
    const status = (more: AgentOptions) =>
      new Promise<number | undefined>((resolve, reject) => {
        httpsRequest(`https://${guarded.address}/v2/`, { ca, ...more, agent: false }, (response) => {
          response.resume();
          resolve(response.statusCode);
        })
          .on('error', reject)
          .end();
      });
    await expect(status({})).rejects.toThrow();
    const own = { cert: await readFile(join(root, 'client.crt')), key: await readFile(join(root, 'client.key')) };
    expect(await status(own)).toBe(200);
  });
});
