/**
 * Networks: what containers are connected to, and everything on the host that makes it so: links, network namespaces,
 * addresses, firewall rules, published ports and DNS.
 *
 * A network is found by its id, its name, or an unambiguous prefix of its id. A container's place in networks while it
 * runs is its sandbox: one network namespace, one endpoint per network, its published ports. Addresses are leased in
 * the database: no two endpoints of a network ever hold the same. A sandbox outlives the engine; the next one adopts it.
 *
 * Where clients match Docker's messages, errors carry Docker's words.
 */
export const PREDEFINED = ['bridge', 'host', 'none'] as const;

export type NetworkDriver = 'bridge' | 'macvlan' | 'ipvlan' | 'host' | 'null';

/** Texts as in Docker's IPAM: CIDRs and addresses. */
export interface AddressRange {
  readonly subnet: string;
  readonly gateway: string | undefined;
  /** Part of the subnet that addresses are given from. */
  readonly ipRange: string | undefined;
  /** Addresses that belong to something else, by name. */
  readonly auxiliary: Readonly<Record<string, string>>;
}

export interface NetworkRecord {
  /** 64 hexadecimal characters. */
  readonly id: string;
  readonly name: string;
  readonly createdAt: Date;
  readonly driver: NetworkDriver;
  readonly ipv4: boolean;
  readonly ipv6: boolean;
  /** Nothing gets out of it, and nothing in. */
  readonly internal: boolean;
  readonly attachable: boolean;
  readonly ranges: readonly AddressRange[];
  /** Nobody named a subnet: while the network is unused, another may be chosen. */
  readonly isChosen: boolean;
  readonly ipamOptions: Readonly<Record<string, string>>;
  readonly options: Readonly<Record<string, string>>;
  readonly labels: Readonly<Record<string, string>>;
  /** The host's link of it: a bridge, or the parent of a macvlan; empty for host and none. */
  readonly link: string;
}

/** What a client wants of a new network. */
export interface NetworkRequest extends Pick<NetworkRecord, 'name' | 'internal' | 'attachable' | 'options' | 'labels'> {
  readonly driver: string;
  readonly ipv4: boolean;
  readonly ipv6: boolean;
  readonly ranges: readonly (Omit<AddressRange, 'subnet'> & { readonly subnet: string | undefined })[];
  readonly ipamDriver: string;
  readonly ipamOptions: Readonly<Record<string, string>>;
}

/** One end of a running container in a network. */
export interface Endpoint {
  /** 64 hexadecimal characters. */
  readonly id: string;
  readonly networkId: string;
  readonly networkName: string;
  /** Inside: `eth0`. */
  readonly interfaceName: string;
  readonly mac: string;
  /** Without prefix length; undefined = it has none of that family. */
  readonly ipv4: LeasedAddress | undefined;
  readonly ipv6: LeasedAddress | undefined;
  readonly aliases: readonly string[];
  /** By which others in the network find it. */
  readonly dnsNames: readonly string[];
  readonly driverOptions: Readonly<Record<string, string>>;
  /** More addresses, of the link alone. */
  readonly linkLocal?: readonly string[] | undefined;
}

export interface LeasedAddress {
  readonly address: string;
  readonly prefix: number;
  /** undefined in an internal network. */
  readonly gateway: string | undefined;
}

export type PortProtocol = 'tcp' | 'udp' | 'sctp';

export interface PublishedPort {
  readonly protocol: PortProtocol;
  readonly containerPort: number;
  /** `0.0.0.0` and `::` = every address of the family. */
  readonly hostAddress: string;
  readonly hostPort: number;
}

/** What a container has of networks while it runs. */
export interface SandboxState {
  /** Path of the network namespace. */
  readonly path: string;
  /** The first is the one that the container was created with. */
  readonly endpoints: readonly Endpoint[];
  readonly ports: readonly PublishedPort[];
}

/** What a user says of one connection. Empty = no wish. */
export interface EndpointWish {
  readonly ipv4: string;
  readonly ipv6: string;
  readonly mac: string;
  readonly aliases: readonly string[];
  readonly driverOptions: Readonly<Record<string, string>>;
  readonly linkLocal: readonly string[];
  /** Higher = its gateway is the default route. */
  readonly gatewayPriority: number;
}

