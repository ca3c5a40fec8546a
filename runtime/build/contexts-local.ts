/**
 * The contexts of one engine: layers of the layer store, and a row for each that is kept: under a client's name, or, when
 * it was sent whole and is small, under the digest of what was sent.
 *
 * A kept context grows by a layer with each build that changed something. When it has too many, or they are large beside
 * the base, everything is asked for again and a fresh base replaces it. All kept ones together are bounded in number and
 * bytes, least recently used go first.
 *
 * Layers are durable before a row names them, and forgotten by the row before they are deleted; a crash between leaves
 * layers that nothing names, which the image store collects.
 */
import { Readable } from 'node:stream';
import type { Database } from '../../shared/database.ts';
import { digestOf, hexOf, parseDigest } from '../../shared/digest.ts';
import { AppError, messageOf } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Compression } from '../../shared/media-types.ts';
import { type Cancelable, collect } from '../../shared/streams.ts';
import { TAR_END, tarHeader, tarPadding } from '../../shared/tar-writer.ts';
import { isSwitchedOn } from '../dockerfile/predefined.ts';
import { decompress, peekForm } from '../images/decompress.ts';
import type { Lease } from '../images/images.ts';
import type { Chain, LayerId, LayerStore } from '../layers/layer-store.ts';
import { isTarHeader, TAR_BLOCK_BYTES } from '../layers/tar.ts';
import { nameFromUtf8 } from '../layers/tree.ts';
import type { CacheRecord } from './builds.ts';
import type { BuildContext, ContextDelta, ContextEntry, Contexts, FetchContextOptions } from './context.ts';
import { type Comparison, type ContextIndex, compareWith, indexOf } from './context-index.ts';
import type { ContextTables } from './context-tables.ts';
import { openFileTree, readText } from './file-tree.ts';
import type { GitTrees } from './git.ts';
import { parseGitReference } from './git-reference.ts';
import type { RemoteFiles } from './remote-files.ts';

export interface ContextLimits {
  /** Kept ones. */
  readonly keptMax: number;
  /** Bytes on disk of kept ones. */
  readonly keptMaxBytes: number;
  readonly entriesMax: number;
}

export const DEFAULT_CONTEXT_LIMITS: ContextLimits = { keptMax: 64, keptMaxBytes: 8 * 2 ** 30, entriesMax: 1_000_000 };

export interface ContextPorts {
  readonly database: Database<ContextTables>;
  readonly layers: LayerStore;
  /** See Images.lease. */
  readonly lease: () => Lease;
  /** Removes layers that no image, lease or container keeps; answers the bytes given back. */
  readonly discard: (layers: ReadonlySet<LayerId>) => Promise<number>;
  readonly git: GitTrees;
  readonly remote: RemoteFiles;
  readonly log: Log;
  readonly now: () => Date;
  readonly limits?: ContextLimits | undefined;
}

export interface LocalContexts extends Contexts {
  /** What rows of kept contexts name; the image store must not collect them. */
  layersInUse(): ReadonlySet<LayerId>;
  /** Kept contexts as `system df` and `builder prune` see them, newest use first. */
  records(): readonly CacheRecord[];
  /** Writes down what was used since the last time: after a build, since a crash may forget when that was. */
  flush(): Promise<void>;
  /** Forgets kept contexts by the id of their record, but those that a build uses. */
  remove(ids: ReadonlySet<string>): Promise<{ readonly removed: readonly string[]; readonly bytes: number }>;
}

interface Kept {
  readonly id: string;
  readonly description: string;
  readonly chain: Chain;
  readonly diskBytes: number;
  /** Bytes on disk of each layer. */
  readonly layerBytes: readonly number[];
  readonly createdAt: Date;
  usedAt: Date;
  usedCount: number;
  /** Builds that work with it now. */
  users: number;
}

const DOCKERFILE_MAX_BYTES = 2 << 20;
const DELTAS_MAX = 8;
/** A delta as large as this part of the base, and not small at all, is no saving. */
const DELTA_SHARE_MAX = 0.5;
const DELTA_SMALL_BYTES = 16 << 20;
const DESCRIPTION_CHARACTERS = 200;
const NAME_MAX_CHARACTERS = 8192;
/** What was sent whole is kept up to this size: clients of the classic endpoint send everything again each time. */
const SENT_KEPT_MAX_BYTES = 4 << 20;
/** Lists of names that stay in memory. */
const INDEXES_MAX = 2;

