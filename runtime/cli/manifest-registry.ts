/** What `berth manifest` asks of registries, with the credentials of docker's config.json and without an engine. */
import { AppError, isKind } from '../../shared/errors.ts';
import { isForeignLayer } from '../../shared/media-types.ts';
import {
  CONFIG_MAX_BYTES,
  type Descriptor,
  type ManifestDocument,
  parseImageConfig,
  parseManifest,
} from '../../shared/oci.ts';
import { proxiesFromEnvironment } from '../../shared/proxies.ts';
import {
  canonicalReference,
  familiarReference,
  manifestReference,
  parseReference,
  type Reference,
} from '../../shared/reference.ts';
import { createRegistryClient, type RegistryClient } from '../../shared/registry-client.ts';
import { collect } from '../../shared/streams.ts';
import type { Member } from './manifest-lists.ts';
import type { Session } from './session.ts';
import { CLIENT_VERSION } from './version.ts';

export interface RegistryFlags {
  /** Plain http, or any certificate. */
  readonly insecure?: boolean;
}

/** The caller disposes it. */
export function connect(session: Session, host: string, { insecure = false }: RegistryFlags): RegistryClient {
  return createRegistryClient({
    host,
    credentials: async () => (await session.credentials()).get(host),
    proxies: proxiesFromEnvironment(session.env),
    userAgent: `berth/${CLIENT_VERSION}`,
    ...(insecure ? { plainHttp: 'always', tls: { isUnverified: true } } : { plainHttp: 'loopback' }),
  });
}

export interface Found {
  readonly reference: Reference;
  readonly descriptor: Descriptor;
  readonly document: ManifestDocument;
  readonly bytes: Buffer;
}

/** @throws AppError 'not-found' with what to do */
export async function find(client: RegistryClient, reference: Reference): Promise<Found> {
  try {
    const { descriptor, bytes, mediaType } = await client.fetchManifest(
      reference.repository,
      manifestReference(reference),
    );
    return { reference, descriptor, bytes, document: parseManifest(bytes, mediaType) };
  } catch (error) {
    if (!isKind(error, 'not-found')) throw error;
    const name = familiarReference(reference);
    throw new AppError('not-found', `no such manifest: ${name}: push the image first (berth push ${name})`, {
      cause: error,
    });
  }
}

/** The images that a name stands for: itself with the platform that its config tells, or all that an index lists. */
export async function membersOf(client: RegistryClient, found: Found): Promise<readonly Member[]> {
  const { reference, document } = found;
  if (document.kind === 'index')
    return document.manifests.map((descriptor) => ({
      source: canonicalReference({ ...reference, tag: undefined, digest: descriptor.digest }),
      descriptor,
    }));
  const descriptor = await describe(client, found);
  return [{ source: canonicalReference(reference), descriptor }];
}

/** The descriptor of one image, with the platform that its config tells. */
export async function describe(client: RegistryClient, found: Found): Promise<Descriptor> {
  const { reference, document, descriptor } = found;
  if (document.kind === 'index') return descriptor;
  const { stream } = await client.fetchBlob(reference.repository, document.config);
  const config = parseImageConfig(await collect(stream, CONFIG_MAX_BYTES, { what: 'image config' }));
  const { mediaType, digest, size } = descriptor;
  return {
    mediaType,
    digest,
    size,
    platform: {
      architecture: config.architecture,
      os: config.os,
      ...(config.variant !== undefined && { variant: config.variant }),
      ...(config.osVersion !== undefined && { 'os.version': config.osVersion }),
      ...(config.osFeatures !== undefined && { 'os.features': [...config.osFeatures] }),
    },
  };
}

/** Makes an image be in the target's repository, too. Blobs of the same registry are mounted, not sent. */
export async function copyInto(
  target: { readonly client: RegistryClient; readonly repository: string },
  source: { readonly client: RegistryClient; readonly member: Member },
): Promise<void> {
  const { client, repository } = target;
  const { host, repository: from } = parseReference(source.member.source);
  const { digest } = source.member.descriptor;
  const { bytes, mediaType } = await source.client.fetchManifest(from, digest);
  const document = parseManifest(bytes, mediaType);
  if (document.kind === 'index')
    throw new AppError(
      'unsupported',
      `cannot copy ${JSON.stringify(source.member.source)}: it is an index in an index`,
    );
  for (const blob of [document.config, ...document.layers].filter((each) => !isForeignLayer(each.mediaType)))
    await client.pushBlob(repository, blob, {
      mountFrom: host === client.host ? from : undefined,
      open: async (offset) => (await source.client.fetchBlob(from, blob, { offset })).stream,
    });
  await client.pushManifest(repository, digest, { bytes, mediaType });
}
