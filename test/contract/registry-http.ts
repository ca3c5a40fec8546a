/** Plain HTTP for the registry's tests: what a client sees, byte for byte, and small documents to send. */
import { once } from 'node:events';
import { request as httpRequest, type IncomingHttpHeaders } from 'node:http';
import { type DigestAlgorithm, digestOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';

export interface RunningRegistry extends AsyncDisposable {
  readonly url: string;
}

export interface Reply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
  /** Codes of an error body. */
  readonly codes: readonly string[];
}

export interface Ask {
  readonly headers?: Readonly<Record<string, string>>;
  /** A list is sent as chunks without Content-Length. */
  readonly body?: Buffer | string | readonly Buffer[];
}

export async function ask(url: string, method: string, path: string, { headers = {}, body }: Ask = {}): Promise<Reply> {
  const request = httpRequest(new URL(path, url), { method, headers: { ...headers }, agent: false });
  if (Array.isArray(body)) {
    for (const chunk of body) request.write(chunk);
    request.end();
  } else request.end(body === undefined || typeof body === 'string' || Buffer.isBuffer(body) ? body : undefined);
  const [response] = await once(request, 'response');
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  const isError = response.statusCode >= 400 && method !== 'HEAD' && bytes.length > 0;
  const codes = isError ? JSON.parse(bytes.toString()).errors.map(({ code }: { code: string }) => code) : [];
  return { status: response.statusCode, headers: response.headers, body: bytes, codes };
}

export function descriptorOf(bytes: Buffer | string, mediaType: string, algorithm: DigestAlgorithm = 'sha256') {
  return { mediaType, digest: digestOf(bytes, algorithm), size: Buffer.byteLength(bytes) };
}

export function manifestJson(config: object, layers: readonly object[], more: object = {}): Buffer {
  return Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config, layers, ...more }));
}

export function indexJson(manifests: readonly object[], more: object = {}): Buffer {
  return Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests, ...more }));
}
