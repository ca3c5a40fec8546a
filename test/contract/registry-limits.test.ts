import { describe, expect, it } from 'vitest';
import { createOpenAccess } from '../../registry/access/open-access.ts';
import type { Limits } from '../../registry/limits.ts';
import { digestOf } from '../../shared/digest.ts';
import { ask } from './registry-http.ts';
import { startMemoryRegistry } from './registry-memory.ts';

const start = (limits: Partial<Limits>) => startMemoryRegistry(createOpenAccess({ anonymousWrites: true }), limits);
const UPLOADS = '/v2/r/blobs/uploads/';

describe('limits on the wire', () => {
  it('asks for chunks of a least size', async () => {
    await using registry = await start({ chunkMinBytes: 4096 });
    const begun = await ask(registry.url, 'POST', UPLOADS);
    expect(begun.headers['oci-chunk-min-length']).toBe('4096');
    await using other = await start({});
    expect((await ask(other.url, 'POST', UPLOADS)).headers['oci-chunk-min-length']).toBeUndefined();
  });

  it('refuses a blob that is too large, announced or not, and keeps nothing of it', async () => {
    await using registry = await start({ blobMaxBytes: 1000 });
    const large = Buffer.alloc(2000);
    const path = `${UPLOADS}?digest=${digestOf(large)}`;
    for (const body of [large, [large.subarray(0, 900), large.subarray(900)]])
      expect(await ask(registry.url, 'POST', path, { body })).toMatchObject({ status: 413, codes: ['SIZE_INVALID'] });
    expect((await ask(registry.url, 'HEAD', `/v2/r/blobs/${digestOf(large)}`)).status).toBe(404);
  });

  it('bounds the bytes of a session as a whole', async () => {
    await using registry = await start({ blobMaxBytes: 1000 });
    const path = (await ask(registry.url, 'POST', UPLOADS)).headers.location ?? '';
    expect((await ask(registry.url, 'PATCH', path, { body: Buffer.alloc(600) })).status).toBe(202);
    expect((await ask(registry.url, 'PATCH', path, { body: Buffer.alloc(600) })).status).toBe(413);
  });

  it('bounds the open sessions of one user with 429', async () => {
    await using registry = await start({ uploadsPerUser: 2 });
    const replies = [];
    for (let i = 0; i < 3; i += 1) replies.push(await ask(registry.url, 'POST', UPLOADS));
    expect(replies.map(({ status }) => status)).toEqual([202, 202, 429]);
    expect(replies[2]?.codes).toEqual(['TOOMANYREQUESTS']);
    await ask(registry.url, 'DELETE', replies[0]?.headers.location ?? '');
    expect((await ask(registry.url, 'POST', UPLOADS)).status).toBe(202);
  });

  it('pages a referrers answer by its bytes', async () => {
    await using registry = await start({ referrersMaxBytes: 600 });
    const subject = { mediaType: 'application/vnd.oci.image.manifest.v1+json', digest: digestOf('s'), size: 1 };
    for (let i = 0; i < 5; i += 1) {
      const mediaType = 'application/vnd.oci.image.index.v1+json';
      const annotations = { pad: 'x'.repeat(100), i: String(i) };
      const body = JSON.stringify({ schemaVersion: 2, mediaType, manifests: [], subject, annotations });
      const headers = { 'content-type': mediaType };
      const path = `/v2/r/manifests/${digestOf(body)}`;
      expect((await ask(registry.url, 'PUT', path, { headers, body })).status).toBe(201);
    }
    let seen = 0;
    for (let next: string | undefined = `/v2/r/referrers/${subject.digest}`; next !== undefined; ) {
      const reply = await ask(registry.url, 'GET', next);
      expect(reply.body.length).toBeLessThan(800);
      seen += JSON.parse(reply.body.toString()).manifests.length;
      next = /^<([^>]+)>/.exec(String(reply.headers.link ?? ''))?.[1];
    }
    expect(seen).toBe(5);
  });
});
