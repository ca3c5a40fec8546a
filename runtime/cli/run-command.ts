/**
 * `run`, `create`, `start` and `attach`: a container with this process's stdio. The order is docker's, because it loses
 * nothing: create, attach, wait, and only then start. Failures of the engine end with 125, a command that cannot be
 * invoked with 126, one that is not there with 127, and everything else with the container's own code.
 */
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { AppError, isKind, messageOf } from '../../shared/errors.ts';
import { type ContainerFlags, containerRequest } from './container-request.ts';
import { DEFAULT_DETACH_KEYS, parseDetachKeys, watchDetachKeys } from './detach-keys.ts';
import { pullImage } from './image-commands.ts';
import { print, say } from './output.ts';
import { configuredProxies } from './proxies.ts';
import { ExitError, type Session } from './session.ts';
import { copyInput, copyOutput } from './streams.ts';
import { forwardSignals, rawTerminal, terminalSize, watchSize } from './terminal.ts';
import { number, object, strings, text } from './values.ts';

const ENGINE_FAILED = 125;

/** 126 or 127 when the engine says that the command could not be run. */
function startFailure(error: unknown): ExitError {
  const message = messageOf(error);
  const exitCode = /no such file or directory|not found in \$PATH|executable file not found/i.test(message)
    ? 127
    : /permission denied|is a directory|exec format error/i.test(message)
      ? 126
      : ENGINE_FAILED;
  return new ExitError(exitCode, message, { cause: error });
}

function engineFailure(error: unknown): unknown {
  return error instanceof AppError ? new ExitError(ENGINE_FAILED, error.message, { cause: error }) : error;
}

function textFlag(flags: ContainerFlags, name: string): string | undefined {
  const value = flags[name];
  return typeof value === 'string' ? value : undefined;
}

async function createContainer(
  session: Session,
  flags: ContainerFlags,
  image: string,
  args: readonly string[],
): Promise<string> {
  const body = containerRequest(flags, image, args, {
    ...{ read: (path) => readFileSync(path, 'utf8'), env: session.env },
    proxies: await configuredProxies(session.configDirectory, session.engine.host),
  });
  const policy = textFlag(flags, 'pull') ?? 'missing';
  if (!['always', 'missing', 'never'].includes(policy))
    throw new AppError('invalid', `cannot use --pull ${JSON.stringify(policy)}: want always, missing or never`);
  const platform = textFlag(flags, 'platform');
  const pullFlags = { quiet: flags.quiet === true, onStderr: true, ...(platform === undefined ? {} : { platform }) };
  if (policy === 'always') await pullImage(session, image, pullFlags);
  const create = () =>
    session.engine.call('POST', '/containers/create', {
      query: { name: textFlag(flags, 'name'), platform },
      json: body,
    });
  let answer: unknown;
  try {
    answer = await create();
  } catch (error) {
    if (policy === 'never' || !isKind(error, 'not-found') || !/no such image/i.test(error.message)) throw error;
    say(`Unable to find image '${image}' locally`);
    await pullImage(session, image, pullFlags);
    answer = await create();
  }
  const { Id, Warnings } = object(answer);
  for (const warning of strings(Warnings)) say(`WARNING: ${warning}`);
  const cidfile = textFlag(flags, 'cidfile');
  if (cidfile !== undefined) await writeFile(cidfile, text(Id), { flag: 'wx' });
  return text(Id);
}

export async function create(
  session: Session,
  flags: ContainerFlags,
  image: string,
  args: readonly string[],
): Promise<void> {
  try {
    print(await createContainer(session, { ...flags, detach: false }, image, args));
  } catch (error) {
    throw engineFailure(error);
  }
}

export interface AttachRequest {
  readonly id: string;
  readonly tty: boolean;
  readonly stdin: boolean;
  readonly stdout: boolean;
  readonly stderr: boolean;
  readonly detachKeys: string | undefined;
  readonly signals: boolean;
  /** Called when the streams are connected and the wait is on its way. */
  readonly start: (() => Promise<void>) | undefined;
  readonly removed: boolean;
}

