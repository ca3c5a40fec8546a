/**
 * The token endpoint: Docker's GET with Basic and OAuth 2's POST, both answered with a token for the part of the asked
 * scopes that the policy gives; asking for more is no error. Without a name one gets what strangers may do.
 * https://distribution.github.io/distribution/spec/auth/token/ and /oauth/
 */
import type { Context } from 'koa';
import { collect } from '../../shared/streams.ts';
import { OciError } from '../oci-errors.ts';
import { ANONYMOUS, type Identity } from './access.ts';
import type { Accounts } from './accounts.ts';
import type { Authentication } from './authentication.ts';
import type { Policy } from './policy.ts';
import type { RefreshTokens } from './refresh-tokens.ts';
import { formatScopes, intersect, parseScopes } from './scopes.ts';
import type { OwnTokens } from './tokens.ts';

export const TOKEN_PATH = '/auth/token';

const FORM_MAX_BYTES = 64 * 1024;

export interface TokenEndpointPorts {
  readonly authentication: Authentication;
  readonly accounts: Pick<Accounts, 'fingerprint'>;
  readonly policy: () => Policy;
  readonly tokens: OwnTokens;
  readonly refreshTokens: RefreshTokens;
  readonly service: string;
}

export type TokenEndpoint = (ctx: Context) => Promise<void>;

interface Request {
  readonly identity: Identity;
  readonly scopes: readonly string[];
  readonly wantsRefreshToken: boolean;
  /** Answered again to whoever has shown it: this is one token for as long as it lives. */
  readonly refreshToken?: string;
}

export function createTokenEndpoint(ports: TokenEndpointPorts): TokenEndpoint {
  const { authentication, accounts, policy, tokens, refreshTokens, service } = ports;

  async function readQuery(ctx: Context): Promise<Request> {
    const query = new URLSearchParams(ctx.querystring);
    assertService(query.get('service'));
    const identity = await authentication.authenticate({
      headers: ctx.headers,
      remoteAddress: ctx.req.socket.remoteAddress,
    });
    // A token may be narrower than its holder: it must not buy a wider one.
    if (identity.token !== undefined) throw refused('a token is not a password');
    return {
      identity,
      scopes: query.getAll('scope'),
      wantsRefreshToken: query.get('offline_token') === 'true' && !identity.isAnonymous,
    };
  }

  async function readForm(ctx: Context): Promise<Request> {
    const form = new URLSearchParams((await readBody(ctx)).toString());
    assertService(form.get('service'));
    const scopes = form.getAll('scope');
    switch (form.get('grant_type')) {
      case 'password': {
        const credentials = { name: form.get('username') ?? '', password: form.get('password') ?? '' };
        const identity = await authentication.login(credentials, ctx.req.socket.remoteAddress);
        return { identity, scopes, wantsRefreshToken: form.get('access_type') === 'offline' };
      }
      case 'refresh_token': {
        const refreshToken = form.get('refresh_token') ?? '';
        const holder = await refreshTokens.redeem(refreshToken, service);
        if (holder === undefined || accounts.fingerprint(holder.subject) !== holder.fingerprint)
          throw refused('the refresh token is not valid, log in again');
        const identity = { id: holder.subject, isAnonymous: false };
        return { identity, scopes, wantsRefreshToken: false, refreshToken };
      }
      default:
        throw new OciError('UNSUPPORTED', 'cannot give a token: want grant_type password or refresh_token', {
          status: 400,
        });
    }
  }

  function assertService(asked: string | null): void {
    if (asked !== null && asked !== '' && asked !== service)
      throw new OciError(
        'DENIED',
        `cannot give a token for ${JSON.stringify(asked.slice(0, 100))}: this is another service`,
      );
  }

  async function refreshTokenFor({ id }: Identity): Promise<string | undefined> {
    const fingerprint = accounts.fingerprint(id);
    return fingerprint === undefined ? undefined : refreshTokens.issue({ subject: id, service, fingerprint });
  }

  return async (ctx) => {
    // Tokens and proofs of failure alike are for one reader.
    ctx.set('Cache-Control', 'no-store');
    if (ctx.method !== 'GET' && ctx.method !== 'POST')
      throw new OciError('UNSUPPORTED', `cannot ${ctx.method} here: want GET, POST`, {
        headers: { allow: 'GET, POST' },
      });
    const request = ctx.method === 'GET' ? await readQuery(ctx) : await readForm(ctx);
    const { identity } = request;
    const grants = intersect(parseScopes(request.scopes), {
      catalog: () => policy().allows(identity, { kind: 'catalog' }),
      repository: (kind, repository) => policy().allows(identity, { kind, repository }),
    });
    const subject = identity.id === ANONYMOUS.id ? '' : identity.id;
    const { token, issuedAt, expiresInS } = await tokens.issue({ subject, grants });
    const refreshToken =
      request.refreshToken ?? (request.wantsRefreshToken ? await refreshTokenFor(identity) : undefined);
    ctx.status = 200;
    ctx.body = {
      token,
      access_token: token,
      scope: formatScopes(grants),
      expires_in: expiresInS,
      issued_at: issuedAt.toISOString(),
      ...(refreshToken === undefined ? {} : { refresh_token: refreshToken }),
    };
  };
}

function refused(why: string): OciError {
  return new OciError('UNAUTHORIZED', `cannot give a token: ${why}`);
}

async function readBody(ctx: Context): Promise<Buffer> {
  // Said before reading, so that the client hears it; a body that does not say its length is cut.
  if (Number(ctx.get('Content-Length')) > FORM_MAX_BYTES)
    throw new OciError('SIZE_INVALID', `cannot read the form: it is larger than ${FORM_MAX_BYTES} bytes`, {
      status: 413,
    });
  return collect(ctx.req, FORM_MAX_BYTES, { what: 'the form' });
}
