import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { expect, it, vi } from 'vitest';
import type { OutputChunk } from '../../runtime/containers/containers.ts';
import { type ContainerLog, openContainerLog } from '../../runtime/containers/logs.ts';
import type { ContainerSupervisor, StdinMode, Supervised } from '../../runtime/containers/supervisor.ts';
import { type BusyboxHost, busyboxHost } from './bundle.ts';
import { type TestHost, testHost } from './leaks.ts';

const LIMITS = { maxBytes: 10_000_000, maxFiles: 3 };

interface Run {
  readonly host: TestHost;
  readonly busybox: BusyboxHost;
  readonly supervisor: ContainerSupervisor;
}

async function withHost(work: (run: Run) => Promise<void>): Promise<void> {
  await using host = await testHost();
  const busybox = await busyboxHost(host);
  const supervisor = busybox.supervisor();
  try {
    await work({ host, busybox, supervisor });
  } finally {
    await supervisor.sweep(new Set());
    await supervisor.close();
    await busybox.cgroups.remove(busybox.cgroupParent);
  }
}

async function launch(
  { host, busybox, supervisor }: Run,
  id: string,
  options: { readonly args: readonly string[]; readonly stdin?: StdinMode; readonly terminal?: boolean },
): Promise<{ readonly container: Supervised; readonly log: ContainerLog; readonly bundle: string }> {
  const { args, stdin = 'none', terminal = false } = options;
  const bundle = await busybox.bundle(id, { args, terminal });
  const log = await openContainerLog(join(host.root, 'output', id), LIMITS);
  const container = await supervisor.launch({ id, bundle, logPath: log.path, terminal, stdin });
  return { container, log, bundle };
}

/** Names of the processes below the engine's cgroup. */
async function namesIn({ busybox }: Run, cgroup: string): Promise<readonly string[]> {
  return Promise.all((await busybox.cgroups.processes(`${busybox.cgroupParent}${cgroup}`)).map(nameOf));
}

async function pidIn({ busybox }: Run, name: string): Promise<number> {
  for (const pid of await busybox.cgroups.processes(`${busybox.cgroupParent}/monitors`))
    if ((await nameOf(pid)) === name) return pid;
  throw new Error(`no ${name} is there`);
}

async function nameOf(pid: number): Promise<string> {
  return (await readFile(`/proc/${pid}/comm`, 'utf8')).trim();
}

async function collect(chunks: AsyncIterable<OutputChunk>, stream?: 'stdout' | 'stderr'): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const chunk of chunks)
    if (stream === undefined || chunk.stream === stream) parts.push(Buffer.from(chunk.bytes));
  return Buffer.concat(parts);
}

it('runs a process, keeps its output to the byte and its exit code', () =>
  withHost(async (run) => {
    const script = 'printf "a\\nno newline"; printf "\\000\\377" ; printf oops >&2; exit 7';
    const { container, log } = await launch(run, 'c1', { args: ['sh', '-c', script] });
    const output = collect(log.read({ from: await log.start(), follow: container.exited }), 'stdout');
    await container.start();
    expect((await container.exited).code).toBe(7);
    expect(await output).toEqual(Buffer.concat([Buffer.from('a\nno newline'), Buffer.of(0, 255)]));
    expect(String(await collect(log.read({ from: await log.start(), streams: new Set(['stderr']) })))).toBe('oops');
    await container.delete();
  }));

it('tells 128 + n after a signal', () =>
  withHost(async (run) => {
    const { container } = await launch(run, 'c1', { args: ['sleep', '100'] });
    await container.start();
    await container.kill(9);
    expect((await container.exited).code).toBe(137);
    await container.delete();
  }));

it('leaves nothing behind when a command cannot run, and says why', () =>
  withHost(async (run) => {
    await expect(launch(run, 'c1', { args: ['/no/such'] })).rejects.toMatchObject({ kind: 'invalid' });
    expect(await run.busybox.runtime.list()).toEqual([]);
    expect(await namesIn(run, '')).toEqual(['perl']);
  }));

it('passes 100 MB through stdin with equal digests and ends it', () =>
  withHost(async (run) => {
    const { container, log } = await launch(run, 'c1', { args: ['sha256sum'], stdin: 'once' });
    await container.start();
    const hash = createHash('sha256');
    const block = Buffer.alloc(1_000_000);
    const input = function* () {
      for (let i = 0; i < 100; i += 1) {
        block.fill(i);
        hash.update(block);
        yield Buffer.from(block);
      }
    };
    await pipeline(Readable.from(input()), await container.stdin());
    expect((await container.exited).code).toBe(0);
    const text = String(await collect(log.read({ from: await log.start() })));
    expect(text.split(' ')[0]).toBe(hash.digest('hex'));
    await container.delete();
  }));

