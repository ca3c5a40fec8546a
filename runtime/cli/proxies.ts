/**
 * The proxies of docker's config.json, `proxies`: of the engine that is talked to, else the default ones. Docker's
 * client gives them to each build as arguments, and to each new container as variables. https://docs.docker.com/engine/cli/proxy/
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError, hasCode } from '../../shared/errors.ts';
import type { EngineHost } from './host.ts';
import { type Json, object, text } from './values.ts';

const VARIABLES: readonly (readonly [setting: string, variable: string])[] = [
  ['httpProxy', 'HTTP_PROXY'],
  ['httpsProxy', 'HTTPS_PROXY'],
  ['ftpProxy', 'FTP_PROXY'],
  ['noProxy', 'NO_PROXY'],
  ['allProxy', 'ALL_PROXY'],
];

/** Under their names in upper and in lower case, since programs look at either. Pure. */
export function proxyArguments(config: Json, host: EngineHost): Record<string, string> {
  const proxies = object(config.proxies);
  const key = host.kind === 'unix' ? `unix://${host.path}` : `tcp://${host.host}:${host.port}`;
  const settings = object(proxies[key] ?? proxies.default);
  return Object.fromEntries(
    VARIABLES.flatMap(([setting, variable]) => {
      const value = text(settings[setting]);
      return value === ''
        ? []
        : [
            [variable, value],
            [variable.toLowerCase(), value],
          ];
    }),
  );
}

/** @throws AppError 'invalid' for a file that is no JSON */
export async function configuredProxies(configDirectory: string, host: EngineHost): Promise<Record<string, string>> {
  const path = join(configDirectory, 'config.json');
  try {
    return proxyArguments(object(JSON.parse(await readFile(path, 'utf8'))), host);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return {};
    if (!(error instanceof SyntaxError)) throw error;
    throw new AppError('invalid', `cannot read ${JSON.stringify(path)}: it is not a docker configuration file`);
  }
}
