/**
 * Container records in the engine's database. The record is one JSON document; the columns beside it are what other
 * parts ask by. Everything is read once at start: the engine is the only owner of its state, so what it holds in memory
 * is what is stored.
 */
import { z } from 'zod';
import type { Database, Migration } from '../../shared/database.ts';
import { AppError } from '../../shared/errors.ts';
import type { ContainerRecord, ContainerState } from './container.ts';

export interface ContainerTables {
  container: {
    id: string;
    name: string;
    imageId: string;
    /** ContainerRecord as JSON. */
    record: string;
  };
}

export const CONTAINER_MIGRATIONS: readonly Migration[] = [
  {
    name: 'containers-1',
    statements: [
      `create table container (
        id text primary key,
        name text not null unique,
        imageId text not null,
        record text not null
      ) strict`,
      'create index containerByImage on container (imageId)',
    ],
  },
];

export interface ContainerStore {
  /** In the order of creation. */
  load(): Promise<readonly ContainerRecord[]>;
  /** Durable when it resolves. @throws AppError 'already-exists' when the name is taken */
  insert(record: ContainerRecord): Promise<void>;
  /** Durable when it resolves; a record that is gone stays gone. */
  update(record: ContainerRecord): Promise<void>;
  delete(id: string): Promise<void>;
}

export function createContainerStore(database: Database<ContainerTables>): ContainerStore {
  return {
    async load() {
      const rows = await database.kysely.selectFrom('container').select(['id', 'record']).execute();
      return rows.map((row) => reviveRecord(row)).sort((a, b) => a.createdAt.getTime() - b.createdAt.getTime());
    },
    insert: (record) =>
      database.write(async (transaction) => {
        await transaction.insertInto('container').values(rowOf(record)).execute();
      }),
    update: (record) =>
      database.write(async (transaction) => {
        await transaction.updateTable('container').set(rowOf(record)).where('id', '=', record.id).execute();
      }),
    delete: (id) =>
      database.write(async (transaction) => {
        await transaction.deleteFrom('container').where('id', '=', id).execute();
      }),
  };
}

function rowOf(record: ContainerRecord): ContainerTables['container'] {
  return { id: record.id, name: record.name, imageId: record.imageId, record: JSON.stringify(record) };
}

const date = z.coerce.date();
const failure = z.object({ message: z.string(), exitCode: z.number() }).optional();
const ended = { startedAt: date, finishedAt: date, exitCode: z.number(), oomKilled: z.boolean() };
const resting = z.discriminatedUnion('status', [
  z.object({ status: z.literal('created'), failure }),
  z.object({ status: z.literal('exited'), failure, ...ended }),
]);
const state: z.ZodType<ContainerState> = z.union([
  resting,
  z.object({ status: z.literal(['running', 'paused']), startedAt: date, pid: z.number() }),
  z.object({ status: z.literal('restarting'), ...ended }),
  z.object({ status: z.literal('removing'), last: resting }),
  z.object({ status: z.literal('dead'), last: resting, error: z.string() }),
]) as z.ZodType<ContainerState>;
const stored = z.looseObject({ id: z.string(), createdAt: date, state });

/** We wrote it ourselves: only what JSON has no form for is parsed, the rest is as it was. */
function reviveRecord(row: { readonly id: string; readonly record: string }): ContainerRecord {
  const result = stored.safeParse(JSON.parse(row.record));
  if (!result.success)
    throw new AppError('integrity', `cannot read the record of container ${row.id}: ${result.error.message}`);
  return result.data as unknown as ContainerRecord;
}
