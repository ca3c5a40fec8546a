/**
 * `RUN --mount`: from what a mount says to paths of this host that the command's container gets. Sources are looked up in
 * read-only trees, where no link leads out, and their layers are mounted like those of any container.
 */
import { chmod, chown, mkdir, rm, writeFile } from 'node:fs/promises';
import { createConnection, createServer } from 'node:net';
import { join, posix } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { AppError } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { RunMount as MountSpec } from '../dockerfile/mounts.ts';
import { feedCommand } from '../kernel/command.ts';
import type { Chain, LayerStore } from '../layers/layer-store.ts';
import type { Snapshotter } from '../layers/snapshotter.ts';
import { openSubtree } from '../layers/subtree.ts';
import { nameToUtf8 } from '../layers/tree.ts';
import type { CacheMounts } from './cache-mounts.ts';
import { type FileTree, lookUp } from './file-tree.ts';
import type { RunMount, TmpfsMount } from './run.ts';
import type { KeyPart } from './step-key.ts';

/** Where a mount's `from` leads. */
export interface MountTree {
  readonly chain: Chain;
  readonly tree: FileTree;
}

export type PlannedMount =
  | {
      readonly kind: 'tree';
      readonly target: string;
      readonly from: MountTree;
      readonly source: string;
      readonly writable: boolean;
    }
  | {
      readonly kind: 'cache';
      readonly target: string;
      readonly name: string;
      readonly writable: boolean;
      readonly sharing: 'shared' | 'private' | 'locked';
      readonly mode: number;
      readonly uid: number;
      readonly gid: number;
      readonly seed: (MountTree & { readonly source: string; readonly key: string }) | undefined;
    }
  | { readonly kind: 'tmpfs'; readonly target: string; readonly sizeBytes: number | undefined }
  /** A secret, or a script. */
  | {
      readonly kind: 'file';
      readonly target: string;
      readonly bytes: Uint8Array;
      readonly mode: number;
      readonly uid: number;
      readonly gid: number;
    }
  | {
      readonly kind: 'socket';
      readonly target: string;
      readonly path: string;
      readonly mode: number;
      readonly uid: number;
      readonly gid: number;
    };

export interface PlannedMounts {
  readonly mounts: readonly PlannedMount[];
  /** What they add to the environment of the command alone. */
  readonly env: readonly string[];
  /** What of them a result depends on: never what a secret is. */
  readonly key: KeyPart;
}

export interface MountContext {
  readonly workingDirectory: string;
  /** Sets the caches of one caller apart from those of others. */
  readonly cacheNamespace: string | undefined;
  readonly secrets: ReadonlyMap<string, Buffer>;
  readonly ssh: ReadonlyMap<string, string>;
  /** undefined = the build's context. @throws AppError 'not-found' */
  treeOf(from: string | undefined): Promise<MountTree>;
  /** Names what is at a path, whatever its times are. @throws AppError 'not-found' */
  digestOf(from: MountTree, source: string): Promise<string>;
}

const SECRET_MODE = 0o400;
const SOCKET_MODE = 0o600;
const CACHE_MODE = 0o755;

