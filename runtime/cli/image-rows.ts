/** Images as rows of a list, with docker's names for the values. Pure. */
import { shortId } from '../../shared/digest.ts';
import { formatBytes, formatSpan } from '../../shared/units.ts';
import type { Row } from './output.ts';
import { number, object, strings, text } from './values.ts';

export interface ImageRowOptions {
  /** Full ids. */
  readonly noTrunc?: boolean | undefined;
  readonly now?: number | undefined;
}

/** One row per name; an image without one is `<none>`. `images` are what `GET /images/json` answers. */
export function imageRows(images: readonly unknown[], options: ImageRowOptions = {}): readonly Row[] {
  return images.map(object).flatMap((image): readonly Row[] => {
    const id = text(image.Id);
    const createdMs = number(image.Created) * 1000;
    const size = number(image.Size);
    const shared = number(image.SharedSize);
    const known = shared >= 0;
    const shape = (repository: string, tag: string, digest: string): Row => ({
      Repository: repository,
      Tag: tag,
      Digest: digest,
      ID: options.noTrunc === true ? id : shortId(id),
      CreatedAt: new Date(createdMs).toISOString(),
      CreatedSince: options.now === undefined ? '' : `${formatSpan(options.now - createdMs)} ago`,
      Size: formatBytes(size, 3),
      SharedSize: known ? formatBytes(shared, 3) : 'N/A',
      UniqueSize: known ? formatBytes(size - shared, 3) : 'N/A',
      Containers: number(image.Containers) < 0 ? 'N/A' : String(number(image.Containers)),
    });
    const digests = new Map(
      strings(image.RepoDigests).map((entry) => {
        const [name = '', digest = ''] = entry.split('@');
        return [name, digest];
      }),
    );
    const tags = strings(image.RepoTags).filter((name) => name !== '<none>:<none>');
    const named = tags.map((name) => {
      const colon = name.lastIndexOf(':');
      const repository = name.slice(0, colon);
      return shape(repository, name.slice(colon + 1), digests.get(repository) ?? '<none>');
    });
    const tagged = new Set(named.map((row) => row.Repository));
    const byDigest = [...digests]
      .filter(([name]) => !tagged.has(name))
      .map(([name, digest]) => shape(name, '<none>', digest));
    const rows = [...named, ...byDigest];
    return rows.length > 0 ? rows : [shape('<none>', '<none>', '<none>')];
  });
}
