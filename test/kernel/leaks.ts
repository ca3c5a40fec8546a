/**
 * A place on the host for one kernel or e2e test, and the check that the test left nothing behind: no mount, cgroup,
 * network namespace, link, nft table or rule, loop device and no process.
 *
 * Several people test on one host at a time, so nothing is compared blindly. What a test makes is known by its marks:
 * the test's own directory (in paths, command lines, environments: BERTH_TEST_RUN is inherited by what it starts) and
 * the instance tags of state directories below it (docs/adr/0014). Kernel state is written down before and compared
 * after. Tear-down may be asynchronous, so the check waits for it up to a deadline. What is left after that is listed,
 * then removed, so that one leak does not fail the tests that follow.
 */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, readlink, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { onTestFailed, TestRunner } from 'vitest';

const run = promisify(execFile);

/** Long enough for conmon, the runtime and a lazy unmount on a loaded machine. */
const TEARDOWN_MS = 10_000;
const POLL_MS = 50;
const SHOWN_LINES = 200;
const RUN_VARIABLE = 'BERTH_TEST_RUN';

export interface TestHost extends AsyncDisposable {
  /** An empty directory, short enough for socket paths; removed at the end. */
  readonly root: string;
  /** `root/run`: for sockets and other things that live as long as a daemon. */
  readonly runDir: string;
  /** For programs that the test starts: the pinned Node first on PATH, a HOME below root, no settings of the user. */
  readonly env: NodeJS.ProcessEnv;
  /** Adds a mark by which things of this test are known; tags of state directories below root are found without it. */
  owns(mark: string): void;
}

/**
 * Use it with `await using host = await testHost()`. Disposing fails with a list of what is left.
 * One at a time per process: two instances of a program live in two directories below one root.
 */
export async function testHost(
  options: { readonly teardownMs?: number; readonly parent?: string } = {},
): Promise<TestHost> {
  requireRoot();
  const outer = process.env[RUN_VARIABLE];
  if (outer !== undefined) throw new Error(`cannot open a second test host: ${outer} is still in use by this process`);
  const root = await mkdtemp(join(options.parent ?? tmpdir(), 'berth-'));
  const runDir = join(root, 'run');
  await mkdir(runDir, { mode: 0o711 });
  await mkdir(join(root, 'home'));
  const before = new Set((await readTraces(new Set())).map((trace) => trace.key));
  const marks = new Set([root]);
  process.env[RUN_VARIABLE] = root;
  const logs: string[] = [];
  if (TestRunner.getCurrentTest() !== undefined) onTestFailed(() => void process.stderr.write(logs.join('\n')));
  let disposed = false;
  return {
    root,
    runDir,
    env: environment(root),
    owns: (mark) => marks.add(mark),
    async [Symbol.asyncDispose]() {
      if (disposed) return;
      disposed = true;
      delete process.env[RUN_VARIABLE];
      for (const tag of await tagsBelow(root)) marks.add(tag);
      const find = async () => (await readTraces(before)).filter((trace) => belongs(trace, marks));
      const deadline = Date.now() + (options.teardownMs ?? TEARDOWN_MS);
      let left = await find();
      while (left.length > 0 && Date.now() < deadline) {
        await delay(POLL_MS);
        left = await find();
      }
      if (left.length > 0) await clear(left, find);
      logs.push(...(await readLogs(root)));
      await removeTree(root);
      if (left.length > 0) throw new Error(describeLeaks(left, options.teardownMs ?? TEARDOWN_MS));
    },
  };
}

/** @throws Error that says how to run kernel tests, when the process is not root */
export function requireRoot(): void {
  if (process.geteuid?.() !== 0)
    throw new Error('cannot run kernel tests: they mount, make namespaces and need root; run `sudo npm test`');
}

type Kind = 'mount' | 'cgroup' | 'netns' | 'link' | 'nft' | 'loop' | 'process';

/** One thing that exists on the host. `text` is where marks are looked for. */
interface Trace {
  readonly kind: Kind;
  /** Tells it from all others, also from a later one with the same name. */
  readonly key: string;
  readonly name: string;
  readonly text: string;
  readonly pid?: number;
  /** Processes only: it descends from this process. */
  readonly descends?: boolean;
}

function belongs(trace: Trace, marks: ReadonlySet<string>): boolean {
  for (const mark of marks) if (trace.text.includes(mark)) return true;
  // A child that was given an environment of its own carries no mark, unless it carries another run's.
  return trace.descends === true && !trace.text.includes(`${RUN_VARIABLE}=`);
}

function describeLeaks(left: readonly Trace[], waitedMs: number): string {
  const lines = left.map((trace) => `  ${trace.kind.padEnd(8)} ${trace.name}`);
  return `the test left ${left.length} thing(s) on the host, ${waitedMs} ms after its end:\n${lines.join('\n')}`;
}

