/**
 * Engine: one state directory and everything that works on it. The composition root of the runtime: it opens and wires
 * the stores and services, adopts what runs, and is all that the Engine API sees of the floors below.
 */

import type { Credentials } from '../shared/credentials.ts';
import type { Containers } from './containers/containers.ts';
import type { EngineDescription } from './description.ts';
import type { EventLog } from './events.ts';
import type { Images } from './images/images.ts';

export type { Credentials } from '../shared/credentials.ts';
export type {
  ContainerRecord,
  ContainerState,
  MountPoint,
} from './containers/container.ts';
export { endedOf, exitCodeOf, isAlive, resting } from './containers/container.ts';
export type {
  Attachment,
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
export type { ContainerConfig, EndpointRequest, HostConfig } from './containers/request.ts';
export { parseCreateRequest, parseExecRequest, parseUpdateRequest } from './containers/request.ts';
export type { EngineDescription } from './description.ts';
export type { EngineEvent, EventFilters, EventLog } from './events.ts';
export type {
  HistoryStep,
  ImageDetail,
  ImageFilter,
  ImageSummary,
  Images,
  ImagesUsage,
  PruneFilter,
  Removal,
} from './images/images.ts';
export type { PullEvent, PullLayerStatus, PushEvent, PushLayerStatus } from './images/progress.ts';

export interface Engine extends AsyncDisposable {
  readonly images: Images;
  readonly containers: Containers;
  readonly events: EventLog;
  readonly now: () => Date;
  /** What this engine and its host are. */
  readonly description: EngineDescription;
  /** What the database occupies on disk. */
  metadataBytes(): Promise<number>;
  /**
   * Asks a registry whether it takes these credentials. Answers a token to keep instead of the password, if there is one.
   * @throws AppError 'unauthenticated', 'unavailable'
   */
  login(host: string, credentials: Credentials): Promise<string | undefined>;
  /** Stops watching and closes the stores. Containers go on running; the next engine finds them. */
  close(): Promise<void>;
}
