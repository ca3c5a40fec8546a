/**
 * The rules of all networks of one engine, as one text for nft: two tables, `inet berth_<tag>` for what is routed and
 * `bridge berth_<tag>` for what passes between ports of one bridge. Pure; whoever applies it replaces both tables, or
 * changes what is in their sets, in one transaction, so there is never a moment without rules.
 *
 * What they say (docs/adr/0019):
 * - Nothing reaches a container from outside except replies and published ports; no route leads between two networks.
 * - An internal network reaches its gateway for DNS, and nothing else (CVE-2024-29018).
 * - A container cannot use an address or MAC that belongs to another, send router advertisements (CVE-2020-13401), or
 *   come from an address that does not lead back to its bridge.
 * - Nothing is sent to a loopback address over a bridge: containers accept them there for their resolver's sake.
 * - What a container says to everybody does not come back to it, though its port may send back what it came from: IPv6
 *   would take the echo for another host with its address.
 * - What is published on 127.0.0.1 is reachable from this host alone: loopback addresses are never accepted from a
 *   bridge (CVE-2025-54388), and nothing pretends to come from one (CVE-2021-20199): sources stay what they are.
 * Accepting here does not override a drop of another table: published ports respect the host's firewall.
 */
import { linkLocalOf } from './addresses.ts';
import type { PublishedPort } from './networks.ts';

export interface FirewallNetwork {
  readonly link: string;
  /** CIDRs. */
  readonly subnets: readonly string[];
  readonly gateways: readonly string[];
  readonly internal: boolean;
  /** Hides addresses of the network from the outside. */
  readonly masquerade: boolean;
  /** Containers may talk to each other. */
  readonly icc: boolean;
}

export interface FirewallPort {
  /** The host's end of the container's link. */
  readonly link: string;
  /** The bridge. */
  readonly master: string;
  readonly mac: string;
  readonly addresses: readonly string[];
}

export interface FirewallForward extends PublishedPort {
  readonly target: string;
}

export interface FirewallState {
  readonly networks: readonly FirewallNetwork[];
  readonly ports: readonly FirewallPort[];
  readonly forwards: readonly FirewallForward[];
}

export function tableName(tag: string): string {
  return `berth_${tag}`;
}

/** Removes both tables, whether they exist or not. */
export function clearedRuleset(tag: string): string {
  return ['inet', 'bridge']
    .map((family) => `table ${family} ${tableName(tag)} {}\ndelete table ${family} ${tableName(tag)}\n`)
    .join('');
}

export function rulesetOf(tag: string, state: FirewallState): string {
  return (
    clearedRuleset(tag) +
    tablesOf(state)
      .map((table) => tableText(tag, table))
      .join('')
  );
}

/**
 * What leads from the rules of one state to those of another; empty = nothing. What a container adds or takes away are
 * elements alone, so it costs the same however many others there are. undefined: networks differ, which takes it all.
 */
export function changeOf(tag: string, before: FirewallState, after: FirewallState): string | undefined {
  if (JSON.stringify(before.networks) !== JSON.stringify(after.networks)) return undefined;
  const old = tablesOf(before).flatMap(({ collections }) => collections);
  const changes = tablesOf(after).flatMap(({ family, collections }) =>
    collections.map(({ title, elements }) => {
      const had = new Set(old.find((collection) => collection.title === title)?.elements);
      const has = new Set(elements);
      const where = `element ${family} ${tableName(tag)} ${title}`;
      const stale = [...had].filter((element) => !has.has(element)).map(keyOf);
      const missing = [...has].filter((element) => !had.has(element));
      return [
        stale.length === 0 ? '' : `delete ${where} { ${stale.join(', ')} }\n`,
        missing.length === 0 ? '' : `add ${where} { ${missing.join(', ')} }\n`,
      ] as const;
    }),
  );
  // A key may move from one element to another: all that goes, goes first.
  return [...changes.map(([stale]) => stale), ...changes.map(([, missing]) => missing)].join('');
}

interface Table {
  readonly family: 'inet' | 'bridge';
  readonly collections: readonly Collection[];
  /** They name collections, never what is in them. */
  readonly chains: string;
}

/** A set, or a map; an element of a map is `key : value`. Titles are unique over both tables. */
interface Collection {
  readonly kind: 'set' | 'map';
  readonly title: string;
  readonly type: string;
  readonly flags: string;
  readonly elements: readonly string[];
}

function tablesOf(state: FirewallState): readonly Table[] {
  return [inetTable(state), bridgeTable(state)];
}