/** Reads the rows; those whose layers have gone are forgotten. */
export async function createContexts(ports: ContextPorts): Promise<LocalContexts> {
  const { layers, database, now, limits = DEFAULT_CONTEXT_LIMITS } = ports;
  const log = ports.log.child({ component: 'contexts' });
  const kept = await readRows(ports);
  const indexes = new Map<string, Promise<ContextIndex>>();
  /** Used since the last flush, and not changed. */
  const usedAgain = new Set<Kept>();

  async function make(tar: Readable, lower: Chain, making: Cancelable & { lease: Lease; removed: readonly string[] }) {
    tar.on('error', () => {});
    const { stream, compression } = await uncompressed(tar);
    const { lease, removed, signal } = making;
    const layer = await layers.make(stream, lower, {
      signal,
      compression,
      files: { removed },
      protect: (id) => lease.protect(id),
    });
    return layer;
  }

  async function leased(chain: Chain): Promise<Lease> {
    const lease = ports.lease();
    for (const id of chain) await lease.protect(id);
    return lease;
  }

  /** `done` runs after the lease has ended. */
  function contextOf(chain: Chain, lease: AsyncDisposable, done: () => Promise<void>): BuildContext {
    let disposed: Promise<void> | undefined;
    return {
      chain,
      text: async (path, maxBytes) => await readText(await openFileTree(layers, chain), path, maxBytes),
      [Symbol.asyncDispose]() {
        disposed ??= (async () => {
          await lease[Symbol.asyncDispose]();
          await done();
        })();
        return disposed;
      },
    };
  }

  const discard = async (chain: Chain): Promise<number> => {
    const used = layersInUse();
    const gone = new Set(chain.filter((id) => !used.has(id)));
    if (gone.size === 0) return 0;
    try {
      return await ports.discard(gone);
    } catch (error) {
      log.warn('layers of a build context stay for the next collection', { reason: messageOf(error) });
      return 0;
    }
  };

  const layersInUse = () => new Set([...kept.values()].flatMap(({ chain }) => chain));

  async function receive(tar: Readable, options: Cancelable = {}): Promise<BuildContext> {
    const stop = () => tar.destroy(new AppError('timeout', 'cannot receive the build context: it was cancelled'));
    if (options.signal?.aborted === true) stop();
    options.signal?.addEventListener('abort', stop, { once: true });
    const { head, rest } = await splitHead(tar, SENT_KEPT_MAX_BYTES + 1).finally(() =>
      options.signal?.removeEventListener('abort', stop),
    );
    if (head.length <= SENT_KEPT_MAX_BYTES) return await receiveSmall(head, options);
    await using undo = new AsyncDisposableStack();
    const lease = undo.use(ports.lease());
    const layer = await make(Readable.from(rest, { objectMode: false }), [], { ...options, lease, removed: [] });
    undo.move();
    return contextOf([layer.id], lease, async () => void (await discard([layer.id])));
  }

  async function receiveSmall(bytes: Buffer, { signal }: Cancelable): Promise<BuildContext> {
    const digest = digestOf(bytes);
    // No name of a client has such an id: nobody can put other files there.
    const id = `sent-${hexOf(digest)}`;
    let chain = kept.get(id)?.chain ?? [];
    // On failure: the lease ends, then what was made goes.
    await using failing = new AsyncDisposableStack();
    failing.defer(async () => void (await discard(chain)));
    const lease = failing.use(await leased(chain));
    if (chain.length === 0 || (await layersOf(chain)).includes(undefined))
      chain = [(await make(Readable.from([bytes]), [], { signal, lease, removed: [] })).id];
    const entry = await keep(id, { name: `a context sent whole, ${digest}`, chain });
    failing.move();
    return keptContext(entry, lease);
  }

  const layersOf = (chain: Chain) => Promise.all(chain.map((layer) => layers.get(layer)));

  /** In use until it is disposed, also when another takes its place meanwhile. */
  function keptContext(entry: Kept, lease: AsyncDisposable): BuildContext {
    entry.users += 1;
    return contextOf(entry.chain, lease, async () => {
      entry.users -= 1;
      if (kept.get(entry.id) !== entry) await discard(entry.chain);
      await shrink();
    });
  }

  async function fetch(url: string, { signal, buildArgs }: FetchContextOptions = {}): Promise<BuildContext> {
    const reference = parseGitReference(url);
    if (reference !== undefined) {
      await using undo = new AsyncDisposableStack();
      const lease = undo.use(ports.lease());
      const keepGitDir = isSwitchedOn(buildArgs, 'BUILDKIT_CONTEXT_KEEP_GIT_DIR');
      const { chain } = await ports.git.fetch(reference, { signal, lease, keepGitDir });
      undo.move();
      // Not discarded: it is kept for the next build of the same commit.
      return contextOf(chain, lease, async () => {});
    }
    const body = await ports.remote.open(url, { signal });
    const { stream, compression } = await uncompressed(body);
    if (compression !== 'none' || stream !== body) return await receive(body, { signal });
    const { head, rest } = await splitHead(body, TAR_BLOCK_BYTES);
    const whole = Readable.from(rest, { objectMode: false });
    if (isTarHeader(head)) return await receive(whole, { signal });
    const text = await collect(whole, DOCKERFILE_MAX_BYTES, { what: 'Dockerfile', signal });
    if (text.includes(0))
      throw new AppError(
        'invalid',
        'cannot use the remote context: it is neither an archive nor the text of a Dockerfile',
      );
    return await receive(Readable.from([oneFileTar('Dockerfile', text)]), { signal });
  }

  async function without(context: BuildContext, paths: readonly string[]): Promise<BuildContext> {
    await using undo = new AsyncDisposableStack();
    const lease = undo.use(await leased(context.chain));
    const layer = await layers.make(Readable.from([TAR_END]), context.chain, {
      files: { removed: paths.map(nameFromUtf8) },
      protect: (id) => lease.protect(id),
    });
    undo.move();
    return contextOf([...context.chain, layer.id], lease, async () => void (await discard([layer.id])));
  }

  async function indexFor(id: string, chain: Chain): Promise<ContextIndex> {
    const key = chain.join(' ');
    const known = indexes.get(key) ?? openFileTree(layers, chain).then(indexOf);
    known.catch(() => indexes.delete(key));
    indexes.delete(key);
    indexes.set(key, known);
    const [oldest] = indexes.keys();
    if (indexes.size > INDEXES_MAX && oldest !== undefined) indexes.delete(oldest);
    return await known.catch((error: unknown) => {
      log.warn('cannot read a kept build context', { id, reason: messageOf(error) });
      return new Map();
    });
  }

  async function compare(name: string, entries: AsyncIterable<ContextEntry>): Promise<ContextDelta> {
    if (name === '' || name.length > NAME_MAX_CHARACTERS)
      throw new AppError('invalid', `cannot name a build context: it has ${name.length} characters`);
    const id = hexOf(digestOf(name));
    await using undo = new AsyncDisposableStack();
    const before = kept.get(id);
    const lease = undo.use(await leased(before?.chain ?? []));
    const index = before === undefined ? new Map() : await indexFor(id, before.chain);
    const comparison = await compareWith(index, entries, limits);
    const base = before !== undefined && (await isWorthKeeping(before.chain, comparison)) ? before.chain : [];
    const missing = base.length === 0 ? comparison.paths : comparison.missing;
    const owned = undo.move();
    let isTaken = false;
    return {
      missing,
      async complete(tar, options) {
        if (isTaken) throw new AppError('conflict', 'cannot complete a build context twice');
        isTaken = true;
        // On failure: the lease ends, then what was made of the tar goes.
        await using failing = new AsyncDisposableStack();
        const made: LayerId[] = [];
        failing.defer(async () => void (await discard(made)));
        failing.use(owned);
        const gone = base.length === 0 ? [] : comparison.gone;
        const chain = await completed(tar, { ...options, base, missing, gone, lease, made });
        const entry = await keep(id, { name, chain });
        failing.move();
        return keptContext(entry, owned);
      },
      async [Symbol.asyncDispose]() {
        if (!isTaken) await owned.disposeAsync();
      },
    };
  }

  interface Completing extends Cancelable {
    readonly base: Chain;
    readonly missing: readonly string[];
    readonly gone: readonly string[];
    readonly lease: Lease;
    /** Gets the layer, also when that is not what was wanted. */
    readonly made: LayerId[];
  }

  async function completed(tar: Readable, { base, missing, gone, lease, made, signal }: Completing): Promise<Chain> {
    const isSame = base.length > 0 && missing.length === 0 && gone.length === 0;
    if (isSame) {
      tar.destroy();
      return base;
    }
    const removed = gone;
    const layer = await make(tar, base, { signal, lease, removed });
    made.push(layer.id);
    const { root } = await openFileTree(layers, [...base, layer.id]);
    for (const path of missing) {
      let at = root;
      const names = nameFromUtf8(path).split('/');
      const last = names.pop() ?? '';
      for (const name of names) at = at?.get(name)?.directory;
      if (at?.get(last) === undefined)
        throw new AppError('invalid', `cannot complete build context: ${JSON.stringify(path)} is not in the tar`);
    }
    return [...base, layer.id];
  }

  async function isWorthKeeping(chain: Chain, { missingBytes }: Comparison): Promise<boolean> {
    if (chain.length > DELTAS_MAX) return false;
    const found = await layersOf(chain);
    if (found.includes(undefined)) return false;
    const [base = 0, ...deltas] = found.map((layer) => layer?.apparentBytes ?? 0);
    const changed = deltas.reduce((sum, bytes) => sum + bytes, missingBytes);
    return changed <= Math.max(base * DELTA_SHARE_MAX, DELTA_SMALL_BYTES);
  }

  /** Names a context, whose layers are leased. */
  async function keep(id: string, { name, chain }: { readonly name: string; readonly chain: Chain }): Promise<Kept> {
    const found = await layersOf(chain);
    const before = kept.get(id);
    const isSame = before?.chain.join() === chain.join();
    const current: Kept =
      before !== undefined && isSame
        ? before
        : {
            id,
            description: name.slice(0, DESCRIPTION_CHARACTERS),
            chain,
            diskBytes: found.reduce((sum, layer) => sum + (layer?.diskBytes ?? 0), 0),
            layerBytes: found.map((layer) => layer?.diskBytes ?? 0),
            createdAt: now(),
            usedAt: now(),
            usedCount: before?.usedCount ?? 0,
            users: 0,
          };
    current.usedAt = now();
    current.usedCount += 1;
    // In memory first: from here on its layers are in use, whoever collects.
    kept.set(id, current);
    if (isSame) {
      usedAgain.add(current);
      return current;
    }
    const values = {
      ...{ id, description: current.description, chain: JSON.stringify(chain), diskBytes: current.diskBytes },
      ...{ createdMs: current.createdAt.getTime(), usedMs: current.usedAt.getTime(), usedCount: current.usedCount },
    };
    await database.write((transaction) =>
      transaction
        .insertInto('buildContext')
        .values(values)
        .onConflict((conflict) => conflict.column('id').doUpdateSet(values))
        .execute(),
    );
    if (before !== undefined && before.users === 0) await discard(before.chain);
    await shrink();
    return current;
  }

  async function forget(entries: readonly Kept[]): Promise<number> {
    if (entries.length === 0) return 0;
    await database.write(async (transaction) => {
      for (const { id } of entries) await transaction.deleteFrom('buildContext').where('id', '=', id).execute();
    });
    let bytes = 0;
    for (const entry of entries) if (kept.get(entry.id) === entry) kept.delete(entry.id);
    for (const { chain } of entries) bytes += await discard(chain);
    return bytes;
  }

  /** Least recently used first, until the rest is within the limits. */
  async function shrink(): Promise<void> {
    let count = kept.size;
    let bytes = diskBytes();
    const gone: Kept[] = [];
    for (const entry of [...kept.values()].sort((a, b) => a.usedAt.getTime() - b.usedAt.getTime())) {
      if (count <= limits.keptMax && bytes <= limits.keptMaxBytes) break;
      if (entry.users > 0) continue;
      count -= 1;
      bytes -= entry.diskBytes;
      gone.push(entry);
    }
    await forget(gone);
  }

  const diskBytes = () => [...kept.values()].reduce((sum, entry) => sum + entry.diskBytes, 0);

  return {
    async receive(tar, options) {
      try {
        return await receive(tar, options);
      } finally {
        tar.destroy();
      }
    },
    fetch,
    without,
    empty: async () => contextOf([], ports.lease(), async () => {}),
    compare,
    diskBytes: async () => diskBytes(),
    layersInUse,
    async flush() {
      const found = [...usedAgain];
      usedAgain.clear();
      if (found.length === 0) return;
      await database.write(async (transaction) => {
        for (const { id, usedAt, usedCount } of found)
          await transaction
            .updateTable('buildContext')
            .set({ usedMs: usedAt.getTime(), usedCount })
            .where('id', '=', id)
            .execute();
      });
    },
    records: () =>
      [...kept.values()]
        .sort((a, b) => b.usedAt.getTime() - a.usedAt.getTime())
        .map(({ id, description, chain, layerBytes, diskBytes: sizeBytes, users, createdAt, usedAt, usedCount }) => ({
          ...{ id: recordId(id), kind: 'source.local', description: `local source for ${description}`, sizeBytes },
          parts: new Map(chain.map((layer, index) => [`layer ${layer}`, layerBytes[index] ?? 0])),
          ...{ isShared: false, isInUse: users > 0, createdAt, usedAt, usedCount },
        })),
    async remove(ids) {
      const gone = [...kept.values()].filter(({ id, users }) => users === 0 && ids.has(recordId(id)));
      return { removed: gone.map(({ id }) => recordId(id)), bytes: await forget(gone) };
    },
  };
}