/** @throws AppError 'not-found' for a source or a required secret that is not there */
export async function planMounts(specs: readonly MountSpec[], context: MountContext): Promise<PlannedMounts> {
  const mounts: PlannedMount[] = [];
  const env: string[] = [];
  const key: KeyPart[] = [];
  let agents = 0;
  const absolute = (target: string | undefined) => posix.resolve(context.workingDirectory, target ?? '.');
  for (const spec of specs) {
    switch (spec.type) {
      case 'bind': {
        const from = await context.treeOf(spec.from);
        const source = posix.resolve('/', spec.source ?? '.');
        const target = absolute(spec.target);
        mounts.push({ kind: 'tree', target, from, source, writable: !spec.isReadOnly });
        key.push(['bind', target, await context.digestOf(from, source), spec.isReadOnly]);
        break;
      }
      case 'cache': {
        const target = absolute(spec.target);
        const { sharing, mode = CACHE_MODE, uid = 0, gid = 0, isReadOnly } = spec;
        const id = spec.id ?? target;
        const name = context.cacheNamespace ? `${context.cacheNamespace}/${id}` : id;
        const seed = spec.from === undefined ? undefined : await seedOf(spec.from, spec.source, context);
        mounts.push({ kind: 'cache', target, name, writable: !isReadOnly, sharing, mode, uid, gid, seed });
        key.push(['cache', target, name, sharing, mode, uid, gid, isReadOnly, seed?.key]);
        break;
      }
      case 'tmpfs': {
        const target = absolute(spec.target);
        mounts.push({ kind: 'tmpfs', target, sizeBytes: spec.sizeBytes });
        key.push(['tmpfs', target, spec.sizeBytes]);
        break;
      }
      case 'secret': {
        const { id, mode = SECRET_MODE, uid = 0, gid = 0 } = spec;
        const bytes = context.secrets.get(id);
        key.push(['secret', id, spec.target, spec.env, mode, uid, gid]);
        if (bytes === undefined) {
          if (spec.isRequired) throw new AppError('not-found', `secret ${id}: not found`);
          break;
        }
        if (spec.env !== undefined) env.push(`${spec.env}=${bytes.toString('utf8')}`);
        if (spec.env !== undefined && spec.target === undefined) break;
        const target = absolute(spec.target ?? `/run/secrets/${id}`);
        mounts.push({ kind: 'file', target, bytes, mode, uid, gid });
        break;
      }
      case 'ssh': {
        const { id, mode = SOCKET_MODE, uid = 0, gid = 0 } = spec;
        const path = context.ssh.get(id);
        const target = absolute(spec.target ?? `/run/buildkit/ssh_agent.${agents}`);
        key.push(['ssh', id, target, mode, uid, gid]);
        if (path === undefined) {
          if (spec.isRequired)
            throw new AppError('not-found', `unset ssh forward key ${id}: give the build an agent by --ssh ${id}`);
          break;
        }
        mounts.push({ kind: 'socket', target, path, mode, uid, gid });
        if (agents === 0) env.push(`SSH_AUTH_SOCK=${target}`);
        agents += 1;
        break;
      }
      default:
        throw spec satisfies never;
    }
  }
  return { mounts, env, key };
}

async function seedOf(name: string, path: string | undefined, context: MountContext) {
  const from = await context.treeOf(name);
  const source = posix.resolve('/', path ?? '.');
  return { ...from, source, key: await context.digestOf(from, source) };
}

export interface MountPorts {
  readonly layers: LayerStore;
  readonly snapshots: Snapshotter;
  readonly caches: CacheMounts;
  /** Where secrets and sockets are while a command runs: in memory. */
  readonly runDirectory: string;
  /** 64 hexadecimal characters. */
  readonly randomId: () => string;
}

/** Disposing undoes everything but what caches have kept. */
export interface PreparedMounts extends AsyncDisposable {
  readonly mounts: readonly RunMount[];
  readonly tmpfs: readonly TmpfsMount[];
}

const DIRECTORY_MODE = 0o700;

