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
  readonly network: 'none' | 'host';
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
  const extra = request.extraHosts.map(parseExtraHost).map(({ name, address }) => `${address}\t${name}`);
  const hosts =
    request.network === 'host'
      ? `${request.host.hosts.trimEnd()}\n${extra.map((line) => `${line}\n`).join('')}`
      : `${[...LOCAL_HOSTS, ...extra].join('\n')}\n`;
  return { hostname: `${request.hostname}\n`, hosts, resolvConf: resolvConfOf(request) };
}

/** `name:address` and `name=address`; an IPv6 address may stand in brackets. @throws AppError 'invalid' with Docker's words */
export function parseExtraHost(text: string): { readonly name: string; readonly address: string } {
  const at = text.search(/[:=]/);
  const name = at === -1 ? '' : text.slice(0, at);
  const address = text.slice(at + 1).replace(/^\[(.*)\]$/, '$1');
  if (at <= 0 || /\s/.test(name)) throw new AppError('invalid', `bad format for add-host: ${JSON.stringify(text)}`);
  if (isIP(address) === 0) throw new AppError('invalid', `invalid IP address in add-host: ${JSON.stringify(address)}`);
  return { name, address };
}

/** What the flags say wins; the rest is the host's. */
function resolvConfOf({ dns, dnsSearch, dnsOptions, host }: EtcFilesRequest): string {
  const lines = host.resolvConf.split('\n').map((line) => line.trim());
  const words = (keyword: string) =>
    lines.filter((line) => line.startsWith(`${keyword} `)).flatMap((line) => line.split(/\s+/).slice(1));
  const servers = dns.length > 0 ? dns : words('nameserver');
  const search = dnsSearch.length > 0 ? dnsSearch.filter((domain) => domain !== '.') : words('search');
  const options = dnsOptions.length > 0 ? dnsOptions : words('options');
  return [
    ...servers.map((server) => `nameserver ${server}`),
    ...(search.length > 0 ? [`search ${search.join(' ')}`] : []),
    ...(options.length > 0 ? [`options ${options.join(' ')}`] : []),
  ]
    .map((line) => `${line}\n`)
    .join('');
}
