/**
 * Networks, sandboxes and leased addresses in the engine's database. The unique indexes are what keeps an address from
 * being given twice, whatever else goes wrong.
 */
import { sql } from 'kysely';
import { z } from 'zod';
import type { Database, Migration } from '../../shared/database.ts';
import { AppError } from '../../shared/errors.ts';
import type { Endpoint, NetworkRecord, PublishedPort } from './networks.ts';

export interface NetworkTables {
  network: { id: string; name: string; record: string };
  sandbox: { containerId: string; record: string };
  endpoint: {
    id: string;
    containerId: string;
    networkId: string;
    ipv4: string | null;
    ipv6: string | null;
    record: string;
  };
}

export const NETWORK_MIGRATIONS: readonly Migration[] = [
  {
    name: 'networks-1',
    statements: [
      'create table network (id text primary key, name text not null unique, record text not null) strict',
      'create table sandbox (containerId text primary key, record text not null) strict',
      `create table endpoint (
        id text primary key,
        containerId text not null references sandbox (containerId),
        networkId text not null references network (id),
        ipv4 text,
        ipv6 text,
        record text not null,
        unique (networkId, containerId),
        unique (networkId, ipv4),
        unique (networkId, ipv6)
      ) strict`,
      'create index endpointByContainer on endpoint (containerId)',
    ],
  },
];

/** One endpoint with what only the host knows of it. */
export interface StoredEndpoint extends Endpoint {
  /** The host's end of the pair. */
  readonly link: string;
  /** The highest has the default routes; rows of earlier versions have none, which is 0. */
  readonly gatewayPriority?: number;
}

/** A sandbox without its endpoints, which have rows of their own. */
export interface SandboxRecord {
  readonly containerId: string;
  readonly containerName: string;
  readonly hostname: string;
  /** Name of the network namespace. */
  readonly namespace: string;
  readonly ports: readonly PublishedPort[];
  readonly dns: readonly string[];
}

export interface StoredSandbox extends SandboxRecord {
  readonly endpoints: readonly StoredEndpoint[];
}

export interface NetworkStore {
  networks(): Promise<readonly NetworkRecord[]>;
  /** @throws AppError 'already-exists' when the name is taken */
  insertNetwork(record: NetworkRecord): Promise<void>;
  updateNetwork(record: NetworkRecord): Promise<void>;
  deleteNetwork(id: string): Promise<void>;
  sandboxes(): Promise<readonly StoredSandbox[]>;
  /** The sandbox and its endpoints as they are now. @throws AppError 'already-exists' when an address is leased */
  putSandbox(sandbox: StoredSandbox): Promise<void>;
  deleteSandbox(containerId: string): Promise<void>;
}

export function createNetworkStore(database: Database<NetworkTables>): NetworkStore {
  return {
    async networks() {
      const rows = await database.kysely.selectFrom('network').select('record').execute();
      return rows.map(({ record }) => reviveNetwork(record));
    },
    insertNetwork: (record) =>
      database.write(async (transaction) => {
        await transaction.insertInto('network').values(networkRow(record)).execute();
      }),
    updateNetwork: (record) =>
      database.write(async (transaction) => {
        await transaction.updateTable('network').set(networkRow(record)).where('id', '=', record.id).execute();
      }),
    deleteNetwork: (id) =>
      database.write(async (transaction) => {
        await transaction.deleteFrom('network').where('id', '=', id).execute();
      }),
    async sandboxes() {
      const { kysely } = database;
      const [sandboxes, endpoints] = await Promise.all([
        kysely.selectFrom('sandbox').select('record').execute(),
        // Those of a container are written together, the main one first.
        kysely.selectFrom('endpoint').select(['containerId', 'record']).orderBy(sql`rowid`).execute(),
      ]);
      const byContainer = Map.groupBy(endpoints, ({ containerId }) => containerId);
      return sandboxes.map(({ record }) => {
        const sandbox = revive<SandboxRecord>(record);
        const own = byContainer.get(sandbox.containerId) ?? [];
        return { ...sandbox, endpoints: own.map((row) => revive<StoredEndpoint>(row.record)) };
      });
    },
    putSandbox: ({ endpoints, ...sandbox }) =>
      database.write(async (transaction) => {
        const { containerId } = sandbox;
        await transaction
          .insertInto('sandbox')
          .values({ containerId, record: JSON.stringify(sandbox) })
          .onConflict((conflict) => conflict.column('containerId').doUpdateSet({ record: JSON.stringify(sandbox) }))
          .execute();
        await transaction.deleteFrom('endpoint').where('containerId', '=', containerId).execute();
        for (const endpoint of endpoints)
          await transaction
            .insertInto('endpoint')
            .values({
              id: endpoint.id,
              containerId,
              networkId: endpoint.networkId,
              ipv4: endpoint.ipv4?.address ?? null,
              ipv6: endpoint.ipv6?.address ?? null,
              record: JSON.stringify(endpoint),
            })
            .execute();
      }),
    deleteSandbox: (containerId) =>
      database.write(async (transaction) => {
        await transaction.deleteFrom('endpoint').where('containerId', '=', containerId).execute();
        await transaction.deleteFrom('sandbox').where('containerId', '=', containerId).execute();
      }),
  };
}

function networkRow(record: NetworkRecord): NetworkTables['network'] {
  return { id: record.id, name: record.name, record: JSON.stringify(record) };
}

const dated = z.looseObject({ createdAt: z.coerce.date() });

function reviveNetwork(text: string): NetworkRecord {
  const result = dated.safeParse(JSON.parse(text));
  if (result.success) return result.data as unknown as NetworkRecord;
  throw new AppError('integrity', `cannot read the record of a network: ${result.error.message}`);
}

/** We wrote it ourselves, and JSON has a form for all of it. */
function revive<T>(text: string): T {
  return JSON.parse(text) as T;
}
