/**
 * berthd: the process. Looks whether this host can run containers, takes its directories, opens the engine, and
 * answers on the socket until SIGTERM or SIGINT, which end no container. Exit status 0 after that, 1 when it cannot
 * start or go on, 2 on a wrong command line, 3 when another engine has its directories or its socket.
 */
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { arch, availableParallelism, hostname, machine, release, totalmem } from 'node:os';
import { describeOptions, loadConfig, printConfig } from '../shared/config.ts';
import { AppError, isKind, messageOf } from '../shared/errors.ts';
import { createLog } from '../shared/log.ts';
import { type ProxySettings, proxiesFromEnvironment } from '../shared/proxies.ts';
import { createApiServer } from './api/server.ts';
import { type EngineConfig, PROGRAM } from './config.ts';
import { obstacles } from './description.ts';
import { createEngine } from './engine.ts';
import { inspectHost } from './kernel/host.ts';
import { listen, parseListen } from './listen.ts';
import { openStateDirectory } from './state-directory.ts';
import { VERSION } from './version.ts';

const USAGE = `Usage: berthd [options]

A container engine that speaks Docker's Engine API on a unix socket.

Options:
`;

async function run(config: EngineConfig): Promise<void> {
  const log = createLog({ component: 'engine', level: config.logLevel });
  const stop = Promise.race([once(process, 'SIGTERM'), once(process, 'SIGINT')]);
  const socketPath = parseListen(config.listen);

  const facts = await inspectHost({
    kernel: release(),
    architecture: arch() as NodeJS.Architecture,
    isRoot: process.getuid?.() === 0,
    cpuCount: availableParallelism(),
    memoryBytes: totalmem(),
  });
  const inTheWay = obstacles(facts);
  if (inTheWay !== undefined)
    throw new AppError(
      'unsupported',
      `cannot run containers on this host:\n${inTheWay}\nrun deploy/setup to mend what can be`,
    );

  using directory = await openStateDirectory({ root: config.root, runDir: config.runDir, randomId: randomUUID });
  await using engine = await createEngine({
    config,
    directory,
    facts,
    names: { hostname: hostname(), machine: machine() },
    proxies: { ...proxiesFromEnvironment(process.env), ...configuredProxies(config) },
    log,
    version: VERSION,
    now: () => new Date(),
    randomId: randomUUID,
  });
  await using _ = await listen(
    createApiServer(engine, { log: log.child({ component: 'api' }), version: VERSION }),
    socketPath,
  );
  process.stdout.write(`berthd: ready on unix://${socketPath}\n`);
  for (const warning of engine.description.warnings) log.warn('the host lacks something', { warning });
  log.info('engine started', { tag: directory.tag, root: config.root, socket: socketPath });
  await stop;
  log.info('engine ends; containers go on');
}

function configuredProxies({ httpProxy, httpsProxy, noProxy }: EngineConfig): ProxySettings {
  return {
    ...(httpProxy !== undefined && { http: httpProxy }),
    ...(httpsProxy !== undefined && { https: httpsProxy }),
    ...(noProxy !== undefined && { no: noProxy }),
  };
}

async function main(argv: readonly string[]): Promise<void> {
  const loaded = loadConfig(PROGRAM, { argv, env: process.env, defaultFile: '/etc/berth/engine.yaml' });
  if (loaded.request === 'help') process.stdout.write(USAGE + describeOptions(PROGRAM));
  else if (loaded.request === 'print-config') process.stdout.write(printConfig(PROGRAM, loaded));
  else if (loaded.positionals.length > 0)
    throw new AppError('invalid', `cannot use ${JSON.stringify(loaded.positionals.join(' '))}: see --help`);
  else await run(loaded.config);
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`berthd: ${messageOf(error)}\n`);
  process.exitCode = isKind(error, 'invalid') ? 2 : isKind(error, 'conflict') ? 3 : 1;
}
