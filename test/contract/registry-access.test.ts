import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Access, Action, Decision } from '../../registry/access/access.ts';
import { createOpenAccess } from '../../registry/access/open-access.ts';
import { digestOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { type Ask, ask, descriptorOf, manifestJson, type RunningRegistry } from './registry-http.ts';
import { startMemoryRegistry } from './registry-memory.ts';

/** Users by header, rights by a function that each test sets: what is tested is which questions the wire asks. */
describe('every route asks decide() about what it really does', () => {
  let registry: RunningRegistry;
  let refuses: (user: string, action: Action) => boolean;
  let asked: Action[];

  const access: Access = {
    async authenticate({ headers }) {
      const user = String(headers['x-user'] ?? '');
      return { id: user || 'anonymous', isAnonymous: user === '' };
    },
    decide({ id, isAnonymous }, action): Decision {
      asked.push(action);
      if (!refuses(id, action)) return { allowed: true };
      const challenge = isAnonymous ? 'Bearer realm="https://example.com/token",service="s"' : undefined;
      return { allowed: false, reason: `${id} may not ${action.kind}`, challenge };
    },
  };

  beforeEach(async () => {
    asked = [];
    refuses = () => false;
    registry = await startMemoryRegistry(access);
  });
  afterEach(async () => {
    await registry[Symbol.asyncDispose]();
  });

  const send = (method: string, path: string, { headers = {}, ...rest }: Ask = {}) =>
    ask(registry.url, method, path, { headers: { 'x-user': 'ann', ...headers }, ...rest });
  const pushBlob = (repository: string, text: string) =>
    send('POST', `/v2/${repository}/blobs/uploads/?digest=${digestOf(text)}`, { body: text });
  const manifest = (text: string) =>
    manifestJson(descriptorOf('{}', MEDIA_TYPES.ociEmpty), [], { annotations: { text } });
  const push = async (tag: string, text: string) => {
    await pushBlob('r', '{}');
    return send('PUT', `/v2/r/manifests/${tag}`, {
      headers: { 'content-type': MEDIA_TYPES.ociManifest },
      body: manifest(text),
    });
  };

  it('asks the action of each route', async () => {
    const digest = digestOf('{}');
    await push('v1', 'one');
    const rows: readonly (readonly [string, string, Action])[] = [
      ['GET', '/v2/', { kind: 'probe' }],
      ['GET', '/v2/_oci/ext/discover', { kind: 'probe' }],
      ['GET', '/v2/_catalog', { kind: 'catalog' }],
      ['GET', '/metrics', { kind: 'metrics' }],
      ['GET', '/v2/r/tags/list', { kind: 'pull', repository: 'r' }],
      ['GET', `/v2/r/referrers/${digest}`, { kind: 'pull', repository: 'r' }],
      ['HEAD', '/v2/r/manifests/v1', { kind: 'pull', repository: 'r' }],
      ['GET', '/v2/r/manifests/v1', { kind: 'pull', repository: 'r' }],
      ['HEAD', `/v2/r/blobs/${digest}`, { kind: 'pull', repository: 'r' }],
      ['GET', `/v2/r/blobs/${digest}`, { kind: 'pull', repository: 'r' }],
      ['DELETE', `/v2/r/blobs/${digest}`, { kind: 'delete', repository: 'r' }],
      ['DELETE', '/v2/r/manifests/v1', { kind: 'delete', repository: 'r' }],
      ['DELETE', '/v2/_berth/repositories/r', { kind: 'delete', repository: 'r' }],
      ['POST', '/v2/r/blobs/uploads/', { kind: 'push', repository: 'r' }],
      ['GET', '/v2/r/blobs/uploads/x', { kind: 'push', repository: 'r' }],
      ['PATCH', '/v2/r/blobs/uploads/x', { kind: 'push', repository: 'r' }],
      ['PUT', '/v2/r/blobs/uploads/x', { kind: 'push', repository: 'r' }],
      ['DELETE', '/v2/r/blobs/uploads/x', { kind: 'push', repository: 'r' }],
      ['PUT', '/v2/r/manifests/v2', { kind: 'push', repository: 'r' }],
    ];
    for (const [method, path, action] of rows) {
      asked = [];
      refuses = () => true;
      expect([method, path, (await send(method, path)).status]).toEqual([method, path, 403]);
      expect(asked).toEqual([action]);
    }
  });

  it('challenges whoever has no name', async () => {
    refuses = () => true;
    const reply = await ask(registry.url, 'GET', '/v2/');
    expect(reply).toMatchObject({ status: 401, codes: ['UNAUTHORIZED'] });
    expect(reply.headers['www-authenticate']).toBe('Bearer realm="https://example.com/token",service="s"');
  });

  it('judges an overwrite of a tag as an overwrite (CVE-2026-31801)', async () => {
    refuses = (_user, { kind }) => kind === 'tag-overwrite';
    expect((await push('latest', 'one')).status).toBe(201);
    expect((await push('latest', 'one')).status).toBe(201);
    expect(await push('latest', 'two')).toMatchObject({ status: 403, codes: ['DENIED'] });
    const get = await send('GET', '/v2/r/manifests/latest');
    expect(get.body.equals(manifest('one'))).toBe(true);
    expect((await send('GET', `/v2/r/manifests/${digestOf(manifest('two'))}`)).status).toBe(404);
    const byDigest = await send('PUT', `/v2/r/manifests/${digestOf(manifest('two'))}?tag=latest`, {
      headers: { 'content-type': MEDIA_TYPES.ociManifest },
      body: manifest('two'),
    });
    expect(byDigest.status).toBe(403);
  });

  it('refuses deletes by tag and digest alike (CVE-2026-41888)', async () => {
    refuses = (_user, { kind }) => kind === 'delete';
    await push('v1', 'one');
    for (const path of [
      '/v2/r/manifests/v1',
      `/v2/r/manifests/${digestOf(manifest('one'))}`,
      `/v2/r/blobs/${digestOf('{}')}`,
    ])
      expect((await send('DELETE', path)).status).toBe(403);
    expect((await send('HEAD', '/v2/r/manifests/v1')).status).toBe(200);
  });

  it('keeps an immutable tag from a delete by digest (PROJQUAY-10504)', async () => {
    refuses = (_user, action) => action.kind === 'tag-delete' && action.tag === 'v1';
    await push('v1', 'one');
    await push('other', 'one');
    expect((await send('DELETE', `/v2/r/manifests/${digestOf(manifest('one'))}`)).status).toBe(403);
    expect((await send('DELETE', '/v2/r/manifests/v1')).status).toBe(403);
    expect((await send('HEAD', '/v2/r/manifests/other')).status).toBe(200);
    expect((await send('DELETE', '/v2/r/manifests/other')).status).toBe(202);
  });

  it('mounts nothing from where the caller may not pull, and does not tell (CVE-2024-39897)', async () => {
    await pushBlob('secret', 'private');
    refuses = (_user, action) => action.kind === 'pull' && action.repository === 'secret';
    for (const from of ['', '&from=secret', '&from=absent']) {
      const reply = await send('POST', `/v2/mine/blobs/uploads/?mount=${digestOf('private')}${from}`);
      expect(reply.status).toBe(202);
      expect(reply.body).toHaveLength(0);
    }
    expect((await send('GET', `/v2/mine/blobs/${digestOf('private')}`)).status).toBe(404);
  });

  it('shows an upload session to its owner only (CVE-2026-32589)', async () => {
    const begun = await send('POST', '/v2/r/blobs/uploads/');
    const path = begun.headers.location ?? '';
    await send('PATCH', path, { body: 'secret' });
    for (const method of ['GET', 'PATCH', 'PUT', 'DELETE'])
      expect(
        await send(method, `${path}?digest=${digestOf('secret')}`, { headers: { 'x-user': 'bob' } }),
      ).toMatchObject({
        status: 404,
        codes: ['BLOB_UPLOAD_UNKNOWN'],
      });
    expect((await send('PUT', `${path}?digest=${digestOf('secret')}`)).status).toBe(201);
  });

  it('lists only repositories that the caller may pull', async () => {
    await push('v1', 'one');
    refuses = (_user, action) => action.kind === 'list' && action.repository === 'r';
    expect(JSON.parse((await send('GET', '/v2/_catalog')).body.toString())).toEqual({ repositories: [] });
  });
});

describe('access without users', () => {
  it('refuses anonymous writes where they are not allowed, and serves reads', async () => {
    await using registry = await startMemoryRegistry(createOpenAccess({ anonymousWrites: false }));
    for (const [method, path] of [
      ['POST', '/v2/r/blobs/uploads/'],
      ['DELETE', '/v2/r/manifests/v1'],
      ['PUT', '/v2/r/manifests/v1'],
    ] as const)
      expect(await ask(registry.url, method, path)).toMatchObject({ status: 403, codes: ['DENIED'] });
    expect((await ask(registry.url, 'GET', '/v2/')).status).toBe(200);
    expect((await ask(registry.url, 'GET', '/v2/_catalog')).status).toBe(200);
  });
});
