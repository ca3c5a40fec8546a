import { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Credentials } from '../../shared/credentials.ts';
import { digestOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import type { Descriptor } from '../../shared/oci.ts';
import { createRegistryClient, type RegistryClient, type RegistryClientOptions } from '../../shared/registry-client.ts';
import { collect } from '../../shared/streams.ts';
import { startTestRegistry, type TestRegistry } from './registry-server.ts';

const REPOSITORY = 'team/app';
const USER: Credentials = { kind: 'password', username: 'ada', password: 'secret' };
const BLOB = Buffer.from(Array.from({ length: 300_000 }, (_, at) => at % 251));
const descriptorOf = (bytes: Buffer, more: Partial<Descriptor> = {}): Descriptor => ({
  mediaType: MEDIA_TYPES.ociLayerGzip,
  digest: digestOf(bytes),
  size: bytes.length,
  ...more,
});
const MANIFEST = Buffer.from(
  JSON.stringify({
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config: { mediaType: MEDIA_TYPES.ociEmpty, digest: digestOf('{}'), size: 2 },
    layers: [],
  }),
);

describe('registry client', () => {
  let registry: TestRegistry;
  let client: RegistryClient;
  const clients: RegistryClient[] = [];
  const connect = (options: Partial<RegistryClientOptions> = {}) => {
    const made = createRegistryClient({ host: registry.host, retry: { attempts: 3, baseMs: 1 }, ...options });
    clients.push(made);
    return made;
  };
  const fetched = async (
    descriptor: Descriptor,
    options: { offset?: number; signal?: AbortSignal } = {},
    from = client,
  ) => {
    const { stream, offset } = await from.fetchBlob(REPOSITORY, descriptor, options);
    return { offset, bytes: await collect(stream, 1 << 24, { what: 'blob' }) };
  };
  const authorizations = () => registry.seen.map(({ headers }) => headers.authorization);
  const storeManifest = (tag = 'latest') => {
    registry.manifests.set(digestOf(MANIFEST), { bytes: MANIFEST, mediaType: MEDIA_TYPES.ociManifest });
    registry.tags.set(`${REPOSITORY}:${tag}`, digestOf(MANIFEST));
  };

  beforeEach(async () => {
    registry = await startTestRegistry();
    registry.blobs.set(digestOf(BLOB), BLOB);
    client = connect();
  });
  afterEach(async () => {
    for (const made of clients.splice(0)) made[Symbol.dispose]();
    await registry[Symbol.asyncDispose]();
  });

  describe('manifests', () => {
    it('are resolved and fetched by tag and digest', async () => {
      storeManifest();
      const descriptor = { mediaType: MEDIA_TYPES.ociManifest, digest: digestOf(MANIFEST), size: MANIFEST.length };
      expect(await client.resolve(REPOSITORY, 'latest')).toEqual(descriptor);
      expect(await client.resolve(REPOSITORY, descriptor.digest)).toEqual(descriptor);
      const manifest = await client.fetchManifest(REPOSITORY, 'latest');
      expect(manifest).toMatchObject({ descriptor, mediaType: MEDIA_TYPES.ociManifest });
      expect(manifest.bytes.equals(MANIFEST)).toBe(true);
    });

    it('are resolved by GET where HEAD tells nothing', async () => {
      storeManifest();
      registry.intercept = (request, response) => {
        if (request.method === 'HEAD') response.writeHead(405).end();
        return request.method === 'HEAD';
      };
      expect((await client.resolve(REPOSITORY, 'latest')).digest).toBe(digestOf(MANIFEST));
    });

    it('are refused when their bytes are not what the digest says', async () => {
      storeManifest();
      registry.intercept = (_request, response) => {
        response.writeHead(200, {
          'content-type': MEDIA_TYPES.ociManifest,
          'docker-content-digest': digestOf(MANIFEST),
        });
        response.end('{"schemaVersion":2}');
        return true;
      };
      await expect(client.fetchManifest(REPOSITORY, digestOf(MANIFEST))).rejects.toMatchObject({ kind: 'integrity' });
      await expect(client.fetchManifest(REPOSITORY, 'latest')).rejects.toMatchObject({ kind: 'integrity' });
    });

    it('are refused beyond 4 MiB', async () => {
      registry.intercept = (_request, response) => {
        response.writeHead(200, { 'content-type': MEDIA_TYPES.ociManifest });
        response.end(Buffer.alloc(5 << 20, 32));
        return true;
      };
      await expect(client.fetchManifest(REPOSITORY, 'latest')).rejects.toMatchObject({ kind: 'too-large' });
    });

    it('are pushed and removed', async () => {
      const pushed = await client.pushManifest(REPOSITORY, 'v1', {
        bytes: MANIFEST,
        mediaType: MEDIA_TYPES.ociManifest,
      });
      expect(pushed).toEqual({ digest: digestOf(MANIFEST), isSubjectIndexed: false });
      expect((await client.resolve(REPOSITORY, 'v1')).digest).toBe(pushed.digest);
      expect(await client.removeManifest(REPOSITORY, pushed.digest)).toBe(true);
      expect(await client.removeManifest(REPOSITORY, pushed.digest)).toBe(false);
    });

    it('that are missing are named in the error', async () => {
      await expect(client.fetchManifest(REPOSITORY, 'nope')).rejects.toMatchObject({
        kind: 'not-found',
        message: `cannot fetch manifest "nope" of ${registry.host}/${REPOSITORY}: the registry answered 404: MANIFEST_UNKNOWN: manifest unknown`,
      });
    });

    it.each([
      ['Upper/Case', 'latest'],
      ['../../etc', 'latest'],
      [REPOSITORY, '../x'],
      [REPOSITORY, 'sha256:abc'],
      [`${REPOSITORY}?x=`, 'latest'],
    ])('are not asked for under the name %s, %s', async (repository, reference) => {
      await expect((async () => client.resolve(repository, reference))()).rejects.toMatchObject({ kind: 'invalid' });
      expect(registry.seen).toEqual([]);
    });
  });

  describe('fetching blobs', () => {
    it('answers the bytes, from any offset', async () => {
      for (const offset of [0, 1, 299_999, 300_000]) {
        const { bytes } = await fetched(descriptorOf(BLOB), { offset });
        expect(bytes.equals(BLOB.subarray(offset))).toBe(true);
      }
    });

    it('goes on where a connection broke, again and again', async () => {
      let breaks = 0;
      registry.intercept = (request, response) => {
        const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
        if (start >= 250_000) return false;
        breaks += 1;
        const range = `bytes ${start}-${BLOB.length - 1}/${BLOB.length}`;
        response.writeHead(start === 0 ? 200 : 206, { 'content-length': BLOB.length - start, 'content-range': range });
        response.write(BLOB.subarray(start, start + 50_000), () => setImmediate(() => response.destroy()));
        return true;
      };
      const { bytes } = await fetched(descriptorOf(BLOB));
      expect(bytes.equals(BLOB)).toBe(true);
      expect(breaks).toBe(5);
    });

    it('gives up when nothing more arrives', async () => {
      registry.intercept = (_request, response) => {
        response.writeHead(200, { 'content-length': BLOB.length });
        response.write(BLOB.subarray(0, 1000), () => setImmediate(() => response.destroy()));
        return true;
      };
      await expect(fetched(descriptorOf(BLOB))).rejects.toMatchObject({ kind: 'unavailable' });
      expect(registry.seen).toHaveLength(3);
    });

    it('skips what a server sends that ignores ranges', async () => {
      registry.intercept = (_request, response) => {
        response.writeHead(200, { 'content-length': BLOB.length });
        response.end(BLOB);
        return true;
      };
      const { bytes, offset } = await fetched(descriptorOf(BLOB), { offset: 123_456 });
      expect(offset).toBe(123_456);
      expect(bytes.equals(BLOB.subarray(123_456))).toBe(true);
    });

    it('stops a server that sends more than it promised', async () => {
      await expect(fetched(descriptorOf(BLOB, { size: 1000 }))).rejects.toMatchObject({ kind: 'integrity' });
    });

    it('gives up on a server that falls silent', async () => {
      registry.intercept = (_request, response) => {
        response.writeHead(200, { 'content-length': BLOB.length });
        response.write(BLOB.subarray(0, 1000));
        return true;
      };
      const impatient = connect({ timeouts: { idleMs: 50 }, retry: { attempts: 1 } });
      await expect(fetched(descriptorOf(BLOB), {}, impatient)).rejects.toMatchObject({ kind: 'timeout' });
      registry.intercept = () => true;
      const deaf = connect({ timeouts: { answerMs: 50 }, retry: { attempts: 1 } });
      await expect(fetched(descriptorOf(BLOB), {}, deaf)).rejects.toMatchObject({ kind: 'timeout' });
    });

    it('stops when it is cancelled', async () => {
      registry.intercept = (_request, response) => {
        response.writeHead(200, { 'content-length': BLOB.length });
        response.write(BLOB.subarray(0, 1000));
        return true;
      };
      const controller = new AbortController();
      const { stream } = await client.fetchBlob(REPOSITORY, descriptorOf(BLOB), { signal: controller.signal });
      stream.once('data', () => controller.abort(new Error('enough')));
      await expect(collect(stream, 1 << 24, { what: 'blob' })).rejects.toThrow('enough');
    });

    it('waits as long as the server asks with 429, then tries again', async () => {
      let answers = 0;
      registry.intercept = (_request, response) => {
        answers += 1;
        if (answers === 1) response.writeHead(429, { 'retry-after': '0' }).end();
        return answers === 1;
      };
      expect((await fetched(descriptorOf(BLOB))).bytes.equals(BLOB)).toBe(true);
      registry.intercept = (_request, response) => {
        response.writeHead(429, { 'retry-after': '3600' }).end();
        return true;
      };
      await expect(client.resolve(REPOSITORY, 'latest')).rejects.toMatchObject({
        kind: 'unavailable',
        detail: { status: 429, retryAfterMs: 3_600_000 },
      });
    });

    it('CVE-2020-15157: sends no credentials to the urls of a descriptor, and only over https', async () => {
      registry.login = { user: 'ada', password: 'secret' };
      registry.blobs.clear();
      await using other = await startTestRegistry();
      const authenticated = connect({ credentials: async () => USER });
      const descriptor = descriptorOf(BLOB, {
        urls: [`http://${other.host}/foreign`, `https://${other.host}/foreign`],
      });
      await expect(fetched(descriptor, {}, authenticated)).rejects.toMatchObject({ kind: 'not-found' });
      expect(other.seen).toEqual([]);
    });
  });

  describe('authentication', () => {
    beforeEach(() => {
      registry.login = { user: 'ada', password: 'secret' };
      client = connect({ credentials: async () => USER });
    });

    it('gets one token per scope and uses it again', async () => {
      await Promise.all([fetched(descriptorOf(BLOB)), fetched(descriptorOf(BLOB)), fetched(descriptorOf(BLOB))]);
      await fetched(descriptorOf(BLOB));
      const asked = registry.seen.filter(({ path }) => path.startsWith('/token'));
      expect(asked).toHaveLength(1);
      expect(asked[0]?.path).toBe(
        '/token?service=test%2C+%22quoted%22&scope=repository%3Ateam%2Fapp%3Apull&account=ada',
      );
      expect(registry.seen.at(-1)?.headers.authorization).toBe('Bearer token-1');
    });

    it('gets a new token when the registry no longer takes the old one', async () => {
      await fetched(descriptorOf(BLOB));
      registry.tokens.clear();
      await fetched(descriptorOf(BLOB));
      expect(registry.seen.at(-1)?.headers.authorization).toBe('Bearer token-2');
    });

    it('does not go on for ever when no token is good enough', async () => {
      registry.intercept = (_request, response, url) => {
        if (url.pathname === '/token') return false;
        response.writeHead(401, {
          'www-authenticate': `Bearer realm="http://${registry.host}/token",error="invalid_token"`,
        });
        response.end();
        return true;
      };
      await expect(client.resolve(REPOSITORY, 'latest')).rejects.toMatchObject({ kind: 'unauthenticated' });
      expect(registry.seen.length).toBeLessThan(8);
    });

    it('says so when the password is wrong, without showing it', async () => {
      const wrong = connect({ credentials: async () => ({ ...USER, password: 'guess' }) });
      const error = await wrong.login().catch((thrown) => thrown);
      expect(error).toMatchObject({
        kind: 'unauthenticated',
        message: expect.stringContaining('check user name and password'),
      });
      expect(error.message).not.toContain('guess');
    });

    it('logs in, and brings the identity token home', async () => {
      expect(await client.login()).toEqual({ identityToken: 'refresh-1' });
    });

    it('exchanges an identity token by POST', async () => {
      let form = '';
      registry.intercept = async (request, response, url) => {
        if (url.pathname !== '/token') return false;
        for await (const chunk of request) form += chunk;
        registry.tokens.add('exchanged');
        response.end(JSON.stringify({ access_token: 'exchanged' }));
        return true;
      };
      await fetched(
        descriptorOf(BLOB),
        {},
        connect({ credentials: async () => ({ kind: 'identity-token', token: 'r1' }) }),
      );
      expect(Object.fromEntries(new URLSearchParams(form))).toMatchObject({
        grant_type: 'refresh_token',
        refresh_token: 'r1',
        scope: 'repository:team/app:pull',
      });
    });

    it('speaks Basic where that is what the registry wants', async () => {
      registry.login = undefined;
      registry.intercept = (request, response) => {
        const isGood = request.headers.authorization === `Basic ${Buffer.from('ada:secret').toString('base64')}`;
        if (!isGood) response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end();
        return !isGood;
      };
      await fetched(descriptorOf(BLOB));
      await fetched(descriptorOf(BLOB));
      expect(registry.seen.filter(({ headers }) => headers.authorization === undefined)).toHaveLength(1);
    });

    it.each([
      ['http', 'http://registry.example/token', /does not use https/],
      ['another domain', 'https://evil.example/token', /not in its domain/],
      ['no address', 'nonsense', /no usable address/],
      ['a file', 'file:///etc/passwd', /scheme "file:"/],
      ['credentials in it', 'https://u:p@127.0.0.1/token', /credentials in its address/],
    ])('f215e51: does not take the credentials to a realm with %s', async (_what, realm, message) => {
      registry.intercept = (_request, response) => {
        response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}",service="s"` }).end();
        return true;
      };
      await expect(client.resolve(REPOSITORY, 'latest')).rejects.toMatchObject({
        kind: 'denied',
        message: expect.stringMatching(message),
      });
    });
  });

  describe('redirects', () => {
    it('are followed to another host, without the token', async () => {
      registry.login = { user: 'ada', password: 'secret' };
      await using storage = await startTestRegistry();
      storage.blobs.set(digestOf(BLOB), BLOB);
      registry.intercept = (request, response, url) => {
        const isBlob = url.pathname.includes('/blobs/') && request.headers.authorization !== undefined;
        if (isBlob) response.writeHead(307, { location: `http://${storage.host}${url.pathname}?sig=1` }).end();
        return isBlob;
      };
      client = connect({ credentials: async () => USER });
      expect((await fetched(descriptorOf(BLOB))).bytes.equals(BLOB)).toBe(true);
      expect(authorizations()).toContain('Bearer token-1');
      expect(storage.seen.map(({ headers }) => headers.authorization)).toEqual([undefined]);
    });

    it('do not lead a stranger’s challenge to our credentials', async () => {
      await using storage = await startTestRegistry();
      storage.login = { user: 'ada', password: 'secret' };
      registry.intercept = (_request, response) => {
        response.writeHead(307, { location: `http://${storage.host}/v2/x/blobs/y` }).end();
        return true;
      };
      client = connect({ credentials: async () => USER });
      await expect(fetched(descriptorOf(BLOB))).rejects.toMatchObject({ kind: 'unauthenticated' });
      expect(storage.seen).toHaveLength(1);
    });

    it('end after a few', async () => {
      registry.intercept = (_request, response) => {
        response.writeHead(302, { location: '/v2/again' }).end();
        return true;
      };
      const once = connect({ retry: { attempts: 1 } });
      await expect(fetched(descriptorOf(BLOB), {}, once)).rejects.toThrow(/more than 5 times/);
    });

    it.each(['file:///etc/passwd', 'gopher://x/', 'http://u:p@x/', 'http://['])(
      'to %s are refused',
      async (location) => {
        registry.intercept = (_request, response) => {
          response.writeHead(307, { location }).end();
          return true;
        };
        await expect(fetched(descriptorOf(BLOB))).rejects.toMatchObject({ kind: 'denied' });
      },
    );
  });

  describe('pushing blobs', () => {
    const fresh = Buffer.concat([BLOB, Buffer.from('fresh')]);
    const source = (bytes = fresh) => ({
      open: async (offset: number) => Readable.from([bytes.subarray(offset)], { objectMode: false }),
    });

    it('sends them once', async () => {
      const progress: number[] = [];
      const options = { ...source(), onProgress: (sent: number) => progress.push(sent) };
      expect(await client.pushBlob(REPOSITORY, descriptorOf(fresh), options)).toBe('uploaded');
      expect(registry.blobs.get(digestOf(fresh))?.equals(fresh)).toBe(true);
      expect(progress.at(-1)).toBe(fresh.length);
      expect(await client.pushBlob(REPOSITORY, descriptorOf(fresh), options)).toBe('existed');
    });

    it('takes empty ones', async () => {
      const empty = Buffer.alloc(0);
      expect(await client.pushBlob(REPOSITORY, descriptorOf(empty), source(empty))).toBe('uploaded');
    });

    it('mounts them from another repository', async () => {
      registry.intercept = (request, response) => {
        if (request.method === 'HEAD') response.writeHead(404).end();
        return request.method === 'HEAD';
      };
      const outcome = await client.pushBlob(REPOSITORY, descriptorOf(BLOB), {
        ...source(BLOB),
        mountFrom: 'team/base',
      });
      expect(outcome).toBe('mounted');
      expect(registry.seen.at(-1)?.path).toContain('from=team%2Fbase');
    });

    it('goes on where the connection broke', async () => {
      registry.hangUpAfterBytes = 100_000;
      const offsets: number[] = [];
      const options = {
        open: (offset: number) => {
          offsets.push(offset);
          return source().open(offset);
        },
      };
      expect(await client.pushBlob(REPOSITORY, descriptorOf(fresh), options)).toBe('uploaded');
      expect(registry.blobs.get(digestOf(fresh))?.equals(fresh)).toBe(true);
      expect(offsets).toEqual([0, expect.any(Number)]);
      expect(offsets[1]).toBeGreaterThanOrEqual(100_000);
    });

    it('starts over when the registry has forgotten the upload', async () => {
      let closes = 0;
      registry.intercept = (request, response) => {
        if (request.method !== 'PUT') return false;
        closes += 1;
        if (closes === 1) response.writeHead(404).end();
        return closes === 1;
      };
      expect(await client.pushBlob(REPOSITORY, descriptorOf(fresh), source())).toBe('uploaded');
    });

    it('fails when the bytes are not what they should be', async () => {
      const wrong = { open: async () => Readable.from([Buffer.alloc(fresh.length)], { objectMode: false }) };
      await expect(client.pushBlob(REPOSITORY, descriptorOf(fresh), wrong)).rejects.toMatchObject({
        kind: 'invalid',
        message: expect.stringContaining('DIGEST_INVALID'),
      });
    });

    it('sends no token to an upload location on another host', async () => {
      registry.login = { user: 'ada', password: 'secret' };
      await using elsewhere = await startTestRegistry();
      registry.intercept = (request, response) => {
        const isStart = request.method === 'POST' && request.headers.authorization !== undefined;
        if (isStart) response.writeHead(202, { location: `http://${elsewhere.host}/v2/x/blobs/uploads/1` }).end();
        return isStart;
      };
      client = connect({ credentials: async () => USER, retry: { attempts: 1 } });
      await expect(client.pushBlob(REPOSITORY, descriptorOf(fresh), source())).rejects.toMatchObject({
        kind: 'not-found',
      });
      expect(elsewhere.seen.every(({ headers }) => headers.authorization === undefined)).toBe(true);
    });
  });

  describe('lists', () => {
    it('follow the pages of tags', async () => {
      registry.intercept = (_request, response, url) => {
        if (!url.pathname.endsWith('/tags/list')) return false;
        const last = url.searchParams.get('last');
        const headers: Record<string, string> = last === null ? { link: `<${url.pathname}?last=b>; rel="next"` } : {};
        response
          .writeHead(200, headers)
          .end(JSON.stringify({ name: REPOSITORY, tags: last === null ? ['a', 'b'] : ['c', '../d'] }));
        return true;
      };
      expect(await Array.fromAsync(client.tags(REPOSITORY))).toEqual(['a', 'b', 'c']);
    });

    it('do not follow a page to another host, nor in a circle', async () => {
      for (const link of ['<https://evil.example/v2/x>; rel="next"', '</v2/team/app/tags/list?last=a>; rel=next']) {
        registry.intercept = (_request, response) => {
          response.writeHead(200, { link }).end('{"tags":["a"]}');
          return true;
        };
        await expect(Array.fromAsync(client.tags(REPOSITORY))).rejects.toMatchObject({ kind: 'denied' });
      }
    });

    it('find referrers, by the fallback tag too', async () => {
      const referrer = { ...descriptorOf(MANIFEST), mediaType: MEDIA_TYPES.ociManifest, artifactType: 'application/x' };
      const index = Buffer.from(
        JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [referrer] }),
      );
      const subject = digestOf('subject');
      expect(await client.listReferrers(REPOSITORY, subject)).toEqual([]);
      registry.manifests.set(digestOf(index), { bytes: index, mediaType: MEDIA_TYPES.ociIndex });
      registry.tags.set(`${REPOSITORY}:${subject.replace(':', '-')}`, digestOf(index));
      expect(await client.listReferrers(REPOSITORY, subject)).toEqual([referrer]);
      expect(await client.listReferrers(REPOSITORY, subject, { artifactType: 'application/y' })).toEqual([]);
    });
  });

  describe('mirrors', () => {
    it('are asked first, told whom they stand for, and replaced by the registry when they fail', async () => {
      storeManifest();
      await using mirror = await startTestRegistry();
      client = connect({ mirrors: [{ host: mirror.host, retry: { attempts: 1 } }], credentials: async () => USER });
      expect((await client.resolve(REPOSITORY, 'latest')).digest).toBe(digestOf(MANIFEST));
      expect(mirror.seen.map(({ path }) => path)).toEqual([
        `/v2/${REPOSITORY}/manifests/latest?ns=${encodeURIComponent(registry.host)}`,
      ]);
      mirror.blobs.set(digestOf(BLOB), BLOB);
      registry.blobs.clear();
      expect((await fetched(descriptorOf(BLOB))).bytes.equals(BLOB)).toBe(true);
      mirror.intercept = (request) => {
        request.socket.destroy();
        return true;
      };
      expect((await client.resolve(REPOSITORY, 'latest')).digest).toBe(digestOf(MANIFEST));
    });
  });

  it('cleans what a registry says before it reaches a terminal', async () => {
    registry.intercept = (_request, response) => {
      response
        .writeHead(403)
        .end(JSON.stringify({ errors: [{ code: 'DENIED', message: '\u001b[31mno\u0007 https://u:p@x/?t=1' }] }));
      return true;
    };
    const error = await client.fetchManifest(REPOSITORY, 'latest').catch((thrown) => thrown);
    expect(error.kind).toBe('denied');
    expect(error.message).toMatch(/DENIED: {2}\[31mno {2}https:\/\/x\/\?\[redacted\]$/);
  });

  it('speaks no plain http to other hosts, unless told to', async () => {
    const never = connect({ plainHttp: 'never', retry: { attempts: 1 } });
    await expect(never.resolve(REPOSITORY, 'latest')).rejects.toMatchObject({ kind: 'unavailable' });
    expect(registry.seen).toEqual([]);
  });
});
