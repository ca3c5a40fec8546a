/**
 * The sandboxes of containers: a network namespace each, its endpoints and its published ports.
 *
 * Order: nothing runs before the row is stored; what a crash leaves without one carries the engine's mark and is swept.
 * On the way back the kernel first, the row last, so that an address is free only when nobody can use it any more.
 */
import { AppError, isKind } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { runCommand } from '../kernel/command.ts';
import type { Links } from '../kernel/links.ts';
import type { Nft } from '../kernel/nft.ts';
import { endpointCommands, interfaceCommands } from './bridge.ts';
import { tableName } from './firewall.ts';
import type { HostSide } from './host-side.ts';
import { endpointSysctls, type Leases } from './leases.ts';
import type { NetworkStore, StoredEndpoint, StoredSandbox } from './network-store.ts';
import type {
  Endpoint,
  NetworkRecord,
  Networks,
  OpenSandbox,
  PortWish,
  SandboxRequest,
  SandboxState,
} from './networks.ts';
import { HOST_BINDING } from './plan.ts';
import { type HeldPort, holdPort } from './ports.ts';
import { resolverOf, resolverRuleset, resolverSysctls } from './resolver.ts';
import type { Sandbox, Topology } from './topology.ts';

export interface SandboxesOptions {
  readonly tag: string;
  readonly store: Pick<NetworkStore, 'putSandbox' | 'deleteSandbox'>;
  readonly links: Links;
  readonly nft: Nft;
  readonly host: HostSide;
  readonly leases: Leases;
  /** Names are resolved. */
  readonly hasNameServers: boolean;
  /** The host speaks it. */
  readonly hasIpv6: boolean;
  /** What keeps bridges from being made here; undefined = nothing. */
  readonly obstacle: string | undefined;
  readonly publish: (action: string, network: NetworkRecord, attributes: Readonly<Record<string, string>>) => void;
  readonly log: Log;
}

export interface Sandboxes extends Pick<Networks, 'open' | 'sandbox' | 'close' | 'connect' | 'disconnect' | 'rename'> {
  /** Reserves the ports of containers that an earlier engine started. */
  holdAgain(): Promise<void>;
  /** Gives the host's sockets back; containers stay connected. */
  releasePorts(): Promise<void>;
}

