/**
 * Which proxy a request goes through, by curl's and Go's rules for http_proxy, https_proxy and no_proxy. Loopback never
 * goes through one. Pure: entry points read the environment.
 */
import { BlockList, isIP } from 'node:net';
import { AppError } from './errors.ts';

export interface ProxySettings {
  /** Proxy for http: URLs, as a URL; a bare `host:port` means http. */
  readonly http?: string | undefined;
  readonly https?: string | undefined;
  /** Comma-separated: `*`, `example.com` (with its subdomains), `.example.com`, `10.0.0.0/8`, each with an optional port. */
  readonly no?: string | undefined;
}

/** Lower-case names win. HTTP_PROXY in upper case is left out: a CGI request can set it (CVE-2016-5385). */
export function proxiesFromEnvironment(env: Readonly<Record<string, string | undefined>>): ProxySettings {
  return {
    http: env.http_proxy,
    https: env.https_proxy ?? env.HTTPS_PROXY,
    no: env.no_proxy ?? env.NO_PROXY,
  };
}

/** @throws AppError 'invalid' when the setting is no URL */
export function proxyFor(url: URL, settings: ProxySettings): URL | undefined {
  const setting = url.protocol === 'https:' ? settings.https : settings.http;
  if (setting === undefined || setting === '') return undefined;
  if (isLoopbackHost(url.hostname) || isExempt(url, settings.no ?? '')) return undefined;
  const text = /^[a-z][a-z0-9+.-]*:\/\//i.test(setting) ? setting : `http://${setting}`;
  const proxy = URL.canParse(text) ? new URL(text) : undefined;
  if (proxy?.protocol === 'http:' || proxy?.protocol === 'https:') return proxy;
  throw new AppError(
    'invalid',
    `cannot use the proxy for ${url.protocol}//: want http://host:port or https://host:port`,
  );
}

/** 127.0.0.0/8, ::1 and localhost: never leaves the host. Takes a URL's hostname, IPv6 in brackets. */
export function isLoopbackHost(hostname: string): boolean {
  const bare = hostname.replace(/^\[|\]$/g, '').toLowerCase();
  if (isIP(bare) === 4) return bare.startsWith('127.');
  return bare === 'localhost' || bare === '::1' || /^::ffff:(?:127\.|7f[0-9a-f]{2}:)/.test(bare);
}

function isExempt(url: URL, no: string): boolean {
  const host = url.hostname.replace(/^\[|\]$/g, '').toLowerCase();
  const port = url.port === '' ? (url.protocol === 'https:' ? '443' : '80') : url.port;
  return no.split(',').some((entry) => {
    const text = entry.trim().toLowerCase();
    if (text === '') return false;
    if (text === '*') return true;
    if (text.includes('/')) return isInSubnet(host, text);
    const [, name = text, wanted] = /^(\[[^\]]+\]|[^:]+):(\d+)$/.exec(text) ?? [];
    if (wanted !== undefined && wanted !== port) return false;
    const bare = name.replace(/^\[|\]$/g, '').replace(/^\*?\./, '');
    return host === bare || (isIP(host) === 0 && host.endsWith(`.${bare}`));
  });
}

function isInSubnet(host: string, subnet: string): boolean {
  const [address = '', prefix = ''] = subnet.split('/');
  const [family, own] = [isIP(address), isIP(host)];
  if (family === 0 || family !== own || !/^\d{1,3}$/.test(prefix) || Number(prefix) > (family === 4 ? 32 : 128))
    return false;
  const type = family === 4 ? 'ipv4' : 'ipv6';
  const list = new BlockList();
  list.addSubnet(address, Number(prefix), type);
  return list.check(host, type);
}