/** Connects this process's stdio to the container; answers its exit code, or undefined when the user detached. */
async function attachAndWait(session: Session, request: AttachRequest): Promise<number | undefined> {
  const { engine } = session;
  const connection = await engine.hijack(`/containers/${request.id}/attach`, {
    query: {
      stream: 1,
      stdin: request.stdin,
      stdout: request.stdout,
      stderr: request.stderr,
      detachKeys: request.detachKeys,
    },
  });
  const waiting = await engine.stream('POST', `/containers/${request.id}/wait`, {
    query: { condition: request.start === undefined ? 'not-running' : request.removed ? 'removed' : 'next-exit' },
  });
  const output = copyOutput(
    connection.socket,
    { stdout: process.stdout, stderr: process.stderr },
    { multiplexed: connection.multiplexed },
  );
  // Handled below, together with what ended it; a rejection before that must not end the process.
  output.catch(() => undefined);

  using stack = new DisposableStack();
  stack.defer(() => connection.socket.destroy());
  try {
    await request.start?.();
  } catch (error) {
    waiting.destroy();
    throw startFailure(error);
  }
  if (request.tty && request.stdin) stack.use(rawTerminal());
  let detaching = false;
  const isDetach = watchDetachKeys(request.tty ? parseDetachKeys(request.detachKeys ?? DEFAULT_DETACH_KEYS) : []);
  if (request.stdin)
    stack.use(
      copyInput(connection, process.stdin, (typed) => {
        detaching ||= isDetach(typed);
      }),
    );
  if (request.tty && terminalSize() !== undefined) {
    const resize = ({ rows, columns }: { rows: number; columns: number }) =>
      void engine
        .call('POST', `/containers/${request.id}/resize`, { query: { h: rows, w: columns } })
        .catch(() => undefined);
    stack.use(watchSize(resize));
  }
  if (request.signals && !request.tty)
    stack.use(
      forwardSignals(
        (signal) =>
          void engine.call('POST', `/containers/${request.id}/kill`, { query: { signal } }).catch(() => undefined),
      ),
    );

  await output;
  const exit = readExit(waiting);
  if (!detaching) return exit;
  // The engine ends the stream when it sees the keys; then the container runs on and nobody waits.
  const details = await engine.call('GET', `/containers/${request.id}/json`).catch(() => undefined);
  if (object(object(details).State).Running !== true) return exit;
  exit.catch(() => undefined);
  waiting.destroy();
  return undefined;
}

async function readExit(waiting: AsyncIterable<Buffer>): Promise<number> {
  const chunks: Buffer[] = [];
  for await (const chunk of waiting) chunks.push(chunk);
  const answer = object(JSON.parse(Buffer.concat(chunks).toString('utf8')));
  const error = text(object(answer.Error).Message);
  if (error !== '') throw new ExitError(ENGINE_FAILED, error);
  return number(answer.StatusCode);
}

export async function run(
  session: Session,
  flags: ContainerFlags,
  image: string,
  args: readonly string[],
): Promise<void> {
  const tty = flags.tty === true;
  const interactive = flags.interactive === true;
  const detach = flags.detach === true;
  if (detach && Array.isArray(flags.attach))
    throw new ExitError(ENGINE_FAILED, 'conflicting options: cannot specify both --attach and --detach');
  if (tty && interactive && !detach && !process.stdin.isTTY)
    throw new ExitError(1, 'cannot attach stdin to a TTY-enabled container because stdin is not a terminal');
  try {
    const id = await createContainer(session, flags, image, args);
    if (detach) {
      await session.engine.call('POST', `/containers/${id}/start`).catch((error: unknown) => {
        throw startFailure(error);
      });
      print(id);
      return;
    }
    const streams = Array.isArray(flags.attach) ? flags.attach.map((stream) => stream.toLowerCase()) : undefined;
    const code = await attachAndWait(session, {
      id,
      tty,
      stdin: interactive && (streams === undefined || streams.includes('stdin')),
      stdout: streams === undefined || streams.includes('stdout'),
      stderr: streams === undefined || streams.includes('stderr'),
      detachKeys: textFlag(flags, 'detachKeys'),
      signals: flags.sigProxy !== false,
      removed: flags.rm === true,
      start: async () => {
        await session.engine.call('POST', `/containers/${id}/start`);
      },
    });
    session.exitCode = code ?? 0;
  } catch (error) {
    throw engineFailure(error);
  }
}

export interface StartFlags {
  readonly attach?: boolean;
  readonly interactive?: boolean;
  readonly detachKeys?: string;
  readonly sigProxy?: boolean;
}

