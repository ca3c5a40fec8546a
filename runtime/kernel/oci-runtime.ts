/**
 * The OCI runtime, crun or runc: the verbs of the runtime specification on containers that conmon has created (`create`
 * itself is conmon's, and gets `globalArgs` from here). The runtime's own words become kinds of ours; both programs say
 * the same things differently. https://github.com/opencontainers/runtime-spec/blob/v1.2.0/runtime.md
 */
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { AppError, type ErrorKind } from '../../shared/errors.ts';
import { type CommandResult, type RunCommand, runCommand } from './command.ts';

export type RuntimeName = 'crun' | 'runc';

export interface RuntimeState {
  readonly id: string;
  readonly status: 'creating' | 'created' | 'running' | 'paused' | 'stopped';
  /** 0 when it has stopped. */
  readonly pid: number;
  readonly bundle: string;
}

export interface OciRuntime {
  readonly name: RuntimeName;
  readonly program: string;
  /** Belongs into the environment of every call. */
  readonly env: Readonly<Record<string, string>>;
  /** What goes before the verb in every call, conmon's `--runtime-arg` included. */
  readonly globalArgs: readonly string[];
  /** @throws AppError 'invalid' when its command cannot run, 'conflict' when it runs already, 'not-found' */
  start(id: string): Promise<void>;
  state(id: string): Promise<RuntimeState | undefined>;
  /** To the container's first process. One that has ended already is 'conflict'. */
  kill(id: string, signal: number): Promise<void>;
  /** Idempotent. @throws AppError 'conflict' while it runs, unless forced */
  delete(id: string, options?: { readonly force?: boolean }): Promise<void>;
  pause(id: string): Promise<void>;
  resume(id: string): Promise<void>;
  /** `resources` as in config.json's linux.resources. */
  update(id: string, resources: unknown): Promise<void>;
  list(): Promise<readonly RuntimeState[]>;
  /** Arguments of an exec on the caller's own stdio; its exit code is the command's. */
  execArgs(id: string, options: { readonly processPath: string; readonly pidFile?: string }): readonly string[];
  /** Arguments that create, start, wait for and delete a container on the caller's own stdio, without limits of its own. */
  runArgs(id: string, options: { readonly bundle: string }): readonly string[];
  /** The filter that it compiled for a container that it has made; undefined = it keeps none. */
  seccompFilter(id: string): Promise<Buffer | undefined>;
  /** Namespace types that it can make; what is missing from its answer is left out of config.json. */
  namespaces(): Promise<ReadonlySet<string>>;
}

export interface OciRuntimeOptions {
  readonly name: RuntimeName;
  /** Defaults to the name, found on the search path. */
  readonly program?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** Where it keeps its state; on a filesystem that a reboot empties. */
  readonly root: string;
  readonly run?: RunCommand;
  /** Told of every call, for the log. */
  readonly onCall?: (call: { readonly verb: string; readonly id: string; readonly durationMs: number }) => void;
}

/** What every runtime has had since its first release. */
const COMMON_NAMESPACES = ['mount', 'pid', 'network', 'ipc', 'uts', 'user', 'cgroup'];

const stateSchema = z.looseObject({
  id: z.string(),
  status: z.enum(['creating', 'created', 'running', 'paused', 'stopped']),
  pid: z.number().int(),
  bundle: z.string(),
});
const featuresSchema = z.looseObject({ linux: z.looseObject({ namespaces: z.array(z.string()).nullish() }).nullish() });

