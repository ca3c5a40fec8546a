/**
 * Addresses and subnets of both families as numbers, and which of them is free next. Pure.
 * https://www.rfc-editor.org/rfc/rfc4632, https://www.rfc-editor.org/rfc/rfc5952
 */
import { createHash } from 'node:crypto';
import { isIP } from 'node:net';
import { AppError } from '../../shared/errors.ts';

export type Family = 4 | 6;

export interface Address {
  readonly family: Family;
  readonly value: bigint;
}

export interface Subnet {
  readonly family: Family;
  /** The first address: no bits beyond the prefix. */
  readonly base: bigint;
  readonly prefix: number;
}

const BITS = { 4: 32, 6: 128 } as const;

/** @throws AppError 'invalid' */
export function parseAddress(text: string): Address {
  const family = isIP(text);
  if (family === 4) return { family, value: toNumber(text.split('.').map(Number), 8) };
  if (family === 6 && !text.includes('%')) return { family, value: toNumber(groupsOf(text), 16) };
  throw new AppError('invalid', `invalid IP address: ${JSON.stringify(text)}`);
}

function toNumber(parts: readonly number[], bits: number): bigint {
  return parts.reduce((sum, part) => (sum << BigInt(bits)) | BigInt(part), 0n);
}

/** The eight groups of an IPv6 address; `::` and a dotted tail are written out. */
function groupsOf(text: string): readonly number[] {
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  const plain =
    dotted === null
      ? text
      : `${dotted[1]}${((Number(dotted[2]) << 8) | Number(dotted[3])).toString(16)}:${((Number(dotted[4]) << 8) | Number(dotted[5])).toString(16)}`;
  const [head = '', tail] = plain.split('::');
  const groups = (part: string) => (part === '' ? [] : part.split(':').map((group) => Number.parseInt(group, 16)));
  if (tail === undefined) return groups(head);
  const [left, right] = [groups(head), groups(tail)];
  return [...left, ...Array.from({ length: 8 - left.length - right.length }, () => 0), ...right];
}

export function formatAddress({ family, value }: Address): string {
  if (family === 4) return [24n, 16n, 8n, 0n].map((shift) => Number((value >> shift) & 0xffn)).join('.');
  const groups = Array.from({ length: 8 }, (_, index) => Number((value >> BigInt(112 - index * 16)) & 0xffffn));
  const written = groups.map((group) => group.toString(16)).join(':');
  // RFC 5952: the longest run of two or more zero groups, the first of equals.
  const runs = [...written.matchAll(/(?:^|(?<=:))0(?::0)+(?=:|$)/g)].map(({ 0: run, index }) => ({ run, index }));
  const longest = runs.reduce<(typeof runs)[number] | undefined>(
    (best, each) => (best === undefined || each.run.length > best.run.length ? each : best),
    undefined,
  );
  if (longest === undefined) return written;
  const before = written.slice(0, longest.index).replace(/:$/, '');
  const after = written.slice(longest.index + longest.run.length).replace(/^:/, '');
  return `${before}::${after}`;
}

/** `ADDRESS/PREFIX`; bits beyond the prefix are cleared. @throws AppError 'invalid' */
export function parseSubnet(text: string): Subnet {
  const [address = '', length = '', ...rest] = text.split('/');
  const prefix = Number(length);
  if (isIP(address) === 0 || rest.length > 0 || !/^\d{1,3}$/.test(length))
    throw new AppError('invalid', `invalid subnet ${text}: want ADDRESS/PREFIX, for example 10.1.2.0/24`);
  const { family, value } = parseAddress(address);
  if (prefix > BITS[family]) throw new AppError('invalid', `invalid subnet ${text}: the prefix is too long`);
  return subnetAt({ family, value }, prefix);
}

export function subnetAt({ family, value }: Address, prefix: number): Subnet {
  const host = BigInt(BITS[family] - prefix);
  return { family, base: (value >> host) << host, prefix };
}

export function formatSubnet({ family, base, prefix }: Subnet): string {
  return `${formatAddress({ family, value: base })}/${prefix}`;
}

function lastOf(subnet: Subnet): bigint {
  return subnet.base + hostAddresses(subnet) - 1n;
}

