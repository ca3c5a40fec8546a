/** What a registry has under a name, described without fetching it: `GET /distribution/{name}/json`. */
import { digestOf } from '../shared/digest.ts';
import { AppError } from '../shared/errors.ts';
import { CONFIG_MAX_BYTES, type Descriptor, type Platform, parseImageConfig, parseManifest } from '../shared/oci.ts';
import { manifestReference, type Reference } from '../shared/reference.ts';
import type { RegistryClient } from '../shared/registry-client.ts';
import { type Cancelable, collect } from '../shared/streams.ts';

export interface Distribution {
  readonly descriptor: Descriptor;
  /** Of an index, every manifest's that says one; attestations among them say `unknown`. */
  readonly platforms: readonly Platform[];
}

type Client = Pick<RegistryClient, 'fetchManifest' | 'fetchBlob'>;

/** @throws AppError 'not-found', 'unauthenticated', 'denied', 'integrity', 'invalid', 'unavailable' */
export async function describeRemote(
  client: Client,
  reference: Reference,
  options: Cancelable = {},
): Promise<Distribution> {
  const { repository } = reference;
  const { bytes, descriptor } = await client.fetchManifest(repository, manifestReference(reference), options);
  const document = parseManifest(bytes, descriptor.mediaType);
  if (document.kind === 'index')
    return { descriptor, platforms: document.manifests.flatMap(({ platform }) => (platform ? [platform] : [])) };
  return { descriptor, platforms: [await platformOf(client, { repository, config: document.config }, options)] };
}

async function platformOf(
  client: Client,
  { repository, config }: { readonly repository: string; readonly config: Descriptor },
  options: Cancelable,
): Promise<Platform> {
  if (config.size > CONFIG_MAX_BYTES)
    throw new AppError('too-large', `cannot read config ${config.digest}: it is larger than ${CONFIG_MAX_BYTES} bytes`);
  const { stream } = await client.fetchBlob(repository, config, options);
  const bytes = await collect(stream, CONFIG_MAX_BYTES, { what: 'config' });
  if (digestOf(bytes) !== config.digest)
    throw new AppError('integrity', `cannot verify config ${config.digest}: the registry sent other bytes`);
  const { architecture, os, variant } = parseImageConfig(bytes);
  return { architecture, os, ...(variant !== undefined && { variant }) };
}