function tableText(tag: string, { family, collections, chains }: Table): string {
  return `table ${family} ${tableName(tag)} {\n${collections.map(collectionText).join('')}${chains}}\n`;
}

function collectionText({ kind, title, type, flags, elements }: Collection): string {
  const listed = elements.length === 0 ? '' : `\n    elements = { ${elements.join(', ')} }`;
  return `  ${kind} ${title} {\n    type ${type}${flags === '' ? '' : `\n    flags ${flags}`}${listed}\n  }\n`;
}

const isV6 = (text: string): boolean => text.includes(':');
const isV4 = (text: string): boolean => !isV6(text);
const name = (link: string): string => `"${link}"`;
const keyOf = (element: string): string => element.split(' : ')[0] ?? element;

function set(title: string, type: string, elements: readonly string[], flags = ''): Collection {
  return { kind: 'set', title, type, flags, elements: [...new Set(elements)] };
}

function map(title: string, type: string, elements: readonly string[]): Collection {
  return { kind: 'map', title, type, flags: '', elements: [...new Set(elements)] };
}

function inetTable({ networks, forwards }: FirewallState): Table {
  const pairs = (list: readonly FirewallNetwork[], pick: (network: FirewallNetwork) => readonly string[]) =>
    list.flatMap((network) => pick(network).map((value) => `${name(network.link)} . ${value}`));
  const gateways = networks.flatMap((network) => network.gateways);
  const hidden = networks.filter(({ masquerade, internal }) => masquerade && !internal);
  const everywhere = ({ hostAddress }: FirewallForward) => hostAddress === '0.0.0.0' || hostAddress === '::';
  const sameFamily = forwards.filter(({ hostAddress, target }) => isV6(hostAddress) === isV6(target));
  const forwardOf = (list: readonly FirewallForward[], wide: boolean) =>
    list
      .filter((forward) => everywhere(forward) === wide)
      .map(
        ({ protocol, hostAddress, hostPort, target, containerPort }) =>
          `${wide ? '' : `${hostAddress} . `}${protocol} . ${hostPort} : ${target} . ${containerPort}`,
      );
  const to4 = sameFamily.filter(({ target }) => isV4(target));
  const to6 = sameFamily.filter(({ target }) => isV6(target));
  const collections = [
    set(
      'bridges',
      'ifname',
      networks.map(({ link }) => name(link)),
    ),
    set(
      'internal',
      'ifname',
      networks.filter(({ internal }) => internal).map(({ link }) => name(link)),
    ),
    set(
      'same',
      'ifname . ifname',
      networks.filter(({ icc }) => icc).map(({ link }) => `${name(link)} . ${name(link)}`),
    ),
    set('gateways4', 'ipv4_addr', gateways.filter(isV4)),
    set('gateways6', 'ipv6_addr', gateways.filter(isV6)),
    set(
      'own_gateway4',
      'ifname . ipv4_addr',
      pairs(networks, (network) => network.gateways.filter(isV4)),
    ),
    set(
      'own_gateway6',
      'ifname . ipv6_addr',
      pairs(networks, (network) => network.gateways.filter(isV6)),
    ),
    set(
      'hidden4',
      'ipv4_addr',
      hidden.flatMap(({ subnets }) => subnets.filter(isV4)),
      'interval',
    ),
    set(
      'hidden6',
      'ipv6_addr',
      hidden.flatMap(({ subnets }) => subnets.filter(isV6)),
      'interval',
    ),
    set(
      'home4',
      'ifname . ipv4_addr',
      pairs(networks, (network) => network.subnets.filter(isV4)),
      'interval',
    ),
    set(
      'home6',
      'ifname . ipv6_addr',
      pairs(networks, (network) => network.subnets.filter(isV6)),
      'interval',
    ),
    map('publish4', 'inet_proto . inet_service : ipv4_addr . inet_service', forwardOf(to4, true)),
    map('publish_at4', 'ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service', forwardOf(to4, false)),
    map('publish6', 'inet_proto . inet_service : ipv6_addr . inet_service', forwardOf(to6, true)),
    map(
      'publish_at6',
      'ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service',
      // The kernel does not take ::1 out of loopback; the engine's own listener serves it.
      forwardOf(
        to6.filter(({ hostAddress }) => hostAddress !== '::1'),
        false,
      ),
    ),
  ];
  const chains = `  chain arriving {
    type filter hook prerouting priority raw; policy accept;
    iifname @bridges ip daddr 127.0.0.0/8 drop
    iifname @bridges ip6 saddr :: accept
    iifname @bridges fib saddr . iif oif missing drop
  }
  chain published {
    dnat ip to ip daddr . meta l4proto . th dport map @publish_at4
    dnat ip to meta l4proto . th dport map @publish4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @publish_at6
    ip6 daddr ::1 return
    dnat ip6 to meta l4proto . th dport map @publish6
  }
  chain published_outside {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump published
  }
  chain published_here {
    type nat hook output priority -100; policy accept;
    fib daddr type local jump published
  }
  chain leaving {
    type nat hook postrouting priority srcnat; policy accept;
    oifname @bridges ip saddr 127.0.0.0/8 masquerade
    ct status dnat oifname . ip saddr @home4 masquerade
    ct status dnat oifname . ip6 saddr @home6 masquerade
    oifname != @bridges ip saddr @hidden4 masquerade
    oifname != @bridges ip6 saddr @hidden6 masquerade
  }
  chain to_host {
    type filter hook input priority filter; policy accept;
    iifname @bridges jump from_container
  }
  chain from_container {
    ct state established,related accept
    ip daddr @gateways4 iifname . ip daddr != @own_gateway4 drop
    ip6 daddr @gateways6 iifname . ip6 daddr != @own_gateway6 drop
    iifname @internal jump from_internal
  }
  chain from_internal {
    iifname . ip daddr @own_gateway4 meta l4proto { tcp, udp } th dport 53 accept
    iifname . ip6 daddr @own_gateway6 meta l4proto { tcp, udp } th dport 53 accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    iifname . ip daddr @own_gateway4 icmp type echo-request accept
    iifname . ip6 daddr @own_gateway6 icmpv6 type echo-request accept
    drop
  }
  chain through {
    type filter hook forward priority filter; policy accept;
    iifname . oifname @same accept
    iifname @internal drop
    oifname @internal drop
    ct state established,related accept
    oifname @bridges ct status dnat accept
    oifname @bridges drop
  }
`;
  return { family: 'inet', collections, chains };
}

