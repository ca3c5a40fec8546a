/**
 * berth-registry: the process. Reads the configuration, starts the registry, prints one line when it can be used, and
 * drains it on SIGTERM or SIGINT. Exit status 0 after a drain, 1 on failure, 2 on a wrong command line.
 */
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { describeOptions, loadConfig, printConfig } from '../shared/config.ts';
import { AppError, isKind, messageOf } from '../shared/errors.ts';
import { createLog } from '../shared/log.ts';
import { PROGRAM, type RegistryConfig } from './config.ts';
import { startRegistry } from './registry.ts';

const USAGE = `Usage: berth-registry serve [options]

A registry of container images and other OCI artifacts.

Commands:
  serve                               answer clients until SIGTERM

Options:
`;

async function serve(config: RegistryConfig): Promise<void> {
  const log = createLog({ component: 'registry', level: config.logLevel });
  const stop = Promise.race([once(process, 'SIGTERM'), once(process, 'SIGINT')]);
  await using registry = await startRegistry({ config, log, now: () => new Date(), randomId: randomUUID });
  process.stdout.write(`berth-registry: ready on ${registry.url}\n`);
  await stop;
  log.info('draining');
}

async function main(argv: readonly string[]): Promise<void> {
  const loaded = loadConfig(PROGRAM, { argv, env: process.env, defaultFile: '/etc/berth/registry.yaml' });
  const [command, ...rest] = loaded.positionals;
  if (loaded.request === 'help') process.stdout.write(USAGE + describeOptions(PROGRAM));
  else if (loaded.request === 'print-config') process.stdout.write(printConfig(PROGRAM, loaded));
  else if (command === 'serve' && rest.length === 0) await serve(loaded.config);
  else throw new AppError('invalid', `cannot run ${JSON.stringify(loaded.positionals.join(' '))}: see --help`);
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`berth-registry: ${messageOf(error)}\n`);
  process.exitCode = isKind(error, 'invalid') ? 2 : 1;
}
