/**
 * `n` and `last` of the listing endpoints, and the Link header that carries them on.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags
 * Pure. `last` is exclusive and need not exist; n is clamped, never trusted (CVE-2023-2253).
 */
import type { Limits } from './limits.ts';
import type { Page } from './metadata/index.ts';
import { OciError } from './oci-errors.ts';

/** @throws OciError UNSUPPORTED with status 400 for an n that is no number, or an endless `last` */
export function parsePage(query: URLSearchParams, fallback: number, limits: Limits): Page {
  const n = query.get('n');
  const last = query.get('last') || undefined;
  if (n !== null && !/^\d+$/.test(n))
    throw new OciError('UNSUPPORTED', `cannot use n=${JSON.stringify(n.slice(0, 40))}: want a number`, { status: 400 });
  if (last !== undefined && last.length > limits.lastMaxLength)
    throw new OciError('UNSUPPORTED', `cannot use last: it is longer than ${limits.lastMaxLength}`, { status: 400 });
  return { limit: n === null ? fallback : Math.min(Number(n), limits.pageMaxEntries), after: last };
}

export interface NextPage {
  readonly n: number;
  readonly last: string;
  /** Other parameters that must survive, for example artifactType. */
  readonly keep?: Readonly<Record<string, string>>;
}

/** RFC 5988 as the specification and Distribution write it: a path of this server. */
export function nextLink(path: string, next: NextPage): string {
  const query = new URLSearchParams({ ...next.keep, n: String(next.n), last: next.last });
  return `<${path}?${query}>; rel="next"`;
}