/** All but those that are `known` by their keys. */
async function readTraces(known: ReadonlySet<string>): Promise<readonly Trace[]> {
  const rest = await Promise.all([mounts(), cgroups(), netns(), links(), nft(), loops()]);
  // Last, when what lists the others has ended.
  const all = [...rest.flat(), ...(await processes(known))];
  return all.filter(({ key }) => !known.has(key));
}

/** proc_pid_mountinfo(5). The identifier makes a mount over an older one a new thing. */
async function mounts(): Promise<readonly Trace[]> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n').filter((line) => line !== '');
  return lines.map((line): Trace => {
    const fields = line.split(' ');
    const type = fields[fields.indexOf('-') + 1];
    return { kind: 'mount', key: `mount ${fields[0]} ${fields[4]}`, name: `${fields[4]} (${type})`, text: line };
  });
}

/** Every cgroup directory of every mounted hierarchy, v1 and v2. */
async function cgroups(): Promise<readonly Trace[]> {
  const info = await readFile('/proc/self/mountinfo', 'utf8');
  const tops = info.split('\n').flatMap((line) => (/ - cgroup2? /.test(line) ? [line.split(' ')[4] ?? ''] : []));
  const found: Trace[] = [];
  const walk = async (path: string): Promise<void> => {
    const entries = await readdir(path, { withFileTypes: true }).catch(() => []);
    for (const entry of entries) {
      if (!entry.isDirectory()) continue;
      const child = join(path, entry.name);
      found.push({ kind: 'cgroup', key: `cgroup ${child}`, name: child, text: child });
      await walk(child);
    }
  };
  await Promise.all(tops.map(walk));
  return found;
}

/** Named ones; an anonymous one lives only as long as a process or a mount, which are found themselves. */
async function netns(): Promise<readonly Trace[]> {
  const names = await readdir('/run/netns').catch(() => []);
  return names.map((name): Trace => ({ kind: 'netns', key: `netns ${name}`, name, text: name }));
}

async function links(): Promise<readonly Trace[]> {
  const { stdout } = await run('ip', ['-o', 'link', 'show']);
  const lines = stdout.split('\n').filter((line) => line !== '');
  return lines.map((line): Trace => {
    const [, index, name = ''] = /^(\d+): ([^:@]+)/.exec(line) ?? [];
    return { kind: 'link', key: `link ${index} ${name}`, name, text: line };
  });
}

