/** /etc/hostname, /etc/hosts and /etc/resolv.conf of a container, as Docker writes them. Pure. */
import { isIP } from 'node:net';
import { AppError } from '../../shared/errors.ts';

export interface EtcFilesRequest {
  readonly hostname: string;
  readonly domainname: string;
  /** `name:address`, Docker's --add-host. */
  readonly extraHosts: readonly string[];
  readonly dns: readonly string[];
  readonly dnsSearch: readonly string[];
  readonly dnsOptions: readonly string[];
  readonly network: 'private' | 'host';
  /** Whole lines for containers that it is linked to. */
  readonly linked: readonly string[];
  /** Its own, in all its networks. */
  readonly addresses: readonly string[];
  /** Who knows the names of its networks; asked instead of the host's resolvers. */
  readonly nameservers: readonly string[];
  /** What `host-gateway` means. */
  readonly hostAddress: string | undefined;
  /** The host's own files: what a container with the host's network gets. */
  readonly host: { readonly hosts: string; readonly resolvConf: string };
}

export interface EtcFiles {
  readonly hostname: string;
  readonly hosts: string;
  readonly resolvConf: string;
}

const LOCAL_HOSTS = [
  '127.0.0.1\tlocalhost',
  '::1\tlocalhost ip6-localhost ip6-loopback',
  'fe00::0\tip6-localnet',
  'ff00::0\tip6-mcastprefix',
  'ff02::1\tip6-allnodes',
  'ff02::2\tip6-allrouters',
];

/** @throws AppError 'invalid' for an extra host that is not name:address */
export function etcFilesOf(request: EtcFilesRequest): EtcFiles {
  const extra = request.extraHosts.map(parseExtraHost).map(({ name, address }) => {
    const resolved = address === HOST_GATEWAY ? request.hostAddress : address;
    if (resolved === undefined)
      throw new AppError(
        'invalid',
        `cannot add host ${JSON.stringify(name)}: the container has no gateway to the host`,
      );
    return `${resolved}\t${name}`;
  });
  const { hostname, domainname } = request;
  const own = domainname === '' ? hostname : `${hostname}.${domainname} ${hostname}`;
  const self = request.addresses.map((address) => `${address}\t${own}`);
  const hosts =
    request.network === 'host'
      ? `${request.host.hosts.trimEnd()}\n${extra.map((line) => `${line}\n`).join('')}`
      : `${[...LOCAL_HOSTS, ...extra, ...request.linked, ...self].join('\n')}\n`;
  return { hostname: `${request.hostname}\n`, hosts, resolvConf: resolvConfOf(request) };
}

/** The host, as the container reaches it. */
const HOST_GATEWAY = 'host-gateway';

/** `name:address` and `name=address`; an IPv6 address may stand in brackets. @throws AppError 'invalid' with Docker's words */
export function parseExtraHost(text: string): { readonly name: string; readonly address: string } {
  const at = text.search(/[:=]/);
  const name = at === -1 ? '' : text.slice(0, at);
  const address = text.slice(at + 1).replace(/^\[(.*)\]$/, '$1');
  if (at <= 0 || /\s/.test(name)) throw new AppError('invalid', `bad format for add-host: ${JSON.stringify(text)}`);
  if (address !== HOST_GATEWAY && isIP(address) === 0)
    throw new AppError('invalid', `invalid IP address in add-host: ${JSON.stringify(address)}`);
  return { name, address };
}

/** What the flags say wins; the rest is the host's. */
function resolvConfOf({ dns, dnsSearch, dnsOptions, host, nameservers, network }: EtcFilesRequest): string {
  const lines = host.resolvConf.split('\n').map((line) => line.trim());
  const words = (keyword: string) =>
    lines.filter((line) => line.startsWith(`${keyword} `)).flatMap((line) => line.split(/\s+/).slice(1));
  // What listens on the host's loopback is out of reach in a network of its own.
  const reachable = words('nameserver').filter((server) => network === 'host' || !/^(?:127\.|::1$)/.test(server));
  const servers = nameservers.length > 0 ? nameservers : dns.length > 0 ? dns : reachable;
  const search = dnsSearch.length > 0 ? dnsSearch.filter((domain) => domain !== '.') : words('search');
  const wanted = dnsOptions.length > 0 ? dnsOptions : words('options');
  const hasDots = wanted.some((option) => option.startsWith('ndots:'));
  const options = nameservers.length > 0 && !hasDots ? [...wanted, 'ndots:0'] : wanted;
  return [
    ...servers.map((server) => `nameserver ${server}`),
    ...(search.length > 0 ? [`search ${search.join(' ')}`] : []),
    ...(options.length > 0 ? [`options ${options.join(' ')}`] : []),
  ]
    .map((line) => `${line}\n`)
    .join('');
}
