/**
 * Whole file trees as text, to compare and to write down by hand: a line per path with kind, mode, owner, and content or
 * target. Times are no part of it. Read from tar archives by a parser that we did not write.
 */
import { createHash } from 'node:crypto';
import type { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { extract, type Header } from 'tar-stream';

/** By absolute path. */
export type FileTree = ReadonlyMap<string, string>;

/** Made for a container to mount on, or by its engine: no part of its image. */
const OF_CONTAINERS = /^\/(?:\.dockerenv|dev(?:\/.*)?|proc|sys|etc\/(?:hosts|hostname|resolv\.conf|mtab))$/;
/** Longer contents, and those that are no text, are digests. */
const SHOWN_BYTES = 200;

/** The tree of an exported container. Reads the archive to its end. */
export async function readFileTree(archive: Readable): Promise<FileTree> {
  const found = new Map<string, string>();
  const links: { readonly path: string; readonly target: string }[] = [];
  const parser = archive.pipe(extract());
  for await (const entry of parser) {
    const { header } = entry;
    const path = absolute(header.name);
    const content = await buffer(entry);
    if (OF_CONTAINERS.test(path) || path === '/') continue;
    if (header.type === 'link') links.push({ path, target: absolute(header.linkname ?? '') });
    else found.set(path, describe(header, content));
  }
  // Which name of a file an archive has first is its own business: here it is the first in the order of letters.
  const groups = Map.groupBy(links, ({ target }) => target);
  for (const [target, others] of groups) {
    const text = found.get(target) ?? 'link to nothing';
    const [first = '', ...rest] = [target, ...others.map(({ path }) => path)].sort();
    found.set(first, text);
    for (const path of rest) found.set(path, `${text} = ${first}`);
  }
  return new Map([...found].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** What is different above the base; what is gone is null. */
export function changesAbove(tree: FileTree, base: FileTree): Readonly<Record<string, string | null>> {
  const changed = [...tree].filter(([path, text]) => base.get(path) !== text);
  const gone = [...base.keys()].filter((path) => !tree.has(path)).map((path) => [path, null] as const);
  return Object.fromEntries([...changed, ...gone]);
}

function absolute(name: string): string {
  return `/${name.replace(/^(?:\.?\/)+/, '').replace(/\/+$/, '')}`.replace(/^\/\.$/, '/');
}

function describe({ type, mode = 0, uid, gid, linkname, devmajor, devminor, pax }: Header, content: Buffer): string {
  const special = {
    symlink: `-> ${linkname}`,
    'character-device': `${devmajor}:${devminor}`,
    'block-device': `${devmajor}:${devminor}`,
    file: textOf(content),
  };
  const about = Object.entries(special).find(([kind]) => kind === type)?.[1];
  const xattrs = Object.entries(pax ?? {})
    .filter(([name]) => name.startsWith('SCHILY.xattr.'))
    .map(([name, value]) => `${name.slice('SCHILY.xattr.'.length)}=${Buffer.from(String(value)).toString('hex')}`)
    .sort();
  // Of a link Linux has no mode.
  const shownMode = type === 'symlink' ? undefined : (mode & 0o7777).toString(8).padStart(4, '0');
  return [type, shownMode, `${uid}:${gid}`, about, ...xattrs].filter((part) => part !== undefined).join(' ');
}

function textOf(content: Buffer): string {
  const text = content.toString('utf8');
  const isShown = content.length <= SHOWN_BYTES && /^[\t\n\x20-\x7e]*$/.test(text);
  return isShown ? JSON.stringify(text) : `${content.length} ${createHash('sha256').update(content).digest('hex')}`;
}
