/**
 * Docker's links: other containers under names that this one alone knows them by. In the default network, which has no
 * name server, they are lines of /etc/hosts and variables of the environment, and the other container must run; in
 * networks with names they are lines of /etc/hosts for as long as the other one is there. Pure.
 */
import { AppError } from '../../shared/errors.ts';
import type { Endpoint } from '../networks/networks.ts';
import { type ContainerRecord, isAlive } from './container.ts';
import type { HostConfig } from './request.ts';

export interface Link {
  /** Name or id of the other container; in networks with names also another name that it has there. */
  readonly target: string;
  readonly alias: string;
}

/** `NAME:ALIAS` or `NAME`; also `/NAME:/OWN/ALIAS`, as inspect tells it. @throws AppError 'invalid' with Docker's words */
export function parseLink(text: string): Link {
  const [target = '', alias = target, ...rest] = text.split(':');
  if (text === '') throw new AppError('invalid', 'empty string specified for links');
  if (rest.length > 0) throw new AppError('invalid', `bad format for links: ${text}`);
  const link = target.startsWith('/')
    ? { target: target.slice(1), alias: alias.split('/').at(-1) ?? '' }
    : { target, alias: alias.replace(/^\//, '') };
  if (!/^[\w][\w.-]*$/.test(link.target) || !/^[\w][\w.-]*$/.test(link.alias))
    throw new AppError('invalid', `bad format for links: ${text}`);
  return link;
}

/** Links of the default network. */
export function hostLinks({ Links, NetworkMode }: Pick<HostConfig, 'Links' | 'NetworkMode'>): readonly Link[] {
  return NetworkMode === 'bridge' ? Links.map(parseLink) : [];
}

/** `PARENT/ALIAS` or `/PARENT/ALIAS`, as links are named where they are removed. @throws AppError 'conflict' with Docker's words */
export function parseLinkName(text: string): { readonly parent: string; readonly alias: string } {
  const [parent = '', alias = '', ...rest] = text.replace(/^\//, '').split('/');
  if (alias === '' || rest.length > 0)
    throw new AppError('conflict', 'Conflict, cannot remove the default link name of the container');
  return { parent, alias };
}

/** Links of the default network without those of one name; undefined when there is none. */
export function withoutLink(
  hostConfig: Pick<HostConfig, 'Links' | 'NetworkMode'>,
  alias: string,
): string[] | undefined {
  if (!hostLinks(hostConfig).some((link) => link.alias === alias)) return undefined;
  return hostConfig.Links.filter((text) => parseLink(text).alias !== alias);
}

/**
 * What else Docker lists containers as: `NAME/ALIAS` for each container that is linked to it so in the default network.
 * By id; `find` answers undefined for one that is gone.
 */
export function linkNames(
  records: Iterable<ContainerRecord>,
  find: (name: string) => ContainerRecord | undefined,
): ReadonlyMap<string, readonly string[]> {
  const names = new Map<string, string[]>();
  for (const { name, hostConfig } of records)
    for (const { target, alias } of hostLinks(hostConfig)) {
      const id = find(target)?.id;
      if (id !== undefined) names.set(id, [...(names.get(id) ?? []), `${name}/${alias}`]);
    }
  return names;
}

export function hasLinks({ hostConfig, endpoints }: Pick<ContainerRecord, 'hostConfig' | 'endpoints'>): boolean {
  return hostConfig.Links.length > 0 || Object.values(endpoints).some(({ Links }) => Links.length > 0);
}

/** The other side of a link of the default network. */
export interface LinkedContainer {
  readonly alias: string;
  readonly record: ContainerRecord;
  readonly endpoint: Endpoint | undefined;
}

/** @throws AppError 'invalid' in Docker's words: all of them must run */
export function mustBeLinkable(name: string, { alias, record, endpoint }: LinkedContainer): void {
  if (!isAlive(record.state) || endpoint === undefined)
    throw new AppError('invalid', `Cannot link to a non running container: /${record.name} AS /${name}/${alias}`);
}

/** A line of /etc/hosts for each address. */
export function hostLinkLines(linked: readonly LinkedContainer[]): readonly string[] {
  return linked.flatMap(({ alias, record, endpoint }) => {
    const names = [...new Set([alias, record.config.Hostname, record.name])].join(' ');
    return addressesOf(endpoint).map((address) => `${address}\t${names}`);
  });
}

/** The same for links in a network with names. */
export function networkLinkLines(links: readonly string[], members: readonly Endpoint[]): readonly string[] {
  return links.map(parseLink).flatMap(({ target, alias }) =>
    members
      .filter(({ dnsNames }) => dnsNames.includes(target))
      .flatMap(addressesOf)
      .map((address) => `${address}\t${alias}`),
  );
}

function addressesOf(endpoint: Endpoint | undefined): readonly string[] {
  return [endpoint?.ipv4, endpoint?.ipv6].flatMap((lease) => lease?.address ?? []);
}

/** What Docker has always told images of that time: where each exposed port is, and the other's own variables. */
export function linkVariables(name: string, linked: readonly LinkedContainer[]): readonly string[] {
  return linked.flatMap(({ alias, record, endpoint }) => {
    const [address = ''] = addressesOf(endpoint);
    const prefix = alias.toUpperCase().replaceAll(/[^A-Z0-9_]/g, '_');
    const ports = record.config.ExposedPorts.map((text) => {
      const [port = '', protocol = 'tcp'] = text.split('/');
      return { port, protocol, url: `${protocol}://${address}:${port}` };
    }).sort((a, b) => Number(a.port) - Number(b.port) || (a.protocol === 'tcp' ? -1 : 1));
    return [
      ...ports.slice(0, 1).map(({ url }) => `${prefix}_PORT=${url}`),
      ...ports.flatMap(({ port, protocol, url }) => {
        const own = `${prefix}_PORT_${port}_${protocol.toUpperCase()}`;
        return [`${own}=${url}`, `${own}_ADDR=${address}`, `${own}_PORT=${port}`, `${own}_PROTO=${protocol}`];
      }),
      `${prefix}_NAME=/${name}/${alias}`,
      ...record.config.Env.filter((entry) => entry.includes('=') && !/^(?:HOME|PATH)=/.test(entry)).map(
        (entry) => `${prefix}_ENV_${entry}`,
      ),
    ];
  });
}
