/**
 * From the tar of one layer to its image: file data goes to the image as it comes, the rest is remembered as changes,
 * and settle() then places them above the layers below and writes the tree. What a layer cannot hold, or only with
 * harm, ends here: overlayfs's own xattrs are dropped, impossible values refused, bombs stopped.
 */
import { AppError } from '../../shared/errors.ts';
import { isStorableXattr } from './erofs-format.ts';
import type { ErofsImage } from './erofs-reader.ts';
import { createErofsWriter } from './erofs-writer.ts';
import type { ImageOutput } from './image-output.ts';
import { type Change, type EntryName, entryName, entryPath, type Leaf, type Settled, settle } from './settle.ts';
import { createTarParser, type TarEntry } from './tar.ts';
import {
  type Attributes,
  type FileNode,
  type LayerNode,
  type LayerTree,
  type MergedDirectory,
  mergeTrees,
  nameToUtf8,
  walk,
} from './tree.ts';

/** What one layer may cost us. All are checked while it streams. */
export interface LayerLimits {
  /** Bytes of the tar. */
  readonly tarMaxBytes: number;
  /** Uncompressed : compressed, once the tar is larger than ratioFromBytes. gzip itself ends at 1032 : 1. */
  readonly ratioMax: number;
  readonly ratioFromBytes: number;
  /** Sum of the sizes of the files, holes counted. */
  readonly filesMaxBytes: number;
  readonly entriesMax: number;
  /** Names, link targets and xattrs of all entries together: they are held in memory. */
  readonly metadataMaxBytes: number;
  /** Names and values of one entry's xattrs; Linux itself keeps no more per name. */
  readonly xattrsMaxBytes: number;
}

export const DEFAULT_LAYER_LIMITS: LayerLimits = {
  tarMaxBytes: 128 * 2 ** 30,
  ratioMax: 250,
  ratioFromBytes: 4 * 2 ** 30,
  filesMaxBytes: 4 * 2 ** 40,
  entriesMax: 1_000_000,
  metadataMaxBytes: 256 * 2 ** 20,
  xattrsMaxBytes: 64 * 2 ** 10,
};

export interface LayerBuilder {
  /** The next bytes of the tar. @throws AppError 'invalid', 'unsupported', 'too-large', 'unavailable' */
  write(chunk: Buffer): void;
  /** The tar is complete. @throws AppError 'integrity' when it is cut off */
  endTar(): void;
  /** Settles and writes the tree unless it needs the layers below for that: undefined = call settle(). */
  settleAlone(): BuiltLayer | undefined;
  /** Settles above these images, base first, and writes the tree. */
  settle(lower: readonly ErofsImage[]): BuiltLayer;
}

export interface BuiltLayer {
  readonly independent: boolean;
  readonly entryCount: number;
  /** Sum of the sizes of the files, hard links once. */
  readonly apparentBytes: number;
  /** Of `/`, when the tar has an entry for it. */
  readonly root: { readonly mode: number; readonly uid: number; readonly gid: number } | undefined;
}

const SYMLINK_MAX_BYTES = 4095;
const DEVICE_MAJOR_MAX = 0xfff;
const DEVICE_MINOR_MAX = 0xfffff;
/** What an entry costs beside its bytes, roughly. */
const ENTRY_OVERHEAD_BYTES = 128;

export interface LayerBuilderOptions {
  /** The tar has plain files, and these paths below are gone: see MakeOptions of layer-store.ts. */
  readonly files?: { readonly removed: readonly string[] } | undefined;
}

