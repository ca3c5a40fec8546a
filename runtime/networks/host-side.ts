/**
 * What networks are on the host: bridges, the rules of all of them, names, and the few settings of the host that they
 * need. It makes the kernel agree with the topology, and says when something else has changed it.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { coalesced } from '../../shared/slots.ts';
import type { Links } from '../kernel/links.ts';
import type { Nft } from '../kernel/nft.ts';
import { overlaps, parseSubnet, type Subnet } from './addresses.ts';
import { bridgeAddressCommands, bridgeCreateCommand, portCommands } from './bridge.ts';
import type { Dns } from './dns.ts';
import { changeOf, clearedRuleset, type FirewallState, rulesetOf, tableName } from './firewall.ts';
import { hostFirewallChange } from './host-firewall.ts';
import { randomMac } from './leases.ts';
import type { NetworkStore } from './network-store.ts';
import type { NetworkRecord } from './networks.ts';
import { chooseRange, subnetsOf } from './plan.ts';
import type { Topology } from './topology.ts';
import { dnsNetworksOf, firewallStateOf } from './wanted.ts';
import type { RulesCheck } from './watch.ts';

export interface HostSideOptions {
  readonly tag: string;
  readonly store: Pick<NetworkStore, 'updateNetwork'>;
  readonly links: Links;
  readonly nft: Nft;
  /** undefined = names are not resolved. */
  readonly dns: Dns | undefined;
  readonly pools: readonly Subnet[];
  readonly log: Log;
  /** 64 hexadecimal characters. */
  readonly randomId: () => string;
  /** The host speaks it. */
  readonly hasIpv6: boolean;
}

export interface HostSide {
  /** Makes a network's link, once; answers its MTU. A subnet that nobody named may move. @throws AppError 'not-found', 'unavailable' */
  ensureUp(networkId: string): Promise<number>;
  isUp(networkId: string): boolean;
  takeDown(network: NetworkRecord): Promise<void>;
  /** Rules and names as the topology has them now. */
  write(): Promise<void>;
  /** The same, and the host's own firewall. */
  writeAll(): Promise<void>;
  /** Bridges that somebody deleted, and ports of them, are made again; containers find their own side unchanged. true = something was. */
  mend(used: Iterable<string>): Promise<boolean>;
  /** Makes links that are gone again, and rules as `rules` says. */
  check(rules: RulesCheck): Promise<void>;
  /** What the host has routes to, without what leads through `link`. */
  routed(link?: string): Promise<readonly Subnet[]>;
}

const DEFAULT_MTU = 1500;