it('keeps an open stdin open when a writer leaves', () =>
  withHost(async (run) => {
    const { container, log } = await launch(run, 'c1', { args: ['head', '-n', '2'], stdin: 'open' });
    await container.start();
    for (const line of ['one\n', 'two\n']) {
      const stdin = await container.stdin();
      stdin.end(line);
      await once(stdin, 'close');
    }
    expect((await container.exited).code).toBe(0);
    expect(String(await collect(log.read({ from: await log.start() })))).toBe('one\ntwo\n');
    await container.delete();
  }));

it('loses no line of 100,000 across rotations', () =>
  withHost(async (run) => {
    const { container, log } = await launch(run, 'c1', { args: ['seq', '100000'] });
    const followed = collect(log.read({ from: await log.start(), follow: container.exited, pin: true }));
    await container.start();
    const writer = { reopen: () => container.reopenLog(), gone: container.exited };
    let isOver = false;
    void container.exited.then(() => {
      isOver = true;
    });
    while (!isOver) await log.rotate(writer, { always: true });
    const expected = Array.from({ length: 100_000 }, (_, i) => `${i + 1}\n`).join('');
    expect(String(await followed)).toBe(expected);
    await container.delete();
  }));

it('finds a running container again after the engine was killed', () =>
  withHost(async (run) => {
    const script = 'i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 5';
    const { container, log, bundle } = await launch(run, 'c1', { args: ['sh', '-c', script] });
    await container.start();
    await run.supervisor.close();

    const second = run.busybox.supervisor();
    const request = { id: 'c1', bundle, logPath: log.path, terminal: false, stdin: 'none' } as const;
    const adopted = await second.adopt(request);
    expect(adopted?.status).toBe('running');
    expect(adopted?.supervised.pid).toBe(container.pid);
    const again = await openContainerLog(join(run.host.root, 'output', 'c1'), LIMITS);
    await again.rotate(
      { reopen: async () => adopted?.supervised.reopenLog(), gone: adopted?.supervised.exited ?? Promise.resolve() },
      { always: true },
    );
    const text = String(await collect(again.read({ from: await again.start(), follow: adopted?.supervised.exited })));
    expect(text).toBe(Array.from({ length: 40 }, (_, i) => `${i}\n`).join(''));
    expect((await adopted?.supervised.exited)?.code).toBe(5);

    // It ended while nobody watched.
    const third = run.busybox.supervisor();
    const ended = await third.adopt(request);
    expect(ended?.status).toBe('ended');
    expect((await ended?.supervised.exited)?.code).toBe(5);
    await ended?.supervised.delete();
    expect(await third.adopt(request)).toBeUndefined();
    await second.close();
    await third.close();
  }));

it('undoes a create that was never started', () =>
  withHost(async (run) => {
    const { log, bundle } = await launch(run, 'c1', { args: ['sleep', '100'] });
    await run.supervisor.close();
    const second = run.busybox.supervisor();
    const request = { id: 'c1', bundle, logPath: log.path, terminal: false, stdin: 'none' } as const;
    expect(await second.adopt(request)).toBeUndefined();
    expect(await run.busybox.runtime.list()).toEqual([]);
    await second.close();
  }));

it('notices that a monitor was killed', () =>
  withHost(async (run) => {
    const { container, log, bundle } = await launch(run, 'c1', { args: ['sleep', '100'] });
    await container.start();
    expect((await namesIn(run, '/monitors')).toSorted()).toEqual(['conmon', 'perl']);
    process.kill(await pidIn(run, 'conmon'), 'SIGKILL');
    const second = run.busybox.supervisor();
    const adopted = await second.adopt({ id: 'c1', bundle, logPath: log.path, terminal: false, stdin: 'none' });
    expect((await adopted?.supervised.exited)?.code).toBe(137);
    await adopted?.supervised.delete();
    await second.close();
  }));

it('makes the cgroup of the monitors anew when their launcher has died and the host has removed it', () =>
  withHost(async (run) => {
    const { busybox } = run;
    const first = await launch(run, 'c1', { args: ['true'] });
    await first.container.start();
    await first.container.exited;
    await first.container.delete();
    process.kill(await pidIn(run, 'perl'), 'SIGKILL');
    await vi.waitFor(() => busybox.cgroups.remove(`${busybox.cgroupParent}/monitors`), 20_000);
    const second = await launch(run, 'c2', { args: ['true'] });
    await second.container.start();
    expect((await second.container.exited).code).toBe(0);
    await second.container.delete();
  }));

