/** Rows of contexts that are kept for their next build: written after their layers, deleted before them. */
import type { Migration } from '../../shared/database.ts';

export interface ContextTables {
  buildContext: {
    /** Hex digest of the client's own words. */
    id: string;
    /** The client's own words, cut. */
    description: string;
    /** JSON list of layer ids, base first. */
    chain: string;
    diskBytes: number;
    createdMs: number;
    usedMs: number;
    usedCount: number;
  };
}

export const BUILD_CONTEXT_MIGRATIONS: readonly Migration[] = [
  {
    name: 'build-contexts-1',
    statements: [
      `create table buildContext (
        id text primary key,
        description text not null,
        chain text not null,
        diskBytes integer not null,
        createdMs integer not null,
        usedMs integer not null,
        usedCount integer not null
      ) strict, without rowid`,
    ],
  },
];
