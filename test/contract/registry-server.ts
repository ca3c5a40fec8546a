/**
 * A small real registry for tests of clients: blobs, manifests, uploads and tokens in memory, over HTTP on a port of
 * 127.0.0.1. `intercept` lets a test misbehave in place of it.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { buffer } from 'node:stream/consumers';
import { digestOf } from '../../shared/digest.ts';

export interface Seen {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
}

export interface TestRegistry extends AsyncDisposable {
  /** `127.0.0.1:port` */
  readonly host: string;
  readonly blobs: Map<string, Buffer>;
  readonly manifests: Map<string, { readonly bytes: Buffer; readonly mediaType: string }>;
  readonly tags: Map<string, string>;
  readonly seen: Seen[];
  /** The user and password that a token costs; without, everybody is let in. */
  login: { user: string; password: string } | undefined;
  /** Hangs up once, in the middle of an upload, when it has got this much. */
  hangUpAfterBytes: number | undefined;
  /** true = it has answered itself. */
  intercept: ((request: IncomingMessage, response: ServerResponse, url: URL) => boolean | Promise<boolean>) | undefined;
  /** Tokens handed out are valid until this is cleared. */
  readonly tokens: Set<string>;
}

export async function startTestRegistry(): Promise<TestRegistry> {
  const uploads = new Map<string, Buffer>();
  let counter = 0;
  const server = createServer((request, response) => {
    handle(request, response).catch((error) => {
      if (!response.headersSent) response.writeHead(500);
      response.end(String(error));
    });
  });
  server.on('clientError', (_error, socket) => socket.destroy());
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');

  const registry: TestRegistry = {
    host: `127.0.0.1:${address.port}`,
    blobs: new Map(),
    manifests: new Map(),
    tags: new Map(),
    seen: [],
    tokens: new Set(),
    login: undefined,
    intercept: undefined,
    hangUpAfterBytes: undefined,
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = '', headers } = request;
    const url = new URL(request.url ?? '', `http://${registry.host}`);
    registry.seen.push({ method, path: `${url.pathname}${url.search}`, headers });
    if ((await registry.intercept?.(request, response, url)) === true) return;
    if (url.pathname === '/token') return token(request, response, url);
    const bearer = headers.authorization?.replace(/^Bearer /, '');
    if (registry.login !== undefined && !registry.tokens.has(bearer ?? ''))
      return fail(response, 401, 'UNAUTHORIZED', {
        'www-authenticate': `Bearer realm="http://${registry.host}/token",service="test, \\"quoted\\"",scope="${scopeOf(url)}"`,
      });
    const [, repository = '', kind = '', reference = ''] =
      /^\/v2\/(.+)\/(blobs\/uploads|blobs|manifests|tags|referrers)\/(.*)$/.exec(url.pathname) ?? [];
    if (kind === 'blobs') return blob(request, response, reference);
    if (kind === 'manifests') return await manifest(request, response, { repository, reference });
    if (kind === 'blobs/uploads') return await upload(request, response, { repository, id: reference, url });
    response.writeHead(url.pathname === '/v2/' ? 200 : 404).end();
  }

  const scopeOf = (url: URL) =>
    `repository:${/^\/v2\/(.+)\/(?:blobs|manifests)\//.exec(url.pathname)?.[1] ?? 'x'}:pull`;

  function fail(response: ServerResponse, status: number, code: string, headers: Record<string, string> = {}): void {
    response.writeHead(status, { 'content-type': 'application/json', ...headers });
    response.end(JSON.stringify({ errors: [{ code, message: code.toLowerCase().replaceAll('_', ' ') }] }));
  }

  function token(request: IncomingMessage, response: ServerResponse, url: URL): void {
    const { user, password } = registry.login ?? { user: '', password: '' };
    const expected = `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
    if (request.headers.authorization !== expected) {
      fail(response, 401, 'UNAUTHORIZED');
      return;
    }
    counter += 1;
    const text = `token-${counter}`;
    registry.tokens.add(text);
    const refresh = url.searchParams.has('offline_token') ? { refresh_token: 'refresh-1' } : {};
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ token: text, expires_in: 300, ...refresh }));
  }

  function blob(request: IncomingMessage, response: ServerResponse, digest: string): void {
    const bytes = registry.blobs.get(digest);
    if (bytes === undefined) {
      fail(response, 404, 'BLOB_UNKNOWN');
      return;
    }
    const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
    const headers = { 'content-length': bytes.length - start, 'docker-content-digest': digest };
    if (start > 0)
      response.writeHead(206, { ...headers, 'content-range': `bytes ${start}-${bytes.length - 1}/${bytes.length}` });
    else response.writeHead(200, headers);
    response.end(request.method === 'HEAD' ? undefined : bytes.subarray(start));
  }

  async function manifest(
    request: IncomingMessage,
    response: ServerResponse,
    { repository, reference }: { repository: string; reference: string },
  ): Promise<void> {
    if (request.method === 'PUT') {
      const bytes = await buffer(request);
      const digest = digestOf(bytes);
      registry.manifests.set(digest, { bytes, mediaType: request.headers['content-type'] ?? '' });
      if (!reference.includes(':')) registry.tags.set(`${repository}:${reference}`, digest);
      response
        .writeHead(201, { 'docker-content-digest': digest, location: `/v2/${repository}/manifests/${digest}` })
        .end();
      return;
    }
    const digest = reference.includes(':') ? reference : registry.tags.get(`${repository}:${reference}`);
    const found = registry.manifests.get(digest ?? '');
    if (found === undefined || digest === undefined) return fail(response, 404, 'MANIFEST_UNKNOWN');
    if (request.method === 'DELETE') {
      registry.manifests.delete(digest);
      response.writeHead(202).end();
      return;
    }
    response.writeHead(200, {
      'content-type': found.mediaType,
      'content-length': found.bytes.length,
      'docker-content-digest': digest,
    });
    response.end(request.method === 'HEAD' ? undefined : found.bytes);
  }

  async function upload(
    request: IncomingMessage,
    response: ServerResponse,
    { repository, id, url }: { repository: string; id: string; url: URL },
  ): Promise<void> {
    const at = (upload: string, sizeBytes: number) => ({
      location: `/v2/${repository}/blobs/uploads/${upload}?_state=a%2Fb==`,
      range: `0-${Math.max(0, sizeBytes - 1)}`,
    });
    const mount = url.searchParams.get('mount');
    if (request.method === 'POST') {
      if (mount !== null && registry.blobs.has(mount)) {
        response.writeHead(201, { location: `/v2/${repository}/blobs/${mount}` }).end();
        return;
      }
      counter += 1;
      uploads.set(String(counter), Buffer.alloc(0));
      response.writeHead(202, at(String(counter), 0)).end();
      return;
    }
    const known = uploads.get(id);
    if (known === undefined || url.searchParams.get('_state') !== 'a/b==')
      return fail(response, 404, 'BLOB_UPLOAD_UNKNOWN');
    const start = Number(/^(\d+)-/.exec(request.headers['content-range'] ?? '')?.[1] ?? 0);
    if (request.method === 'PATCH' && start !== known.length) return fail(response, 416, 'BLOB_UPLOAD_INVALID');
    if (request.method !== 'GET')
      try {
        for await (const chunk of request) {
          const received = Buffer.concat([uploads.get(id) ?? known, chunk]);
          uploads.set(id, received);
          if (registry.hangUpAfterBytes === undefined || received.length < registry.hangUpAfterBytes) continue;
          registry.hangUpAfterBytes = undefined;
          request.destroy();
        }
      } catch {
        return;
      }
    const bytes = uploads.get(id) ?? known;
    if (request.method === 'GET') response.writeHead(204, at(id, bytes.length)).end();
    else if (request.method === 'PATCH') response.writeHead(202, at(id, bytes.length)).end();
    else if (digestOf(bytes) !== url.searchParams.get('digest')) fail(response, 400, 'DIGEST_INVALID');
    else {
      registry.blobs.set(digestOf(bytes), bytes);
      response.writeHead(201, { location: `/v2/${repository}/blobs/${digestOf(bytes)}` }).end();
    }
  }

  return registry;
}