/** @throws AppError 'not-found', 'unavailable', 'timeout' (cancelled while a locked cache is another's) */
export async function prepareMounts(
  ports: MountPorts,
  planned: readonly PlannedMount[],
  { signal }: Cancelable,
): Promise<PreparedMounts> {
  await using undo = new AsyncDisposableStack();
  const mounts: RunMount[] = [];
  const tmpfs: TmpfsMount[] = [];
  const caches = await acquireCaches(ports, planned, { undo, signal });
  for (const mount of planned) {
    const { target } = mount;
    switch (mount.kind) {
      case 'tree':
        mounts.push({ source: await mountTree(ports, mount, undo), target, writable: mount.writable });
        break;
      case 'cache': {
        const source = caches.get(mount);
        if (source === undefined) throw new RangeError('a cache was not acquired');
        mounts.push({ source, target, writable: mount.writable });
        break;
      }
      case 'tmpfs':
        tmpfs.push({ target, sizeBytes: mount.sizeBytes });
        break;
      case 'file':
        mounts.push({ source: await placeFile(ports, mount, undo), target, writable: false });
        break;
      case 'socket':
        mounts.push({ source: await placeSocket(ports, mount, undo), target, writable: true });
        break;
      default:
        throw mount satisfies never;
    }
  }
  const owned = undo.move();
  return { mounts, tmpfs, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

type CacheMount = Extract<PlannedMount, { kind: 'cache' }>;

/**
 * The caches of one command. In the order of their names, so that no two commands wait for each other's; one that is
 * mounted twice is acquired once, alone if one of its mounts wants that.
 */
async function acquireCaches(
  ports: MountPorts,
  planned: readonly PlannedMount[],
  { undo, signal }: Cancelable & { readonly undo: AsyncDisposableStack },
): Promise<ReadonlyMap<CacheMount, string>> {
  const groups = new Map<string, CacheMount[]>();
  for (const [index, mount] of planned.entries()) {
    if (mount.kind !== 'cache') continue;
    const name = JSON.stringify([mount.name, mount.seed?.key, mount.sharing === 'private' ? index : '']);
    groups.set(name, [...(groups.get(name) ?? []), mount]);
  }
  const paths = new Map<CacheMount, string>();
  for (const [, group] of [...groups].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const mount = group.find(({ sharing }) => sharing === 'locked') ?? group[0];
    if (mount === undefined) continue;
    const { seed } = mount;
    const filled = seed && { key: seed.key, fill: (directory: string) => fill(ports, seed, directory) };
    const { path } = undo.use(await ports.caches.acquire({ ...mount, seed: filled }, { signal }));
    for (const one of group) paths.set(one, path);
  }
  return paths;
}

/** The path of the host at which a path of a tree is mounted. Links in it are followed inside the tree, before anything runs. */
async function mountTree(
  { snapshots, randomId }: MountPorts,
  { from, source, writable }: Extract<PlannedMount, { kind: 'tree' }>,
  undo: AsyncDisposableStack,
): Promise<string> {
  const { path, found } = lookUp(from.tree, source);
  if (found === undefined && path !== '') throw new AppError('not-found', `"${source}": not found`);
  const key = randomId();
  await snapshots.prepare(key, from.chain);
  undo.defer(async () => {
    await snapshots.remove(key);
  });
  const mounted = await snapshots.mount(key, writable ? { throwAway: true } : { readOnly: true });
  undo.use(mounted);
  return join(mounted.rootfs, nameToUtf8(path));
}

async function fill({ layers }: MountPorts, seed: MountTree & { readonly source: string }, directory: string) {
  const content = await openSubtree(layers, seed.chain, seed.source);
  if (content.kind !== 'directory')
    throw new AppError('invalid', `cannot fill a cache from "${seed.source}": it is no directory`);
  const options = ['--extract', '--file=-', '--numeric-owner', '--same-owner', '--same-permissions'];
  await feedCommand('tar', [...options, `--directory=${directory}`], content.archive());
}

/** In a directory that only we can enter: the mode is for the command. */
async function ownDirectory({ runDirectory, randomId }: MountPorts, undo: AsyncDisposableStack): Promise<string> {
  const directory = join(runDirectory, randomId().slice(0, 16));
  await mkdir(directory, { recursive: true, mode: DIRECTORY_MODE });
  undo.defer(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function placeFile(
  ports: MountPorts,
  { bytes, mode, uid, gid }: Extract<PlannedMount, { kind: 'file' }>,
  undo: AsyncDisposableStack,
): Promise<string> {
  const path = join(await ownDirectory(ports, undo), 'file');
  await writeFile(path, bytes, { mode: SOCKET_MODE });
  await chown(path, uid, gid);
  await chmod(path, mode);
  return path;
}

/** A socket of our own that leads to the agent's, so that the command's user may be another than the agent's. */
async function placeSocket(
  ports: MountPorts,
  { path, mode, uid, gid }: Extract<PlannedMount, { kind: 'socket' }>,
  undo: AsyncDisposableStack,
): Promise<string> {
  const own = join(await ownDirectory(ports, undo), 'agent');
  const server = createServer((client) => {
    const agent = createConnection(path);
    void pipeline(client, agent, client).catch(() => {
      client.destroy();
      agent.destroy();
    });
  });
  await new Promise<void>((resolve, reject) => {
    // Also later ones, which only mean that a client could not be served.
    server.on('error', reject);
    server.listen(own, resolve);
  });
  undo.defer(() => {
    server.close();
  });
  await chown(own, uid, gid);
  await chmod(own, mode);
  return own;
}
