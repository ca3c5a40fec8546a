/**
 * Archives of containers: `cp` both ways, `export` and `commit`, by a container's name. What is copied is never held in
 * memory. Errors have Docker's words where clients match them.
 */
import { Readable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { applyChanges } from '../dockerfile/image-config.ts';
import type { EventLog } from '../events.ts';
import type { ImageId, Images } from '../images/images.ts';
import { streamCommand } from '../kernel/command.ts';
import { diffUpper } from '../layers/diff.ts';
import type { Snapshotter } from '../layers/snapshotter.ts';
import { rewriteTar } from '../layers/tar-rewrite.ts';
import { imageConfigOf } from './commit.ts';
import { type ContainerRecord, isAlive } from './container.ts';
import type { LocalContainers } from './containers-local.ts';
import type { ContainerFiles, PathStat } from './files.ts';
import { mergeImageConfig } from './image-defaults.ts';
import type { ContainerConfig } from './request.ts';
import { userFilesIn } from './rootfs-files.ts';
import { resolveUser } from './users.ts';

export interface ContainerArchives {
  /** @throws AppError 'not-found' for the container or the path */
  stat(name: string, path: string): Promise<PathStat>;
  /** The caller owns the stream. @throws as stat */
  read(name: string, path: string): Promise<{ readonly stat: PathStat; readonly tar: Readable }>;
  /** @throws AppError 'not-found', 'invalid', 'denied' */
  write(name: string, path: string, tar: Readable, options?: WriteOptions): Promise<void>;
  /** The whole filesystem without volumes. The caller owns the stream. */
  export(name: string): Promise<Readable>;
  /** Makes an image of what the container changed. @throws AppError 'invalid' (an instruction), 'not-found' */
  commit(name: string, options?: CommitOptions): Promise<ImageId>;
}

export interface WriteOptions extends Cancelable {
  /** A directory is not replaced by a file. */
  readonly keepDirectories?: boolean;
  /** Everything belongs to the container's user afterwards. */
  readonly ownedByUser?: boolean;
}

export interface CommitOptions extends Cancelable {
  /** `repository[:tag]`. */
  readonly name?: string | undefined;
  readonly author?: string | undefined;
  readonly comment?: string | undefined;
  /** Dockerfile instructions about the image's config. */
  readonly changes?: readonly string[];
  /** What the client wants to be different, merged over the container's own. */
  readonly config?: ContainerConfig | undefined;
  /** Freeze it meanwhile; default true. */
  readonly pause?: boolean;
}

export interface ArchivePorts {
  readonly containers: LocalContainers;
  readonly files: ContainerFiles;
  readonly images: Pick<Images, 'create'>;
  readonly snapshots: Pick<Snapshotter, 'upperOf'>;
  readonly events: Pick<EventLog, 'publish'>;
}

const EXPORT = [
  '--create',
  '--file=-',
  '--format=posix',
  '--numeric-owner',
  '--xattrs',
  '--xattrs-include=security.capability',
  '--warning=no-file-ignored',
];
/** tar(1): some file changed while it was read. */
const ACCEPTED = [0, 1];

export function createContainerArchives(ports: ArchivePorts): ContainerArchives {
  const { containers, files, images, snapshots, events } = ports;
  const publish = ({ id, name, imageName, config }: ContainerRecord, action: string, more = {}) =>
    events.publish({
      type: 'container',
      action,
      id,
      attributes: { ...config.Labels, image: imageName, name, ...more },
    });

  /** The stream lives longer than the call that opened it. */
  const closing = (tar: Readable, close: () => Promise<void>): Readable => {
    tar.once('close', () => void close());
    return tar;
  };

  return {
    async stat(name, path) {
      await using view = await containers.openFiles(name);
      return await files.stat({ ...view, name }, path);
    },
    async read(name, path) {
      await using undo = new AsyncDisposableStack();
      const view = undo.use(await containers.openFiles(name));
      const { stat, tar } = await files.read({ ...view, name }, path);
      const owned = undo.move();
      return { stat, tar: closing(tar, () => owned.disposeAsync()) };
    },
    async write(name, path, tar, { ownedByUser = false, ...options } = {}) {
      await using view = await containers.openFiles(name);
      const { User } = (await containers.inspect(name)).record.config;
      const owner = ownedByUser && User !== '' ? resolveUser(User, [], userFilesIn(view.rootfs)) : undefined;
      await files.write({ ...view, name }, path, tar, { ...options, owner });
    },
    async export(name) {
      await using undo = new AsyncDisposableStack();
      const view = undo.use(await containers.openFiles(name));
      // Names come from the directory itself, and tar follows no link below it.
      const raw = streamCommand('tar', [...EXPORT, `--directory=${view.rootfs}`, '.'], { accepted: ACCEPTED });
      const renamed = rewriteTar(raw, (entry) => {
        const path = relative(entry.path);
        if (path === '') return [];
        return [{ ...entry, path, linkPath: entry.type === 'link' ? relative(entry.linkPath) : entry.linkPath }];
      });
      const owned = undo.move();
      return closing(Readable.from(renamed, { objectMode: false, highWaterMark: 1 << 20 }), () => owned.disposeAsync());
    },
    async commit(name, options = {}) {
      const { record } = await containers.inspect(name);
      const { id } = record;
      const own = imageConfigOf(record.config);
      const merged = options.config === undefined ? own : imageConfigOf(mergeImageConfig(own, options.config));
      const config = applyChanges(merged, options.changes ?? []);
      await using undo = new AsyncDisposableStack();
      if (options.pause !== false && isAlive(record.state) && record.state.status !== 'paused') {
        // It may have ended a moment ago: then nothing has to be stopped.
        await containers.pause(id).catch(unlessFault);
        undo.defer(async () => {
          // It may have been killed meanwhile, or been woken by somebody else.
          await containers.unpause(id).catch(unlessFault);
        });
      }
      // Without what is there only for the runtime to mount on.
      const changed = new Set((await containers.changes(id)).map(({ path }) => path));
      const image = await images.create(
        {
          parent: record.imageId,
          layer: changed.size === 0 ? undefined : diffUpper(snapshots.upperOf(id), { includes: isIn(changed) }),
          config,
          author: options.author,
          comment: options.comment,
          createdBy: (record.config.Cmd ?? []).join(' '),
          name: options.name,
        },
        { signal: options.signal },
      );
      publish(record, 'commit', { comment: options.comment ?? '', imageID: image, imageRef: options.name ?? '' });
      return image;
    },
  };
}

function unlessFault(error: unknown): void {
  if (!(error instanceof AppError)) throw error;
}

function isIn(paths: ReadonlySet<string>): (path: string) => boolean {
  return (path) => paths.has(path);
}

function relative(path: string): string {
  return path.replace(/^\.?\/*/, '').replace(/\/$/, '');
}