const ID_CHARACTERS = 25;

function recordId(id: string): string {
  return id.slice(0, ID_CHARACTERS);
}

async function readRows({ database, layers }: ContextPorts): Promise<Map<string, Kept>> {
  const rows = await database.kysely.selectFrom('buildContext').selectAll().orderBy('usedMs').execute();
  const kept = new Map<string, Kept>();
  const lost: string[] = [];
  for (const { id, description, chain: text, diskBytes, usedCount, createdMs, usedMs } of rows) {
    const chain = parseChain(text);
    const found = await Promise.all(chain.map((layer) => layers.get(layer)));
    if (found.length === 0 || found.some((layer) => layer === undefined)) lost.push(id);
    else
      kept.set(id, {
        ...{ id, description, chain, diskBytes, usedCount, users: 0 },
        layerBytes: found.map((layer) => layer?.diskBytes ?? 0),
        ...{ createdAt: new Date(createdMs), usedAt: new Date(usedMs) },
      });
  }
  if (lost.length > 0)
    await database.write((transaction) => transaction.deleteFrom('buildContext').where('id', 'in', lost).execute());
  return kept;
}

function parseChain(text: string): Chain {
  const parsed: unknown = JSON.parse(text);
  return Array.isArray(parsed) ? parsed.map((id) => parseDigest(String(id))) : [];
}