export interface PortWish {
  readonly protocol: PortProtocol;
  readonly containerPort: number;
  /** Empty = every address. */
  readonly hostAddress: string;
  /** undefined = whichever is free; more than one = the first that is free. */
  readonly hostPorts: { readonly first: number; readonly last: number } | undefined;
}

export interface SandboxRequest {
  readonly containerId: string;
  readonly containerName: string;
  readonly hostname: string;
  /** By network name or id; the first is the main one. */
  readonly networks: readonly { readonly network: string; readonly wish: EndpointWish }[];
  readonly ports: readonly PortWish[];
  /** Resolvers instead of the host's. */
  readonly dns: readonly string[];
}

/** An open sandbox: addresses are known at once, the rest comes in two steps, so that others can go on meanwhile. */
export interface OpenSandbox extends SandboxState {
  /** The namespace and its interfaces are there: a runtime can join it, but nothing may run in it. @throws as `ready` */
  readonly joinable: Promise<void>;
  /** Everything is as it should be, rules and names among it. @throws AppError 'conflict' (a port is taken), 'unavailable' */
  readonly ready: Promise<void>;
  /** To be set inside by the runtime. */
  readonly sysctls: Readonly<Record<string, string>>;
  /** Where names are asked for; empty = as the host does. */
  readonly nameservers: readonly string[];
}

export interface NetworkDetails {
  readonly record: NetworkRecord;
  /** Of running containers, by container id. */
  readonly members: ReadonlyMap<string, { readonly containerName: string; readonly endpoint: Endpoint }>;
}

export interface NetworkFilters {
  readonly [key: string]: readonly string[];
}

export interface Networks {
  /** The network that containers get when nobody says otherwise: `bridge`, or `none` where there can be no bridges. */
  readonly defaultNetwork: 'bridge' | 'none';
  /**
   * @throws AppError 'already-exists' (`network with name x already exists`), 'denied' (predefined names), 'invalid'
   * (subnets), 'unsupported' (driver, options)
   */
  create(request: NetworkRequest): Promise<NetworkRecord>;
  /** Filters: name, id, driver, type, label, scope, dangling. @throws AppError 'invalid' for an unknown filter */
  list(filters?: NetworkFilters): readonly NetworkDetails[];
  /** @throws AppError 'not-found' (`network x not found`), 'invalid' (ambiguous prefix) */
  inspect(name: string): NetworkDetails;
  /** @throws AppError 'denied' with Docker's words: predefined, or it has active endpoints */
  remove(name: string): Promise<void>;
  /** Removes what no container uses. Filters: label, label!, until. Answers names. */
  prune(options: { readonly filters?: NetworkFilters; readonly used: ReadonlySet<string> }): Promise<readonly string[]>;

  /** Whether a container may ask for this: addresses inside the subnets, networks that exist. @throws AppError 'not-found', 'invalid' */
  check(request: Pick<SandboxRequest, 'networks' | 'ports'>): void;
  /** Makes the sandbox of a container, or answers the one that it has already. @throws AppError 'not-found', 'invalid', 'conflict' */
  open(request: SandboxRequest): Promise<OpenSandbox>;
  /** Of a container that runs; undefined = it has none. */
  sandbox(containerId: string): SandboxState | undefined;
  /** Takes everything back. Idempotent. */
  close(containerId: string): Promise<void>;
  /** Adds an endpoint to an open sandbox. @throws AppError 'conflict' when it is in that network already */
  connect(request: SandboxRequest, network: string): Promise<Endpoint>;
  /** @throws AppError 'not-found' when it is not in that network */
  disconnect(containerId: string, network: string): Promise<void>;
  rename(containerId: string, containerName: string): Promise<void>;
  /**
   * Once, after a start of the engine: sandboxes of these containers are kept and mended, all others and whatever
   * carries this engine's mark on the host are taken back.
   */
  reconcile(running: ReadonlySet<string>): Promise<void>;
  /** Where a container finds the host, for `host-gateway`. */
  hostAddress(state: SandboxState): string | undefined;
}
