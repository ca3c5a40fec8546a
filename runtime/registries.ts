/**
 * Registries: how each of them is reached, as the configuration says: mirrors first, plain http or any certificate where
 * that is allowed, through a proxy. A mirror never sees the credentials of the registry that it mirrors.
 */
import { z } from 'zod';
import type { Credentials } from '../shared/credentials.ts';
import type { ProxySettings } from '../shared/proxies.ts';
import { redactText } from '../shared/redact.ts';
import { createRegistryClient, type RegistryClient } from '../shared/registry-client.ts';
import type { EndpointOptions } from '../shared/registry-endpoint.ts';

/** Addresses of mirrors by the host that they mirror, in the order in which they are tried. */
export type RegistryMirrors = Readonly<Record<string, readonly string[]>>;

const mirrorSchema = z.string().refine((text) => parseMirror(text) !== undefined, {
  error: 'a mirror is https://HOST[:PORT] or http://HOST[:PORT], without a path or credentials',
});
export const mirrorsSchema: z.ZodType<RegistryMirrors> = z.record(z.string(), z.array(mirrorSchema));

export interface RegistrySettings {
  readonly mirrors: RegistryMirrors;
  /** HOST[:PORT] that may be spoken to over plain http, or over https with any certificate; loopback always may. */
  readonly insecure: readonly string[];
  readonly proxies: ProxySettings;
}

export interface RegistriesOptions extends RegistrySettings {
  readonly userAgent: string;
}

/** Answers a client for one registry; the caller disposes it. */
export function createRegistries(
  options: RegistriesOptions,
): (host: string, credentials: Credentials | undefined) => RegistryClient {
  const { insecure, mirrors, proxies, userAgent } = options;
  const endpoint = (host: string): EndpointOptions => ({
    host,
    proxies,
    userAgent,
    ...(insecure.includes(host) ? { plainHttp: 'always', tls: { isUnverified: true } } : { plainHttp: 'loopback' }),
  });
  const mirrorEndpoint = (text: string): readonly EndpointOptions[] => {
    const url = parseMirror(text);
    if (url === undefined) return [];
    const common = endpoint(url.host);
    // Who writes http:// means it; who writes https:// is not talked down to http.
    return [url.protocol === 'http:' ? { ...common, plainHttp: 'always' } : { ...common, plainHttp: 'never' }];
  };
  return (host, credentials) =>
    createRegistryClient({
      ...endpoint(host),
      credentials: async () => credentials,
      mirrors: (mirrors[host] ?? []).flatMap(mirrorEndpoint),
    });
}

function parseMirror(text: string): URL | undefined {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !['http:', 'https:'].includes(url.protocol)) return undefined;
  const isBare = url.username === '' && url.password === '' && url.pathname === '/' && url.search + url.hash === '';
  return isBare ? url : undefined;
}

/** As it may be shown: a proxy's address can carry a password. */
export function shownProxies({ http, https, no }: ProxySettings): Required<{ [K in keyof ProxySettings]: string }> {
  return { http: redactText(http ?? ''), https: redactText(https ?? ''), no: no ?? '' };
}