/** What the layer store can unpack itself is left to it. */
async function uncompressed(tar: Readable): Promise<{ readonly stream: Readable; readonly compression: Compression }> {
  const form = await peekForm(tar);
  if (form === 'bzip2' || form === 'xz') return { stream: await decompress(tar), compression: 'none' };
  return { stream: tar, compression: form };
}

function oneFileTar(path: string, content: Buffer): Buffer {
  const header = tarHeader({
    ...{ type: 'file', path, linkPath: '', mode: 0o644, uid: 0, gid: 0, sizeBytes: content.length },
    ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, major: 0, minor: 0, xattrs: undefined },
  });
  return Buffer.concat([header, content, tarPadding(content.length), TAR_END]);
}

/** `head` has fewer bytes when there are not so many; `rest` is everything, from the beginning. */
async function splitHead(
  stream: Readable,
  bytes: number,
): Promise<{ readonly head: Buffer; readonly rest: AsyncGenerator<Buffer> }> {
  const chunks: AsyncIterator<Buffer> = stream[Symbol.asyncIterator]();
  const first: Buffer[] = [];
  let seen = 0;
  while (seen < bytes) {
    const next = await chunks.next();
    if (next.done === true) break;
    first.push(next.value);
    seen += next.value.length;
  }
  async function* rest() {
    try {
      yield* first;
      for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) yield next.value;
    } finally {
      stream.destroy();
    }
  }
  return { head: Buffer.concat(first), rest: rest() };
}