export function contains(subnet: Subnet, address: Address): boolean {
  return address.family === subnet.family && address.value >= subnet.base && address.value <= lastOf(subnet);
}

export function overlaps(a: Subnet, b: Subnet): boolean {
  return a.family === b.family && a.base <= lastOf(b) && b.base <= lastOf(a);
}

/** How many there are, those that are nobody's included. */
export function hostAddresses({ family, prefix }: Subnet): bigint {
  return 1n << BigInt(BITS[family] - prefix);
}

/** The network's own address and IPv4's broadcast are nobody's, but in a subnet of one or two addresses (RFC 3021, RFC 6164). */
export function reservedAddresses(subnet: Subnet): readonly Address[] {
  if (hostAddresses(subnet) <= 2n) return [];
  const { family, base } = subnet;
  return [base, ...(family === 4 ? [lastOf(subnet)] : [])].map((value) => ({ family, value }));
}

/** The address after the subnet's own: Docker's gateway. */
export function firstHost(subnet: Subnet): Address {
  return { family: subnet.family, value: subnet.base + 1n };
}

export interface FreeAddressRequest {
  /** Only from here; defaults to the whole subnet. */
  readonly range?: Subnet | undefined;
  readonly isTaken: (address: string) => boolean;
  /** The search begins after this one, so that an address rests before it is given again. */
  readonly after?: string | undefined;
}

/** undefined = every address is taken. */
export function freeAddress(
  subnet: Subnet,
  { range = subnet, isTaken, after }: FreeAddressRequest,
): Address | undefined {
  const { family } = subnet;
  const reserved = new Set(reservedAddresses(subnet).map(({ value }) => value));
  const max = (a: bigint, b: bigint) => (a > b ? a : b);
  const min = (a: bigint, b: bigint) => (a < b ? a : b);
  const first = max(range.base, subnet.base);
  const last = min(lastOf(range), lastOf(subnet));
  const start = after === undefined ? first : max(first, parseAddress(after).value + 1n);
  const search = (from: bigint, to: bigint): Address | undefined => {
    for (let value = from; value <= to; value += 1n)
      if (!reserved.has(value) && !isTaken(formatAddress({ family, value }))) return { family, value };
    return undefined;
  };
  return search(start, last) ?? search(first, start - 1n);
}

/** The first subnet of that size in the pools that meets none of `taken`; undefined = the pools are used up. */
export function freeSubnet(
  pools: readonly Subnet[],
  { prefix, taken }: { readonly prefix: number; readonly taken: readonly Subnet[] },
): Subnet | undefined {
  for (const pool of pools) {
    if (pool.prefix > prefix) continue;
    const step = 1n << BigInt(BITS[pool.family] - prefix);
    let base = pool.base;
    while (base <= lastOf(pool)) {
      const candidate: Subnet = { family: pool.family, base, prefix };
      const inTheWay = taken.find((other) => overlaps(other, candidate));
      if (inTheWay === undefined) return candidate;
      base = subnetAt({ family: pool.family, value: lastOf(inTheWay) }, prefix).base + step;
    }
  }
  return undefined;
}

/**
 * The configured pools, and one for IPv6 out of the private range that RFC 4193 gives everybody: its 40 random bits
 * come from `seed`, so that they stay the same. @throws AppError 'invalid'
 */
export function poolsOf(texts: readonly string[], seed: string): readonly Subnet[] {
  const pools = texts.map(parseSubnet);
  if (pools.some(({ family }) => family === 6)) return pools;
  const bits = BigInt(`0x${createHash('sha256').update(seed).digest('hex').slice(0, 10)}`);
  return [...pools, { family: 6, base: ((0xfdn << 40n) | bits) << 80n, prefix: 48 }];
}

/** The link-local address that the kernel derives from a MAC (RFC 4291, appendix A). */
export function linkLocalOf(mac: string): string {
  const bytes = mac.split(':').map((part) => Number.parseInt(part, 16));
  const [first = 0, second = 0, third = 0, ...rest] = bytes;
  const id = toNumber([first ^ 2, second, third, 0xff, 0xfe, ...rest], 8);
  return formatAddress({ family: 6, value: (0xfe80n << 112n) | id });
}
