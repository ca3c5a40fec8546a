/**
 * Volumes: directories of users' data that outlive containers. Only the driver `local` exists.
 *
 *   <state>/volumes/<name>/_data         the data; where a volume with options has its filesystem mounted
 *                          fill-<id>     what a copy-up or an import has not finished
 *   <run>/volumes/<id>                   a subpath, mounted while a container is being started
 *
 * A volume is a row first: its directory is made before the row is written, and a removal marks the row, deletes the
 * data and then the row, so no crash leaves a volume without its data or takes data that a row still promises. Data
 * without a row is never deleted by a sweep. A volume that a container refers to, running or not, is never removed.
 *
 * Messages are Docker's own words where clients match them.
 */
import type { Readable } from 'node:stream';
import type { Cancelable } from '../../shared/streams.ts';

export interface Volume {
  readonly name: string;
  readonly createdAt: Date;
  readonly labels: Readonly<Record<string, string>>;
  /** `type`, `o` and `device` as for mount(8); empty for a plain directory. */
  readonly options: Readonly<Record<string, string>>;
  /** Host path of the data. */
  readonly mountpoint: string;
}

export interface VolumeRequest {
  /** undefined = 64 hexadecimal characters and the label of anonymous volumes. */
  readonly name?: string | undefined;
  /** '' = local. */
  readonly driver?: string | undefined;
  readonly labels?: Readonly<Record<string, string>> | undefined;
  readonly options?: Readonly<Record<string, string>> | undefined;
}

/** Docker's filters; keys must all hold, values of one key are alternatives (labels must all hold). */
export interface VolumeFilter {
  readonly names?: readonly string[] | undefined;
  readonly labels?: readonly string[] | undefined;
  readonly drivers?: readonly string[] | undefined;
  /** Referred to by no container. */
  readonly dangling?: boolean | undefined;
}

export interface VolumePruneFilter {
  readonly labels?: readonly string[] | undefined;
  readonly labelsNot?: readonly string[] | undefined;
  /** Also those that somebody named. */
  readonly all?: boolean | undefined;
}

export interface VolumeUsage {
  readonly volume: Volume;
  /** Bytes on disk; undefined for a volume with options: what is mounted there is not ours. */
  readonly diskBytes: number | undefined;
  /** Containers, running or not. */
  readonly references: number;
}

/** A directory of an image, as a volume begins with. */
export interface SeedContent {
  /** A tar of what is in it; the entry `.` has its own attributes. */
  archive(): AsyncIterable<Buffer>;
}

/** A part of a volume that a container mounts. */
export interface VolumePart {
  readonly name: string;
  /** Below its root; '' = all of it. */
  readonly subpath: string;
  /** Path in the container, for events. */
  readonly destination: string;
  readonly writable: boolean;
}

/** What a container needs to be started; once it is, disposing takes back what was for that alone. */
export interface AttachedVolumes extends AsyncDisposable {
  /** A host path for each part, in their order, valid until disposed. */
  readonly sources: readonly string[];
}

export interface Volumes {
  /**
   * Makes a volume; one of that name that is there already is the answer.
   * @throws AppError 'invalid' (name, options), 'not-found' (driver)
   */
  create(request: VolumeRequest): Promise<Volume>;
  /** @throws AppError 'not-found' */
  inspect(name: string): Promise<Volume>;
  list(filter?: VolumeFilter): Promise<readonly Volume[]>;
  /** @throws AppError 'not-found' unless force, 'conflict' while a container refers to it */
  remove(name: string, options?: { readonly force?: boolean }): Promise<void>;
  /** Removes what no container refers to. */
  prune(filter?: VolumePruneFilter): Promise<{ readonly deleted: readonly string[]; readonly reclaimedBytes: number }>;
  /** Sizes are measured now, by another process; concurrent calls share one measurement. */
  usage(): Promise<readonly VolumeUsage[]>;
  /** Everything in it as a tar. The caller owns the stream. @throws AppError 'not-found' */
  export(name: string): Promise<Readable>;
  /**
   * Fills an empty volume from an uncompressed tar; all of it or nothing.
   * @throws AppError 'not-found', 'conflict' (in use by a running container, or not empty), 'invalid' (paths that lead out)
   */
  import(name: string, tar: Readable, options?: Cancelable): Promise<void>;

  /** create, and the container refers to it from then on. */
  claim(containerId: string, request: VolumeRequest): Promise<Volume>;
  /** A container of the database refers to these. */
  refer(containerId: string, names: readonly string[]): void;
  /** It refers to nothing any more. Those of `remove` that no other container refers to are removed. */
  release(containerId: string, options?: { readonly remove?: readonly string[] }): Promise<void>;
  /** Copies content into a volume that is empty and that nothing runs with; otherwise nothing happens. */
  seed(name: string, content: SeedContent): Promise<void>;
  /**
   * Before a container runs: mounts what has to be. A subpath is opened step by
   * step and no link is followed, and the source is what was opened.
   * @throws AppError 'not-found', 'invalid' (subpath), 'unavailable' (mount)
   */
  attach(containerId: string, parts: readonly VolumePart[]): Promise<AttachedVolumes>;
  /** The same for whoever copies files: nothing is told, and disposing gives all of it back. */
  open(parts: readonly VolumePart[]): Promise<AttachedVolumes>;
  /** A container that runs was found again: it was attached by an earlier engine. */
  resume(containerId: string, parts: readonly VolumePart[]): void;
  /** After it ran: unmounts what nobody else runs with. */
  detach(containerId: string): Promise<void>;
  /** After containers were found again: finishes removals, and unmounts what none of them runs with. */
  sweep(): Promise<void>;
}

/** The label by which Docker knows volumes that nobody named. */
export const ANONYMOUS_LABEL = 'com.docker.volume.anonymous';