export function createSandboxes(topology: Topology, options: SandboxesOptions): Sandboxes {
  const { tag, store, links, nft, host, leases, hasIpv6, log } = options;
  const { sandboxes } = topology;

  const stateOf = ({ stored }: Sandbox): SandboxState => ({
    path: links.namespacePath(stored.namespace),
    endpoints: stored.endpoints,
    ports: stored.ports,
  });

  const resolverFor = ({ endpoints }: Pick<StoredSandbox, 'endpoints'>) =>
    options.hasNameServers ? resolverOf(topology, endpoints) : { nameservers: [], gateway: undefined };

  const sysctlsFor = (endpoints: readonly StoredEndpoint[]): Readonly<Record<string, string>> => ({
    ...(hasIpv6 ? interfaceSysctls(endpoints) : {}),
    ...(options.hasNameServers ? resolverSysctls(topology, endpoints) : {}),
    ...Object.assign({}, ...endpoints.map(endpointSysctls)),
  });

  const opened = (sandbox: Sandbox): OpenSandbox => ({
    ...stateOf(sandbox),
    joinable: sandbox.joinable,
    ready: sandbox.ready,
    sysctls: sysctlsFor(sandbox.stored.endpoints),
    nameservers: resolverFor(sandbox.stored).nameservers,
  });

  const announce = (action: string, { networkId }: Endpoint, containerId: string): void => {
    const network = topology.networks.get(networkId);
    if (network !== undefined) options.publish(action, network, { container: containerId });
  };

  // --- ports ---

  /** Reserves what is to be published; the whole or nothing. */
  const holdPorts = async (
    wishes: readonly PortWish[],
    { containerName, endpointName }: { readonly containerName: string; readonly endpointName: string },
  ): Promise<HeldPort[]> => {
    const held: HeldPort[] = [];
    try {
      for (const wish of wishes) held.push(...(await holdPort(wish, { ipv6: hasIpv6 })));
      return held;
    } catch (error) {
      const own = held.map(({ port }) => port);
      await release(held);
      if (!isKind(error, 'conflict')) throw error;
      const owner = ownerOf(wishes, error.message, { containerName, ports: own });
      throw new AppError(
        'conflict',
        `driver failed programming external connectivity on endpoint ${endpointName}: ${owner === undefined ? error.message : error.message.replace(/ \(held by .*\)$/, ` (held by container ${JSON.stringify(owner)})`)}`,
        { cause: error },
      );
    }
  };

  const ownerOf = (
    wishes: readonly PortWish[],
    message: string,
    asking: Pick<StoredSandbox, 'containerName' | 'ports'>,
  ): string | undefined => {
    const number = Number(/:(\d+) failed/.exec(message)?.[1]);
    const protocols = wishes.map(({ protocol }) => protocol);
    return [...[...sandboxes.values()].map(({ stored }) => stored), asking].find(({ ports }) =>
      ports.some(({ hostPort, protocol }) => hostPort === number && protocols.includes(protocol)),
    )?.containerName;
  };

  const aimPorts = (sandbox: Sandbox): void => {
    for (const each of sandbox.held) each.target = topology.targetOf(sandbox.stored, each.port);
  };

  // --- whole sandboxes ---

  const open = async (request: SandboxRequest): Promise<OpenSandbox> => {
    const { containerId } = request;
    const existing = sandboxes.get(containerId);
    if (existing !== undefined) return opened(existing);
    if (options.obstacle !== undefined)
      throw new AppError('unsupported', `cannot connect the container to a network: ${options.obstacle}`);
    const wanted = request.networks.map(({ network, wish }) => ({ network: topology.find(network), wish }));
    // The default network may move to another subnet before its first use.
    await Promise.all(wanted.map(({ network }) => host.ensureUp(network.id)));
    const endpoints: StoredEndpoint[] = [];
    for (const { network, wish } of wanted) {
      const interfaces = endpoints.map(({ interfaceName }) => interfaceName);
      endpoints.push(leases.endpoint(topology.get(network.id), wish, { request, interfaces }));
    }
    const stored: StoredSandbox = {
      containerId,
      containerName: request.containerName,
      hostname: request.hostname,
      namespace: `${tableName(tag)}_${containerId.slice(0, 12)}`,
      ports: [],
      dns: request.dns,
      endpoints,
    };
    const sandbox: Sandbox = { stored, held: [], joinable: Promise.resolve(), ready: Promise.resolve() };
    sandboxes.set(containerId, sandbox);
    try {
      const isReachable = wanted.some(({ network }) => network.driver === 'bridge' && !network.internal);
      if (isReachable) {
        const { containerName } = request;
        const endpointName = `${containerName} (${endpoints[0]?.id ?? ''})`;
        sandbox.held.push(...(await holdPorts(boundPorts(request.ports, wanted), { containerName, endpointName })));
        sandbox.stored = { ...stored, ports: sandbox.held.map(({ port }) => port) };
        aimPorts(sandbox);
      }
    } catch (error) {
      sandboxes.delete(containerId);
      throw error;
    }
    make(sandbox);
    return opened(sandbox);
  };

  /** Rules and names are written while interfaces are made, and those while a runtime joins. */
  const make = (sandbox: Sandbox): void => {
    const { stored } = sandbox;
    sandbox.joinable = makeNamespace(stored);
    // A runtime joins as soon as it can; the rest is done while it creates the container.
    const complete = [
      store.putSandbox(stored),
      sandbox.joinable.then(() => Promise.all([configure(stored), host.write()])),
    ];
    // Both are over when it fails: whoever takes it back then finds nothing still being made.
    sandbox.ready = Promise.allSettled(complete).then(async () => {
      await Promise.all(complete);
      for (const endpoint of stored.endpoints) announce('connect', endpoint, stored.containerId);
    });
    // Nobody may be waiting for them.
    sandbox.joinable.catch(() => {});
    sandbox.ready.catch(() => {});
  };

  const makeNamespace = async ({ namespace, endpoints }: StoredSandbox): Promise<void> => {
    const plans = await Promise.all(endpoints.map(planOf));
    await links.run([`netns add ${namespace}`, ...plans.flatMap((plan) => endpointCommands(namespace, plan))]);
  };

  /** Addresses, routes and whom it asks for names, inside. */
  const configure = async (stored: StoredSandbox): Promise<void> => {
    const { namespace, endpoints } = stored;
    const defaults = defaultEndpoints(endpoints);
    const interfaces = endpoints.flatMap((endpoint) =>
      interfaceCommands(endpoint, {
        defaultRoutes: { ipv4: defaults.ipv4 === endpoint, ipv6: defaults.ipv6 === endpoint },
      }),
    );
    const resolver = resolverFor(stored);
    await Promise.all([
      links.run(['link set lo up', ...interfaces], { namespace }),
      resolver.gateway === undefined
        ? undefined
        : nft.apply(resolverRuleset(resolver), { namespace: links.namespacePath(namespace) }),
    ]);
  };

  const planOf = async (endpoint: StoredEndpoint) => ({
    endpoint,
    network: topology.get(endpoint.networkId),
    link: endpoint.link,
    mtu: await host.ensureUp(endpoint.networkId),
  });

  const close = async (containerId: string): Promise<void> => {
    const sandbox = sandboxes.get(containerId);
    if (sandbox === undefined) return;
    sandbox.closing ??= takeBack(sandbox).catch((error) => {
      delete sandbox.closing;
      throw error;
    });
    await sandbox.closing;
  };

  const takeBack = async (sandbox: Sandbox): Promise<void> => {
    const { containerId } = sandbox.stored;
    await sandbox.ready.catch(() => {});
    const { stored } = sandbox;
    await release(sandbox.held);
    await links.attempt([
      ...stored.endpoints.map(({ link }) => `link delete ${link}`),
      `netns delete ${stored.namespace}`,
    ]);
    await store.deleteSandbox(containerId);
    sandboxes.delete(containerId);
    for (const endpoint of stored.endpoints) announce('disconnect', endpoint, containerId);
    await host.write();
  };

  // --- live connections ---

  const changed = async (sandbox: Sandbox): Promise<void> => {
    aimPorts(sandbox);
    const namespace = stateOf(sandbox).path;
    await Promise.all([host.write(), nft.apply(resolverRuleset(resolverFor(sandbox.stored)), { namespace })]);
  };

  const connect = async (request: SandboxRequest, name: string): Promise<Endpoint> => {
    const network = topology.find(name);
    const sandbox = sandboxes.get(request.containerId);
    const wish = request.networks.find((each) => each.network === name)?.wish;
    if (sandbox === undefined || wish === undefined)
      throw new AppError('conflict', `cannot connect container ${request.containerId}: it has no network of its own`);
    await sandbox.ready;
    const { stored } = sandbox;
    if (stored.endpoints.some(({ networkId }) => networkId === network.id))
      throw new AppError(
        'denied',
        `endpoint with name ${stored.containerName} already exists in network ${network.name}`,
      );
    await host.ensureUp(network.id);
    const interfaces = stored.endpoints.map(({ interfaceName }) => interfaceName);
    const endpoint = leases.endpoint(topology.get(network.id), wish, { request, interfaces });
    sandbox.stored = { ...stored, endpoints: [...stored.endpoints, endpoint] };
    try {
      await store.putSandbox(sandbox.stored);
      const { namespace } = stored;
      await links.run(endpointCommands(namespace, await planOf(endpoint)));
      await setInside(stateOf(sandbox).path, sysctlsFor([endpoint]));
      const defaults = defaultEndpoints(sandbox.stored.endpoints);
      const defaultRoutes = { ipv4: defaults.ipv4 === endpoint, ipv6: defaults.ipv6 === endpoint };
      await links.run(interfaceCommands(endpoint, { defaultRoutes }), { namespace });
    } catch (error) {
      await links.attempt([`link delete ${endpoint.link}`]);
      sandbox.stored = stored;
      await store.putSandbox(stored);
      throw error;
    }
    await changed(sandbox);
    announce('connect', endpoint, stored.containerId);
    return endpoint;
  };

  const disconnect = async (containerId: string, name: string): Promise<void> => {
    const network = topology.find(name);
    const sandbox = sandboxes.get(containerId);
    const endpoint = sandbox?.stored.endpoints.find(({ networkId }) => networkId === network.id);
    if (sandbox === undefined || endpoint === undefined)
      throw new AppError('denied', `container ${containerId} is not connected to network ${network.name}`);
    await sandbox.ready;
    const { namespace } = sandbox.stored;
    if (network.driver === 'bridge') await links.attempt([`link delete ${endpoint.link}`]);
    else await links.run([`link delete ${endpoint.interfaceName}`], { namespace });
    const endpoints = sandbox.stored.endpoints.filter((each) => each !== endpoint);
    const defaults = defaultEndpoints(endpoints);
    for (const heir of new Set([defaults.ipv4, defaults.ipv6]))
      if (heir !== undefined) {
        const defaultRoutes = { ipv4: defaults.ipv4 === heir, ipv6: defaults.ipv6 === heir };
        const commands = interfaceCommands(heir, { defaultRoutes }).filter((command) => command.includes('default'));
        await links.run(commands, { namespace });
      }
    sandbox.stored = { ...sandbox.stored, endpoints };
    await store.putSandbox(sandbox.stored);
    await changed(sandbox);
    announce('disconnect', endpoint, containerId);
  };

  return {
    open,
    sandbox(containerId) {
      const sandbox = sandboxes.get(containerId);
      return sandbox === undefined ? undefined : stateOf(sandbox);
    },
    close,
    connect,
    disconnect,
    async rename(containerId, containerName) {
      const sandbox = sandboxes.get(containerId);
      if (sandbox === undefined) return;
      const { stored } = sandbox;
      const endpoints = stored.endpoints.map((endpoint) => ({
        ...endpoint,
        dnsNames: endpoint.dnsNames.map((name) => (name === stored.containerName ? containerName : name)),
      }));
      sandbox.stored = { ...stored, containerName, endpoints };
      await store.putSandbox(sandbox.stored);
      await host.write();
    },
    async holdAgain() {
      for (const sandbox of sandboxes.values()) {
        if (sandbox.held.length > 0) continue;
        for (const { protocol, containerPort, hostAddress, hostPort } of sandbox.stored.ports) {
          const wish = { protocol, containerPort, hostAddress, hostPorts: { first: hostPort, last: hostPort } };
          try {
            sandbox.held.push(...(await holdPort(wish, { ipv6: false })));
          } catch (error) {
            const { containerId } = sandbox.stored;
            log.warn('a published port could not be reserved again', { containerId, error });
          }
        }
        aimPorts(sandbox);
      }
    },
    async releasePorts() {
      for (const { held } of sandboxes.values()) await release(held);
    },
  };
}