/** Tables, and the commented rules that we put into other people's chains. */
async function nft(): Promise<readonly Trace[]> {
  const { stdout } = await run('nft', ['list', 'ruleset'], { maxBuffer: 64 << 20 });
  const lines = stdout.split('\n').map((line) => line.trim());
  const named = lines.filter((line) => line.startsWith('table ') || line.includes('comment "'));
  return named.map((line): Trace => ({ kind: 'nft', key: `nft ${line}`, name: line.replace(/ \{$/, ''), text: line }));
}

async function loops(): Promise<readonly Trace[]> {
  const devices = (await readdir('/sys/block').catch(() => [])).filter((name) => name.startsWith('loop'));
  const found = devices.map(async (name): Promise<readonly Trace[]> => {
    const file = await readFile(`/sys/block/${name}/loop/backing_file`, 'utf8').catch(() => undefined);
    if (file === undefined) return [];
    return [{ kind: 'loop', key: `loop ${name} ${file}`, name: `/dev/${name} of ${file.trim()}`, text: file }];
  });
  return (await Promise.all(found)).flat();
}

async function processes(known: ReadonlySet<string>): Promise<readonly Trace[]> {
  const pids = (await readdir('/proc')).flatMap((name) => (/^\d+$/.test(name) ? [Number(name)] : []));
  const ourMounts = await readlink('/proc/self/ns/mnt');
  const read = (await Promise.all(pids.map((pid) => readProcess(pid, { ourMounts, known })))).filter(
    (it) => it !== undefined,
  );
  const parents = new Map(read.map((it) => [it.pid, it.parent]));
  const descends = (pid: number): boolean => {
    for (let at = parents.get(pid); at !== undefined && at > 1; at = parents.get(at))
      if (at === process.pid) return true;
    return false;
  };
  return read.map((it): Trace => {
    const name = `${it.pid} ${it.command}`;
    return { kind: 'process', key: keyOf(it), name, text: it.text, pid: it.pid, descends: descends(it.pid) };
  });
}

interface ProcessInfo {
  readonly pid: number;
  readonly startTime: string;
  readonly parent: number;
  readonly command: string;
  readonly text: string;
}

/** undefined for this process, kernel threads, zombies and those that ended meanwhile. */
async function readProcess(
  pid: number,
  { ourMounts, known }: { readonly ourMounts: string; readonly known: ReadonlySet<string> },
): Promise<ProcessInfo | undefined> {
  if (pid === process.pid) return undefined;
  const at = (name: string) => readFile(`/proc/${pid}/${name}`, 'latin1').catch(() => '');
  const link = (name: string) => readlink(`/proc/${pid}/${name}`).catch(() => '');
  // proc_pid_stat(5): the name in parentheses may hold anything; fields are counted from its end.
  const [stat, command] = await Promise.all([at('stat'), at('cmdline')]);
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (command === '' || fields[0] === 'Z') return undefined;
  const startTime = fields[19] ?? '';
  const shown = command.replaceAll('\0', ' ').trim().slice(0, 200);
  const found = { pid, startTime, parent: Number(fields[1]), command: shown };
  if (known.has(keyOf(found))) return { ...found, text: '' };
  const words = [command, at('environ'), at('cgroup'), link('cwd'), link('root'), link('exe')];
  // A containerised process shows no path of the host, but its root is mounted from one. The rest of its mounts say
  // nothing: a new mount namespace begins as a copy of the host's, with the mounts of every test in it.
  if ((await link('ns/mnt')) !== ourMounts) words.push(at('mountinfo').then(rootMount));
  const text = (await Promise.all(words)).join('\n');
  return { ...found, text };
}

function keyOf({ pid, startTime }: Pick<ProcessInfo, 'pid' | 'startTime'>): string {
  return `process ${pid} ${startTime}`;
}

function rootMount(mountinfo: string): string {
  return mountinfo.split('\n').findLast((line) => line.split(' ')[4] === '/') ?? '';
}

/** State directories keep their instance tag in a file; the test's directory holds at most a few of them. */
async function tagsBelow(root: string): Promise<readonly string[]> {
  const tags: string[] = [];
  const walk = async (path: string, depth: number): Promise<void> => {
    for (const entry of await readdir(path, { withFileTypes: true }).catch(() => [])) {
      const child = join(path, entry.name);
      if (entry.isDirectory() && depth > 0) await walk(child, depth - 1);
      if (!entry.isFile() || entry.name !== 'instance') continue;
      const tag = (await readFile(child, 'utf8').catch(() => '')).trim();
      if (/^[a-z0-9]{6}$/.test(tag)) tags.push(tag);
    }
  };
  await walk(root, 2);
  return tags;
}

/** Removes what a test left: processes first, then what they held. Failures show as a root that stays. */
async function clear(left: readonly Trace[], find: () => Promise<readonly Trace[]>): Promise<void> {
  for (const { pid } of left) if (pid !== undefined) kill(pid);
  const deadline = Date.now() + 2000;
  while ((await find()).some((trace) => trace.kind === 'process') && Date.now() < deadline) await delay(POLL_MS);
  const attempt = (command: string, ...args: string[]) => run(command, args).catch(() => undefined);
  // Newest first: later mounts stand on earlier ones.
  const found = [...(await find())].reverse();
  for (const { kind, name, key } of found) {
    if (kind === 'mount') await attempt('umount', '--lazy', key.slice(key.indexOf('/')));
    if (kind === 'netns') await attempt('ip', 'netns', 'delete', name);
    if (kind === 'link') await attempt('ip', 'link', 'delete', name);
    if (kind === 'nft' && name.startsWith('table ')) await attempt('nft', 'delete', ...name.split(' '));
    if (kind === 'loop') await attempt('losetup', '--detach', name.slice(0, name.indexOf(' ')));
    if (kind === 'cgroup') await attempt('rmdir', name);
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It ended meanwhile.
  }
}

/** The last part of what the test's programs printed (see fixtures/programs.ts), to be shown if it fails. */
async function readLogs(root: string): Promise<readonly string[]> {
  const names = await readdir(join(root, 'logs')).catch(() => []);
  const read = names.map(async (name) => {
    const text = await readFile(join(root, 'logs', name), 'utf8');
    return `--- ${name}\n${text.split('\n').slice(-SHOWN_LINES).join('\n')}`;
  });
  return Promise.all(read);
}

/** Never follows a mount that is still there: below it may be files of the host. */
async function removeTree(root: string): Promise<void> {
  const info = await readFile('/proc/self/mountinfo', 'utf8');
  if (!info.includes(` ${root}/`)) await rm(root, { recursive: true, force: true });
}

function environment(root: string): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(([name]) => !/^(?:BERTH|DOCKER|XDG|VITEST|NODE)_/.test(name));
  return {
    ...Object.fromEntries(kept),
    PATH: `${dirname(process.execPath)}:${process.env.PATH ?? ''}`,
    HOME: join(root, 'home'),
    [RUN_VARIABLE]: root,
  };
}
