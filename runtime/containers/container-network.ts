/**
 * The network of one container: its sandbox while it runs, and the files in it that tell of networks. What it shares
 * with another container (`container:NAME`) is that one's, files included.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { AppError } from '../../shared/errors.ts';
import type { OpenSandbox, SandboxState } from '../networks/networks.ts';
import type { ContainerRecord } from './container.ts';
import type { Connection } from './containers.ts';
import { etcFilesOf } from './etc-files.ts';
import {
  hasLinks,
  hostLinkLines,
  hostLinks,
  type LinkedContainer,
  linkVariables,
  mustBeLinkable,
  networkLinkLines,
} from './links.ts';
import { joinedContainer, networkKindOf, sandboxRequestOf } from './networking.ts';
import type { ContainerNetworks, EtcPaths, SpecNetwork } from './ports.ts';
import type { EndpointRequest } from './request.ts';

export interface NetworkPorts {
  readonly networks: ContainerNetworks;
  readonly pidOf: (name: string) => number;
  readonly etcOf: (name: string) => EtcPaths;
  /** @throws AppError 'not-found' */
  readonly recordOf: (name: string) => ContainerRecord;
  /** Others may have to be told where it is now. */
  readonly onMoved: () => void;
}

/** Where systemd-resolved writes whom it asks itself. */
const UPLINK_RESOLV_CONF = '/run/systemd/resolve/resolv.conf';

export class ContainerNetwork {
  readonly #ports: NetworkPorts;
  readonly #record: () => ContainerRecord;
  readonly #ownEtc: EtcPaths;
  #written: Promise<void> = Promise.resolve();
  #ready: Promise<void> = Promise.resolve();

  constructor(record: () => ContainerRecord, ownEtc: EtcPaths, ports: NetworkPorts) {
    this.#record = record;
    this.#ownEtc = ownEtc;
    this.#ports = ports;
  }

