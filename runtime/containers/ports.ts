/** What the containers need from the rest of the engine. The composition root fills these in; tests bring small ones. */
import type { Database } from '../../shared/database.ts';
import type { Digest } from '../../shared/digest.ts';
import type { Log } from '../../shared/log.ts';
import type { EventLog } from '../events.ts';
import type { Images } from '../images/images.ts';
import type { CgroupMoves } from '../kernel/cgroup-moves.ts';
import type { Cgroups } from '../kernel/cgroups.ts';
import type { OciRuntime } from '../kernel/oci-runtime.ts';
import type { Snapshotter } from '../layers/snapshotter.ts';
import type { Networks } from '../networks/networks.ts';
import type { ContainerRecord } from './container.ts';
import type { ContainerTables } from './container-store.ts';
import type { VolumePorts } from './container-volumes.ts';
import type { FileChange } from './containers.ts';
import type { HostLimits } from './create-plan.ts';
import type { NamespaceSource } from './namespaces.ts';
import type { ExecRequest, HostConfig } from './request.ts';
import type { SharedMemory } from './shared-memory.ts';
import type { ContainerSupervisor } from './supervisor.ts';

export interface ContainerPorts extends VolumePorts {
  /** Why no container can run on this host; undefined when they can. */
  readonly obstacle?: string | undefined;
  readonly images: Pick<Images, 'resolve' | 'lease' | 'collectLayers'>;
  readonly snapshots: Snapshotter;
  readonly supervisor: ContainerSupervisor;
  readonly runtime: OciRuntime;
  readonly cgroups: Cgroups;
  readonly moves: CgroupMoves;
  readonly spec: SpecBuilder;
  readonly networks: ContainerNetworks;
  readonly sharedMemory: SharedMemory;
  /** What these layers occupy together. */
  readonly layerBytes: (chain: readonly Digest[]) => Promise<number>;
  /** What is in the writable layer of a container, compared with the layers below. */
  readonly changes: (id: string) => Promise<readonly FileChange[]>;
  readonly database: Database<ContainerTables>;
  readonly events: Pick<EventLog, 'publish'>;
  readonly log: Log;
  readonly now: () => Date;
  /** 64 hexadecimal characters. */
  readonly randomId: () => string;
  /** An integer in [0, limit). */
  readonly random: (limit: number) => number;
  readonly host: HostLimits & { readonly memoryBytes: number };
  /** `<state>/containers`: one directory per container, shared with the snapshotter. */
  readonly directory: string;
  /** `<run>`: execs and logs that nobody keeps; emptied by a reboot. */
  readonly runDirectory: string;
  /** Containers' cgroups are `<parent>/<id>` unless they ask for another parent. */
  readonly cgroupParent: string;
}

/** What containers need of networks. */
export type ContainerNetworks = Pick<
  Networks,
  'inspect' | 'check' | 'open' | 'sandbox' | 'close' | 'connect' | 'disconnect' | 'rename' | 'reconcile' | 'hostAddress'
>;

/** Files that are mounted over the image's. */
export interface EtcPaths {
  readonly hostname: string;
  readonly hosts: string;
  readonly resolvConf: string;
}

export interface SpecNetwork {
  readonly namespace: NamespaceSource;
  /** Of its interfaces; the container's own come after. */
  readonly sysctls: Readonly<Record<string, string>>;
}

export interface SpecRequest {
  readonly record: ContainerRecord;
  /** Where the container's filesystem is mounted. */
  readonly rootfs: string;
  readonly etc: EtcPaths;
  readonly network: SpecNetwork;
  /** First process of the running container of that name, for `container:NAME` modes. @throws AppError 'not-found', 'conflict' */
  readonly pidOf: (name: string) => number;
  /** See SpecInput. */
  readonly joinedIpc?: string | undefined;
  readonly sharedMemory?: string | undefined;
}

export interface ExecSpecRequest extends SpecRequest {
  readonly request: ExecRequest;
}

/** Makes the documents that the OCI runtime reads. */
export interface SpecBuilder {
  /** Text of config.json. @throws AppError 'invalid' (unknown user, bad option), 'unsupported' */
  container(request: SpecRequest): Promise<string>;
  /** The runtime has made a container of what `container` answered. Never rejects. */
  created(containerId: string): Promise<void>;
  /** Text of an exec's process.json; its user is numeric. @throws AppError 'invalid' */
  process(request: ExecSpecRequest): Promise<string>;
  /** linux.resources, for update. */
  resources(hostConfig: HostConfig, before: HostConfig): Promise<object>;
}
