/** `POST /auth`: asks the registry whether it takes the credentials. Nothing is kept; clients store them themselves. */
import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import { DEFAULT_HOST } from '../../shared/reference.ts';
import type { Engine } from '../engine.ts';
import { type ApiRouter, credentialsFrom, readBody, sendJson } from './context.ts';

const bodySchema = z.object({
  username: z.string().optional(),
  password: z.string().optional(),
  identitytoken: z.string().optional(),
  serveraddress: z.string().optional(),
});

export function addAuthRoutes(router: ApiRouter, engine: Engine): void {
  router.post('/auth', async (ctx) => {
    const body = await readBody(ctx, bodySchema);
    const credentials = credentialsFrom(body);
    if (credentials === undefined) throw new AppError('invalid', 'cannot log in: the request has no username');
    const identityToken = await engine.login(registryHost(body.serveraddress ?? ''), credentials);
    sendJson(ctx, { IdentityToken: identityToken ?? '', Status: 'Login Succeeded' });
  });
}

/** `https://index.docker.io/v1/` and nothing at all mean Docker Hub; others may come as URLs. */
export function registryHost(address: string): string {
  const host = address.replace(/^https?:\/\//, '').replace(/\/.*$/, '');
  return host === '' || host === 'index.docker.io' || host === 'registry-1.docker.io' ? DEFAULT_HOST : host;
}
