/** Lists that a registry gives page by page. */
import { AppError } from './errors.ts';
import type { RegistryEndpoint } from './registry-endpoint.ts';
import { type Cancelable, collect } from './streams.ts';

/** Of a tags or referrers answer. */
const PAGE_MAX_BYTES = 16 << 20;
const PAGES_MAX = 10_000;

export interface PageRequest extends Cancelable {
  readonly target: string;
  readonly action: string;
  readonly scopes: readonly string[];
}

/** JSON objects, following `Link: <…>; rel="next"` within the registry. */
export async function* pages(endpoint: RegistryEndpoint, request: PageRequest): AsyncGenerator<object | undefined> {
  const { signal, action } = request;
  const seen = new Set<string>();
  let target: string | URL = request.target;
  while (seen.size < PAGES_MAX) {
    const response = await endpoint.send({ ...request, method: 'GET', target, accept: [200] });
    const bytes = await collect(response.body, PAGE_MAX_BYTES, { what: `answer to "${action}"`, signal });
    yield parseObject(bytes, action);
    const next = /<([^>]+)>\s*;[^,]*\brel="?next"?/i.exec(response.headers.get('link') ?? '')?.[1];
    if (next === undefined) return;
    const url = endpoint.follow(response, next, action);
    if (url.origin !== response.url.origin || seen.has(url.href))
      throw new AppError(
        'denied',
        `cannot ${action}: the next page is ${seen.has(url.href) ? 'an earlier one' : 'elsewhere'}`,
      );
    seen.add(url.href);
    target = url;
  }
}

function parseObject(bytes: Buffer, action: string): object | undefined {
  try {
    const json: unknown = JSON.parse(bytes.toString('utf8'));
    return typeof json === 'object' && json !== null ? json : undefined;
  } catch (cause) {
    throw new AppError('invalid', `cannot ${action}: the registry did not send JSON`, { cause });
  }
}
