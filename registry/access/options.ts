/** The options of access control: files and names. Its limits are in the table of limits.ts. */
import { type Config, choiceOption, durationOption, textOption } from '../../shared/config.ts';
import { TOKEN_ALGORITHMS } from './tokens.ts';

const HOUR_MS = 3_600_000;

export const ACCESS_OPTIONS = {
  tlsCertificateFile: textOption({
    description: 'serve over TLS with this certificate and its intermediates (PEM); read again when it changes',
    default: undefined,
  }),
  tlsKeyFile: textOption({ description: 'key of that certificate (PEM)', default: undefined }),
  tlsClientCaFile: textOption({
    description: 'let in only clients with a certificate of these authorities (PEM)',
    default: undefined,
  }),
  passwordFile: textOption({
    description: 'users, as NAME:BCRYPT lines in the form of htpasswd; read again when it changes',
    default: undefined,
  }),
  policyFile: textOption({
    description: 'who may do what, robot accounts, immutable tags and quotas (YAML); read again when it changes',
    default: undefined,
  }),
  tokenRealm: textOption({
    description:
      'URL of the token endpoint as clients reach it, for example https://registry.example.com/auth/token; without it passwords are taken directly',
    default: undefined,
  }),
  tokenService: textOption({ description: 'what tokens are for: their audience', default: 'berth-registry' }),
  tokenKeysDirectory: textOption({
    description: 'keys that sign our tokens, the newest first; made when absent; default ROOT/token-keys',
    default: undefined,
  }),
  tokenLifeMs: durationOption({ description: 'how long a token is valid', default: 300_000 }),
  refreshTokenLifeMs: durationOption({
    description: 'how long a login lasts that kept a refresh token',
    default: 90 * 24 * HOUR_MS,
  }),
  outsideIssuer: textOption({
    description: 'issuer whose tokens are accepted, instead of our own; tokenRealm is then its endpoint',
    default: undefined,
  }),
  outsideKeysFile: textOption({
    description: 'public keys of that issuer: JWKS, or one key or certificate as PEM; read again when it changes',
    default: undefined,
  }),
  outsideAlgorithm: choiceOption({
    description: 'the only algorithm of that issuer',
    choices: TOKEN_ALGORITHMS,
    default: 'RS256',
  }),
} as const;

export type AccessConfig = Config<typeof ACCESS_OPTIONS>;