/** The output, which is of an empty file, stays the caller's. */
export function createLayerBuilder(
  output: ImageOutput,
  limits: LayerLimits,
  { files }: LayerBuilderOptions = {},
): LayerBuilder {
  const writer = createErofsWriter(output);
  const changes: Change[] = (files?.removed ?? []).map((path) => ({ kind: 'whiteout', path: entryPath(path) }));
  let metadataBytes = 0;
  let filesBytes = 0;
  let takesData = false;

  const parser = createTarParser({
    entry(entry) {
      takesData = false;
      const change = changeOf(entry);
      if (change === undefined) return;
      account(entry);
      changes.push(change);
    },
    data(bytes) {
      if (takesData) writer.data(bytes);
    },
    hole(sizeBytes) {
      if (takesData) writer.hole(sizeBytes);
    },
  });

  function account(entry: TarEntry): void {
    if (changes.length >= limits.entriesMax) tooLarge(`it has more than ${limits.entriesMax} entries`);
    metadataBytes += ENTRY_OVERHEAD_BYTES + entry.path.length + entry.linkPath.length;
    for (const [name, value] of entry.xattrs ?? []) metadataBytes += name.length + value.length;
    if (metadataBytes > limits.metadataMaxBytes)
      tooLarge(`its names and attributes need more than ${limits.metadataMaxBytes} bytes`);
  }

  function changeOf(entry: TarEntry): Change | undefined {
    const { means, path } = files === undefined ? entryName(entryPath(entry.path)) : plainName(entry);
    switch (means) {
      case 'ignored':
        return undefined;
      case 'whiteout':
      case 'opaque':
        return { kind: means, path };
      case 'hidden':
        if (entry.type === 'directory' || entry.type === 'link') return undefined;
        return { kind: 'hidden', path, node: leafOf(entry) };
      case 'entry':
        break;
      default:
        means satisfies never;
    }
    if (entry.type === 'directory') return { kind: 'directory', path, attributes: attributesOf(entry) };
    if (entry.type === 'link') return { kind: 'link', path, target: entryPath(entry.linkPath) };
    // Overlayfs would take it for one anyway, and refuses to make one that is not.
    if (entry.type === 'character' && entry.major === 0 && entry.minor === 0) return { kind: 'whiteout', path };
    return { kind: 'node', path, node: leafOf(entry) };
  }

  function leafOf(entry: TarEntry): Leaf {
    const attributes = attributesOf(entry);
    switch (entry.type) {
      case 'file':
        filesBytes += entry.sizeBytes;
        if (filesBytes > limits.filesMaxBytes) tooLarge(`its files have more than ${limits.filesMaxBytes} bytes`);
        takesData = true;
        return writer.beginFile(attributes, entry.sizeBytes);
      case 'symlink':
        if (entry.linkPath === '' || entry.linkPath.length > SYMLINK_MAX_BYTES || entry.linkPath.includes('\0'))
          refuse(entry, `a symlink's target has ${entry.linkPath.length} bytes, or a zero one`);
        // Linux knows no other mode for them.
        return { kind: 'symlink', ...attributes, mode: 0o777, target: entry.linkPath };
      case 'character':
      case 'block':
        if (entry.major > DEVICE_MAJOR_MAX || entry.minor > DEVICE_MINOR_MAX)
          refuse(entry, `there is no device ${entry.major}:${entry.minor}`);
        return { kind: entry.type, ...attributes, major: entry.major, minor: entry.minor };
      case 'fifo':
        return { kind: 'fifo', ...attributes };
      case 'directory':
      case 'link':
        throw new RangeError('directories and links are no leaves');
      default:
        return entry.type satisfies never;
    }
  }

  function attributesOf(entry: TarEntry): Attributes {
    const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds } = entry;
    return { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs: xattrsOf(entry) };
  }

  function xattrsOf(entry: TarEntry): Attributes['xattrs'] {
    if (entry.xattrs === undefined) return undefined;
    const kept = new Map<string, Buffer>();
    let bytes = 0;
    for (const [name, value] of entry.xattrs) {
      if (!isStorableXattr(name) || isOverlayXattr(name)) continue;
      if (name.length > 255) refuse(entry, 'the name of an extended attribute is longer than 255 bytes');
      bytes += name.length + value.length;
      kept.set(name, value);
    }
    if (bytes > limits.xattrsMaxBytes)
      refuse(entry, `its extended attributes have more than ${limits.xattrsMaxBytes} bytes`);
    return kept.size === 0 ? undefined : kept;
  }

  function settleAbove(lower: MergedDirectory | undefined, images: readonly ErofsImage[]): Settled {
    return settle(changes, {
      lower,
      maxEntries: limits.entriesMax,
      copyFile(file, layer) {
        const image = images[layer];
        if (image === undefined) throw new RangeError('a lower file is of no lower image');
        const copy = writer.beginFile(file, file.sizeBytes);
        for (const piece of image.read(file)) writer.data(piece);
        return copy;
      },
    });
  }

  function finish(settled: Settled): BuiltLayer {
    writer.finish(settled);
    const { mode, uid, gid } = settled.root;
    return {
      independent: settled.independent,
      entryCount: settled.entryCount,
      apparentBytes: apparentBytesOf(settled),
      root: settled.rootIsImplied ? undefined : { mode, uid, gid },
    };
  }

  return {
    write: (chunk) => parser.write(chunk),
    endTar: () => parser.end(),
    settleAlone() {
      let settled: Settled;
      try {
        settled = settleAbove(undefined, []);
      } catch (error) {
        // A hard link to a lower file, for one, fails only as long as nothing is below.
        if (error instanceof AppError && error.kind === 'invalid') return undefined;
        throw error;
      }
      return settled.independent ? finish(settled) : undefined;
    },
    settle: (lower) => finish(settleAbove(mergeTrees(lower.map(({ tree }) => tree)), lower)),
  };
}

/** A name is a name, whatever layers would read into it; but a device 0:0 would be a whiteout to overlayfs. */
function plainName(entry: TarEntry): EntryName {
  if (entry.type === 'character' || entry.type === 'block')
    throw new AppError('unsupported', `cannot use ${JSON.stringify(nameToUtf8(entry.path))}: it is a device`);
  return { means: 'entry', path: entryPath(entry.path) };
}

/** They would make overlayfs hide or redirect what the layer's author could not see. */
function isOverlayXattr(name: string): boolean {
  return name.startsWith('trusted.overlay.') || name.startsWith('user.overlay.');
}

function apparentBytesOf(tree: LayerTree): number {
  const seen = new Set<LayerNode>();
  let bytes = 0;
  const add = (file: FileNode) => {
    if (seen.has(file)) return;
    seen.add(file);
    bytes += file.sizeBytes;
  };
  for (const { node } of walk(tree)) if (node.kind === 'file') add(node);
  return bytes;
}

function tooLarge(why: string): never {
  throw new AppError('too-large', `cannot unpack the layer: ${why}`);
}

function refuse(entry: TarEntry, why: string): never {
  throw new AppError('invalid', `cannot unpack layer entry ${JSON.stringify(nameToUtf8(entry.path))}: ${why}`);
}
