/**
 * The wire contract of the registry, over plain HTTP: every row of the endpoint table, in the shape of the upstream
 * conformance suite. Runs against a registry in this process and against the real program.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
 */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { request as httpRequest } from 'node:http';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DIGEST_ALGORITHMS, type Digest, type DigestAlgorithm, digestOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import {
  type Ask,
  ask,
  descriptorOf,
  indexJson,
  manifestJson,
  type Reply,
  type RunningRegistry,
} from './registry-http.ts';

export function wireContract(name: string, start: () => Promise<RunningRegistry>): void {
  describe(`wire contract: ${name}`, () => {
    let registry: RunningRegistry;
    let counter = 0;
    beforeAll(async () => {
      registry = await start();
    });
    afterAll(async () => {
      await registry[Symbol.asyncDispose]();
    });

    const send = (method: string, path: string, options?: Ask) => ask(registry.url, method, path, options);
    /** A repository that no other test knows. */
    const fresh = () => {
      counter += 1;
      return `wire/r${counter}`;
    };
    const location = (reply: Reply) => {
      expect(reply.headers.location).toBeDefined();
      return reply.headers.location ?? '';
    };
    const withDigest = (path: string, digest: Digest) => `${path}${path.includes('?') ? '&' : '?'}digest=${digest}`;
    const begin = async (repository: string, query = '') => {
      const reply = await send('POST', `/v2/${repository}/blobs/uploads/${query}`, {
        headers: { 'content-length': '0' },
      });
      expect(reply.status).toBe(202);
      return location(reply);
    };
    const pushBlob = async (repository: string, bytes: Buffer | string, algorithm: DigestAlgorithm = 'sha256') => {
      const digest = digestOf(bytes, algorithm);
      const reply = await send('POST', `/v2/${repository}/blobs/uploads/?digest=${digest}`, { body: bytes });
      expect(reply.status).toBe(201);
      return digest;
    };
    const putManifest = (
      repository: string,
      reference: string,
      bytes: Buffer,
      type: string = MEDIA_TYPES.ociManifest,
    ) => send('PUT', `/v2/${repository}/manifests/${reference}`, { headers: { 'content-type': type }, body: bytes });
    /** Pushes config and layer, answers a manifest that refers to them. */
    const image = async (repository: string, layer: string, more: object = {}) => {
      await pushBlob(repository, '{}');
      await pushBlob(repository, layer);
      const config = descriptorOf('{}', MEDIA_TYPES.ociEmpty);
      return manifestJson(config, [descriptorOf(layer, MEDIA_TYPES.ociLayer)], more);
    };
    const expectBlob = async (repository: string, digest: Digest, bytes: Buffer | string) => {
      const path = `/v2/${repository}/blobs/${digest}`;
      const head = await send('HEAD', path);
      expect(head.status).toBe(200);
      expect(head.headers).toMatchObject({
        'content-length': String(Buffer.byteLength(bytes)),
        'docker-content-digest': digest,
      });
      const get = await send('GET', path);
      expect(get.status).toBe(200);
      expect(get.headers['docker-content-digest']).toBe(digest);
      expect(get.body.equals(Buffer.from(bytes))).toBe(true);
    };

    describe('end-1: base', () => {
      it('answers 200 and names the API', async () => {
        const reply = await send('GET', '/v2/');
        expect(reply.status).toBe(200);
        expect(reply.headers['docker-distribution-api-version']).toBe('registry/2.0');
      });

      it('answers 404 and 405 with an error body of known codes', async () => {
        expect(await send('GET', '/v2/nothing/here')).toMatchObject({ status: 404, codes: ['UNSUPPORTED'] });
        expect(await send('GET', '/')).toMatchObject({ status: 404, codes: ['UNSUPPORTED'] });
        const wrong = await send('POST', '/v2/a/tags/list');
        expect(wrong).toMatchObject({ status: 405, codes: ['UNSUPPORTED'] });
        expect(wrong.headers.allow).toBe('GET');
      });

      it('refuses names that are none, decoded or not', async () => {
        for (const path of ['/v2/UPPER/tags/list', '/v2/a%2f..%2fb/tags/list', '/v2/a%00b/tags/list'])
          expect(await send('GET', path)).toMatchObject({ status: 400, codes: ['NAME_INVALID'] });
      });

      it('lists no extensions', async () => {
        expect(JSON.parse((await send('GET', '/v2/_oci/ext/discover')).body.toString())).toEqual({ extensions: [] });
      });
    });

    describe.each(DIGEST_ALGORITHMS)('end-4, 5, 6: uploads with %s', (algorithm) => {
      const content = () => randomBytes(3000);

      it('POST alone', async () => {
        const [repository, bytes] = [fresh(), content()];
        const digest = digestOf(bytes, algorithm);
        const reply = await send('POST', `/v2/${repository}/blobs/uploads/?digest=${digest}`, { body: bytes });
        expect(reply.status).toBe(201);
        expect(location(reply)).toBe(`/v2/${repository}/blobs/${digest}`);
        expect(reply.headers['docker-content-digest']).toBe(digest);
        await expectBlob(repository, digest, bytes);
      });

      it('POST, then PUT', async () => {
        const [repository, bytes] = [fresh(), content()];
        const digest = digestOf(bytes, algorithm);
        const reply = await send('PUT', withDigest(await begin(repository), digest), { body: bytes });
        expect(reply.status).toBe(201);
        await expectBlob(repository, digest, bytes);
      });

      it('POST with digest-algorithm, then PUT', async () => {
        const [repository, bytes] = [fresh(), content()];
        const digest = digestOf(bytes, algorithm);
        const path = await begin(repository, `?digest-algorithm=${algorithm}`);
        expect((await send('PATCH', path, { body: bytes })).status).toBe(202);
        expect((await send('PUT', withDigest(path, digest))).status).toBe(201);
        await expectBlob(repository, digest, bytes);
      });

      it.each([1, 3])('%i chunks, then an empty PUT', async (chunks) => {
        const [repository, bytes] = [fresh(), content()];
        const digest = digestOf(bytes, algorithm);
        let path = await begin(repository);
        const step = bytes.length / chunks;
        for (let at = 0; at < bytes.length; at += step) {
          const headers = { 'content-range': `${at}-${at + step - 1}`, 'content-type': 'application/octet-stream' };
          const reply = await send('PATCH', path, { headers, body: bytes.subarray(at, at + step) });
          expect(reply.status).toBe(202);
          expect(reply.headers.range).toBe(`0-${at + step - 1}`);
          path = location(reply);
        }
        expect((await send('PUT', withDigest(path, digest))).status).toBe(201);
        await expectBlob(repository, digest, bytes);
      });

      it('chunks with the last one in the PUT', async () => {
        const [repository, bytes] = [fresh(), content()];
        const digest = digestOf(bytes, algorithm);
        const path = await begin(repository);
        await send('PATCH', path, { headers: { 'content-range': '0-999' }, body: bytes.subarray(0, 1000) });
        const headers = { 'content-range': '1000-2999' };
        const reply = await send('PUT', withDigest(path, digest), { headers, body: bytes.subarray(1000) });
        expect(reply.status).toBe(201);
        await expectBlob(repository, digest, bytes);
      });

      it('a stream without length, then an empty PUT', async () => {
        const [repository, bytes] = [fresh(), content()];
        const digest = digestOf(bytes, algorithm);
        const path = await begin(repository);
        const reply = await send('PATCH', path, { body: [bytes.subarray(0, 10), bytes.subarray(10)] });
        expect(reply.status).toBe(202);
        expect((await send('PUT', withDigest(path, digest))).status).toBe(201);
        await expectBlob(repository, digest, bytes);
      });

      it('the empty blob', async () => {
        const repository = fresh();
        await expectBlob(repository, await pushBlob(repository, '', algorithm), '');
        const path = await begin(repository);
        expect((await send('PUT', withDigest(path, digestOf('', algorithm)))).status).toBe(201);
      });

      it('refuses a wrong digest in every way and shows nothing', async () => {
        const repository = fresh();
        const wrong = digestOf(randomBytes(9), algorithm);
        const refused = { status: 400, codes: ['DIGEST_INVALID'] };
        const post = await send('POST', `/v2/${repository}/blobs/uploads/?digest=${wrong}`, { body: content() });
        expect(post).toMatchObject(refused);
        expect(await send('PUT', withDigest(await begin(repository), wrong), { body: content() })).toMatchObject(
          refused,
        );
        const path = await begin(repository);
        await send('PATCH', path, { body: content() });
        expect(await send('PUT', withDigest(path, wrong))).toMatchObject(refused);
        expect((await send('GET', path)).status).toBe(404);
        expect((await send('HEAD', `/v2/${repository}/blobs/${wrong}`)).status).toBe(404);
      });

      it('refuses chunks out of order and tells where to go on', async () => {
        const [repository, bytes] = [fresh(), content()];
        const digest = digestOf(bytes, algorithm);
        const path = await begin(repository);
        const late = { headers: { 'content-range': '1000-2999' }, body: bytes.subarray(1000) };
        const first = { headers: { 'content-range': '0-999' }, body: bytes.subarray(0, 1000) };
        expect(await send('PATCH', path, late)).toMatchObject({ status: 416, codes: ['BLOB_UPLOAD_INVALID'] });
        expect((await send('PATCH', path, first)).status).toBe(202);
        const again = await send('PATCH', path, first);
        expect(again.status).toBe(416);
        expect(again.headers).toMatchObject({ range: '0-999', location: path });
        const status = await send('GET', path);
        expect(status).toMatchObject({ status: 204, headers: { range: '0-999', location: path } });
        expect((await send('PUT', withDigest(path, digest), first)).status).toBe(416);
        expect((await send('PUT', withDigest(path, digest), late)).status).toBe(201);
        await expectBlob(repository, digest, bytes);
      });
    });

    describe('end-5, 6, 13, 14: upload sessions', () => {
      it('tells the status of a session, and that of an empty one as 0-0', async () => {
        const path = await begin(fresh());
        expect(await send('GET', path)).toMatchObject({ status: 204, headers: { range: '0-0', location: path } });
        await send('PATCH', path, { body: 'abc' });
        expect((await send('GET', path)).headers.range).toBe('0-2');
      });

      it('goes on after the connection broke in the middle of a chunk', async () => {
        const [repository, bytes] = [fresh(), randomBytes(300_000)];
        const path = await begin(repository);
        const cut = httpRequest(new URL(path, registry.url), {
          method: 'PATCH',
          headers: { 'content-length': String(bytes.length) },
          agent: false,
        });
        cut.on('error', () => {});
        await new Promise<void>((resolve, reject) => {
          cut.write(bytes.subarray(0, 200_000), (error) => (error == null ? resolve() : reject(error)));
        });
        cut.destroy();
        // PATCH waits its turn behind the broken request, so what it says then is final.
        const probe = await send('PATCH', path, { headers: { 'content-range': '999999-999999' }, body: 'x' });
        expect(probe.status).toBe(416);
        const offset = Number(/^0-(\d+)$/.exec(probe.headers.range ?? '')?.[1]) + 1;
        expect(offset).toBeLessThanOrEqual(200_000);
        const start = offset === 1 ? 0 : offset;
        const rest = bytes.subarray(start);
        const headers = { 'content-range': `${start}-${bytes.length - 1}` };
        expect((await send('PATCH', path, { headers, body: rest })).status).toBe(202);
        const digest = digestOf(bytes);
        expect((await send('PUT', withDigest(path, digest))).status).toBe(201);
        await expectBlob(repository, digest, bytes);
      });

      it('cancels with 204 and forgets the session', async () => {
        const path = await begin(fresh());
        await send('PATCH', path, { body: 'abc' });
        expect((await send('DELETE', path)).status).toBe(204);
        for (const method of ['GET', 'PATCH', 'DELETE'])
          expect(await send(method, path)).toMatchObject({ status: 404, codes: ['BLOB_UPLOAD_UNKNOWN'] });
      });

      it('refuses a chunk whose length is not that of its range, and a range that is none', async () => {
        const path = await begin(fresh());
        const lying = await send('PATCH', path, { headers: { 'content-range': '0-9' }, body: 'abc' });
        expect(lying).toMatchObject({ status: 400, codes: ['SIZE_INVALID'] });
        const strange = await send('PATCH', path, { headers: { 'content-range': 'bytes 0-2/3' }, body: 'abc' });
        expect(strange).toMatchObject({ status: 416, codes: ['BLOB_UPLOAD_INVALID'] });
      });

      it('refuses a PUT without digest, with an unknown algorithm, and a compressed body', async () => {
        const repository = fresh();
        const path = await begin(repository);
        expect(await send('PUT', path)).toMatchObject({ status: 400, codes: ['DIGEST_INVALID'] });
        expect(await send('PUT', `${path}?digest=md5:${'0'.repeat(32)}`)).toMatchObject({
          status: 400,
          codes: ['DIGEST_INVALID'],
        });
        expect(await send('POST', `/v2/${repository}/blobs/uploads/?digest-algorithm=md5`)).toMatchObject({
          status: 400,
          codes: ['DIGEST_INVALID'],
        });
        const gzip = await send('PATCH', path, { headers: { 'content-encoding': 'gzip' }, body: 'abc' });
        expect(gzip).toMatchObject({ status: 415, codes: ['UNSUPPORTED'] });
      });

      it('does not show a session to another repository (CVE-2026-32589)', async () => {
        const [mine, other] = [fresh(), fresh()];
        const path = await begin(mine);
        await send('PATCH', path, { body: 'secret' });
        const stolen = path.replace(mine, other);
        for (const method of ['GET', 'PATCH', 'PUT', 'DELETE'])
          expect((await send(method, withDigest(stolen, digestOf('secret')))).status).toBe(404);
        expect((await send('GET', path)).headers.range).toBe('0-5');
      });
    });

    describe('end-11: mounts', () => {
      it('mounts from a named repository, and from any without one', async () => {
        const [source, named, anonymous] = [fresh(), fresh(), fresh()];
        const digest = await pushBlob(source, `mounted ${source}`);
        for (const [to, query] of [
          [named, `&from=${source}`],
          [anonymous, ''],
        ]) {
          const reply = await send('POST', `/v2/${to}/blobs/uploads/?mount=${digest}${query}`);
          expect(reply.status).toBe(201);
          expect(location(reply)).toBe(`/v2/${to}/blobs/${digest}`);
          await expectBlob(to ?? '', digest, `mounted ${source}`);
        }
      });

      it('falls back to an upload when there is nothing to mount', async () => {
        const repository = fresh();
        for (const from of ['', '&from=nowhere']) {
          const reply = await send('POST', `/v2/${repository}/blobs/uploads/?mount=${digestOf(repository)}${from}`);
          expect(reply.status).toBe(202);
          const put = await send('PUT', withDigest(location(reply), digestOf(repository)), { body: repository });
          expect(put.status).toBe(201);
        }
      });

      it('serves no blob through a repository that has no link to it (CVE-2024-39897)', async () => {
        const digest = await pushBlob(fresh(), 'private bytes');
        const other = fresh();
        for (const method of ['GET', 'HEAD', 'DELETE'])
          expect((await send(method, `/v2/${other}/blobs/${digest}`)).status).toBe(404);
      });
    });

    describe('end-2: blob ranges', () => {
      const bytes = randomBytes(2048);
      const get = async (range: string, headers: Record<string, string> = {}) => {
        const digest = await pushBlob('wire/ranges', bytes);
        return send('GET', `/v2/wire/ranges/blobs/${digest}`, { headers: { range, ...headers } });
      };

      it.each([
        ['bytes=500-1499', 500, 1499],
        ['bytes=500-', 500, 2047],
        ['bytes=-500', 1548, 2047],
        ['bytes=2000-5000', 2000, 2047],
        ['bytes=0-0', 0, 0],
      ])('%s', async (range, start, end) => {
        const reply = await get(range);
        expect(reply.status).toBe(206);
        expect(reply.headers['content-range']).toBe(`bytes ${start}-${end}/2048`);
        expect(reply.headers['content-length']).toBe(String(end - start + 1));
        expect(reply.body.equals(bytes.subarray(start, end + 1))).toBe(true);
      });

      it.each(['bytes=500-0', 'bytes=5000-10000', 'bytes=2048-'])('%s is 416', async (range) => {
        const reply = await get(range);
        expect(reply.status).toBe(416);
        expect(reply.headers['content-range']).toBe('bytes */2048');
      });

      it('sends several parts as multipart/byteranges', async () => {
        const reply = await get('bytes=0-9,100-199,-10');
        expect(reply.status).toBe(206);
        const boundary = /^multipart\/byteranges; boundary=(.+)$/.exec(reply.headers['content-type'] ?? '')?.[1];
        const parts = reply.body.toString('latin1').split(`--${boundary}`);
        expect(parts).toHaveLength(5);
        expect(parts.at(-1)).toBe('--\r\n');
        for (const [position, [start, end]] of [
          [0, 9],
          [100, 199],
          [2038, 2047],
        ].entries()) {
          const [head = '', ...rest] = (parts[position + 1] ?? '').split('\r\n\r\n');
          expect(head).toContain(`Content-Range: bytes ${start}-${end}/2048`);
          const body = rest.join('\r\n\r\n').slice(0, -2);
          expect(body).toBe(bytes.subarray(start, (end ?? 0) + 1).toString('latin1'));
        }
        expect(reply.headers['content-length']).toBe(String(reply.body.length));
      });

      it('joins parts that touch, and sends the whole blob for more parts than it takes', async () => {
        expect((await get('bytes=0-9,10-19')).headers['content-range']).toBe('bytes 0-19/2048');
        const many = Array.from({ length: 40 }, (_, i) => `${i * 10}-${i * 10}`).join(',');
        expect((await get(`bytes=${many}`)).status).toBe(200);
      });

      it('honours If-Range and If-None-Match', async () => {
        const etag = `"${digestOf(bytes)}"`;
        expect((await get('bytes=0-9', { 'if-range': etag })).status).toBe(206);
        expect((await get('bytes=0-9', { 'if-range': '"other"' })).status).toBe(200);
        const cached = await get('', { 'if-none-match': etag });
        expect(cached).toMatchObject({ status: 304, body: Buffer.alloc(0) });
      });

      it('gives browsers nothing to run', async () => {
        const repository = fresh();
        const digest = await pushBlob(repository, '<script>alert(1)</script>');
        expect((await send('GET', `/v2/${repository}/blobs/${digest}`)).headers).toMatchObject({
          'content-type': 'application/octet-stream',
          'x-content-type-options': 'nosniff',
          'content-disposition': 'attachment',
          'content-security-policy': "default-src 'none'; sandbox",
        });
      });

      it('stops when the client hangs up, and serves the next one', async () => {
        const repository = fresh();
        const large = randomBytes(8 << 20);
        const digest = await pushBlob(repository, large);
        const request = httpRequest(new URL(`/v2/${repository}/blobs/${digest}`, registry.url), { agent: false });
        request.end();
        const [response] = await once(request, 'response');
        await once(response, 'readable');
        response.destroy();
        await expectBlob(repository, digest, large);
      });
    });

    describe('end-3, 7: manifests', () => {
      it('answers the exact bytes and type by tag and digest, and 304 for what is known', async () => {
        const repository = fresh();
        const bytes = Buffer.from(`${(await image(repository, 'layer')).toString()}  \n`);
        const digest = digestOf(bytes);
        const put = await putManifest(repository, 'v1', bytes);
        expect(put.status).toBe(201);
        expect(put.headers).toMatchObject({
          'docker-content-digest': digest,
          location: `/v2/${repository}/manifests/${digest}`,
        });
        for (const reference of ['v1', digest]) {
          const path = `/v2/${repository}/manifests/${reference}`;
          const get = await send('GET', path, { headers: { accept: 'text/html' } });
          expect(get.status).toBe(200);
          expect(get.body.equals(bytes)).toBe(true);
          expect(get.headers).toMatchObject({
            'content-type': MEDIA_TYPES.ociManifest,
            'docker-content-digest': digest,
            etag: `"${digest}"`,
          });
          const head = await send('HEAD', path);
          expect(head.status).toBe(200);
          expect(head.headers['content-length']).toBe(String(bytes.length));
          expect(head.headers['content-type']).toBe(MEDIA_TYPES.ociManifest);
          const cached = await send('GET', path, { headers: { 'if-none-match': `W/"x", "${digest}"` } });
          expect(cached).toMatchObject({ status: 304, body: Buffer.alloc(0) });
        }
      });

      it('answers 404 for what is not there, and 400 for references that are none', async () => {
        const repository = fresh();
        for (const reference of ['nothing', digestOf('nothing')])
          expect(await send('GET', `/v2/${repository}/manifests/${reference}`)).toMatchObject({
            status: 404,
            codes: ['MANIFEST_UNKNOWN'],
          });
        expect((await putManifest(repository, 'sha256:baddigeststring', Buffer.from('{}'))).status).toBe(400);
        expect((await send('GET', `/v2/${repository}/manifests/sha256:baddigeststring`)).status).toBe(400);
        expect((await putManifest(repository, '.bad', Buffer.from('{}'))).status).toBe(400);
      });

      it('takes sha512 references', async () => {
        const repository = fresh();
        const config = await pushBlob(repository, '{}', 'sha512');
        const bytes = manifestJson({ mediaType: MEDIA_TYPES.ociEmpty, digest: config, size: 2 }, []);
        const digest = digestOf(bytes, 'sha512');
        const put = await send('PUT', `/v2/${repository}/manifests/${digest}?tag=v512`, {
          headers: { 'content-type': MEDIA_TYPES.ociManifest },
          body: bytes,
        });
        expect(put.status).toBe(201);
        expect(put.headers['docker-content-digest']).toBe(digest);
        expect((await send('GET', `/v2/${repository}/manifests/v512`)).headers['docker-content-digest']).toBe(digest);
      });

      it('refuses a digest that is not that of the body', async () => {
        const repository = fresh();
        const bytes = await image(repository, 'x');
        expect(await putManifest(repository, digestOf('other'), bytes)).toMatchObject({
          status: 400,
          codes: ['DIGEST_INVALID'],
        });
      });

      it('sets tags on a push by digest and names them (end-7b)', async () => {
        const repository = fresh();
        const bytes = await image(repository, 'x');
        const tags = Array.from({ length: 12 }, (_, i) => `t${i}`);
        const query = tags.map((tag) => `tag=${tag}`).join('&');
        const push = (path: string) =>
          send('PUT', path, { headers: { 'content-type': MEDIA_TYPES.ociManifest }, body: bytes });
        const put = await push(`/v2/${repository}/manifests/${digestOf(bytes)}?${query}`);
        expect(put.status).toBe(201);
        expect(String(put.headers['oci-tag']).split(/, ?/)).toEqual(tags);
        expect((await send('HEAD', `/v2/${repository}/manifests/t11`)).status).toBe(200);
        const many = Array.from({ length: 51 }, (_, i) => `tag=t${i}`).join('&');
        expect((await push(`/v2/${repository}/manifests/${digestOf(bytes)}?${many}`)).status).toBe(414);
        expect((await push(`/v2/${repository}/manifests/${digestOf(bytes)}?tag=.bad`)).status).toBe(400);
        expect((await push(`/v2/${repository}/manifests/v1?tag=v2`)).status).toBe(400);
      });

      it('names the blobs that a manifest lacks', async () => {
        const repository = fresh();
        const config = descriptorOf('missing config', MEDIA_TYPES.ociConfig);
        const reply = await putManifest(repository, 'v1', manifestJson(config, []));
        expect(reply).toMatchObject({ status: 400, codes: ['MANIFEST_BLOB_UNKNOWN'] });
        expect(JSON.parse(reply.body.toString()).errors[0].detail).toEqual({ missing: [config.digest] });
      });

      it('does not take blobs of another repository for its own (CVE-2024-39897)', async () => {
        const bytes = await image(fresh(), 'theirs');
        expect(await putManifest(fresh(), 'v1', bytes)).toMatchObject({ codes: ['MANIFEST_BLOB_UNKNOWN'] });
      });

      it.each([
        ['an index sent as a manifest', (b: Buffer) => b, MEDIA_TYPES.ociIndex],
        ['another type than it says', (b: Buffer) => b, MEDIA_TYPES.dockerManifest],
        [
          'fields of both',
          (b: Buffer) => Buffer.from(JSON.stringify({ ...JSON.parse(b.toString()), manifests: [] })),
          MEDIA_TYPES.ociManifest,
        ],
        ['no JSON', () => Buffer.from('{'), MEDIA_TYPES.ociManifest],
        ['an array', () => Buffer.from('[]'), MEDIA_TYPES.ociManifest],
        ['an unknown type', (b: Buffer) => b, 'application/json'],
        [
          'a traversing digest',
          () => manifestJson({ mediaType: 'a/b', digest: 'sha256:../../etc', size: 1 }, []),
          MEDIA_TYPES.ociManifest,
        ],
      ])('refuses %s (CVE-2021-41190)', async (_what, change, type) => {
        const repository = fresh();
        const bytes = change(await image(repository, 'x'));
        expect(await putManifest(repository, 'v1', bytes, type)).toMatchObject({
          status: 400,
          codes: ['MANIFEST_INVALID'],
        });
        expect((await send('GET', `/v2/${repository}/manifests/v1`)).status).toBe(404);
      });

      it('keeps one media type for one document (CVE-2021-41190)', async () => {
        const repository = fresh();
        await pushBlob(repository, '{}');
        const bytes = Buffer.from(
          JSON.stringify({ schemaVersion: 2, config: descriptorOf('{}', MEDIA_TYPES.ociEmpty), layers: [] }),
        );
        expect((await putManifest(repository, 'v1', bytes, MEDIA_TYPES.ociManifest)).status).toBe(201);
        expect((await putManifest(repository, 'v1', bytes, MEDIA_TYPES.dockerManifest)).status).toBe(400);
      });

      it('takes 4 MiB and answers 413 above', async () => {
        const repository = fresh();
        const pad = (size: number) => {
          const empty = manifestJson(descriptorOf('{}', MEDIA_TYPES.ociEmpty), [], { pad: '' });
          const annotated = { pad: 'x'.repeat(size - empty.length) };
          return manifestJson(descriptorOf('{}', MEDIA_TYPES.ociEmpty), [], annotated);
        };
        await pushBlob(repository, '{}');
        expect((await putManifest(repository, 'big', pad(4 << 20))).status).toBe(201);
        const large = await putManifest(repository, 'bigger', pad((4 << 20) + 1));
        expect(large).toMatchObject({ status: 413, codes: ['MANIFEST_INVALID'] });
        const streamed = await send('PUT', `/v2/${repository}/manifests/bigger`, {
          headers: { 'content-type': MEDIA_TYPES.ociManifest },
          body: [pad(4 << 20), Buffer.from('  ')],
        });
        expect(streamed.status).toBe(413);
      });

      it('keeps unknown fields and data', async () => {
        const repository = fresh();
        const bytes = await image(repository, 'x', { 'x-unknown': { deep: [1] } });
        const parsed = JSON.parse(bytes.toString());
        parsed.config.data = Buffer.from('{}').toString('base64');
        const changed = Buffer.from(JSON.stringify(parsed));
        expect((await putManifest(repository, 'v1', changed)).status).toBe(201);
        expect((await send('GET', `/v2/${repository}/manifests/v1`)).body.equals(changed)).toBe(true);
      });

      it('takes indexes: empty, nested, of blobs; and refuses one whose child is missing', async () => {
        const repository = fresh();
        const put = (tag: string, bytes: Buffer) => putManifest(repository, tag, bytes, MEDIA_TYPES.ociIndex);
        const empty = indexJson([]);
        expect((await put('empty', empty)).status).toBe(201);
        const nested = indexJson([descriptorOf(empty, MEDIA_TYPES.ociIndex)], { artifactType: 'a/b' });
        expect((await put('nested', nested)).status).toBe(201);
        await pushBlob(repository, 'cache layer');
        expect((await put('cache', indexJson([descriptorOf('cache layer', MEDIA_TYPES.ociLayer)]))).status).toBe(201);
        const sparse = indexJson([descriptorOf('absent', MEDIA_TYPES.ociManifest)]);
        expect(await put('sparse', sparse)).toMatchObject({ status: 400, codes: ['MANIFEST_BLOB_UNKNOWN'] });
      });

      it('takes Docker schema 2, its lists, and foreign layers that are elsewhere', async () => {
        const repository = fresh();
        await pushBlob(repository, '{}');
        const foreign = {
          ...descriptorOf('far away', MEDIA_TYPES.dockerForeignGzip),
          urls: ['https://example.com/layer'],
        };
        const docker = (layer: object) =>
          manifestJson(descriptorOf('{}', MEDIA_TYPES.dockerConfig), [layer], {
            mediaType: MEDIA_TYPES.dockerManifest,
          });
        const bytes = docker(foreign);
        expect((await putManifest(repository, 'win', bytes, MEDIA_TYPES.dockerManifest)).status).toBe(201);
        const list = indexJson(
          [{ ...descriptorOf(bytes, MEDIA_TYPES.dockerManifest), platform: { architecture: 'amd64', os: 'windows' } }],
          { mediaType: MEDIA_TYPES.dockerList },
        );
        expect((await putManifest(repository, 'list', list, MEDIA_TYPES.dockerList)).status).toBe(201);
        const get = await send('GET', `/v2/${repository}/manifests/list`);
        expect(get.headers['content-type']).toBe(MEDIA_TYPES.dockerList);
        for (const urls of [[], ['ftp://example.com/x'], ['https://user@example.com/x'], ['https://example.com/#x']])
          expect(
            (await putManifest(repository, 'bad', docker({ ...foreign, urls }), MEDIA_TYPES.dockerManifest)).status,
          ).toBe(400);
      });
    });

    describe('end-8 and catalog: lists', () => {
      const listed = (reply: Reply) => JSON.parse(reply.body.toString());

      it('pages tags with n, last and Link', async () => {
        const repository = fresh();
        const bytes = await image(repository, 'x');
        for (const tag of ['c', 'a', 'B', 'b', 'b.1']) await putManifest(repository, tag, bytes);
        const path = `/v2/${repository}/tags/list`;
        const all = await send('GET', path);
        expect(listed(all)).toEqual({ name: repository, tags: ['B', 'a', 'b', 'b.1', 'c'] });
        expect(all.headers.link).toBeUndefined();
        const seen: string[] = [];
        for (let next: string | undefined = `${path}?n=2`; next !== undefined; ) {
          const reply: Reply = await send('GET', next);
          seen.push(...listed(reply).tags);
          next = /^<([^>]+)>; rel="next"$/.exec(reply.headers.link?.toString() ?? '')?.[1];
        }
        expect(seen).toEqual(['B', 'a', 'b', 'b.1', 'c']);
        expect(listed(await send('GET', `${path}?last=aa`)).tags).toEqual(['b', 'b.1', 'c']);
        const none = await send('GET', `${path}?n=0`);
        expect(listed(none).tags).toEqual([]);
        expect(none.headers.link).toBeUndefined();
        expect((await send('GET', `${path}?n=5`)).headers.link).toBeUndefined();
        expect((await send('GET', `${path}?n=-1`)).status).toBe(400);
        expect(await send('GET', `/v2/${fresh()}/tags/list`)).toMatchObject({ status: 404, codes: ['NAME_UNKNOWN'] });
      });

      it('clamps n (CVE-2023-2253)', async () => {
        const reply = await send('GET', '/v2/_catalog?n=999999999999');
        expect(reply.status).toBe(200);
        expect(listed(reply).repositories.length).toBeLessThanOrEqual(1000);
        expect((await send('GET', `/v2/_catalog?last=${'x'.repeat(600)}`)).status).toBe(400);
      });

      it('pages repositories, also where one name begins another', async () => {
        const prefix = fresh();
        const names = [prefix, `${prefix}-a`, `${prefix}/b`, `${prefix}0`];
        for (const name of names) await putManifest(name, 'v1', await image(name, 'x'));
        const first = await send('GET', `/v2/_catalog?n=2&last=${prefix.slice(0, -1)}`);
        expect(first.headers.link).toBeDefined();
        const all = listed(await send('GET', '/v2/_catalog?n=1000')).repositories;
        for (const name of names) expect(all).toContain(name);
        expect(all).toEqual(all.toSorted());
      });
    });

    describe('end-9, 10: deletes are visible at once', () => {
      const head = async (repository: string, reference: string) =>
        (await send('HEAD', `/v2/${repository}/manifests/${reference}`)).status;

      it('deletes a tag only, and a manifest with its tags', async () => {
        const repository = fresh();
        const bytes = await image(repository, 'x');
        const digest = digestOf(bytes);
        for (const tag of ['a', 'b']) await putManifest(repository, tag, bytes);
        expect((await send('DELETE', `/v2/${repository}/manifests/a`)).status).toBe(202);
        expect([await head(repository, 'a'), await head(repository, 'b'), await head(repository, digest)]).toEqual([
          404, 200, 200,
        ]);
        expect((await send('DELETE', `/v2/${repository}/manifests/${digest}`)).status).toBe(202);
        expect([await head(repository, 'b'), await head(repository, digest)]).toEqual([404, 404]);
        expect(await send('DELETE', `/v2/${repository}/manifests/${digest}`)).toMatchObject({
          status: 404,
          codes: ['MANIFEST_UNKNOWN'],
        });
        expect(JSON.parse((await send('GET', `/v2/${repository}/tags/list`)).body.toString()).tags).toEqual([]);
      });

      it('deletes a blob from one repository, but not while a manifest refers to it', async () => {
        const [repository, other] = [fresh(), fresh()];
        const bytes = await image(repository, 'shared layer');
        const digest = await pushBlob(other, 'shared layer');
        await putManifest(repository, 'v1', bytes);
        expect(await send('DELETE', `/v2/${repository}/blobs/${digest}`)).toMatchObject({
          status: 405,
          codes: ['UNSUPPORTED'],
        });
        expect((await send('DELETE', `/v2/${other}/blobs/${digest}`)).status).toBe(202);
        expect((await send('HEAD', `/v2/${other}/blobs/${digest}`)).status).toBe(404);
        await expectBlob(repository, digest, 'shared layer');
        expect(await send('DELETE', `/v2/${other}/blobs/${digest}`)).toMatchObject({
          status: 404,
          codes: ['BLOB_UNKNOWN'],
        });
      });
    });

    describe('end-12: referrers', () => {
      const referrers = async (repository: string, digest: Digest, query = '') => {
        const reply = await send('GET', `/v2/${repository}/referrers/${digest}${query}`);
        expect(reply.status).toBe(200);
        expect(reply.headers['content-type']).toBe(MEDIA_TYPES.ociIndex);
        return { reply, list: JSON.parse(reply.body.toString()) };
      };

      it('answers an empty index for what nobody refers to, and 400 for no digest', async () => {
        const { list } = await referrers(fresh(), digestOf('x'));
        expect(list).toEqual({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [] });
        expect((await send('GET', '/v2/a/referrers/notadigest')).status).toBe(400);
      });

      it('lists manifests and indexes by subject, missing subjects too, with filter and pages', async () => {
        const repository = fresh();
        const subject = descriptorOf('not pushed', MEDIA_TYPES.ociManifest);
        const signature = await image(repository, 'sig', {
          subject,
          artifactType: 'application/sig',
          annotations: { k: 'v' },
        });
        const plain = await image(repository, 'plain', { subject });
        const index = indexJson([], { subject });
        for (const [bytes, type] of [
          [signature, MEDIA_TYPES.ociManifest],
          [plain, MEDIA_TYPES.ociManifest],
          [index, MEDIA_TYPES.ociIndex],
        ] as const) {
          const put = await putManifest(repository, digestOf(bytes), bytes, type);
          expect(put.status).toBe(201);
          expect(put.headers['oci-subject']).toBe(subject.digest);
        }
        const entries = [
          {
            ...descriptorOf(signature, MEDIA_TYPES.ociManifest),
            artifactType: 'application/sig',
            annotations: { k: 'v' },
          },
          { ...descriptorOf(plain, MEDIA_TYPES.ociManifest), artifactType: MEDIA_TYPES.ociEmpty },
          descriptorOf(index, MEDIA_TYPES.ociIndex),
        ].toSorted((a, b) => (a.digest < b.digest ? -1 : 1));
        const all = await referrers(repository, subject.digest);
        expect(all.list.manifests).toEqual(entries);
        expect(all.reply.headers['oci-filters-applied']).toBeUndefined();

        const filtered = await referrers(repository, subject.digest, '?artifactType=application%2Fsig');
        expect(filtered.list.manifests).toEqual(entries.filter(({ digest }) => digest === digestOf(signature)));
        expect(filtered.reply.headers['oci-filters-applied']).toBe('artifactType');

        const first = await referrers(repository, subject.digest, '?n=2');
        const next = /^<([^>]+)>/.exec(first.reply.headers.link?.toString() ?? '')?.[1] ?? '';
        const second = JSON.parse((await send('GET', next)).body.toString());
        expect([...first.list.manifests, ...second.manifests]).toEqual(entries);

        await send('DELETE', `/v2/${repository}/manifests/${digestOf(plain)}`);
        expect((await referrers(repository, subject.digest)).list.manifests).toHaveLength(2);
      });

      it('adds what old clients listed under the fallback tag', async () => {
        const repository = fresh();
        const subject = descriptorOf('subject', MEDIA_TYPES.ociManifest);
        const old = await image(repository, 'old signature');
        await putManifest(repository, digestOf(old), old);
        const entry = { ...descriptorOf(old, MEDIA_TYPES.ociManifest), artifactType: 'application/old' };
        const gone = { ...descriptorOf('gone', MEDIA_TYPES.ociLayer), artifactType: 'application/old' };
        await pushBlob(repository, 'gone');
        const list = indexJson([entry, gone, entry]);
        const tag = subject.digest.replace(':', '-');
        expect((await putManifest(repository, tag, list, MEDIA_TYPES.ociIndex)).status).toBe(201);
        const { list: answer } = await referrers(repository, subject.digest);
        expect(answer.manifests).toEqual([entry]);
        const { list: none } = await referrers(repository, subject.digest, '?artifactType=other');
        expect(none.manifests).toEqual([]);
      });
    });

    it('tells that it is alive and ready, and counts requests by kind of route', async () => {
      for (const path of ['/healthz', '/readyz']) expect((await send('GET', path)).status).toBe(200);
      const repository = fresh();
      await pushBlob(repository, 'counted');
      await send('GET', `/v2/${repository}/blobs/${digestOf('counted')}`);
      const metrics = await send('GET', '/metrics');
      expect(metrics.headers['content-type']).toContain('text/plain');
      const lines = metrics.body.toString();
      expect(lines).toMatch(/^berth_registry_requests_total\{route="blob",method="GET",status="200"\} [1-9]/m);
      expect(lines).toMatch(/^berth_registry_request_seconds_bucket\{le="0.1",route="uploads",method="POST"\} [1-9]/m);
      expect(lines).toMatch(/^berth_registry_requests_under_way\{route="other"\} 1$/m);
      expect(lines).not.toContain(repository);
    });

    it('reads an error body of any refusal as text of one JSON document', async () => {
      const response = await fetch(new URL('/v2/a/manifests/none', registry.url));
      expect(response.headers.get('content-type')).toBe('application/json');
      expect(response.headers.get('x-request-id')).toMatch(/^[\w-]{8,}$/);
      if (response.body !== null) expect(JSON.parse(await text(response.body))).toHaveProperty('errors');
    });
  });
}
