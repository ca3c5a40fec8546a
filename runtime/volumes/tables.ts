/** Volumes in the engine's database: one row each, read once at start, written through. */
import type { Database, Migration } from '../../shared/database.ts';

export interface VolumeTables {
  volume: {
    name: string;
    createdMs: number;
    /** JSON objects. */
    labels: string;
    options: string;
    /** 1 = its data is being deleted; it is no volume any more. */
    isRemoving: number;
  };
}

export const VOLUME_MIGRATIONS: readonly Migration[] = [
  {
    name: 'volumes-1',
    statements: [
      `create table volume (
        name text primary key,
        createdMs integer not null,
        labels text not null,
        options text not null,
        isRemoving integer not null default 0
      ) strict`,
    ],
  },
];

export interface VolumeRow {
  readonly name: string;
  readonly createdAt: Date;
  readonly labels: Readonly<Record<string, string>>;
  readonly options: Readonly<Record<string, string>>;
  readonly isRemoving: boolean;
}

/** Durable when a call resolves. */
export interface VolumeStore {
  load(): Promise<readonly VolumeRow[]>;
  /** @throws AppError 'already-exists' */
  insert(row: VolumeRow): Promise<void>;
  markRemoving(name: string): Promise<void>;
  delete(name: string): Promise<void>;
}

export function createVolumeStore(database: Database<VolumeTables>): VolumeStore {
  return {
    async load() {
      const rows = await database.kysely.selectFrom('volume').selectAll().orderBy('name').execute();
      return rows.map(({ name, createdMs, labels, options, isRemoving }) => ({
        name,
        createdAt: new Date(createdMs),
        labels: JSON.parse(labels),
        options: JSON.parse(options),
        isRemoving: isRemoving !== 0,
      }));
    },
    insert: ({ name, createdAt, labels, options, isRemoving }) =>
      database.write(async (transaction) => {
        const row = {
          name,
          createdMs: createdAt.getTime(),
          labels: JSON.stringify(labels),
          options: JSON.stringify(options),
          isRemoving: isRemoving ? 1 : 0,
        };
        await transaction.insertInto('volume').values(row).execute();
      }),
    markRemoving: (name) =>
      database.write(async (transaction) => {
        await transaction.updateTable('volume').set({ isRemoving: 1 }).where('name', '=', name).execute();
      }),
    delete: (name) =>
      database.write(async (transaction) => {
        await transaction.deleteFrom('volume').where('name', '=', name).execute();
      }),
  };
}