export async function start(session: Session, names: readonly string[], flags: StartFlags): Promise<void> {
  if (flags.attach === true || flags.interactive === true) {
    const [name = ''] = names;
    if (names.length > 1) throw new AppError('invalid', 'you cannot start and attach multiple containers at once');
    const details = object(await session.engine.call('GET', `/containers/${name}/json`));
    const config = object(details.Config);
    const code = await attachAndWait(session, {
      id: text(details.Id),
      tty: config.Tty === true,
      stdin: flags.interactive === true && config.OpenStdin === true,
      stdout: true,
      stderr: true,
      detachKeys: flags.detachKeys,
      signals: flags.sigProxy !== false,
      removed: object(details.HostConfig).AutoRemove === true,
      start: async () => {
        await session.engine.call('POST', `/containers/${name}/start`);
      },
    });
    session.exitCode = code ?? 0;
    return;
  }
  for (const name of names) {
    try {
      await session.engine.call('POST', `/containers/${name}/start`);
      print(name);
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      say(`error: ${error.message}`);
      session.exitCode = 1;
    }
  }
}

export interface AttachFlags {
  readonly stdin?: boolean;
  readonly sigProxy?: boolean;
  readonly detachKeys?: string;
}

export async function attach(session: Session, name: string, flags: AttachFlags): Promise<void> {
  const details = object(await session.engine.call('GET', `/containers/${name}/json`));
  const state = object(details.State);
  if (state.Running !== true)
    throw new AppError('conflict', 'You cannot attach to a stopped container, start it first');
  if (state.Paused === true)
    throw new AppError('conflict', 'You cannot attach to a paused container, unpause it first');
  const config = object(details.Config);
  const code = await attachAndWait(session, {
    id: text(details.Id),
    tty: config.Tty === true,
    stdin: flags.stdin !== false && config.OpenStdin === true,
    stdout: true,
    stderr: true,
    detachKeys: flags.detachKeys,
    signals: flags.sigProxy !== false,
    removed: false,
    start: undefined,
  });
  session.exitCode = code ?? 0;
}

export interface ExecFlags {
  readonly detach?: boolean;
  readonly detachKeys?: string;
  readonly env?: readonly string[];
  readonly envFile?: readonly string[];
  readonly interactive?: boolean;
  readonly privileged?: boolean;
  readonly tty?: boolean;
  readonly user?: string;
  readonly workdir?: string;
}

export async function exec(
  session: Session,
  name: string,
  command: readonly string[],
  flags: ExecFlags,
): Promise<void> {
  const { environment } = await import('./container-request.ts');
  const { engine } = session;
  const tty = flags.tty === true;
  const attached = flags.detach !== true;
  if (tty && flags.interactive === true && attached && !process.stdin.isTTY)
    throw new AppError('invalid', 'the input device is not a TTY');
  const size = tty ? terminalSize() : undefined;
  const created = object(
    await engine.call('POST', `/containers/${name}/exec`, {
      json: {
        AttachStdin: attached && flags.interactive === true,
        AttachStdout: attached,
        AttachStderr: attached,
        Tty: tty,
        Cmd: command,
        Env: environment(flags.envFile ?? [], flags.env ?? [], {
          read: (path) => readFileSync(path, 'utf8'),
          env: session.env,
        }),
        Privileged: flags.privileged === true,
        User: flags.user ?? '',
        WorkingDir: flags.workdir ?? '',
        ...(flags.detachKeys === undefined ? {} : { DetachKeys: flags.detachKeys }),
        ...(size === undefined ? {} : { ConsoleSize: [size.rows, size.columns] }),
      },
    }),
  );
  const id = text(created.Id);
  if (!attached) {
    await engine.call('POST', `/exec/${id}/start`, { json: { Detach: true, Tty: tty } });
    return;
  }
  const connection = await engine.hijack(`/exec/${id}/start`, { json: { Detach: false, Tty: tty } });
  {
    using stack = new DisposableStack();
    stack.defer(() => connection.socket.destroy());
    if (tty && flags.interactive === true) stack.use(rawTerminal());
    if (flags.interactive === true) stack.use(copyInput(connection, process.stdin));
    if (size !== undefined)
      stack.use(
        watchSize(
          ({ rows, columns }) =>
            void engine.call('POST', `/exec/${id}/resize`, { query: { h: rows, w: columns } }).catch(() => undefined),
        ),
      );
    await copyOutput(
      connection.socket,
      { stdout: process.stdout, stderr: process.stderr },
      { multiplexed: connection.multiplexed },
    );
  }
  const ended = object(await engine.call('GET', `/exec/${id}/json`));
  session.exitCode = ended.Running === true ? 0 : number(ended.ExitCode);
}
