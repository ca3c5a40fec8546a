/**
 * Indexes that are being put together: one directory per list, one file per image in it, so that jobs that add to the
 * same list at once lose nothing. They are this client's alone, beside docker's config.json; a push reads them.
 *
 *   <directory>/<sha256 of the list's name>/<sha256 of the image's name>.json
 */
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { syncDirectory, writeDurably } from '../../shared/atomic-file.ts';
import { digestOf, hexOf, isDigest } from '../../shared/digest.ts';
import { AppError, hasCode } from '../../shared/errors.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import type { Descriptor, Platform } from '../../shared/oci.ts';
import { canonicalReference, familiarReference, type Reference } from '../../shared/reference.ts';

/** One image of a list. */
export interface Member {
  /** Full name, as it was given: how `annotate` finds it, and where its blobs are. */
  readonly source: string;
  readonly descriptor: Descriptor;
}

export interface ManifestLists {
  /** In the order of their names, so that the same images make the same index; undefined = there is no such list. */
  members(list: Reference): Promise<readonly Member[] | undefined>;
  /** Makes an empty list. false = there is one. */
  create(list: Reference): Promise<boolean>;
  /** Adds or replaces. @throws AppError 'not-found' when the list is gone */
  put(list: Reference, member: Member): Promise<void>;
  /** false = was absent. */
  remove(list: Reference): Promise<boolean>;
}

const memberSchema = z.object({
  source: z.string(),
  descriptor: z.looseObject({
    mediaType: z.string().min(1),
    digest: z.string().refine(isDigest),
    size: z.number().int().nonnegative(),
    platform: z
      .looseObject({
        os: z.string(),
        architecture: z.string(),
        variant: z.string().optional(),
        'os.version': z.string().optional(),
        'os.features': z.array(z.string()).optional(),
      })
      .optional(),
  }),
});

export function createManifestLists(directory: string): ManifestLists {
  const pathOf = (list: Reference) => join(directory, hexOf(digestOf(canonicalReference(list))));
  return {
    async members(list) {
      const path = pathOf(list);
      try {
        const names = (await readdir(path)).filter((name) => name.endsWith('.json'));
        const members = await Promise.all(names.map((name) => readMember(join(path, name))));
        return members.sort((a, b) => (a.source < b.source ? -1 : 1));
      } catch (error) {
        if (hasCode(error, 'ENOENT')) return undefined;
        throw error;
      }
    },
    async create(list) {
      await mkdir(directory, { recursive: true, mode: 0o700 });
      try {
        await mkdir(pathOf(list), { mode: 0o700 });
      } catch (error) {
        if (hasCode(error, 'EEXIST')) return false;
        throw error;
      }
      await syncDirectory(directory);
      return true;
    },
    async put(list, member) {
      const path = join(pathOf(list), `${hexOf(digestOf(member.source))}.json`);
      try {
        await writeDurably(path, `${JSON.stringify(member)}\n`, { mode: 0o600 });
      } catch (error) {
        if (hasCode(error, 'ENOENT')) throw noSuchList(list);
        throw error;
      }
    },
    async remove(list) {
      try {
        await rm(pathOf(list), { recursive: true });
        return true;
      } catch (error) {
        if (hasCode(error, 'ENOENT')) return false;
        throw error;
      }
    },
  };
}

export function noSuchList(list: Reference): AppError {
  return new AppError('not-found', `No such manifest: ${familiarReference(list)}`);
}

async function readMember(path: string): Promise<Member> {
  try {
    return memberSchema.parse(JSON.parse(await readFile(path, 'utf8'))) as Member;
  } catch (cause) {
    if (hasCode(cause, 'ENOENT')) throw cause;
    throw new AppError('integrity', `cannot read ${JSON.stringify(path)}: it is no image of a manifest list`, {
      cause,
    });
  }
}

/**
 * The document that a list is pushed as: Docker's form when all its images have it, else the OCI index. Pure: the same
 * members give the same bytes. @throws AppError 'invalid' when an image has no platform, or two have the same
 */
export function indexOf(members: readonly Member[]): { readonly mediaType: string; readonly bytes: Buffer } {
  const seen = new Map<string, string>();
  const manifests = members.map(({ source, descriptor }) => {
    const { mediaType, digest, size, platform, annotations, artifactType } = descriptor;
    if (platform === undefined || platform.os === '' || platform.architecture === '')
      throw new AppError(
        'invalid',
        `cannot put ${JSON.stringify(source)} into an index: its platform is not known; use manifest annotate --os --arch`,
      );
    const key = JSON.stringify(orderedPlatform(platform));
    const other = seen.get(key);
    // Attestations are all for the platform "unknown"; nobody chooses among them by it.
    if (other !== undefined && platform.os !== 'unknown')
      throw new AppError(
        'invalid',
        `cannot put both ${JSON.stringify(other)} and ${JSON.stringify(source)} into an index: they are for the same platform, ${platformText(platform)}`,
      );
    seen.set(key, source);
    return {
      mediaType,
      size,
      digest,
      ...(artifactType !== undefined && { artifactType }),
      ...(annotations !== undefined && { annotations }),
      platform: orderedPlatform(platform),
    };
  });
  const isDockers =
    manifests.length > 0 && manifests.every(({ mediaType }) => mediaType === MEDIA_TYPES.dockerManifest);
  const mediaType = isDockers ? MEDIA_TYPES.dockerList : MEDIA_TYPES.ociIndex;
  return { mediaType, bytes: Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, manifests }, null, 2)) };
}

export function platformText({ os, architecture, variant }: Platform): string {
  return [os, architecture, variant].filter((part) => part !== undefined && part !== '').join('/');
}

/** What the specification knows, in one order and without what is empty. */
function orderedPlatform(platform: Platform): Platform {
  const { architecture, os, variant = '', 'os.version': version = '', 'os.features': features = [] } = platform;
  return {
    architecture,
    os,
    ...(version !== '' && { 'os.version': version }),
    ...(features.length > 0 && { 'os.features': features }),
    ...(variant !== '' && { variant }),
  };
}
