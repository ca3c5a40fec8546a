/** The whole registry in this process, with users, tokens, a policy and quotas in files. */
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempDisposable, readdir, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { hash } from 'bcrypt';
import { SignJWT } from 'jose';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { PROGRAM } from '../../registry/config.ts';
import { startRegistry } from '../../registry/registry.ts';
import type { Route } from '../../registry/routes.ts';
import { loadConfig } from '../../shared/config.ts';
import { digestOf } from '../../shared/digest.ts';
import { createLog } from '../../shared/log.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { parseChallenges } from '../../shared/registry-auth.ts';
import { type Ask, ask, descriptorOf, manifestJson, type Reply } from './registry-http.ts';

const CONFIG = descriptorOf('{}', MEDIA_TYPES.ociEmpty);
const MANIFEST = manifestJson(CONFIG, []);
const DIGEST = digestOf(MANIFEST);

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const address = server.address();
  server.close();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

interface Running extends AsyncDisposable {
  readonly url: string;
  readonly root: string;
  readonly log: readonly Record<string, unknown>[];
  as(user: string | undefined, method: string, path: string, more?: Ask): Promise<Reply>;
}

const basic = (user: string) => `Basic ${Buffer.from(`${user}:secret`).toString('base64')}`;

async function start(policy: string, args: (url: string) => readonly string[] = () => []): Promise<Running> {
  await using undo = new AsyncDisposableStack();
  const directory = await mkdtempDisposable(join(tmpdir(), 'berth-users-'));
  undo.defer(() => directory.remove());
  const [root, port] = [directory.path, await freePort()];
  const secret = await hash('secret', 4);
  const names = ['ann', 'bob', 'carl'];
  await writeFile(join(root, 'users'), names.map((name) => `${name}:${secret}\n`).join(''));
  await writeFile(join(root, 'policy.yaml'), policy.replaceAll('HASH', secret));
  const url = `http://127.0.0.1:${port}`;
  const files = ['--password-file', join(root, 'users'), '--policy-file', join(root, 'policy.yaml')];
  const argv = ['--root', root, '--listen', `127.0.0.1:${port}`, ...files, ...args(url)];
  const { config } = loadConfig(PROGRAM, { argv, env: {} });
  const log: Record<string, unknown>[] = [];
  const destination = { write: (line: string) => void log.push(JSON.parse(line)) };
  const registry = await startRegistry({
    config,
    log: createLog({ component: 'registry', level: 'info', destination }),
    now: () => new Date(),
    randomId: () => crypto.randomUUID(),
  });
  undo.use(registry);
  const owned = undo.move();
  return {
    url,
    root,
    log,
    as: (user, method, path, { headers = {}, ...more } = {}) =>
      ask(url, method, path, { headers: { ...(user && { authorization: basic(user) }), ...headers }, ...more }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

const eventually = async (check: () => Promise<boolean>): Promise<void> => {
  const deadline = Date.now() + 20_000;
  while (!(await check())) {
    if (Date.now() > deadline) throw new Error('it did not happen in time');
    await sleep(50);
  }
};

async function push(registry: Running, user: string, name: string): Promise<Reply> {
  const [repository] = name.split(':');
  await registry.as(user, 'POST', `/v2/${repository}/blobs/uploads/?digest=${digestOf('{}')}`, { body: '{}' });
  return tag(registry, user, name, MANIFEST);
}

function tag(registry: Running, user: string, name: string, body: Buffer): Promise<Reply> {
  const [repository, reference] = name.split(':');
  return registry.as(user, 'PUT', `/v2/${repository}/manifests/${reference}`, {
    headers: { 'content-type': MEDIA_TYPES.ociManifest },
    body,
  });
}

const POLICY = `
groups: { writers: [ann, bob] }
robots:
  ci: { secretHash: HASH }
  late: { secretHash: HASH, expires: 2020-01-01 }
rules:
  - { to: [anyone], repositories: ["public/**"], may: [pull] }
  - { to: ["group:writers", "robot:ci", "robot:late"], repositories: ["**"], may: [pull, push] }
  - { to: ["user:ann"], repositories: ["**"], may: [tag-overwrite, delete] }
immutableTags: [{ repositories: ["**"], tags: ["v*"] }]
`;

describe('users and a policy', () => {
  let registry: Running;
  beforeAll(async () => {
    registry = await start(POLICY);
    for (const name of ['public/app:v1', 'private/app:v1']) await push(registry, 'ann', name);
  });
  afterAll(() => registry[Symbol.asyncDispose]());

  /** One row per kind of route: what it asks, and who may: nobody's name, carl without rights, bob, ann. */
  const blob = `/blobs/${digestOf('{}')}`;
  const rows: Record<Route['kind'], readonly (readonly [string, string, readonly number[]])[]> = {
    base: [['GET', '/v2/', [200, 200, 200, 200]]],
    extensions: [['GET', '/v2/_oci/ext/discover', [200, 200, 200, 200]]],
    repository: [
      ['DELETE', '/v2/_berth/repositories/private/app', [401, 403, 403, 403]],
      ['DELETE', '/v2/_berth/repositories/private/none', [401, 403, 403, 404]],
    ],
    catalog: [['GET', '/v2/_catalog', [200, 200, 200, 200]]],
    tags: [['GET', '/v2/private/app/tags/list', [401, 403, 200, 200]]],
    blob: [
      ['HEAD', `/v2/private/app${blob}`, [401, 403, 200, 200]],
      ['GET', `/v2/private/app${blob}`, [401, 403, 200, 200]],
      ['GET', `/v2/public/app${blob}`, [200, 200, 200, 200]],
      ['DELETE', `/v2/private/app${blob}`, [401, 403, 403, 405]],
    ],
    manifest: [
      ['HEAD', '/v2/private/app/manifests/v1', [401, 403, 200, 200]],
      ['GET', `/v2/private/app/manifests/${DIGEST}`, [401, 403, 200, 200]],
      ['GET', '/v2/public/app/manifests/v1', [200, 200, 200, 200]],
      ['PUT', '/v2/private/app/manifests/new', [401, 403, 400, 400]],
      ['PUT', '/v2/public/app/manifests/new', [401, 403, 400, 400]],
      ['DELETE', '/v2/private/app/manifests/none', [401, 403, 403, 404]],
      ['DELETE', '/v2/private/app/manifests/v1', [401, 403, 403, 403]],
      ['DELETE', `/v2/private/app/manifests/${DIGEST}`, [401, 403, 403, 403]],
    ],
    referrers: [['GET', `/v2/private/app/referrers/${DIGEST}`, [401, 403, 200, 200]]],
    uploads: [['POST', '/v2/private/app/blobs/uploads/', [401, 403, 202, 202]]],
    upload: [
      ['GET', '/v2/private/app/blobs/uploads/none', [401, 403, 404, 404]],
      ['PATCH', '/v2/private/app/blobs/uploads/none', [401, 403, 404, 404]],
      ['PUT', '/v2/private/app/blobs/uploads/none', [401, 403, 404, 404]],
      ['DELETE', '/v2/private/app/blobs/uploads/none', [401, 403, 404, 404]],
    ],
  };
  it.each(Object.values(rows).flat())('%s %s: %j', async (method, path, expected) => {
    const users = [undefined, 'carl', 'bob', 'ann'];
    const got = await Promise.all(users.map(async (user) => (await registry.as(user, method, path)).status));
    expect(got).toEqual(expected);
  });

  it('lists what one may pull', async () => {
    const list = async (user?: string) => JSON.parse(String((await registry.as(user, 'GET', '/v2/_catalog')).body));
    expect(await list()).toEqual({ repositories: ['public/app'] });
    expect(await list('bob')).toEqual({ repositories: ['private/app', 'public/app'] });
  });

  it('does not tell the names of other repositories by a Link of the catalog', async () => {
    const page = await registry.as(undefined, 'GET', '/v2/_catalog?n=1');
    expect(JSON.parse(String(page.body))).toEqual({ repositories: ['public/app'] });
    expect(page.headers.link).toBeUndefined();
    const first = await registry.as('bob', 'GET', '/v2/_catalog?n=1');
    expect(first.headers.link).toBe('</v2/_catalog?n=1&last=private%2Fapp>; rel="next"');
  });

  it('lets somebody create tags and not overwrite them, and nobody overwrite immutable ones (CVE-2026-31801)', async () => {
    const other = manifestJson(CONFIG, [], { annotations: { other: 'yes' } });
    expect((await tag(registry, 'bob', 'private/app:latest', MANIFEST)).status).toBe(201);
    expect(await tag(registry, 'bob', 'private/app:latest', other)).toMatchObject({ status: 403, codes: ['DENIED'] });
    expect((await tag(registry, 'ann', 'private/app:latest', other)).status).toBe(201);
    expect((await tag(registry, 'ann', 'private/app:v1', other)).status).toBe(403);
    expect((await registry.as('ann', 'DELETE', `/v2/private/app/manifests/${DIGEST}`)).status).toBe(403);
    expect((await registry.as('ann', 'HEAD', '/v2/private/app/manifests/v1')).headers['docker-content-digest']).toBe(
      DIGEST,
    );
  });

  it('mounts only what the caller may pull, and answers as if there were nothing (CVE-2024-39897)', async () => {
    const mount = `/v2/public/app/blobs/uploads/?mount=${digestOf('hidden')}&from=private/app`;
    await registry.as('ann', 'POST', `/v2/private/app/blobs/uploads/?digest=${digestOf('hidden')}`, { body: 'hidden' });
    expect((await registry.as('bob', 'POST', mount)).status).toBe(201);
    expect((await registry.as('carl', 'POST', mount)).status).toBe(403);
  });

  it('hides an upload from other users (CVE-2026-32589)', async () => {
    const begun = await registry.as('bob', 'POST', '/v2/private/app/blobs/uploads/');
    const path = begun.headers.location ?? '';
    expect((await registry.as('ann', 'GET', path)).codes).toEqual(['BLOB_UPLOAD_UNKNOWN']);
    expect((await registry.as('bob', 'GET', path.replace('private', 'public'))).status).toBe(404);
    expect((await registry.as('bob', 'DELETE', path)).status).toBe(204);
  });

  it('refuses wrong and expired credentials with a challenge', async () => {
    for (const [user, password] of [
      ['ann', 'wrong'],
      ['nobody', 'secret'],
      ['robot+late', 'secret'],
      ['ci', 'secret'],
    ]) {
      const authorization = `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
      const reply = await ask(registry.url, 'GET', '/v2/public/app/tags/list', { headers: { authorization } });
      expect(reply).toMatchObject({ status: 401, codes: ['UNAUTHORIZED'] });
      expect(reply.headers['www-authenticate']).toBe('Basic realm="berth-registry",charset="UTF-8"');
    }
    expect((await registry.as('robot+ci', 'GET', '/v2/private/app/tags/list')).status).toBe(200);
    const bearer = await ask(registry.url, 'GET', '/v2/', { headers: { authorization: 'Bearer x.y.z' } });
    expect(bearer.status).toBe(401);
  });

  it('warns that some clients log in only with tokens where strangers may pull', () => {
    expect(registry.log).toContainEqual(
      expect.objectContaining({ level: 'warn', msg: expect.stringContaining('set tokenRealm') }),
    );
  });

  it('shows metrics to whoever has a name', async () => {
    expect((await registry.as(undefined, 'GET', '/metrics')).status).toBe(401);
    expect((await registry.as('carl', 'GET', '/metrics')).status).toBe(200);
  });

  it('writes a line for each write and each refusal, and no password', async () => {
    await registry.as('carl', 'GET', '/v2/private/app/tags/list');
    await push(registry, 'ann', 'public/app:audited');
    const lines = registry.log.filter(({ component }) => component === 'audit');
    expect(lines.at(-1)).toMatchObject({
      msg: 'written',
      identity: 'ann',
      method: 'PUT',
      path: '/v2/public/app/manifests/audited',
      status: 201,
      digest: DIGEST,
      address: '127.0.0.1',
    });
    expect(lines).toContainEqual(expect.objectContaining({ msg: 'refused', identity: 'carl', status: 403 }));
    expect(JSON.stringify(registry.log)).not.toMatch(/secret|Basic [A-Za-z0-9]/);
  });
});

describe('changed files', () => {
  it('replace rights and users, and a broken one changes nothing (CVE-2025-23208)', async () => {
    await using registry = await start(POLICY);
    const status = async (user: string) => (await registry.as(user, 'GET', '/v2/private/app/tags/list')).status;
    await push(registry, 'ann', 'private/app:v1');
    expect(await status('bob')).toBe(200);

    await writeFile(join(registry.root, 'policy.yaml'), 'rules: [');
    await eventually(async () => registry.log.some(({ msg }) => String(msg).startsWith('changed file cannot be used')));
    expect(await status('bob')).toBe(200);

    const without = 'rules: [{ to: ["user:ann"], repositories: ["**"], may: [pull] }]';
    await writeFile(join(registry.root, 'policy.yaml'), without);
    await eventually(async () => (await status('bob')) === 403);
    expect(await status('ann')).toBe(200);

    await writeFile(join(registry.root, 'users'), `bob:${await hash('other', 4)}\n`);
    await eventually(async () => (await status('ann')) === 401);
    expect(await status('bob')).toBe(401);
  });
});

describe('tokens', () => {
  let registry: Running;
  beforeAll(async () => {
    registry = await start(POLICY, (url) => ['--token-realm', `${url}/auth/token`]);
    for (const name of ['public/app:v1', 'private/app:v1']) await push(registry, 'ann', name);
  });
  afterAll(() => registry[Symbol.asyncDispose]());

  const get = (query: string, user?: string) => registry.as(user, 'GET', `/auth/token?service=berth-registry&${query}`);
  const post = (fields: Record<string, string>) =>
    ask(registry.url, 'POST', '/auth/token', {
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body: new URLSearchParams({ service: 'berth-registry', client_id: 'test', ...fields }).toString(),
    });
  const json = (reply: Reply) => JSON.parse(String(reply.body));
  const withToken = (token: string, method: string, path: string) =>
    ask(registry.url, method, path, { headers: { authorization: `Bearer ${token}` } });

  it('are asked for by a challenge whose realm is the configured one, whatever the request says', async () => {
    const headers = { host: 'evil.example.com', 'x-forwarded-host': 'evil.example.com', 'x-forwarded-proto': 'https' };
    const reply = await ask(registry.url, 'GET', '/v2/private/app/tags/list', { headers });
    expect(reply.status).toBe(401);
    const [challenge] = parseChallenges(String(reply.headers['www-authenticate']));
    expect(Object.fromEntries(challenge?.parameters ?? [])).toEqual({
      realm: `${registry.url}/auth/token`,
      service: 'berth-registry',
      scope: 'repository:private/app:pull',
    });
    expect((await ask(registry.url, 'GET', '/v2/')).status).toBe(401);
  });

  it('cover what is asked and allowed, no more', async () => {
    const answer = json(await get('scope=repository:private/app:pull,push,delete&scope=registry:catalog:*', 'bob'));
    expect(answer.scope).toBe('repository:private/app:pull,push registry:catalog:*');
    expect(answer.token).toBe(answer.access_token);
    expect(answer.expires_in).toBe(300);
    expect((await withToken(answer.token, 'GET', '/v2/private/app/tags/list')).status).toBe(200);
    // bob may, this token may not: another one would help.
    const other = await withToken(answer.token, 'GET', '/v2/public/app/tags/list');
    expect(other.status).toBe(401);
    expect(other.headers['www-authenticate']).toContain(
      'scope="repository:public/app:pull",error="insufficient_scope"',
    );
    // bob may not, so no token would help.
    expect((await withToken(answer.token, 'DELETE', '/v2/private/app/manifests/v1')).status).toBe(403);
  });

  it('for the catalog list what their holder may pull', async () => {
    const { token } = json(await get('scope=registry:catalog:*', 'bob'));
    const listed = json(await withToken(token, 'GET', '/v2/_catalog'));
    expect(listed).toEqual({ repositories: ['private/app', 'public/app'] });
    expect((await withToken(token, 'GET', '/v2/private/app/tags/list')).status).toBe(401);
  });

  it('are given without a name for what strangers may pull', async () => {
    const { token, scope } = json(await get('scope=repository:public/app:pull&scope=repository:private/app:pull'));
    expect(scope).toBe('repository:public/app:pull');
    expect((await withToken(token, 'GET', '/v2/')).status).toBe(200);
    expect((await withToken(token, 'GET', '/v2/public/app/manifests/v1')).status).toBe(200);
    expect((await withToken(token, 'GET', '/v2/private/app/manifests/v1')).status).toBe(401);
  });

  it('are given by POST for a password, then for the refresh token, which is stored as a hash', async () => {
    const scope = 'repository:private/app:pull';
    const login = json(
      await post({ grant_type: 'password', username: 'bob', password: 'secret', access_type: 'offline', scope }),
    );
    expect(login.refresh_token).toHaveLength(43);
    const again = json(await post({ grant_type: 'refresh_token', refresh_token: login.refresh_token, scope }));
    expect(again).toMatchObject({ scope, refresh_token: login.refresh_token });
    expect((await withToken(again.access_token, 'GET', '/v2/private/app/tags/list')).status).toBe(200);
    const offline = json(await get('offline_token=true&account=bob', 'bob'));
    expect(offline.refresh_token).toHaveLength(43);
    for (const fields of [
      { refresh_token: 'x'.repeat(43) },
      { refresh_token: login.refresh_token, service: 'elsewhere' },
      { refresh_token: '' },
    ])
      expect([401, 403]).toContain((await post({ grant_type: 'refresh_token', ...fields })).status);
    expect((await post({ grant_type: 'authorization_code' })).status).toBe(400);
    expect((await post({ grant_type: 'password', username: 'bob', password: 'wrong' })).status).toBe(401);
    // A token is no password: it would buy wider ones.
    const trade = await withToken(again.access_token, 'GET', '/auth/token?scope=repository:public/app:pull');
    expect(trade.status).toBe(401);
  });

  it('stay valid when the keys rotate, and new ones are signed by the new key', async () => {
    const before = json(await get('scope=repository:public/app:pull')).token;
    const kidOf = (token: string) => JSON.parse(String(Buffer.from(token.split('.')[0] ?? '', 'base64url'))).kid;
    const { rotateSigningKeys } = await import('../../registry/access/signing-keys.ts');
    const directory = join(registry.root, 'token-keys');
    const kid = await rotateSigningKeys(directory, () => new Date());
    await eventually(async () => kidOf(json(await get('')).token) === kid);
    expect((await withToken(before, 'GET', '/v2/')).status).toBe(200);
    await rotateSigningKeys(directory, () => new Date());
    expect(await readdir(directory)).toHaveLength(2);
    await eventually(async () => (await withToken(before, 'GET', '/v2/')).status === 401);
  });

  it('end with the account, and so do its refresh tokens with its password', async () => {
    const { token } = json(await get('scope=repository:private/app:pull', 'bob'));
    const login = json(
      await post({ grant_type: 'password', username: 'ann', password: 'secret', access_type: 'offline' }),
    );
    await writeFile(join(registry.root, 'users'), `ann:${await hash('changed', 4)}\n`);
    await eventually(async () => (await withToken(token, 'GET', '/v2/private/app/tags/list')).status === 401);
    const refresh = await post({ grant_type: 'refresh_token', refresh_token: login.refresh_token });
    expect(refresh.status).toBe(401);
  });
});

describe('tokens of an outside issuer', () => {
  it('say what the policy cannot know, but move no immutable tag', async () => {
    const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const directory = await mkdtempDisposable(join(tmpdir(), 'berth-issuer-'));
    const keys = join(directory.path, 'jwks.json');
    await writeFile(keys, JSON.stringify({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'one' }] }));
    await using registry = await start(POLICY, () => [
      '--outside-issuer',
      'https://issuer.example.com',
      '--outside-keys-file',
      keys,
      '--token-realm',
      'https://issuer.example.com/token',
      '--token-service',
      'registry.example.com',
    ]);
    await push(registry, 'ann', 'private/app:v1');
    const tokenFor = (actions: readonly string[], audience = 'registry.example.com') =>
      new SignJWT({ access: [{ type: 'repository', name: 'private/app', actions }] })
        .setProtectedHeader({ alg: 'RS256', kid: 'one' })
        .setIssuer('https://issuer.example.com')
        .setAudience(audience)
        .setSubject('ann')
        .setExpirationTime('5m')
        .sign(privateKey);
    const send = (token: string, method: string, path: string, more: Ask = {}) =>
      ask(registry.url, method, path, {
        ...more,
        headers: { authorization: `Bearer ${token}`, 'content-type': MEDIA_TYPES.ociManifest },
      });
    const token = await tokenFor(['pull', 'push']);
    expect((await send(token, 'GET', '/v2/private/app/tags/list')).status).toBe(200);
    const other = manifestJson(CONFIG, [], { annotations: { other: 'yes' } });
    expect((await send(token, 'PUT', '/v2/private/app/manifests/new', { body: other })).status).toBe(201);
    expect((await send(token, 'PUT', '/v2/private/app/manifests/v1', { body: other })).status).toBe(403);
    // Its `ann` is not ours, who may delete.
    const refused = await send(token, 'DELETE', '/v2/private/app/manifests/new');
    expect(refused.status).toBe(401);
    expect(refused.headers['www-authenticate']).toMatch(
      /^Bearer realm="https:\/\/issuer\.example\.com\/token",.*insufficient_scope/,
    );
    expect((await send(await tokenFor(['pull'], 'elsewhere'), 'GET', '/v2/')).status).toBe(401);
    expect((await ask(registry.url, 'GET', '/auth/token')).status).toBe(404);
    await directory.remove();
  });
});

describe('options that contradict each other', () => {
  it.each([
    [['--outside-issuer', 'i'], 'belong together'],
    [['--outside-issuer', 'i', '--outside-keys-file', '/none'], 'needs tokenRealm'],
    [['--token-realm', 'registry.example.com'], 'no web address'],
    [['--token-realm', 'https://a"b/'], 'no web address'],
    [['--token-service', 'a b'], 'spaces'],
    [['--token-life-ms', '30s'], '60 seconds'],
    [['--policy-file', '/none/policy'], 'cannot read "/none/policy"'],
    [['--tls-key-file', '/none'], 'together'],
    [['--tls-key-file', '/none', '--tls-certificate-file', '/none'], 'cannot use certificate "/none"'],
  ])('%j', async (args, message) => {
    await expect(start(POLICY, () => args)).rejects.toThrow(message);
  });
});

describe('limits', () => {
  it('make a guesser wait, and say how long', async () => {
    await using registry = await start(POLICY, () => ['--failed-logins-per-minute', '3']);
    const guess = (password: string) =>
      ask(registry.url, 'GET', '/v2/', {
        headers: { authorization: `Basic ${Buffer.from(`ann:${password}`).toString('base64')}` },
      });
    for (const password of ['a', 'b', 'c']) expect((await guess(password)).status).toBe(401);
    const refused = await guess('secret');
    expect(refused).toMatchObject({ status: 429, codes: ['TOOMANYREQUESTS'] });
    expect(Number(refused.headers['retry-after'])).toBeGreaterThan(10);
  });

  it('count requests by name and by address', async () => {
    await using registry = await start(POLICY, () => [
      '--requests-per-minute',
      '2',
      '--anonymous-requests-per-minute',
      '1',
    ]);
    const statuses = async (user: string | undefined) => {
      const replies = [];
      for (let count = 0; count < 3; count++) replies.push((await registry.as(user, 'GET', '/v2/')).status);
      return replies;
    };
    expect(await statuses('ann')).toEqual([200, 200, 429]);
    expect(await statuses('bob')).toEqual([200, 200, 429]);
    expect(await statuses(undefined)).toEqual([200, 429, 429]);
  });

  it('keep a repository within its quota, to the byte, and say how much there is', async () => {
    const size = 2 + MANIFEST.length;
    await using registry = await start(`${POLICY}quotas: [{ repositories: ["private/**"], maxBytes: ${size} }]\n`);
    const upload = (repository: string, text: string) =>
      registry.as('ann', 'POST', `/v2/${repository}/blobs/uploads/?digest=${digestOf(text)}`, { body: text });
    expect((await push(registry, 'ann', 'private/app:v1')).status).toBe(201);
    // What is there costs nothing again.
    expect((await push(registry, 'ann', 'private/app:again')).status).toBe(201);
    const more = await upload('private/app', 'x');
    expect(more).toMatchObject({ status: 403, codes: ['DENIED'] });
    expect(JSON.parse(String(more.body)).errors[0].detail).toEqual({
      usedBytes: size,
      wantedBytes: 1,
      quotaBytes: size,
    });
    expect((await registry.as('ann', 'HEAD', `/v2/private/app/blobs/${digestOf('x')}`)).status).toBe(404);
    // Nothing of it is kept.
    expect(await readdir(join(registry.root, 'blobs', 'sha256'))).toHaveLength(1);
    expect((await upload('elsewhere', 'x')).status).toBe(201);
    const mount = `/v2/private/app/blobs/uploads/?mount=${digestOf('x')}&from=elsewhere`;
    expect((await registry.as('ann', 'POST', mount)).status).toBe(403);
    // A manifest counts as well, and what is deleted is free again.
    const larger = manifestJson(CONFIG, [], { annotations: { more: 'yes' } });
    expect((await tag(registry, 'ann', 'private/app:larger', larger)).status).toBe(403);
    expect((await push(registry, 'ann', 'private/other:new')).status).toBe(201);
    expect((await registry.as('ann', 'DELETE', `/v2/private/other/manifests/${DIGEST}`)).status).toBe(202);
    expect((await upload('private/other', 'y'.repeat(MANIFEST.length))).status).toBe(201);
    expect((await upload('private/other', 'z')).status).toBe(403);
  });
});