export function createOciRuntime({
  name,
  program = name,
  env = {},
  root,
  onCall,
  run = runCommand,
}: OciRuntimeOptions): OciRuntime {
  const globalArgs = ['--root', root, '--log-format', 'json'];
  const call = async (verb: string, id: string, args: readonly string[]): Promise<CommandResult> => {
    const result = await run(program, [...globalArgs, verb, ...args], { env });
    onCall?.({ verb, id, durationMs: result.durationMs });
    return result;
  };
  const must = async (verb: string, id: string, args: readonly string[]): Promise<void> => {
    const result = await call(verb, id, args);
    if (result.exitCode !== 0) throw runtimeFailure(verb, id, result.stderr);
  };
  const state = async (id: string): Promise<RuntimeState | undefined> => {
    const result = await call('state', id, [id]);
    if (result.exitCode === 0) return parseState(result.stdout);
    const failure = runtimeFailure('state', id, result.stderr);
    if (failure.kind === 'not-found') return undefined;
    throw failure;
  };

  return {
    name,
    program,
    env,
    globalArgs,
    state,
    start: (id) => must('start', id, [id]),
    kill: (id, signal) => must('kill', id, [id, String(signal)]),
    async delete(id, { force = false } = {}) {
      const result = await call('delete', id, force ? ['--force', id] : [id]);
      if (result.exitCode === 0) return;
      const failure = runtimeFailure('delete', id, result.stderr);
      if (failure.kind !== 'not-found') throw failure;
    },
    async pause(id) {
      // crun pauses twice without a word.
      if ((await state(id))?.status === 'paused')
        throw new AppError('conflict', `cannot pause container ${id}: it is paused already`);
      await must('pause', id, [id]);
    },
    async resume(id) {
      const status = (await state(id))?.status;
      if (status !== undefined && status !== 'paused')
        throw new AppError('conflict', `cannot resume container ${id}: it is ${status}`);
      await must('resume', id, [id]);
    },
    async update(id, resources) {
      // Not by stdin: crun opens /dev/stdin, and the kernel refuses to open the socket that Node puts there.
      const path = `${root}.${id}.update`;
      try {
        await writeFile(path, JSON.stringify(resources), { mode: 0o600 });
        await must('update', id, ['--resources', path, id]);
      } finally {
        await rm(path, { force: true });
      }
    },
    async list() {
      const result = await call('list', '', ['--format', 'json']);
      if (result.exitCode !== 0) throw runtimeFailure('list', '', result.stderr);
      return z.array(stateSchema).nullable().parse(JSON.parse(result.stdout)) ?? [];
    },
    execArgs: (id, { processPath, pidFile }) => [
      ...globalArgs,
      'exec',
      '--process',
      processPath,
      ...(pidFile === undefined ? [] : ['--pid-file', pidFile]),
      id,
    ],
    runArgs: (id, { bundle }) => [
      ...globalArgs,
      // Making and removing a cgroup takes longer than what runs in it.
      ...(name === 'crun' ? ['--cgroup-manager=disabled'] : []),
      'run',
      '--bundle',
      bundle,
      id,
    ],
    async seccompFilter(id) {
      return name === 'crun' ? await readFile(join(root, id, 'seccomp.bpf')).catch(() => undefined) : undefined;
    },
    async namespaces() {
      const result = await call('features', '', []);
      const features = result.exitCode === 0 ? featuresSchema.safeParse(parseJson(result.stdout)) : undefined;
      return new Set(features?.data?.linux?.namespaces ?? COMMON_NAMESPACES);
    },
  };
}

function parseState(text: string): RuntimeState {
  const parsed = stateSchema.safeParse(parseJson(text));
  if (parsed.success) return parsed.data;
  throw new AppError('unavailable', 'cannot read the state of a container: the runtime answered in an unknown form');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** What crun says of a path that it cannot execute, from 1.10 on. */
const NOT_EXECUTABLE =
  /^the path `.*` (exists but it is not executable|is not a regular file)|^cannot open `.*`: Not a directory/;

/** Words of crun and runc, most telling first. */
const FAILURES: readonly { readonly pattern: RegExp; readonly kind: ErrorKind }[] = [
  {
    pattern:
      /container .*does not exist|cannot open directory ['`][^'`]*['`]: No such file|\/status`?: No such file|no such container/i,
    kind: 'not-found',
  },
  { pattern: /already exists|already in use/i, kind: 'already-exists' },
  { pattern: /executable file .*not found|no such file or directory: unknown|stat .*: no such file/i, kind: 'invalid' },
  { pattern: /exec: .*: (permission denied|is a directory|exec format error|not a directory)/i, kind: 'invalid' },
  { pattern: /open executable|exec format error|chdir to|chdir `|chdir.*no such file|cwd/i, kind: 'invalid' },
  { pattern: NOT_EXECUTABLE, kind: 'invalid' },
  { pattern: /not running|is not in .*state|not paused|is paused|paused (state|container)|stopped/i, kind: 'conflict' },
  { pattern: /exec\.fifo|cannot start an? |no such process|process already finished/i, kind: 'conflict' },
  { pattern: /permission denied|operation not permitted/i, kind: 'denied' },
];

/** What the runtime said, as an AppError; its own words stay readable in the message. Also for conmon's report of `create`. */
export function runtimeFailure(verb: string, id: string, stderr: string): AppError {
  const words = runtimeWords(stderr);
  const kind = FAILURES.find(({ pattern }) => pattern.test(words))?.kind ?? 'unavailable';
  return new AppError(kind, `cannot ${verb} container ${JSON.stringify(id)}: ${words}`, {
    detail: { runtime: words, exitCode: startExitCode(words) },
  });
}

/** The last error among log lines, which are JSON or plain. */
export function runtimeWords(stderr: string): string {
  const lines = stderr
    .split('\n')
    .map((line) => line.trim())
    .filter(Boolean)
    .map((line) => {
      const parsed = z.looseObject({ msg: z.string() }).safeParse(parseJson(line));
      return parsed.success ? parsed.data.msg : line;
    });
  return lines.at(-1) ?? 'it gave no reason';
}

/**
 * What `docker run` exits with when a container's command cannot start: 127 not found, 126 found and not executable,
 * 125 for everything else.
 */
export function startExitCode(words: string): 125 | 126 | 127 {
  if (/executable file .*not found|exec: .*(no such file or directory|not found)/i.test(words)) return 127;
  if (/exec: .*(permission denied|is a directory|exec format error)|open executable|exec format error/i.test(words))
    return 126;
  if (NOT_EXECUTABLE.test(words)) return 126;
  return 125;
}
