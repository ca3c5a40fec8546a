/**
 * Deliveries that wait, in SQL: they survive a restart, and processes that share the database share the work. Each
 * endpoint gets its deliveries in order; the oldest holds back the rest until it has arrived or was given up.
 */
import type { Database } from '../../shared/database.ts';
import type { MetadataTables } from '../metadata/schema.ts';

export interface Delivery {
  readonly id: number;
  readonly body: string;
  readonly createdAt: Date;
  /** This one included. */
  readonly attempts: number;
}

export type Claim =
  | { readonly kind: 'delivery'; readonly delivery: Delivery }
  /** The oldest is not due yet, or another process is at it. */
  | { readonly kind: 'later'; readonly at: Date }
  | { readonly kind: 'empty' };

export interface DeliveryQueue {
  /** Answers how many did not fit. */
  add(deliveries: readonly { readonly endpoint: string; readonly body: string }[]): Promise<number>;
  /** Takes the oldest if it is due. Who does not settle it until `until` has lost it to the next who asks. */
  claim(endpoint: string, until: Date): Promise<Claim>;
  remove(id: number): Promise<void>;
  postpone(id: number, until: Date): Promise<void>;
}

export interface DeliveryQueueOptions {
  readonly now: () => Date;
  /** Per endpoint. */
  readonly maxEntries: number;
}

export function createDeliveryQueue(
  database: Database<MetadataTables>,
  { now, maxEntries }: DeliveryQueueOptions,
): DeliveryQueue {
  const remove = async (id: number) => {
    await database.write((transaction) => transaction.deleteFrom('delivery').where('id', '=', id).execute());
  };

  return {
    remove,

    async add(deliveries) {
      return database.write(async (transaction) => {
        const at = now().getTime();
        let refused = 0;
        for (const { endpoint, body } of deliveries) {
          const { count } = await transaction
            .selectFrom('delivery')
            .where('endpoint', '=', endpoint)
            .select(({ fn }) => fn.countAll<number>().as('count'))
            .executeTakeFirstOrThrow();
          if (count >= maxEntries) refused += 1;
          else
            await transaction
              .insertInto('delivery')
              .values({ endpoint, body, createdAt: at, dueAt: at, attempts: 0 })
              .execute();
        }
        return refused;
      });
    },

    async claim(endpoint, until) {
      const oldest = database.kysely
        .selectFrom('delivery')
        .where('endpoint', '=', endpoint)
        .orderBy('id')
        .limit(1)
        .selectAll();
      // Most of the time there is nothing: asking so costs no write.
      const seen = await oldest.executeTakeFirst();
      if (seen === undefined) return { kind: 'empty' };
      if (seen.dueAt > now().getTime()) return { kind: 'later', at: new Date(seen.dueAt) };
      const { numUpdatedRows } = await database.write((transaction) =>
        transaction
          .updateTable('delivery')
          .set({ dueAt: until.getTime(), attempts: seen.attempts + 1 })
          .where('id', '=', seen.id)
          .where('attempts', '=', seen.attempts)
          .executeTakeFirstOrThrow(),
      );
      if (numUpdatedRows === 0n) return { kind: 'later', at: now() };
      const { id, body, createdAt, attempts } = seen;
      return { kind: 'delivery', delivery: { id, body, createdAt: new Date(createdAt), attempts: attempts + 1 } };
    },

    async postpone(id, until) {
      await database.write((transaction) =>
        transaction.updateTable('delivery').set({ dueAt: until.getTime() }).where('id', '=', id).execute(),
      );
    },
  };
}
