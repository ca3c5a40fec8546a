/**
 * Refresh tokens: opaque, long-lived, for one account and one service; what `docker login` keeps in place of a password.
 * Stored as hashes. One is void when its time is over, when the account's password changes, or when it is revoked.
 */
import { createHash, randomBytes } from 'node:crypto';
import type { Database } from '../../shared/database.ts';
import type { MetadataTables } from '../metadata/schema.ts';

export interface RefreshTokenHolder {
  readonly subject: string;
  readonly service: string;
  /** Of the account when the token was issued (accounts.ts). */
  readonly fingerprint: string;
}

export interface RefreshTokens {
  issue(holder: RefreshTokenHolder): Promise<string>;
  /** undefined = unknown, over, or of another service. */
  redeem(token: string, service: string): Promise<RefreshTokenHolder | undefined>;
  /** Ends all of an account; answers how many there were. */
  revoke(subject: string): Promise<number>;
}

export interface RefreshTokenOptions {
  readonly now: () => Date;
  readonly lifeMs: number;
}

/** A login more removes the oldest: build machines log in with every job. */
const TOKENS_PER_SUBJECT = 100;

export function createRefreshTokens(
  database: Database<MetadataTables>,
  { now, lifeMs }: RefreshTokenOptions,
): RefreshTokens {
  return {
    async issue({ subject, service, fingerprint }) {
      const token = randomBytes(32).toString('base64url');
      const createdAt = now().getTime();
      await database.write(async (transaction) => {
        await transaction
          .insertInto('refreshToken')
          .values({ tokenHash: hashOf(token), subject, service, fingerprint, createdAt, expiresAt: createdAt + lifeMs })
          .execute();
        const surplus = transaction
          .selectFrom('refreshToken')
          .where('subject', '=', subject)
          .orderBy('createdAt', 'desc')
          .limit(1_000)
          .offset(TOKENS_PER_SUBJECT)
          .select('tokenHash');
        await transaction
          .deleteFrom('refreshToken')
          .where('subject', '=', subject)
          .where(({ or, eb }) => or([eb('expiresAt', '<=', createdAt), eb('tokenHash', 'in', surplus)]))
          .execute();
      });
      return token;
    },

    async redeem(token, service) {
      return database.kysely
        .selectFrom('refreshToken')
        .where('tokenHash', '=', hashOf(token))
        .where('service', '=', service)
        .where('expiresAt', '>', now().getTime())
        .select(['subject', 'service', 'fingerprint'])
        .executeTakeFirst();
    },

    async revoke(subject) {
      return database.write(async (transaction) => {
        const { numDeletedRows } = await transaction
          .deleteFrom('refreshToken')
          .where('subject', '=', subject)
          .executeTakeFirst();
        return Number(numDeletedRows);
      });
    },
  };
}

/** The token has 256 random bits: nothing slower is needed. */
function hashOf(token: string): string {
  return createHash('sha256').update(token).digest('base64url');
}
