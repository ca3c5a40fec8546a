/**
 * What there is, in memory: networks, and the sandboxes of containers with their endpoints. It answers questions and
 * does nothing: the database and the kernel are the business of others.
 */
import { AppError } from '../../shared/errors.ts';
import type { Subnet } from './addresses.ts';
import type { StoredSandbox } from './network-store.ts';
import { type Endpoint, type NetworkDetails, type NetworkRecord, PREDEFINED, type PublishedPort } from './networks.ts';
import { subnetsOf } from './plan.ts';
import type { HeldPort } from './ports.ts';

export interface Sandbox {
  stored: StoredSandbox;
  readonly held: HeldPort[];
  /** See OpenSandbox. */
  joinable: Promise<void>;
  ready: Promise<void>;
  /** It is being taken back. */
  closing?: Promise<void>;
}

export class Topology {
  readonly networks: Map<string, NetworkRecord>;
  /** By container id. */
  readonly sandboxes: Map<string, Sandbox>;

  constructor(networks: readonly NetworkRecord[], sandboxes: readonly StoredSandbox[]) {
    this.networks = new Map(networks.map((record) => [record.id, record]));
    this.sandboxes = new Map(
      sandboxes.map((stored) => [
        stored.containerId,
        { stored, held: [], joinable: Promise.resolve(), ready: Promise.resolve() },
      ]),
    );
  }

  /** By id, name or an unambiguous prefix of the id. @throws AppError 'not-found', 'invalid' */
  find(name: string): NetworkRecord {
    const all = [...this.networks.values()];
    const exact = this.networks.get(name) ?? all.find((network) => network.name === name);
    if (exact !== undefined) return exact;
    const begun = /^[0-9a-f]+$/.test(name) ? all.filter(({ id }) => id.startsWith(name)) : [];
    if (begun.length > 1)
      throw new AppError('invalid', `network ${name} is ambiguous (${begun.length} matches found on name)`);
    const [only] = begun;
    if (only === undefined) throw new AppError('not-found', `network ${name} not found`);
    return only;
  }

  /** By id alone. @throws AppError 'not-found' */
  get(id: string): NetworkRecord {
    const network = this.networks.get(id);
    if (network === undefined) throw new AppError('not-found', `network ${id} not found`);
    return network;
  }

  membersOf(id: string): NetworkDetails['members'] {
    const members = new Map<string, { containerName: string; endpoint: Endpoint }>();
    for (const { stored } of this.sandboxes.values()) {
      const endpoint = stored.endpoints.find(({ networkId }) => networkId === id);
      if (endpoint !== undefined) members.set(stored.containerId, { containerName: stored.containerName, endpoint });
    }
    return members;
  }

  details(): readonly NetworkDetails[] {
    return [...this.networks.values()].map((record) => this.detailsOf(record));
  }

  detailsOf(record: NetworkRecord): NetworkDetails {
    return { record, members: this.membersOf(record.id) };
  }

  /** Subnets of all networks but this one. */
  subnetsBeside(id: string): readonly Subnet[] {
    return [...this.networks.values()].filter((network) => network.id !== id).flatMap(subnetsOf);
  }

  /** Where a published port leads: the first endpoint that is reachable from outside, in the port's own family if it can be. */
  targetOf({ endpoints }: Pick<StoredSandbox, 'endpoints'>, port: PublishedPort): string | undefined {
    const open = endpoints.filter(({ networkId }) => {
      const network = this.networks.get(networkId);
      return network?.driver === 'bridge' && !network.internal;
    });
    const v4 = open.find(({ ipv4 }) => ipv4 !== undefined)?.ipv4?.address;
    const v6 = open.find(({ ipv6 }) => ipv6 !== undefined)?.ipv6?.address;
    return port.hostAddress.includes(':') ? (v6 ?? v4) : (v4 ?? v6);
  }
}

/** Docker resolves names in every network but the default one. */
export function hasNames({ driver, name }: NetworkRecord): boolean {
  return driver === 'bridge' && name !== 'bridge';
}

export function isPredefined({ name }: NetworkRecord): boolean {
  return PREDEFINED.some((predefined) => predefined === name);
}
