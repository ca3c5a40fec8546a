/**
 * Which namespaces a container has of its own, which are the host's and which another container's: the modes of
 * HostConfig, checked as Docker checks them, and what they come to in config.json. Pure.
 * https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config-linux.md#namespaces
 */
import { AppError } from '../../shared/errors.ts';
import type { CgroupMode } from '../kernel/cgroups.ts';
import { networkKindOf } from './networking.ts';
import type { ContainerConfig, HostConfig } from './request.ts';

export type NamespaceSource =
  | { readonly kind: 'private' }
  | { readonly kind: 'host' }
  /** Of another container, or a prepared one. */
  | { readonly kind: 'path'; readonly path: string };

export interface NamespaceModes {
  readonly network: NamespaceSource;
  readonly uts: NamespaceSource;
  readonly pid: NamespaceSource;
  readonly ipc: NamespaceSource;
  readonly cgroup: NamespaceSource;
}

export interface OciNamespace {
  readonly type: string;
  readonly path?: string;
}

type Modes = Pick<HostConfig, 'IpcMode' | 'PidMode' | 'UTSMode' | 'UsernsMode' | 'CgroupnsMode' | 'Privileged'>;

/** The container that `container:NAME` names. */
export function containerOfMode(mode: string): string | undefined {
  return /^container:(.+)$/.exec(mode)?.[1];
}

/** Names of all whose namespaces it shares. */
export function joinedContainers(
  hostConfig: Pick<HostConfig, 'NetworkMode' | 'IpcMode' | 'PidMode'>,
): readonly string[] {
  const { NetworkMode, IpcMode, PidMode } = hostConfig;
  return [NetworkMode, IpcMode, PidMode].flatMap((mode) => containerOfMode(mode) ?? []);
}

/** @throws AppError 'invalid' with Docker's words */
export function checkNamespaceModes({ IpcMode, PidMode, UTSMode, UsernsMode }: Modes): void {
  const isJoin = (mode: string) => containerOfMode(mode) !== undefined;
  if (!['', 'none', 'private', 'shareable', 'host'].includes(IpcMode) && !isJoin(IpcMode))
    invalid(`invalid IPC mode: ${IpcMode}`);
  if (PidMode !== '' && PidMode !== 'host' && !isJoin(PidMode)) invalid(`invalid PID mode: ${PidMode}`);
  if (UTSMode !== '' && UTSMode !== 'host') invalid(`invalid UTS mode: ${UTSMode}`);
  if (UsernsMode !== '' && UsernsMode !== 'host') invalid(`invalid user namespace mode: ${UsernsMode}`);
}

/** What a container cannot have of its own where it shares: as its user asked for it, before the image's. */
export function checkSharedNamespaces(config: ContainerConfig, hostConfig: HostConfig): void {
  if (hostConfig.UTSMode === 'host' && config.Hostname !== '')
    invalid('conflicting options: hostname and the UTS mode');
  if (networkKindOf(hostConfig) !== 'container') return;
  if (config.Hostname !== '') invalid('conflicting options: hostname and the network mode');
  if (hostConfig.Dns.length > 0) invalid('conflicting options: dns and the network mode');
  if (hostConfig.ExtraHosts.length > 0) invalid('conflicting options: custom host-to-IP mapping and the network mode');
  if (hostConfig.PublishAllPorts || Object.keys(hostConfig.PortBindings).length > 0)
    invalid('conflicting options: port publishing and the container type network mode');
  if (config.ExposedPorts.length > 0) invalid('conflicting options: port exposing and the container type network mode');
}

export function namespaceModesOf(input: {
  readonly hostConfig: Modes;
  readonly cgroupMode: CgroupMode;
  readonly network: NamespaceSource;
  /** Of other containers; required by the mode `container:…`. */
  readonly joinedPid?: string | undefined;
  readonly joinedIpc?: string | undefined;
}): NamespaceModes {
  const { hostConfig, network } = input;
  checkNamespaceModes(hostConfig);
  // Like Docker: on v2 a private one hides the host's tree, on v1 tools expect to see it.
  const cgroupns =
    hostConfig.CgroupnsMode || (input.cgroupMode === 'v2' && !hostConfig.Privileged ? 'private' : 'host');
  return {
    network,
    uts: modeOf(hostConfig.UTSMode, undefined),
    pid: modeOf(hostConfig.PidMode, input.joinedPid),
    ipc: modeOf(hostConfig.IpcMode, input.joinedIpc),
    cgroup: { kind: cgroupns },
  };
}

function modeOf(mode: string, path: string | undefined): NamespaceSource {
  if (mode === 'host') return { kind: 'host' };
  if (path !== undefined) return { kind: 'path', path };
  if (containerOfMode(mode) !== undefined)
    invalid(`cannot share a namespace: there is none of ${JSON.stringify(mode)}`);
  return { kind: 'private' };
}

/** `made`: the types that the runtime can make. */
export function namespacesOf(modes: NamespaceModes, made: readonly string[]): readonly OciNamespace[] {
  const list: OciNamespace[] = [{ type: 'mount' }];
  const add = (type: string, source: NamespaceSource) => {
    if (source.kind === 'private') list.push({ type });
    if (source.kind === 'path') list.push({ type, path: source.path });
  };
  add('network', modes.network);
  if (made.includes('time')) list.push({ type: 'time' });
  add('uts', modes.uts);
  add('pid', modes.pid);
  add('ipc', modes.ipc);
  add('cgroup', modes.cgroup);
  return list;
}

function invalid(message: string): never {
  throw new AppError('invalid', message);
}