function bridgeTable({ networks, ports }: FirewallState): Table {
  const separated = new Set(networks.filter(({ icc }) => !icc).map(({ link }) => link));
  const held = ports.map((port) => ({
    ...port,
    addresses: [...port.addresses, ...(port.addresses.some(isV6) ? [linkLocalOf(port.mac)] : [])],
  }));
  const owned = (pick: (text: string) => boolean) =>
    held.flatMap(({ link, addresses }) => addresses.filter(pick).map((address) => `${name(link)} . ${address}`));
  const all = (pick: (text: string) => boolean) => [
    ...held.flatMap(({ addresses }) => addresses.filter(pick)),
    ...networks.flatMap(({ gateways }) => gateways.filter(pick)),
  ];
  const speaksIpv6 = held.filter(({ addresses }) => addresses.some(isV6));
  const collections = [
    set(
      'same_port',
      'ifname . ifname',
      held.map(({ link }) => `${name(link)} . ${name(link)}`),
    ),
    set(
      'ports',
      'ifname',
      held.map(({ link }) => name(link)),
    ),
    set(
      'ports6',
      'ifname',
      speaksIpv6.map(({ link }) => name(link)),
    ),
    set(
      'separated',
      'ifname',
      held.filter(({ master }) => separated.has(master)).map(({ link }) => name(link)),
    ),
    set(
      'macs',
      'ether_addr',
      held.map(({ mac }) => mac),
    ),
    set(
      'own_mac',
      'ifname . ether_addr',
      held.map(({ link, mac }) => `${name(link)} . ${mac}`),
    ),
    set('addresses4', 'ipv4_addr', all(isV4)),
    set('own_address4', 'ifname . ipv4_addr', owned(isV4)),
    set('addresses6', 'ipv6_addr', all(isV6)),
    set('own_address6', 'ifname . ipv6_addr', owned(isV6)),
  ];
  const chains = `  chain arriving {
    type filter hook prerouting priority -300; policy accept;
    iifname @ports jump from_container
  }
  chain from_container {
    ether saddr @macs iifname . ether saddr != @own_mac drop
    ip saddr @addresses4 iifname . ip saddr != @own_address4 drop
    arp saddr ip @addresses4 iifname . arp saddr ip != @own_address4 drop
    meta protocol ip6 iifname != @ports6 drop
    ip6 saddr @addresses6 iifname . ip6 saddr != @own_address6 drop
    ip daddr 127.0.0.0/8 drop
    icmpv6 type { nd-router-advert, nd-redirect } drop
  }
  chain between {
    type filter hook forward priority filter; policy accept;
    iifname @separated oifname @separated drop
    iifname . oifname @same_port meta pkttype { broadcast, multicast } drop
  }
`;
  return { family: 'bridge', collections, chains };
}
