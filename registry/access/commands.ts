/** The commands of access control: each does one thing to a file or a table and says what it did. */
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import type { Database } from '../../shared/database.ts';
import { AppError } from '../../shared/errors.ts';
import { collect } from '../../shared/streams.ts';
import type { MetadataTables } from '../metadata/schema.ts';
import type { AccessConfig } from './options.ts';
import { hashPassword } from './passwords.ts';
import { createRefreshTokens } from './refresh-tokens.ts';
import { rotateSigningKeys } from './signing-keys.ts';

const PASSWORD_MAX_BYTES = 1_024;

/** Reads a password, one line, and answers a line for the password file; without a name only the hash. */
export async function hashPasswordLine(input: Readable, name: string | undefined): Promise<string> {
  const text = (await collect(input, PASSWORD_MAX_BYTES, { what: 'the password' })).toString();
  const password = text.replace(/\r?\n$/, '');
  if (/[\r\n]/.test(password)) throw new AppError('invalid', 'cannot hash the password: want one line');
  const hash = await hashPassword(password);
  return name === undefined ? hash : `${name}:${hash}`;
}

export function signingKeysDirectory(config: Pick<AccessConfig, 'tokenKeysDirectory'> & { root: string }): string {
  return config.tokenKeysDirectory ?? join(config.root, 'token-keys');
}

export async function rotateKeys(config: AccessConfig & { root: string }, now: () => Date): Promise<string> {
  const kid = await rotateSigningKeys(signingKeysDirectory(config), now);
  return `${kid} signs from now on; the key before it is still accepted`;
}

/** What `docker login` kept is void then; tokens that were given are for as long as they live. */
export async function revokeTokens(
  database: Database<MetadataTables>,
  name: string,
  options: { readonly config: AccessConfig; readonly now: () => Date },
): Promise<string> {
  const { config, now } = options;
  const count = await createRefreshTokens(database, { now, lifeMs: config.refreshTokenLifeMs }).revoke(name);
  return `${count} refresh tokens of ${JSON.stringify(name)} revoked`;
}