  /** Files that are mounted over the image's. */
  get etcPaths(): EtcPaths {
    const joined = joinedContainer(this.#record().hostConfig);
    return joined === undefined ? this.#ownEtc : this.#ports.etcOf(joined);
  }

  get sandbox(): SandboxState | undefined {
    return this.#ports.networks.sandbox(this.#record().id);
  }

  get connections(): readonly Connection[] {
    const endpoints = this.sandbox?.endpoints ?? [];
    return Object.entries(this.#record().endpoints).map(([networkName, request]) => ({
      networkName,
      networkId: this.#idOf(networkName),
      request,
      endpoint: endpoints.find((endpoint) => endpoint.networkName === networkName),
    }));
  }

  #idOf(name: string): string | undefined {
    try {
      return this.#ports.networks.inspect(name).record.id;
    } catch {
      return undefined;
    }
  }

  /** What a runtime joins, and the files. Nothing may run before `ready`. @throws as Networks.open */
  async prepare(): Promise<SpecNetwork> {
    const record = this.#record();
    if (networkKindOf(record.hostConfig) !== 'networks') {
      if (joinedContainer(record.hostConfig) === undefined) await this.#writeEtc(undefined);
      return this.spec();
    }
    for (const linked of this.#linked()) mustBeLinkable(record.name, linked);
    const sandbox = await this.#ports.networks.open(sandboxRequestOf(record)).catch(cannotSetUp);
    this.#ready = sandbox.ready;
    await Promise.all([this.#writeEtc(sandbox), sandbox.joinable.catch(cannotSetUp)]);
    this.#ports.onMoved();
    return { namespace: { kind: 'path', path: sandbox.path }, sysctls: sandbox.sysctls };
  }

  /** What was prepared is whole: something may run. @throws as Networks.open */
  ready(): Promise<void> {
    return this.#ready.catch(cannotSetUp);
  }

  /** Of what runs. @throws AppError 'not-found', 'conflict' when the container that it shares with does not run */
  spec(): SpecNetwork {
    const { hostConfig } = this.#record();
    const joined = joinedContainer(hostConfig);
    if (joined !== undefined)
      return { namespace: { kind: 'path', path: `/proc/${this.#ports.pidOf(joined)}/ns/net` }, sysctls: {} };
    const { sandbox } = this;
    if (sandbox !== undefined) return { namespace: { kind: 'path', path: sandbox.path }, sysctls: {} };
    return { namespace: { kind: networkKindOf(hostConfig) === 'host' ? 'host' : 'private' }, sysctls: {} };
  }

  /** In place: the files are mounted. */
  async refresh(): Promise<void> {
    const record = this.#record();
    if (this.sandbox === undefined) return;
    await this.#writeEtc(await this.#ports.networks.open(sandboxRequestOf(record)));
  }

  /** Containers that it is linked to in the default network; one that is gone is not among them. */
  #linked(): readonly LinkedContainer[] {
    const members = () => this.#ports.networks.inspect('bridge').members;
    return hostLinks(this.#record().hostConfig).flatMap(({ target, alias }) => {
      try {
        const record = this.#ports.recordOf(target);
        return [{ alias, record, endpoint: members().get(record.id)?.endpoint }];
      } catch {
        return [];
      }
    });
  }

  /** What links add to the environment. */
  get variables(): readonly string[] {
    return linkVariables(this.#record().name, this.#linked());
  }

  /** Somebody has come or gone. */
  async followLinks(): Promise<void> {
    if (hasLinks(this.#record())) await this.refresh();
  }

  async close(): Promise<void> {
    const had = this.sandbox !== undefined;
    await this.#ports.networks.close(this.#record().id);
    if (had) this.#ports.onMoved();
  }

  async connect(network: string, endpoints: Readonly<Record<string, EndpointRequest>>): Promise<void> {
    if (this.sandbox === undefined) return;
    await this.#ports.networks.connect(sandboxRequestOf({ ...this.#record(), endpoints }), network);
    this.#ports.onMoved();
  }

  async disconnect(network: string): Promise<void> {
    if (this.sandbox === undefined) return;
    await this.#ports.networks.disconnect(this.#record().id, network);
    this.#ports.onMoved();
  }

  #linkLines(): readonly string[] {
    const inNetworks = Object.entries(this.#record().endpoints).flatMap(([network, { Links }]) => {
      if (Links.length === 0 || network === 'bridge') return [];
      const members = [...this.#ports.networks.inspect(network).members.values()].map(({ endpoint }) => endpoint);
      return networkLinkLines(Links, members);
    });
    return [...hostLinkLines(this.#linked()), ...inNetworks];
  }

  /** One after the other: each writes what is true when its turn comes. */
  #writeEtc(sandbox: OpenSandbox | undefined): Promise<void> {
    const turn = this.#written.then(() => this.#writeEtcNow(sandbox));
    this.#written = turn.catch(() => {});
    return turn;
  }

  async #writeEtcNow(sandbox: OpenSandbox | undefined): Promise<void> {
    const { config, hostConfig } = this.#record();
    const isHost = networkKindOf(hostConfig) === 'host';
    const [hosts = '', resolvConf = ''] = await Promise.all([
      textOf('/etc/hosts'),
      isHost ? textOf('/etc/resolv.conf') : resolversBeyondLoopback(),
    ]);
    const files = etcFilesOf({
      hostname: config.Hostname,
      domainname: config.Domainname,
      extraHosts: hostConfig.ExtraHosts,
      dns: hostConfig.Dns,
      dnsSearch: hostConfig.DnsSearch,
      dnsOptions: hostConfig.DnsOptions,
      network: isHost ? 'host' : 'private',
      linked: sandbox === undefined ? [] : this.#linkLines(),
      addresses:
        sandbox?.endpoints.flatMap(({ ipv4, ipv6 }) => [ipv4, ipv6].flatMap((lease) => lease?.address ?? [])) ?? [],
      nameservers: sandbox?.nameservers ?? [],
      hostAddress: isHost ? '127.0.0.1' : sandbox === undefined ? undefined : this.#ports.networks.hostAddress(sandbox),
      host: { hosts, resolvConf },
    });
    const { hostname, hosts: hostsPath, resolvConf: resolvConfPath } = this.#ownEtc;
    await Promise.all([
      writeFile(hostname, files.hostname),
      writeFile(hostsPath, files.hosts),
      writeFile(resolvConfPath, files.resolvConf),
    ]);
  }
}

/** Docker's words for what went wrong before the command was. */
function cannotSetUp(cause: unknown): never {
  if (!(cause instanceof AppError)) throw cause;
  const { kind, message, detail } = cause;
  throw new AppError(kind, `failed to set up container networking: ${message}`, {
    cause,
    ...(detail !== undefined && { detail }),
  });
}

/** A stub resolver on the host's loopback is out of reach from a container: whoever the stub asks is asked instead. */
async function resolversBeyondLoopback(): Promise<string> {
  const text = await textOf('/etc/resolv.conf');
  const servers = [...text.matchAll(/^nameserver\s+(\S+)/gm)].map(([, server = '']) => server);
  if (servers.length === 0 || servers.some((server) => !/^(?:127\.|::1$)/.test(server))) return text;
  return (await textOf(UPLINK_RESOLV_CONF)) || text;
}

async function textOf(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}
