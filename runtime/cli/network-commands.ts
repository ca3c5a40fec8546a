/** What `berth network …` does. */
import { AppError } from '../../shared/errors.ts';
import { inspect } from './container-commands.ts';
import { filterQuery } from './filters.ts';
import { formatRows, print } from './output.ts';
import { confirm } from './question.ts';
import { forEachName, type Session } from './session.ts';
import { list, object, strings, text } from './values.ts';

export interface CreateFlags {
  readonly driver?: string;
  readonly subnet?: readonly string[];
  readonly gateway?: readonly string[];
  readonly ipRange?: readonly string[];
  readonly auxAddress?: readonly string[];
  readonly internal?: boolean;
  readonly attachable?: boolean;
  /** false = --no-ipv4 */
  readonly ipv4?: boolean;
  readonly ipv6?: boolean;
  readonly opt?: readonly string[];
  readonly label?: readonly string[];
}

export async function create(session: Session, name: string, flags: CreateFlags): Promise<void> {
  const answer = object(await session.engine.call('POST', '/networks/create', { json: createRequest(name, flags) }));
  print(text(answer.Id));
}

/** Each gateway, range and address goes to the subnet that has the same place in the command line. */
export function createRequest(name: string, flags: CreateFlags): Record<string, unknown> {
  const { subnet = [], gateway = [], ipRange = [], auxAddress = [] } = flags;
  for (const [flag, values] of [
    ['--gateway', gateway],
    ['--ip-range', ipRange],
  ] as const)
    if (values.length > subnet.length)
      throw new AppError('invalid', `cannot use ${flag} ${values[subnet.length]}: every ${flag} needs a subnet`);
  const config = subnet.map((each, index) => ({
    Subnet: each,
    Gateway: gateway[index],
    IPRange: ipRange[index],
    AuxiliaryAddresses: index === 0 ? pairs(auxAddress) : {},
  }));
  return {
    Name: name,
    Driver: flags.driver ?? 'bridge',
    Internal: flags.internal === true,
    Attachable: flags.attachable === true,
    EnableIPv4: flags.ipv4 !== false,
    EnableIPv6: flags.ipv6 === true,
    IPAM: { Driver: 'default', Config: config },
    Options: pairs(flags.opt ?? []),
    Labels: pairs(flags.label ?? []),
  };
}

function pairs(entries: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    entries.map((entry) => {
      const at = entry.indexOf('=');
      return at === -1 ? [entry, ''] : [entry.slice(0, at), entry.slice(at + 1)];
    }),
  );
}

export interface ListFlags {
  readonly filter?: readonly string[];
  readonly format?: string;
  readonly quiet?: boolean;
  /** false = --no-trunc */
  readonly trunc?: boolean;
}

export async function ls(session: Session, flags: ListFlags): Promise<void> {
  const answer = await session.engine.call('GET', '/networks', { query: { filters: filterQuery(flags.filter) } });
  const rows = list(answer)
    .map(object)
    .map((network) => ({
      ID: flags.trunc === false ? text(network.Id) : text(network.Id).slice(0, 12),
      Name: text(network.Name),
      Driver: text(network.Driver),
      Scope: text(network.Scope),
      IPv6: String(network.EnableIPv6 === true),
      Internal: String(network.Internal === true),
      CreatedAt: text(network.Created),
      Labels: Object.entries(object(network.Labels))
        .map(([key, value]) => `${key}=${text(value)}`)
        .join(','),
    }))
    .sort((a, b) => (a.Name < b.Name ? -1 : 1));
  const columns = [
    ['ID', 'NETWORK ID'],
    ['Name', 'NAME'],
    ['Driver', 'DRIVER'],
    ['Scope', 'SCOPE'],
  ] as const;
  print(formatRows(rows, columns, { format: flags.format, quiet: flags.quiet === true ? 'ID' : undefined }));
}

export async function inspectNetworks(
  session: Session,
  names: readonly string[],
  flags: { readonly format?: string },
): Promise<void> {
  await inspect(session, names, { ...flags, type: 'network' });
}

export interface ConnectFlags {
  readonly ip?: string;
  readonly ip6?: string;
  readonly alias?: readonly string[];
  readonly driverOpt?: readonly string[];
  readonly gwPriority?: string;
}

export async function connect(
  session: Session,
  network: string,
  container: string,
  flags: ConnectFlags,
): Promise<void> {
  await session.engine.call('POST', `/networks/${network}/connect`, {
    json: {
      Container: container,
      EndpointConfig: {
        IPAMConfig: { IPv4Address: flags.ip ?? '', IPv6Address: flags.ip6 ?? '' },
        Aliases: flags.alias ?? [],
        DriverOpts: pairs(flags.driverOpt ?? []),
        GwPriority: Number(flags.gwPriority ?? 0),
      },
    },
  });
}

export async function disconnect(
  session: Session,
  network: string,
  container: string,
  flags: { readonly force?: boolean },
): Promise<void> {
  await session.engine.call('POST', `/networks/${network}/disconnect`, {
    json: { Container: container, Force: flags.force === true },
  });
}

export async function rm(session: Session, names: readonly string[]): Promise<void> {
  await forEachName(session, names, async (name) => {
    await session.engine.call('DELETE', `/networks/${name}`);
    print(name);
  });
}

export async function prune(
  session: Session,
  flags: { readonly filter?: readonly string[]; readonly force?: boolean },
): Promise<void> {
  const question =
    'WARNING! This will remove all networks not used by at least one container.\nAre you sure you want to continue?';
  if (!(await confirm(question, flags.force))) return;
  const answer = object(
    await session.engine.call('POST', '/networks/prune', { query: { filters: filterQuery(flags.filter) } }),
  );
  const deleted = strings(answer.NetworksDeleted);
  if (deleted.length > 0) print(`Deleted Networks:\n${deleted.join('\n')}\n`);
}