export function createHostSide(topology: Topology, options: HostSideOptions): HostSide {
  const { tag, store, links, nft, dns, log, hasIpv6 } = options;
  /** Links that are up, or on their way. */
  const up = new Map<string, Promise<number>>();
  /** What the kernel has by now; undefined = that is not known, or was changed by others. */
  let written: FirewallState | undefined;
  /** As nft lists it; undefined = not looked at since it was written. */
  let listed: string | undefined;
  /** The last write failed: it is tried again when the host is looked at. */
  let isUnwritten = false;
  /** Counts how often others changed it: what was on its way to the kernel then may be gone, too. */
  let damages = 0;

  const firewallState = () => firewallStateOf(topology, (id) => up.has(id));

  const distrust = (): void => {
    written = undefined;
    damages++;
  };

  const writeRules = coalesced(async () => {
    const before = written;
    const damagesBefore = damages;
    const state = firewallState();
    written = undefined;
    listed = undefined;
    try {
      await writeFrom(before, state);
      isUnwritten = false;
    } catch (error) {
      isUnwritten = true;
      throw error;
    }
    if (damages === damagesBefore) written = state;
  });

  const writeFrom = async (before: FirewallState | undefined, state: FirewallState): Promise<void> => {
    if (state.networks.length === 0) return nft.apply(clearedRuleset(tag));
    const change = before === undefined ? undefined : changeOf(tag, before, state);
    if (change === '') return;
    if (change !== undefined)
      try {
        return await nft.apply(change);
      } catch (error) {
        log.warn('rules were not as they had been written; they are made again', { error });
      }
    await nft.apply(rulesetOf(tag, state));
  };

  /** Our tables as nft lists them; undefined = one is missing, or they were written meanwhile. */
  const listRules = async (): Promise<string | undefined> => {
    const state = written;
    const texts = await Promise.all(['inet', 'bridge'].map((family) => nft.table(family, tableName(tag))));
    if (state === undefined || state !== written || texts.includes(undefined)) return undefined;
    return texts.join('').split('\n').sort().join('\n');
  };

  /** Others took away or changed rules of ours, or may have: they were not looked at since they were written. */
  const lookAtRules = async (): Promise<'kept' | 'lost' | 'unknown'> => {
    const state = written;
    const before = listed;
    if (state?.networks.length === 0) return 'kept';
    if (state === undefined || before === undefined) return 'unknown';
    const found = await listRules();
    return state !== written || found === before ? 'kept' : 'lost';
  };

  const writeAgain = async (): Promise<void> => {
    distrust();
    await writeRules();
    const found = await listRules();
    listed ??= found;
  };

  /** See host-firewall.ts. */
  const passHostFirewall = coalesced(async () => {
    const bridges = firewallState().networks.map(({ link }) => link);
    for (const family of ['ip', 'ip6'] as const) {
      const [forward, dockerUser] = await Promise.all([
        nft.chain(family, 'filter', 'FORWARD'),
        nft.chain(family, 'filter', 'DOCKER-USER'),
      ]);
      const change = hostFirewallChange(tableName(tag), bridges, { family, forward, dockerUser });
      if (change === '') continue;
      await nft.apply(change);
      log.info('the accepts of bridges in the FORWARD rules of the host have been brought up to date', { family });
    }
  });

  const writeNames = coalesced(async () => {
    await dns?.write(dnsNetworksOf(topology));
  });

  const bringUp = async (id: string): Promise<number> => {
    let network = topology.get(id);
    const [existing, routes] = await Promise.all([links.list(), links.routes()]);
    const mtu = mtuOf(network, existing, routes);
    if (network.driver !== 'bridge') {
      if (!existing.some(({ name }) => name === network.link))
        throw new AppError(
          'not-found',
          `cannot use network ${JSON.stringify(network.name)}: the host has no link ${JSON.stringify(network.link)}`,
        );
      return mtu;
    }
    network = await moved(network, subnetsBeside(routes, network.link));
    const { link } = network;
    const commands = bridgeAddressCommands(network);
    if (existing.some(({ name }) => name === link)) await links.run(commands);
    else await links.run([bridgeCreateCommand(link, { mac: randomMac(options.randomId()), mtu }), ...commands]);
    await Promise.all([prepareHost(network), passHostFirewall()]);
    return mtu;
  };

  /** While nobody has an address of a network and nobody named its subnet, it leaves one that the host now has routes to. */
  const moved = async (network: NetworkRecord, routed: readonly Subnet[]): Promise<NetworkRecord> => {
    const collides = subnetsOf(network).some((subnet) =>
      routed.some((route) => route.prefix > 0 && overlaps(route, subnet)),
    );
    const isUsed = [...topology.membersOf(network.id).values()].some(({ endpoint }) => endpoint.ipv4 !== undefined);
    if (!collides || !network.isChosen || isUsed) return network;
    const networks = topology.subnetsBeside(network.id);
    const ranges = network.ranges.map(({ subnet }) =>
      chooseRange(subnet.includes(':') ? 6 : 4, { pools: options.pools, networks, routes: routed }),
    );
    const changed = { ...network, ranges };
    await store.updateNetwork(changed);
    topology.networks.set(network.id, changed);
    return changed;
  };

  const ensureUp = (id: string): Promise<number> => {
    const known = up.get(id);
    if (known !== undefined) return known;
    const made = bringUp(id);
    up.set(id, made);
    made.catch(() => up.delete(id));
    return made;
  };

  /** Forwarding is the host's, everything else the bridge's own. */
  const prepareHost = async ({ link, ipv6 }: NetworkRecord): Promise<void> => {
    const wanted: (readonly [path: string, value: string])[] = [
      ['net/ipv4/ip_forward', '1'],
      // What is published is reachable on 127.0.0.1; the firewall keeps loopback addresses from coming back.
      [`net/ipv4/conf/${link}/route_localnet`, '1'],
      ...(hasIpv6
        ? ([
            [`net/ipv6/conf/${link}/accept_ra`, '0'],
            ...(ipv6
              ? ([['net/ipv6/conf/all/forwarding', '1']] as const)
              : ([[`net/ipv6/conf/${link}/disable_ipv6`, '1']] as const)),
          ] as const)
        : []),
    ];
    for (const [path, value] of wanted) {
      const file = `/proc/sys/${path}`;
      if ((await readFile(file, 'utf8')).trim() !== value) await writeFile(file, value);
    }
  };

  const mend = async (used: Iterable<string>): Promise<boolean> => {
    const existing = new Map((await links.list()).map((link) => [link.name, link]));
    let changed = false;
    for (const id of used) {
      const network = topology.networks.get(id);
      if (network === undefined) continue;
      if (!existing.has(network.link)) up.delete(id);
      if (up.has(id)) continue;
      await ensureUp(id);
      changed = true;
    }
    for (const { stored } of topology.sandboxes.values())
      for (const { link, networkId } of stored.endpoints) {
        const network = topology.networks.get(networkId);
        const port = existing.get(link);
        if (network?.driver !== 'bridge' || port === undefined || port.master === network.link) continue;
        await links.run(portCommands(link, network.link));
        changed = true;
      }
    return changed;
  };

  return {
    ensureUp,
    isUp: (id) => up.has(id),
    async takeDown(network) {
      if (!up.has(network.id)) return;
      await up.get(network.id)?.catch(() => {});
      up.delete(network.id);
      if (network.driver === 'bridge') await links.attempt([`link delete ${network.link}`]);
      await Promise.all([writeRules(), writeNames(), passHostFirewall()]);
    },
    write: async () => void (await Promise.all([writeRules(), writeNames()])),
    writeAll: async () => void (await Promise.all([writeRules(), writeNames(), passHostFirewall()])),
    mend,
    async check(rules) {
      const found = rules === 'rewrite' ? 'lost' : rules === 'trust' ? 'kept' : await lookAtRules();
      const isLost = found === 'lost';
      const isDoubted = found === 'unknown' && rules === 'doubt';
      await Promise.all([
        (isLost || isDoubted || isUnwritten) && writeAgain(),
        rules !== 'trust' && passHostFirewall(),
      ]);
      const isMended = await mend(new Set(up.keys()));
      if (isMended) {
        distrust();
        await Promise.all([writeRules(), writeNames()]);
      }
      if (isLost || isMended)
        log.warn('something on the host changed what belongs to networks; it was made again', { isLost, isMended });
    },
    async routed(link = '') {
      return subnetsBeside(await links.routes(), link);
    },
  };
}

type Routes = readonly { readonly destination: string; readonly link: string }[];

function subnetsBeside(routes: Routes, link: string): readonly Subnet[] {
  return routes
    .filter((route) => route.link !== link && route.destination !== 'default')
    .map(({ destination }) => parseSubnet(withPrefix(destination)));
}

function withPrefix(destination: string): string {
  if (destination.includes('/')) return destination;
  return destination.includes(':') ? `${destination}/128` : `${destination}/32`;
}

/** What the user says, else that of the host's way out: a larger one would lose packets there. */
function mtuOf(
  network: NetworkRecord,
  existing: readonly { readonly name: string; readonly mtu: number }[],
  routes: Routes,
): number {
  const wanted = network.options['com.docker.network.driver.mtu'];
  if (wanted !== undefined) return Number(wanted);
  const way = routes.find(({ destination }) => destination === 'default')?.link ?? network.link;
  return existing.find(({ name }) => name === way)?.mtu ?? DEFAULT_MTU;
}
