/** The files half of builds over a layer store in a directory of its own: contexts, trees, digests, copies. */
import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { BUILD_CONTEXT_MIGRATIONS, type ContextTables } from '../../runtime/build/context-tables.ts';
import { type ContextLimits, createContexts, type LocalContexts } from '../../runtime/build/contexts-local.ts';
import { type CopyRequest, copyLayer } from '../../runtime/build/copy.ts';
import {
  FETCHED_SOURCE_MIGRATIONS,
  type FetchedSources,
  type FetchedSourceTables,
  openFetchedSources,
} from '../../runtime/build/fetched-sources.ts';
import { createFileDigests, type FileDigests } from '../../runtime/build/file-digests.ts';
import { type FileTree, openFileTree } from '../../runtime/build/file-tree.ts';
import { createGitTrees, type GitTrees } from '../../runtime/build/git.ts';
import { createRemoteFiles, type RemoteFiles } from '../../runtime/build/remote-files.ts';
import { type SelectRequest, selectFiles } from '../../runtime/build/selection.ts';
import type { Lease } from '../../runtime/images/images.ts';
import { createLeases } from '../../runtime/images/leases.ts';
import type { Chain, LayerId, LayerStore } from '../../runtime/layers/layer-store.ts';
import { createLayerStore, LAYER_MIGRATIONS, type LayerTables } from '../../runtime/layers/layer-store-erofs.ts';
import { createTarParser, type TarEntry } from '../../runtime/layers/tar.ts';
import { openDatabase } from '../../shared/database.ts';
import { createHttpTransport } from '../../shared/http-transport.ts';
import { createLog } from '../../shared/log.ts';
import { type TarEntry as FixtureEntry, tarOf } from '../fixtures/tar.ts';
import { CONTRACT_LIMITS } from './layer-store.ts';

export interface BuildRig extends AsyncDisposable {
  readonly root: string;
  readonly layers: LayerStore;
  readonly digests: FileDigests;
  readonly sources: FetchedSources;
  readonly remote: RemoteFiles;
  readonly git: GitTrees;
  readonly contexts: LocalContexts;
  lease(): Lease;
  /** Contexts as after a restart. */
  reopen(limits?: Partial<ContextLimits>): Promise<LocalContexts>;
  /** A tree of layers of plain files, base first. */
  tree(...layers: readonly (readonly FixtureEntry[])[]): Promise<FileTree>;
  /** What a COPY writes, by path; contents of files as text. */
  copy(
    select: Omit<SelectRequest, 'owners'> & Partial<SelectRequest>,
    request: Partial<CopyRequest>,
  ): Promise<ReadonlyMap<string, CopiedEntry>>;
}

export type CopiedEntry = TarEntry & { readonly text: string };

export const CREATED_AT = new Date('2024-05-06T07:08:09Z');

export async function buildRig(): Promise<BuildRig> {
  const root = await mkdtemp(join(tmpdir(), 'berth-build-'));
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rm(root, { recursive: true, force: true }));
  const database = undo.use(
    openDatabase<LayerTables & ContextTables & FetchedSourceTables>({
      path: join(root, 'berth.db'),
      migrations: [...LAYER_MIGRATIONS, ...BUILD_CONTEXT_MIGRATIONS, ...FETCHED_SOURCE_MIGRATIONS],
    }),
  );
  const log = createLog({ component: 'test', level: 'silent' });
  let clock = CREATED_AT.getTime();
  const now = () => {
    clock += 1000;
    return new Date(clock);
  };
  const layers = undo.use(
    createLayerStore({ root, database, log, now, randomId: randomUUID, workers: 2, limits: CONTRACT_LIMITS }),
  );
  const leases = createLeases();
  const lease = (): Lease => {
    const protection = leases.acquire();
    return {
      protect: (digest) => protection.protect(digest),
      protectImage: (image) => protection.protect(image.id, ...image.chain),
      [Symbol.asyncDispose]: () => protection[Symbol.asyncDispose](),
    };
  };
  const transport = undo.use(createHttpTransport({ userAgent: 'berth-test', idleTimeoutMs: 10_000 }));
  const directory = join(root, 'build', 'fetch');
  const discard = async (ids: ReadonlySet<LayerId>) => {
    using condemned = leases.condemn(ids);
    for (const id of condemned.digests) await layers.remove(id);
    return condemned.digests.length;
  };
  const sources = await openFetchedSources({ database, layers, discard, log, now });
  const remote = createRemoteFiles({ transport, layers, sources, directory, randomId: randomUUID, maxBytes: 1 << 20 });
  const git = createGitTrees({ layers, sources, directory, randomId: randomUUID, proxies: {} });
  const reopen = (limits: Partial<ContextLimits> = {}) =>
    createContexts({
      ...{ database, layers, lease, git, remote, log, now, discard },
      limits: { keptMax: 8, keptMaxBytes: 1 << 30, entriesMax: 10_000, ...limits },
    });
  const tree = async (...stack: readonly (readonly FixtureEntry[])[]) => {
    const chain: Chain[number][] = [];
    for (const entries of stack) chain.push((await layers.make(Readable.from([tarOf(entries)]), chain)).id);
    return await openFileTree(layers, chain);
  };
  const contexts = await reopen();
  const owned = undo.move();
  return {
    ...{ root, layers, sources, remote, git, contexts, lease, reopen, tree },
    digests: createFileDigests({ root, pathOf: (layer) => layers.pathOf(layer) }),
    async copy(select, request) {
      const selection = await selectFiles({ owners: 'root', ...select });
      const tar = await copyLayer({
        ...{
          instruction: 'COPY',
          sources: [{ kind: 'selection', selection }],
          destination: '/',
          workingDirectory: '/',
        },
        ...{ below: undefined, createdAt: CREATED_AT },
        ...request,
      });
      return await readCopy(tar);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

export async function readCopy(tar: AsyncIterable<Buffer>): Promise<ReadonlyMap<string, CopiedEntry>> {
  const found = new Map<string, CopiedEntry>();
  let last = '';
  const parser = createTarParser({
    entry(entry) {
      last = entry.path.replace(/\/$/, '');
      if (found.has(last)) throw new Error(`${last} is in the archive twice`);
      found.set(last, { ...entry, text: '' });
    },
    data(bytes) {
      const entry = found.get(last);
      if (entry !== undefined) found.set(last, { ...entry, text: entry.text + bytes.toString() });
    },
    hole() {},
  });
  for await (const chunk of tar) parser.write(chunk);
  parser.end();
  return found;
}
