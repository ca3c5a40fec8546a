/** What a request to a registry is about, in its grammar, its scopes and its words; and whom it may be put to. */
import { isDigest } from './digest.ts';
import { AppError } from './errors.ts';
import type { Descriptor } from './oci.ts';
import { isRepository, isTag } from './reference.ts';
import type { RegistryEndpoint } from './registry-endpoint.ts';

/** A repository and what of it; made by nameOf alone, so it is within the grammar. */
export interface Name {
  readonly repository: string;
  /** Tag or digest. */
  readonly reference: string;
}

/** @throws AppError 'invalid' for names outside the grammar */
export function nameOf(repository: string, reference = ''): Name {
  if (!isRepository(repository))
    throw new AppError(
      'invalid',
      `cannot use ${JSON.stringify(repository.slice(0, 300))}: it is not a repository name`,
    );
  if (reference !== '' && !isTag(reference) && !isDigest(reference))
    throw new AppError(
      'invalid',
      `cannot use ${JSON.stringify(reference.slice(0, 300))}: it is neither tag nor digest`,
    );
  return { repository, reference };
}

/** Scopes of a token: https://distribution.github.io/distribution/spec/auth/scope/ */
export const pull = ({ repository }: Name) => [`repository:${repository}:pull`];
export const pushAndPull = ({ repository }: Name) => [`repository:${repository}:pull,push`];
export const withQuery = (path: string, query: string) => (query === '' ? path : `${path}?${query}`);
export const inWords = (name: Name, host: string) => `"${name.reference}" of ${host}/${name.repository}`;

export type BlobName = Name & { readonly descriptor: Descriptor };

/** Endpoints of one registry. */
export interface RegistryPorts {
  readonly origin: RegistryEndpoint;
  /** Runs work against the mirrors and then the registry; ns is what a mirror must be told. */
  read<R>(work: (endpoint: RegistryEndpoint, ns: string) => Promise<R>): Promise<R>;
}

/** The first answer of readers in their order, origin last: its failure is told, a mirror's is not. */
export async function firstOf<R>(
  readers: readonly RegistryEndpoint[],
  origin: RegistryEndpoint,
  work: (endpoint: RegistryEndpoint, ns: string) => Promise<R>,
): Promise<R> {
  for (const endpoint of readers) {
    if (endpoint === origin) break;
    try {
      return await work(endpoint, `ns=${encodeURIComponent(origin.host)}`);
    } catch (error) {
      // Whatever is wrong with a mirror, the registry itself can still answer. Only a cancelled caller is no mirror's fault.
      if (!(error instanceof AppError)) throw error;
    }
  }
  return await work(origin, '');
}
