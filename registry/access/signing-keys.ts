/**
 * The keys of our own tokens: PKCS #8 files in a directory, `<time>-<kid>.pem`. The newest signs, all verify, so that
 * adding a file rotates without invalidating a token, and removing one invalidates what it signed.
 */
import { createHash, createPrivateKey, createPublicKey, generateKeyPair, type KeyObject } from 'node:crypto';
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { writeDurably } from '../../shared/atomic-file.ts';
import { AppError, messageOf } from '../../shared/errors.ts';

/** The only algorithm of our own tokens. */
export const SIGNING_ALGORITHM = 'ES256';
const CURVE = 'P-256';

export interface SigningKeys {
  readonly newest: { readonly kid: string; readonly privateKey: KeyObject };
  publicKey(kid: string): KeyObject | undefined;
}

/** Makes the directory, and a first key where there is none. @throws AppError 'invalid' naming a file that is no key */
export async function openSigningKeys(directory: string, now: () => Date): Promise<SigningKeys> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  if ((await keyFiles(directory)).length === 0) await addSigningKey(directory, now);
  return loadSigningKeys(directory);
}

export async function loadSigningKeys(directory: string): Promise<SigningKeys> {
  const keys = await Promise.all((await keyFiles(directory)).map((name) => readKey(join(directory, name))));
  const newest = keys.at(-1);
  if (newest === undefined) throw new AppError('invalid', `cannot sign tokens: no key in ${JSON.stringify(directory)}`);
  const publicKeys = new Map(keys.map(({ kid, publicKey }) => [kid, publicKey]));
  return { newest, publicKey: (kid) => publicKeys.get(kid) };
}

/** Answers the key's id. */
export async function addSigningKey(directory: string, now: () => Date): Promise<string> {
  const { publicKey, privateKey } = await promisify(generateKeyPair)('ec', { namedCurve: CURVE });
  const kid = kidOf(publicKey);
  const time = now().toISOString().replace(/[-:]/g, '');
  const pem = privateKey.export({ type: 'pkcs8', format: 'pem' });
  await writeDurably(join(directory, `${time}-${kid}.pem`), pem, { mode: 0o600 });
  return kid;
}

/** Adds a key and removes the oldest: tokens of the one before stay valid, older ones have expired long since. */
export async function rotateSigningKeys(directory: string, now: () => Date): Promise<string> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const kid = await addSigningKey(directory, now);
  const old = (await keyFiles(directory)).slice(0, -2);
  for (const name of old) await rm(join(directory, name));
  return kid;
}

/** Oldest first. */
async function keyFiles(directory: string): Promise<readonly string[]> {
  return (await readdir(directory)).filter((name) => name.endsWith('.pem')).sort();
}

async function readKey(path: string) {
  try {
    const privateKey = createPrivateKey(await readFile(path));
    const publicKey = createPublicKey(privateKey);
    if (privateKey.asymmetricKeyDetails?.namedCurve !== 'prime256v1') throw new Error(`want a ${CURVE} key`);
    return { kid: kidOf(publicKey), privateKey, publicKey };
  } catch (cause) {
    throw new AppError('invalid', `cannot use signing key ${JSON.stringify(path)}: ${messageOf(cause)}`, { cause });
  }
}

function kidOf(publicKey: KeyObject): string {
  const der = publicKey.export({ type: 'spki', format: 'der' });
  return createHash('sha256').update(der).digest('base64url').slice(0, 22);
}