/** Where ports without an address are published, when a network of the container says so. */
function boundPorts(
  wishes: readonly PortWish[],
  wanted: readonly { readonly network: NetworkRecord }[],
): readonly PortWish[] {
  const main = wanted.find(({ network }) => network.driver === 'bridge' && !network.internal);
  const address = main?.network.options[HOST_BINDING];
  // Everywhere is what none means, and that is both families.
  if (address === undefined || address === '0.0.0.0') return wishes;
  return wishes.map((wish) => (wish.hostAddress === '' ? { ...wish, hostAddress: address } : wish));
}

async function release(held: HeldPort[]): Promise<void> {
  await Promise.all(held.splice(0).map((each) => each[Symbol.asyncDispose]()));
}

/** Whose gateways are the default routes. */
function defaultEndpoints(endpoints: readonly StoredEndpoint[]) {
  const priority = ({ gatewayPriority = 0 }: StoredEndpoint) => gatewayPriority;
  const first = (family: 'ipv4' | 'ipv6') =>
    endpoints
      .filter((endpoint) => endpoint[family]?.gateway !== undefined)
      .reduce<StoredEndpoint | undefined>(
        (best, each) => (best === undefined || priority(each) > priority(best) ? each : best),
        undefined,
      );
  return { ipv4: first('ipv4'), ipv6: first('ipv6') };
}

/** Router advertisements are never listened to (CVE-2020-13401); without IPv6 there is none at all (CVE-2024-32473). */
function interfaceSysctls(endpoints: readonly StoredEndpoint[]): Readonly<Record<string, string>> {
  return Object.fromEntries([
    ['net.ipv6.conf.default.accept_ra', '0'],
    ...endpoints.flatMap(({ interfaceName, ipv6 }) => [
      [`net.ipv6.conf.${interfaceName}.accept_ra`, '0'],
      ...(ipv6 === undefined ? [[`net.ipv6.conf.${interfaceName}.disable_ipv6`, '1']] : []),
    ]),
  ]);
}

async function setInside(path: string, sysctls: Readonly<Record<string, string>>): Promise<void> {
  const script = Object.entries(sysctls)
    .map(([name, value]) => `echo ${value} > /proc/sys/${name.replaceAll('.', '/')}`)
    .join(' && ');
  if (script === '') return;
  const { exitCode, stderr } = await runCommand('nsenter', [`--net=${path}`, 'sh', '-c', script]);
  if (exitCode !== 0) throw new AppError('unavailable', `cannot prepare an interface: ${stderr.trim()}`);
}
