/**
 * The images that stages stand on and copy from: those that are here, and those that a registry has. One that is here for
 * the wrong platform is pulled for the right one, and keeps its tag.
 */
import { AppError, isKind } from '../../shared/errors.ts';
import type { Platform } from '../../shared/oci.ts';
import { parseReference } from '../../shared/reference.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { Images, Lease, ResolvedImage } from '../images/images.ts';
import type { BuildRequest } from './builds.ts';

export interface BaseOptions extends Cancelable {
  readonly platform: Platform;
  readonly lease: Lease;
  readonly request: Pick<BuildRequest, 'pull' | 'credentials'>;
  readonly onProgress: (name: string, current: number, total: number | undefined) => void;
}

/** The image, leased. @throws as Images.pull */
export async function resolveBase(images: Images, reference: string, options: BaseOptions): Promise<ResolvedImage> {
  const { platform, lease, request, signal } = options;
  const here = request.pull === true && !isId(reference) ? undefined : await find(images, reference);
  if (here !== undefined && isFor(here, platform)) {
    await lease.protectImage(here);
    return here;
  }
  const { host } = parseReference(reference);
  const pulled = await images.pull(reference, {
    platform: [platform.os, platform.architecture, platform.variant].filter((part) => part !== undefined).join('/'),
    credentials: request.credentials?.(host),
    keepsTag: here !== undefined,
    signal,
    onProgress(event) {
      if (event.kind === 'layer' && event.current !== undefined)
        options.onProgress(`${event.id} ${event.status}`, event.current, event.total);
    },
  });
  const image = await images.resolve(pulled.id);
  await lease.protectImage(image);
  return { ...image, reference };
}

async function find(images: Images, reference: string): Promise<ResolvedImage | undefined> {
  try {
    return await images.resolve(reference);
  } catch (error) {
    if (isKind(error, 'not-found')) return undefined;
    throw error instanceof AppError ? new AppError('invalid', error.message, { cause: error }) : error;
  }
}

/** Ids name images that are here; no registry knows them. */
function isId(reference: string): boolean {
  return reference.startsWith('sha256:');
}

function isFor({ config }: ResolvedImage, wanted: Platform): boolean {
  return (
    config.os === wanted.os &&
    config.architecture === wanted.architecture &&
    (wanted.variant === undefined || config.variant === undefined || config.variant === wanted.variant)
  );
}
