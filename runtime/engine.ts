/**
 * Engine: one state directory and everything that works on it. This is all that the Engine API sees of the floors below;
 * engine-local.ts makes one.
 */

import type { Credentials } from '../shared/credentials.ts';
import type { Cancelable } from '../shared/streams.ts';
import type { Builds } from './build/builds.ts';
import type { ContainerArchives } from './containers/archives.ts';
import type { Containers } from './containers/containers.ts';
import type { EngineDescription } from './description.ts';
import type { Distribution } from './distribution.ts';
import type { EventLog } from './events.ts';
import type { Images, PruneResult } from './images/images.ts';
import type { Networks } from './networks/networks.ts';
import type { Volumes } from './volumes/volumes.ts';

export type {
  BuildEvent,
  BuildFailure,
  BuildRequest,
  BuildResult,
  BuildStep,
  Builds,
  BuildWarning,
  BuiltImage,
  CachePruneFilter,
  CacheRecord,
  CacheSource,
  CacheTarget,
  CacheUsage,
  NamedContext,
  RunOptions,
} from './build/builds.ts';
export type { BuildContext, ContextDelta, ContextEntry, Contexts } from './build/context.ts';
export type { ContainerArchives } from './containers/archives.ts';
export type {
  ContainerRecord,
  ContainerState,
  MountPoint,
} from './containers/container.ts';
export { endedOf, exitCodeOf, isAlive, resting } from './containers/container.ts';
export type {
  Attachment,
  Connection,
  ContainerDetails,
  ContainerSize,
  ContainerSummary,
  Containers,
  ExecDetails,
  FileChange,
  Health,
  LogStream,
  OutputChunk,
  ProcessList,
  StatsSample,
  TerminalSize,
  WaitCondition,
} from './containers/containers.ts';
export type { PathStat } from './containers/files.ts';
export { hostLinks } from './containers/links.ts';
export type { ContainerConfig, CreateRequest, EndpointRequest, HostConfig } from './containers/request.ts';
export {
  parseCommitRequest,
  parseCreateRequest,
  parseEndpointRequest,
  parseExecRequest,
  parseUpdateRequest,
} from './containers/request.ts';
export type { EngineDescription } from './description.ts';
export type { Distribution } from './distribution.ts';
export type { EngineEvent, EventFilters, EventLog } from './events.ts';
export type {
  HistoryStep,
  ImageDetail,
  ImageFilter,
  ImageSummary,
  Images,
  ImagesUsage,
  ManifestContent,
  PruneFilter,
  Removal,
} from './images/images.ts';
export type { PullEvent, PullLayerStatus, PushEvent, PushLayerStatus } from './images/progress.ts';
export { addressUsage } from './networks/address-usage.ts';
export type {
  AddressRange,
  Endpoint,
  NetworkDetails,
  NetworkRecord,
  NetworkRequest,
  Networks,
  SandboxState,
} from './networks/networks.ts';

export type { Volume, Volumes, VolumeUsage } from './volumes/volumes.ts';

export interface Engine extends AsyncDisposable {
  readonly images: Images;
  readonly containers: Containers;
  readonly networks: Networks;
  /** What is in containers: copied, exported, committed. */
  readonly archives: ContainerArchives;
  readonly volumes: Volumes;
  readonly builds: Builds;
  readonly events: EventLog;
  readonly now: () => Date;
  /** What this engine and its host are. */
  readonly description: EngineDescription;
  /** Whether the host forwards packets now, without which published ports and networks reach nobody. */
  forwardsIpv4(): Promise<boolean>;
  /** By the configured policy: removes unused images, or tells which ones would go. */
  collectImages(options: { readonly dryRun: boolean }): Promise<PruneResult>;
  /** What lies beside images and writable layers, in bytes on disk. */
  otherUsage(): Promise<{
    readonly unpackedLayerBytes: number;
    readonly logBytes: number;
    readonly metadataBytes: number;
  }>;
  /**
   * Asks a registry whether it takes these credentials. Answers a token to keep instead of the password, if there is one.
   * @throws AppError 'unauthenticated', 'unavailable'
   */
  login(host: string, credentials: Credentials): Promise<string | undefined>;
  /** What a registry has under this reference; nothing of it is fetched but the descriptions. @throws as Images.pull */
  distribution(
    reference: string,
    options: Cancelable & { readonly credentials?: Credentials | undefined },
  ): Promise<Distribution>;
  /** Stops watching and closes the stores. Containers go on running; the next engine finds them. */
  close(): Promise<void>;
}