it('makes a writer wait while the brake holds, and only then', () =>
  withHost(async (run) => {
    const { container, log } = await launch(run, 'c1', { args: ['sh', '-c', 'head -c 40000000 /dev/urandom'] });
    const brake = container.brake();
    brake.hold();
    await container.start();
    const ended = await Promise.race([container.exited, new Promise((resolve) => setTimeout(resolve, 1000, 'waits'))]);
    expect(ended).toBe('waits');
    brake.release();
    expect((await container.exited).code).toBe(0);
    brake.close();
    expect((await collect(log.read({ from: await log.start() }))).length).toBe(40_000_000);
    await container.delete();
  }));

it('gives a terminal its size', () =>
  withHost(async (run) => {
    const { container, log } = await launch(run, 'c1', {
      args: ['sh', '-c', 'read line; stty size; echo $line'],
      stdin: 'once',
      terminal: true,
    });
    await container.start();
    await container.resize({ rows: 33, columns: 101 });
    const stdin = await container.stdin();
    stdin.write('hello\n');
    await container.exited;
    stdin.end();
    expect(String(await collect(log.read({ from: await log.start() })))).toBe('hello\r\n33 101\r\nhello\r\n');
    await container.delete();
  }));

it('runs an exec on a terminal without touching the exit code of the container', () =>
  withHost(async (run) => {
    const { container } = await launch(run, 'c1', { args: ['sleep', '100'] });
    await container.start();
    const execBundle = await run.busybox.bundle('e1', { args: ['true'] });
    await writeFile(
      join(execBundle, 'process.json'),
      JSON.stringify({
        terminal: true,
        user: { uid: 0, gid: 0 },
        args: ['sh', '-c', 'echo in; exit 9'],
        env: ['PATH=/bin'],
        cwd: '/',
      }),
    );
    const log = await openContainerLog(join(run.host.root, 'output', 'e1'), LIMITS);
    const exec = await run.supervisor.launchExec({
      execId: 'e1',
      containerId: 'c1',
      bundle: execBundle,
      logPath: log.path,
      stdin: 'none',
    });
    expect(await exec.start()).toBeGreaterThan(1);
    expect((await exec.exited).code).toBe(9);
    expect(String(await collect(log.read({ from: await log.start() })))).toBe('in\r\n');
    await exec.delete();
    expect((await run.busybox.runtime.state('c1'))?.status).toBe('running');
    await container.delete();
  }));

it('creates once more when the runtime lost its first process, and does not when it says why', () =>
  withHost(async ({ host, busybox }) => {
    const program = join(host.root, 'runtime');
    const failing = (words: string) =>
      `#!/bin/sh\ncase "$*" in *" create "*) if mkdir ${host.root}/failed 2>/dev/null; then echo "${words}" >&2; exit 1; fi;; esac\nexec /usr/bin/crun "$@"\n`;
    const start = async (words: string) => {
      await writeFile(program, failing(words), { mode: 0o755 });
      const supervisor = busybox.supervisor(program);
      const bundle = await busybox.bundle('c1', { args: ['true'] });
      const log = await openContainerLog(join(host.root, 'output', 'c1'), LIMITS);
      try {
        return await supervisor.launch({ id: 'c1', bundle, logPath: log.path, terminal: false, stdin: 'none' });
      } finally {
        await supervisor.close();
      }
    };
    await (await start('sync socket: Connection reset by peer')).delete();
    await rm(join(host.root, 'failed'), { recursive: true });
    await expect(start('no such rootfs')).rejects.toThrow('no such rootfs');
  }));

it('ends what is left in a cgroup below a foreign parent, even when the runtime has forgotten it', () =>
  withHost(async ({ host, busybox, supervisor }) => {
    const cgroup = `${busybox.cgroupParent}_elsewhere/c1`;
    host.owns(cgroup.slice(1, -'/c1'.length));
    const bundle = await busybox.bundle('c1', { args: ['sleep', '1000'] });
    const config = busybox.config(cgroup, { args: ['sleep', '1000'], terminal: false });
    await writeFile(join(bundle, 'config.json'), JSON.stringify(config));
    const log = await openContainerLog(join(host.root, 'output', 'c1'), LIMITS);
    const request = { id: 'c1', bundle, logPath: log.path, terminal: false, stdin: 'none', cgroup } as const;
    const container = await supervisor.launch(request);
    await container.start();
    expect(await busybox.cgroups.processes(cgroup)).toEqual([container.pid]);
    await rm(join(host.runDir, 'crun', 'c1'), { recursive: true });
    await supervisor.sweep(new Set());
    expect(await busybox.cgroups.children(cgroup.slice(0, -'/c1'.length))).toEqual([]);
    await container.exited;
    await busybox.cgroups.remove(cgroup.slice(0, -'/c1'.length));
  }));
