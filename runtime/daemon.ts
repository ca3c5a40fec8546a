/**
 * berthd: the process. Looks what this host can do, takes its directories, opens the engine, and answers on the socket
 * until SIGTERM or SIGINT, which end no container. Where none can run it serves images all the same. Exit status 0 after
 * that, 1 when it cannot start, go on or end in order, 2 on a wrong command line, 3 when another engine has its
 * directories or its socket.
 */
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { arch, availableParallelism, hostname, machine, release, totalmem } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { describeOptions, loadConfig, printConfig } from '../shared/config.ts';
import { claimDirectory, type EnginePlace, enginePlace } from '../shared/engine-place.ts';
import { AppError, isKind, messageOf } from '../shared/errors.ts';
import { createLog, type Log } from '../shared/log.ts';
import { ownPrivilege } from '../shared/privilege.ts';
import { type ProxySettings, proxiesFromEnvironment } from '../shared/proxies.ts';
import { createApiServer } from './api/server.ts';
import { type EngineConfig, engineProgram } from './config.ts';
import { createEngine } from './engine-local.ts';
import { inspectHost } from './kernel/host.ts';
import { listen, parseListen } from './listen.ts';
import { openStateDirectory } from './state-directory.ts';
import { VERSION } from './version.ts';

const USAGE = `Usage: berthd [options]

A container engine that speaks Docker's Engine API on a unix socket.

Options:
`;

/** A slow disk may take long; service managers wait for 90 s, mostly. */
const END_MS = 30_000;
/** What requests give back when they are cut takes a moment; what waits longer waits for a container. */
const REQUESTS_MS = 3_000;

async function run(config: EngineConfig, { claim }: EnginePlace): Promise<void> {
  const log = createLog({ component: 'engine', level: config.logLevel });
  const stop = Promise.race([once(process, 'SIGTERM'), once(process, 'SIGINT')]);
  const socketPath = parseListen(config.listen);

  const facts = await inspectHost({
    kernel: release(),
    architecture: arch() as NodeJS.Architecture,
    cpuCount: availableParallelism(),
    memoryBytes: totalmem(),
  });
  // A user's own engine serves nobody else.
  const isPrivate = facts.privilege !== 'full';
  if (claim !== undefined && [config.root, config.runDir, socketPath].some((path) => path.startsWith(claim)))
    claimDirectory(claim, uidOf());
  using directory = await openStateDirectory({
    root: config.root,
    runDir: config.runDir,
    isPrivate,
    randomId: randomUUID,
  });
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
  const { server, settled } = createApiServer(engine, { log: log.child({ component: 'api' }), version: VERSION });
  await using undo = new AsyncDisposableStack();
  undo.defer(() => Promise.race([settled(), delay(REQUESTS_MS, undefined, { ref: false })]));
  undo.use(await listen(server, socketPath, { isPrivate }));
  process.stdout.write(`berthd: ready on unix://${socketPath}\n`);
  for (const warning of engine.description.warnings) log.warn('the host lacks something', { warning });
  log.info('engine started', { tag: directory.tag, root: config.root, socket: socketPath });
  await stop;
  log.info('engine ends; containers go on');
  endInTime(log);
}

/** What is acknowledged is durable by now: whoever waits for the end need not wait for something that hangs. */
function endInTime(log: Log): void {
  const giveUp = () => {
    log.error('the engine did not end in time and is ended', { open: process.getActiveResourcesInfo() });
    process.exit(1);
  };
  setTimeout(giveUp, END_MS).unref();
}

function configuredProxies({ httpProxy, httpsProxy, noProxy }: EngineConfig): ProxySettings {
  return {
    ...(httpProxy !== undefined && { http: httpProxy }),
    ...(httpsProxy !== undefined && { https: httpsProxy }),
    ...(noProxy !== undefined && { no: noProxy }),
  };
}

async function main(argv: readonly string[]): Promise<void> {
  const place = enginePlace({ privilege: ownPrivilege(), uid: uidOf(), env: process.env });
  const program = engineProgram(place);
  const loaded = loadConfig(program, { argv, env: process.env, defaultFile: place.configFile });
  if (loaded.request === 'help') process.stdout.write(USAGE + describeOptions(program));
  else if (loaded.request === 'print-config') process.stdout.write(printConfig(program, loaded));
  else if (loaded.positionals.length > 0)
    throw new AppError('invalid', `cannot use ${JSON.stringify(loaded.positionals.join(' '))}: see --help`);
  else await run(loaded.config, place);
}

function uidOf(): number {
  return process.geteuid?.() ?? 0;
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`berthd: ${messageOf(error)}\n`);
  process.exitCode = isKind(error, 'invalid') ? 2 : isKind(error, 'conflict') ? 3 : 1;
}
