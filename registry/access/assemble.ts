/**
 * Access control from the configuration: opens the files that it names and keeps them current. The only place that
 * knows which of the parts of this folder are in use.
 */
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { Keyv } from 'keyv';
import type { Database } from '../../shared/database.ts';
import { AppError, messageOf } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Limits } from '../limits.ts';
import type { MetadataTables } from '../metadata/schema.ts';
import type { Access } from './access.ts';
import { createAccounts } from './accounts.ts';
import { createAuthentication, type TokenVerifier } from './authentication.ts';
import { createChallenger } from './challenge.ts';
import { signingKeysDirectory } from './commands.ts';
import { openLiveFile } from './live-file.ts';
import { createOpenAccess } from './open-access.ts';
import type { AccessConfig } from './options.ts';
import { createPasswordCheck, parseHtpasswd } from './passwords.ts';
import { POLICY_OF_USERS, parsePolicy } from './policy.ts';
import { createRateLimit } from './rate-limit.ts';
import { createRefreshTokens } from './refresh-tokens.ts';
import { loadSigningKeys, openSigningKeys } from './signing-keys.ts';
import { createTokenEndpoint, type TokenEndpoint } from './token-endpoint.ts';
import { createOwnTokens, type OwnTokens, outsideTokenVerifier, ownTokenVerifier, parsePublicKeys } from './tokens.ts';

export interface AccessControl extends AsyncDisposable {
  readonly access: Access;
  /** Present = tokens are given here. */
  readonly tokenEndpoint: TokenEndpoint | undefined;
  readonly quotaBytes: (repository: string) => number | undefined;
  /** Tags that no retention removes. */
  readonly isImmutable: (repository: string, tag: string) => boolean;
}

export interface AccessControlOptions {
  readonly config: AccessConfig & Limits & { readonly root: string };
  readonly database: Database<MetadataTables>;
  /** Whether callers without a name may write when there are no users. */
  readonly anonymousWrites: boolean;
  readonly log: Log;
  readonly now: () => Date;
  readonly randomId: () => string;
}

/** @throws AppError 'invalid' for files that cannot be used and options that contradict each other */
export async function openAccessControl(options: AccessControlOptions): Promise<AccessControl> {
  const { config, database, log, now } = options;
  assertConsistent(config);
  await using undo = new AsyncDisposableStack();

  const live = async <T>(path: string, parse: (text: string) => T) => {
    const load = async () => parse(await readText(path));
    const file = undo.use(await openLiveFile({ paths: [path], load, log }));
    return () => file.current();
  };
  const { passwordFile, policyFile } = config;
  const limitTo = (perMinute: number) => createRateLimit({ perMinute, now });
  if (!hasUsers(config))
    return {
      access: createOpenAccess({ ...options, requests: limitTo(config.anonymousRequestsPerMinute) }),
      tokenEndpoint: undefined,
      quotaBytes: () => undefined,
      isImmutable: () => false,
      [Symbol.asyncDispose]: async () => {},
    };

  const ofUsers = parsePolicy(POLICY_OF_USERS);
  const nobody = new Map<string, string>();
  const policy = policyFile === undefined ? () => ofUsers : await live(policyFile, parsePolicy);
  // Whom /v2/ does not ask for a password, docker and skopeo never send one; whom it asks, they do not let pull without.
  if (config.tokenRealm === undefined && policy().servesAnonymous)
    log.warn('strangers may pull, so some clients cannot log in: set tokenRealm, which serves both');
  const users = passwordFile === undefined ? () => nobody : await live(passwordFile, parseHtpasswd);
  const checkPassword = createPasswordCheck({
    cache: new Keyv<boolean>({ namespace: 'verified', throwOnErrors: true }),
    secret: randomBytes(32),
    queueMax: config.loginQueueMax,
  });
  const accounts = createAccounts({ users, policy, checkPassword, now });

  let tokens: OwnTokens | undefined;
  let verifyToken: TokenVerifier | undefined;
  const { outsideIssuer: issuer, outsideKeysFile, tokenRealm, tokenService: service } = config;
  if (issuer !== undefined && outsideKeysFile !== undefined) {
    const algorithm = config.outsideAlgorithm;
    const keys = await live(outsideKeysFile, (text) => parsePublicKeys(text, algorithm));
    verifyToken = outsideTokenVerifier({ issuer, audience: service, algorithm, keyOf: (kid) => keys()(kid), now });
  } else if (tokenRealm !== undefined) {
    const directory = signingKeysDirectory(config);
    await openSigningKeys(directory, now);
    const keys = undo.use(await openLiveFile({ paths: [directory], load: () => loadSigningKeys(directory), log }));
    const { tokenLifeMs: lifeMs } = config;
    tokens = createOwnTokens({ ...options, issuer: tokenRealm, service, lifeMs, keys: keys.current });
    verifyToken = ownTokenVerifier(tokens, (name) => accounts.fingerprint(name) !== undefined);
  }

  const authentication = createAuthentication({
    accounts,
    policy,
    challenge: createChallenger({ realm: tokenRealm, service }),
    verifyToken,
    limits: {
      failures: limitTo(config.failedLoginsPerMinute),
      requests: limitTo(config.requestsPerMinute),
      anonymousRequests: limitTo(config.anonymousRequestsPerMinute),
    },
  });
  const refreshTokens = createRefreshTokens(database, { now, lifeMs: config.refreshTokenLifeMs });
  const tokenEndpoint =
    tokens && createTokenEndpoint({ authentication, accounts, policy, tokens, refreshTokens, service });

  const owned = undo.move();
  return {
    access: authentication,
    tokenEndpoint,
    quotaBytes: (repository) => policy().quotaBytes(repository),
    isImmutable: (repository, tag) => policy().isImmutable(repository, tag),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Without, everybody is somebody without a name. */
function hasUsers({ passwordFile, policyFile, outsideIssuer }: AccessConfig): boolean {
  return passwordFile !== undefined || policyFile !== undefined || outsideIssuer !== undefined;
}

/** Clients take tokens that live shorter for broken, by the specification. */
const TOKEN_LIFE_MIN_MS = 60_000;

function assertConsistent(config: AccessConfig): void {
  const { outsideIssuer, outsideKeysFile, tokenRealm, tokenService, tokenLifeMs } = config;
  const refuse = (why: string) => new AppError('invalid', `cannot use the configuration: ${why}`);
  if ((outsideIssuer === undefined) !== (outsideKeysFile === undefined))
    throw refuse('outsideIssuer and outsideKeysFile belong together');
  if (outsideIssuer !== undefined && tokenRealm === undefined)
    throw refuse('outsideIssuer needs tokenRealm, the URL where clients get its tokens');
  if (tokenRealm !== undefined && !hasUsers(config)) throw refuse('tokenRealm needs users: passwordFile or policyFile');
  if (tokenRealm !== undefined && !/^https?:\/\/[^\s"\\]+$/.test(tokenRealm))
    throw refuse('tokenRealm is no web address');
  if (!/^[\x21\x23-\x5b\x5d-\x7e]+$/.test(tokenService)) throw refuse('tokenService has spaces or quotes');
  if (tokenLifeMs < TOKEN_LIFE_MIN_MS) throw refuse('tokenLifeMs is below 60 seconds, which clients do not accept');
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw new AppError('invalid', `cannot read ${JSON.stringify(path)}: ${messageOf(cause)}`, { cause });
  }
}
