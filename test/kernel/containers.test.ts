import { randomBytes, randomInt } from 'node:crypto';
import { access, mkdir, utimes, writeFile } from 'node:fs/promises';
import { cpus, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it, vi } from 'vitest';
import { type ContainerRecord, endedOf, exitCodeOf } from '../../runtime/containers/container.ts';
import { CONTAINER_MIGRATIONS, type ContainerTables } from '../../runtime/containers/container-store.ts';
import type { Containers, OutputChunk } from '../../runtime/containers/containers.ts';
import { createContainers, type LocalContainers } from '../../runtime/containers/containers-local.ts';
import type { ContainerNetworks } from '../../runtime/containers/ports.ts';
import { parseCreateRequest, parseExecRequest } from '../../runtime/containers/request.ts';
import { createSharedMemory } from '../../runtime/containers/shared-memory.ts';
import { createSpecBuilder } from '../../runtime/containers/spec-builder.ts';
import { createEventLog, type EngineEvent } from '../../runtime/events.ts';
import { createMounts } from '../../runtime/kernel/mount.ts';
import type { Snapshotter } from '../../runtime/layers/snapshotter.ts';
import { VOLUME_MIGRATIONS, type VolumeTables } from '../../runtime/volumes/tables.ts';
import { openVolumes } from '../../runtime/volumes/volumes-local.ts';
import { type Database, openDatabase } from '../../shared/database.ts';
import { digestOf } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import { createSilentLog } from '../../shared/log.ts';
import { type BusyboxHost, busyboxHost } from './bundle.ts';
import { type TestHost, testHost } from './leaks.ts';

interface Engine {
  readonly containers: LocalContainers;
  readonly events: readonly EngineEvent[];
  /** As SIGKILL would: nothing is put away. */
  kill(): Promise<void>;
}

interface Place {
  readonly host: TestHost;
  readonly busybox: BusyboxHost;
  engine(): Promise<Engine>;
}

async function withPlace(work: (place: Place) => Promise<void>): Promise<void> {
  await using host = await testHost();
  const busybox = await busyboxHost(host);
  const open: Engine[] = [];
  const engine = async () => {
    const made = await openEngine(host, busybox);
    open.push(made);
    return made;
  };
  try {
    await work({ host, busybox, engine });
  } finally {
    for (const each of open) await each.kill();
    const supervisor = busybox.supervisor();
    await supervisor.sweep(new Set());
    await supervisor.close();
    await busybox.cgroups.kill(busybox.cgroupParent);
    await busybox.cgroups.remove(busybox.cgroupParent);
  }
}

/** Containers of these tests have loopback alone. */
const NO_NETWORKS: ContainerNetworks = {
  inspect: (name) => {
    throw new AppError('not-found', `network ${name} not found`);
  },
  check: () => {},
  open: () => Promise.reject(new AppError('unsupported', 'there are no networks')),
  sandbox: () => undefined,
  close: async () => {},
  connect: () => Promise.reject(new AppError('unsupported', 'there are no networks')),
  disconnect: async () => {},
  rename: async () => {},
  reconcile: async () => {},
  hostAddress: () => undefined,
};

async function openEngine(host: TestHost, busybox: BusyboxHost): Promise<Engine> {
  const directory = join(host.root, 'containers');
  await mkdir(directory, { recursive: true });
  const database: Database<ContainerTables & VolumeTables> = openDatabase({
    path: join(host.root, 'engine.db'),
    migrations: [...CONTAINER_MIGRATIONS, ...VOLUME_MIGRATIONS],
  });
  const events = createEventLog({ now: () => new Date() });
  const seen: EngineEvent[] = [];
  const imageId = digestOf('image');
  const randomId = () => randomBytes(32).toString('hex');
  const volumes = await openVolumes({
    database,
    directory: join(host.root, 'volumes'),
    runDirectory: join(host.runDir, 'volumes'),
    mounts: createMounts({ architecture: process.arch }),
    events,
    log: createSilentLog(),
    now: () => new Date(),
    randomId,
  });
  const containers = createContainers({
    images: {
      collectLayers: async () => {},
      lease: () => ({ protect: async () => {}, protectImage: async () => {}, [Symbol.asyncDispose]: async () => {} }),
      async resolve(name) {
        if (name !== 'busybox') throw new AppError('not-found', `No such image: ${name}`);
        return { id: imageId, reference: 'busybox:latest', chain: [], config: IMAGE };
      },
    },
    snapshots: plainDirectories(directory, busybox.rootfs),
    supervisor: busybox.supervisor(),
    runtime: busybox.runtime,
    cgroups: busybox.cgroups,
    moves: busybox.moves,
    spec: createSpecBuilder({
      host: {
        kernel: release(),
        architecture: process.arch,
        cgroupMode: busybox.cgroups.mode,
        capabilityMask: '1ffffffffff',
        hasSeccomp: true,
        thermalThrottlePaths: [],
        runtimeNamespaces: [],
      },
      init: undefined,
      cgroupParent: busybox.cgroupParent,
      cdiDirectories: [],
      compiledSeccomp: (id) => busybox.runtime.seccompFilter(id),
    }),
    volumes,
    sharedMemory: createSharedMemory({
      mounts: createMounts({ architecture: process.arch }),
      directory: join(directory, 'shm'),
    }),
    imageContent: async () => ({ kind: 'absent' }),
    layerBytes: async () => 0,
    changes: async () => [],
    database,
    events: {
      publish(event) {
        seen.push({ ...event, timeNano: 0n });
        events.publish(event);
      },
    },
    log: createSilentLog(),
    now: () => new Date(),
    randomId,
    random: (limit) => randomInt(limit),
    networks: NO_NETWORKS,
    host: {
      cpus: cpus().length,
      cgroupVersion: 1,
      runtimeName: 'crun',
      hostname: 'h',
      thermalThrottlePaths: [],
      defaultNetwork: 'none',
      memoryBytes: totalmem(),
    },
    directory,
    runDirectory: host.runDir,
    cgroupParent: busybox.cgroupParent,
  });
  await containers.adoptAll();
  let isOpen = true;
  return {
    containers,
    events: seen,
    async kill() {
      if (!isOpen) return;
      isOpen = false;
      await containers.close();
      await database.close();
    },
  };
}

const IMAGE = {
  created: undefined,
  author: undefined,
  architecture: 'amd64',
  variant: undefined,
  os: 'linux',
  config: { Cmd: ['sh'], Env: ['PATH=/bin'], Labels: { from: 'image' } },
  diffIds: [],
  history: [],
};

/** Enough of a snapshotter for containers that only read. */
function plainDirectories(directory: string, rootfs: string): Snapshotter {
  const mounted = { rootfs, [Symbol.asyncDispose]: async () => {} };
  return {
    prepare: async (key) => void (await mkdir(join(directory, key), { recursive: true })),
    mount: async () => mounted,
    unmount: async () => {},
    upperOf: (key) => join(directory, key),
    diskBytes: async () => 4096,
    unpackedBytes: async () => 0,
    remove: async () => true,
    release: async () => {},
    releaseUnused: async () => {},
    sweep: async () => {},
    anticipate: () => {},
    [Symbol.asyncDispose]: async () => {},
  };
}

type Body = Record<string, unknown>;

async function create(containers: Containers, cmd: readonly string[], body: Body = {}, name?: string): Promise<string> {
  const request = parseCreateRequest({ Image: 'busybox', Cmd: cmd, ...body });
  return (await containers.create(request, { name })).id;
}

async function textOf(chunks: AsyncIterable<OutputChunk>, stream?: 'stdout' | 'stderr'): Promise<string> {
  const parts: Buffer[] = [];
  for await (const chunk of chunks)
    if (stream === undefined || chunk.stream === stream) parts.push(Buffer.from(chunk.bytes));
  return Buffer.concat(parts).toString();
}

const sh = (script: string) => ['sh', '-c', script];
const ALL = { stdout: true, stderr: true, stream: true } as const;

it('runs as docker run does: create, attach, wait, start', () =>
  withPlace(async ({ engine }) => {
    const { containers, events } = await engine();
    const id = await create(containers, sh('echo out; echo err >&2; exit 7'), { AttachStdout: true }, 'c1');
    const attachment = await containers.attach('c1', ALL);
    const { result } = await containers.wait('c1', { condition: 'next-exit' });
    expect(await containers.start('c1')).toBe(true);
    expect(await textOf(attachment.output)).toBe('out\nerr\n');
    expect(await result).toEqual({ exitCode: 7, error: undefined });
    const { record, statusText } = await containers.inspect(id.slice(0, 12));
    expect(record.state).toMatchObject({ status: 'exited', exitCode: 7 });
    expect(statusText).toMatch(/^Exited \(7\) /);
    await containers.remove('c1');
    await expect(containers.inspect('c1')).rejects.toThrow('No such container: c1');
    expect(events.map(({ action }) => action)).toEqual(['create', 'attach', 'start', 'die', 'destroy']);
  }));

it('removes itself with --rm, and tells those who wait for that', () =>
  withPlace(async ({ engine, host }) => {
    const { containers } = await engine();
    const id = await create(containers, ['true'], { HostConfig: { AutoRemove: true } }, 'c1');
    const { result } = await containers.wait('c1', { condition: 'removed' });
    await containers.start('c1');
    expect((await result).exitCode).toBe(0);
    await create(containers, ['true'], {}, 'c1');
    await containers.remove('c1');
    // The answer does not wait for what is put away after it.
    await vi.waitFor(() => expect(access(join(host.root, 'containers', id))).rejects.toThrow(), 20_000);
  }));

it('passes stdin of docker run -i, with its end', () =>
  withPlace(async ({ engine }) => {
    const { containers } = await engine();
    const body = { OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true };
    await create(containers, ['cat'], body, 'c1');
    const attachment = await containers.attach('c1', { ...ALL, stdin: true });
    attachment.input?.end('hello\n');
    await containers.start('c1');
    expect(await textOf(attachment.output)).toBe('hello\n');
    await attachment[Symbol.asyncDispose]();
    await containers.remove('c1');
  }));

it('leaves a terminal by its keys and comes back', () =>
  withPlace(async ({ engine }) => {
    const { containers, events } = await engine();
    const body = { Tty: true, OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true };
    await create(containers, sh('while read line; do echo got $line; done'), body, 'c1');
    const first = await containers.attach('c1', { ...ALL, stdin: true });
    await containers.start('c1');
    first.input?.write('a\n\x10\x11');
    await textOf(first.output);
    await first[Symbol.asyncDispose]();
    expect(events.map(({ action }) => action)).toContain('detach');
    const second = await containers.attach('c1', { ...ALL, stdin: true, logs: true });
    second.input?.write('b\n');
    let text = '';
    for await (const { bytes } of second.output) {
      text += bytes;
      if (text.includes('got b')) break;
    }
    expect(text).toContain('got a');
    await second[Symbol.asyncDispose]();
    await containers.remove('c1', { force: true });
  }));

it.each([
  ['/no/such', 127, 'exec: "/no/such": stat /no/such: no such file or directory'],
  ['nosuch', 127, 'exec: "nosuch": executable file not found in $PATH'],
  ['/bin', 126, 'exec: "/bin": '],
])('says why %s cannot be run', (command, exitCode, words) =>
  withPlace(async ({ engine, busybox }) => {
    const { containers } = await engine();
    await create(containers, [command], {}, 'c1');
    await expect(containers.start('c1')).rejects.toMatchObject({ kind: 'invalid' });
    const { record } = await containers.inspect('c1');
    expect(record.state).toMatchObject({ status: 'created', failure: { exitCode } });
    expect(record.state).toHaveProperty('failure.message', expect.stringContaining(words));
    expect(await busybox.runtime.list()).toEqual([]);
    await containers.remove('c1');
  }),
);

it('stops by signal, by force, and refuses what cannot be', () =>
  withPlace(async ({ engine }) => {
    const { containers, events } = await engine();
    await create(containers, sh('trap "exit 3" TERM; while true; do sleep 0.05; done'), {}, 'obeys');
    await create(containers, sh('trap "" TERM; while true; do sleep 0.05; done'), {}, 'resists');
    for (const name of ['obeys', 'resists']) await containers.start(name);
    await expect(containers.remove('obeys')).rejects.toThrow('stop the container before removing or force remove');
    expect(await containers.stop('obeys')).toBe(true);
    expect(await containers.stop('obeys')).toBe(false);
    expect((await containers.inspect('obeys')).record.state).toMatchObject({ exitCode: 3 });
    expect(await containers.stop('resists', { timeoutSeconds: 0 })).toBe(true);
    expect((await containers.inspect('resists')).record.state).toMatchObject({ exitCode: 137 });
    await expect(containers.kill('obeys')).rejects.toThrow('cannot kill container: obeys');
    expect(events.filter(({ id }) => id !== '').map(({ action }) => action)).toContain('stop');
    await containers.prune();
    expect(await containers.list({ all: true })).toEqual([]);
  }));

it('pauses, refuses to attach to what is paused, goes on, and kills what is paused', () =>
  withPlace(async ({ engine }) => {
    const { containers } = await engine();
    await create(containers, ['sleep', '100'], {}, 'c1');
    await containers.start('c1');
    await containers.pause('c1');
    expect((await containers.list())[0]?.statusText).toMatch(/\(Paused\)$/);
    await expect(containers.pause('c1')).rejects.toThrow('is already paused');
    await expect(containers.attach('c1', ALL)).rejects.toMatchObject({ kind: 'conflict' });
    await containers.unpause('c1');
    await expect(containers.unpause('c1')).rejects.toThrow('is not paused');
    await containers.pause('c1');
    await containers.remove('c1', { force: true });
  }));

it('is removed by force at any moment of its restarts', () =>
  withPlace(async ({ engine }) => {
    const { containers } = await engine();
    // The first restart is due 100 ms after the first end, and takes some tens more.
    for (let ms = 60; ms < 240; ms += 15) {
      const name = `after${ms}`;
      await create(containers, ['true'], { HostConfig: { RestartPolicy: { Name: 'always' } } }, name);
      await containers.start(name);
      await delay(ms);
      await containers.remove(name, { force: true });
      await expect(containers.inspect(name), name).rejects.toMatchObject({ kind: 'not-found' });
    }
  }));

it('restarts by policy until it is stopped', () =>
  withPlace(async ({ engine }) => {
    const { containers } = await engine();
    await create(
      containers,
      sh('exit 1'),
      { HostConfig: { RestartPolicy: { Name: 'on-failure', MaximumRetryCount: 2 } } },
      'c1',
    );
    const { result } = await containers.wait('c1', { condition: 'removed' });
    await containers.start('c1');
    // As soon as it does not run, though it will again.
    expect((await (await containers.wait('c1')).result).exitCode).toBe(1);
    const status = async (name: string) => (await containers.inspect(name)).record.state.status;
    await vi.waitFor(async () => expect(await status('c1')).toBe('exited'), 10_000);
    expect((await containers.inspect('c1')).record.restartCount).toBe(2);
    await containers.remove('c1');
    await result;
    await create(containers, ['true'], { HostConfig: { RestartPolicy: { Name: 'always' } } }, 'c2');
    await containers.start('c2');
    await (await containers.wait('c2', { condition: 'next-exit' })).result;
    if ((await status('c2')) === 'restarting')
      await expect(containers.remove('c2')).rejects.toThrow('container is restarting: stop the container before');
    await containers.stop('c2');
    expect((await containers.inspect('c2')).record.state.status).toBe('exited');
    await containers.remove('c2');
  }));

it('restarts soon again when somebody has restarted it', () =>
  withPlace(async ({ engine }) => {
    const { containers } = await engine();
    await create(containers, sh('exit 1'), { HostConfig: { RestartPolicy: { Name: 'always' } } }, 'c1');
    await containers.start('c1');
    const restarts = async () => (await containers.inspect('c1')).record.restartCount;
    // The delays before these were 100, 200, 400 and 800 ms; without somebody the next one is 1,600.
    await vi.waitFor(async () => expect(await restarts()).toBe(4), 20_000);
    await containers.restart('c1');
    const startedAt = performance.now();
    await vi.waitFor(async () => expect(await restarts()).toBe(1), 20_000);
    expect(performance.now() - startedAt).toBeLessThan(1600);
    await containers.remove('c1', { force: true });
  }));

it('execs: output, exit codes, stdin, terminals', () =>
  withPlace(async ({ engine, busybox }) => {
    const { containers } = await engine();
    await create(containers, ['sleep', '100'], {}, 'c1');
    const io = { AttachStdout: true, AttachStderr: true };
    await expect(containers.createExec('c1', parseExecRequest({ Cmd: ['true'] }))).rejects.toThrow('is not running');
    await containers.start('c1');
    const run = async (body: Body, input?: string) => {
      const execId = await containers.createExec('c1', parseExecRequest({ ...io, ...body }));
      const attachment = await containers.startExec(execId, {});
      attachment?.input?.end(input);
      const text = attachment === undefined ? '' : await textOf(attachment.output);
      await attachment?.[Symbol.asyncDispose]();
      return { text, ...(await containers.inspectExec(execId)) };
    };
    expect(await run({ Cmd: sh('echo o; echo e >&2; exit 4') })).toMatchObject({ text: 'o\ne\n', exitCode: 4 });
    expect(await run({ Cmd: ['cat'], AttachStdin: true }, 'abc')).toMatchObject({ text: 'abc', exitCode: 0 });
    await expect(run({ Cmd: ['id'], User: 'nobody-here' })).rejects.toThrow('unable to find user nobody-here');
    expect(await run({ Cmd: ['/no/such'] })).toMatchObject({
      text: 'OCI runtime exec failed: exec failed: unable to start container process: exec: "/no/such": stat /no/such: no such file or directory\r\n',
      exitCode: 127,
      running: false,
    });
    expect(await run({ Cmd: ['/bin'] })).toMatchObject({ exitCode: 126 });
    expect(await run({ Cmd: sh('stty size; exit 9'), Tty: true, ConsoleSize: [20, 70] })).toMatchObject({
      exitCode: 9,
    });
    const big = await run({ Cmd: sh('head -c 30000000 /dev/zero') });
    expect(big.text.length).toBe(30_000_000);
    expect((await containers.inspect('c1')).record.state.status).toBe('running');
    expect((await containers.top('c1')).processes).toHaveLength(1);
    const stats = await containers.stats('c1');
    expect(stats?.pids.current).toBeGreaterThan(0);
    const countsMore = busybox.cgroups.mode !== 'v2';
    expect((stats?.memory.maxUsageBytes ?? 0) > 0, 'memory.max_usage_in_bytes').toBe(countsMore);
    expect(stats?.cpu.perCpuNs?.some((ns) => ns > 0) === true, 'cpuacct.usage_percpu').toBe(countsMore);
    await containers.remove('c1', { force: true });
  }));

it('execs whatever became of what the container was made from', () =>
  withPlace(async ({ engine }) => {
    const { containers } = await engine();
    await create(containers, ['sleep', '100'], {}, 'c1');
    await create(containers, ['sleep', '100'], { HostConfig: { PidMode: 'container:c1' } }, 'c2');
    await containers.start('c1');
    await containers.start('c2');
    await containers.rename('c1', 'renamed');
    const execId = await containers.createExec('c2', parseExecRequest({ Cmd: ['echo', 'here'], AttachStdout: true }));
    const attachment = await containers.startExec(execId, {});
    expect(attachment && (await textOf(attachment.output))).toBe('here\n');
    await containers.remove('c2', { force: true });
    await containers.remove('renamed', { force: true });
  }));

it('lets a command run to its end whose reader has gone', () =>
  withPlace(async ({ engine }) => {
    const { containers } = await engine();
    await create(containers, ['sleep', '100'], {}, 'c1');
    await containers.start('c1');
    const request = parseExecRequest({ Cmd: sh('head -c 3000000 /dev/zero; exit 5'), AttachStdout: true });
    const execId = await containers.createExec('c1', request);
    const attachment = await containers.startExec(execId, {});
    for await (const _ of attachment?.output ?? []) break;
    await attachment?.[Symbol.asyncDispose]();
    await vi.waitFor(
      async () => expect(await containers.inspectExec(execId)).toMatchObject({ running: false, exitCode: 5 }),
      20_000,
    );
    await containers.remove('c1', { force: true });
  }));

it('ends health checks that take too long, whatever they have started', () =>
  withPlace(async ({ engine }) => {
    const { containers } = await engine();
    const check = { Test: ['CMD-SHELL', 'sleep 100 & wait'], Interval: 20e6, Timeout: 100e6, Retries: 2 };
    await create(containers, ['sleep', '100'], { Healthcheck: check }, 'c1');
    await containers.start('c1');
    await vi.waitFor(async () => expect((await containers.inspect('c1')).health?.status).toBe('unhealthy'), 20_000);
    expect((await containers.inspect('c1')).health?.log.at(-1)).toMatchObject({
      exitCode: -1,
      output: 'Health check exceeded timeout (100ms)',
    });
    await containers.remove('c1', { force: true });
  }));

it('checks health, and tells when it changes', () =>
  withPlace(async ({ engine }) => {
    const { containers, events } = await engine();
    const check = { Test: ['CMD-SHELL', 'echo looked; test -e /tmp/ok'], Interval: 20e6, Retries: 2 };
    await create(containers, sh('mkdir -p /tmp; touch /tmp/ok; sleep 100'), { Healthcheck: check }, 'c1');
    await containers.start('c1');
    const status = async () => (await containers.inspect('c1')).health?.status;
    expect(await status()).toBe('starting');
    await vi.waitFor(async () => expect(await status()).toBe('healthy'), 20_000);
    expect((await containers.list())[0]?.statusText).toMatch(/\(healthy\)$/);
    const execId = await containers.createExec('c1', parseExecRequest({ Cmd: ['rm', '/tmp/ok'] }));
    await containers.startExec(execId, { detach: true });
    await vi.waitFor(async () => expect(await status()).toBe('unhealthy'), 20_000);
    const { health } = await containers.inspect('c1');
    expect(health?.log.length).toBeLessThanOrEqual(5);
    expect(health?.log.at(-1)).toMatchObject({ exitCode: 1, output: 'looked\n' });
    expect(events.map(({ action }) => action)).toEqual(
      expect.arrayContaining(['health_status: healthy', 'health_status: unhealthy']),
    );
    await containers.remove('c1', { force: true });
  }));

it('takes an end in once, though the engine was killed before it had put the run away', () =>
  withPlace(async ({ host, engine }) => {
    const first = await engine();
    const again = { HostConfig: { RestartPolicy: { Name: 'on-failure' } } };
    const ids = [
      await create(first.containers, ['sleep', '1000'], again, 'kept'),
      await create(first.containers, ['sleep', '1000'], {}, 'unneeded'),
    ];
    const before: ContainerRecord[] = [];
    for (const id of ids) {
      await first.containers.start(id);
      await first.containers.stop(id, { timeoutSeconds: 0 });
      before.push((await first.containers.inspect(id)).record);
    }
    await first.kill();
    for (const { id, state } of before) {
      const exits = join(host.runDir, 'containers', id, 'exits');
      await mkdir(exits, { recursive: true });
      await writeFile(join(exits, id), String(exitCodeOf(state)));
      const at = endedOf(state)?.finishedAt ?? new Date(0);
      await utimes(join(exits, id), at, at);
    }
    using database = new DatabaseSync(join(host.root, 'engine.db'));
    const rm = `update container set record = json_set(record, '$.hostConfig.AutoRemove', json('true')) where name = 'unneeded'`;
    database.exec(rm);

    const second = await engine();
    expect((await second.containers.list({ all: true })).map(({ record }) => record)).toEqual([before[0]]);
    expect(second.events.map(({ action }) => action)).toEqual(['destroy']);
    await second.containers.remove('kept');
  }));

it('keeps everything across a kill of the engine', () =>
  withPlace(async ({ host, engine }) => {
    const first = await engine();
    const gate = join(host.root, 'gate');
    await mkdir(gate);
    const script = `i=0; while [ $i -lt 50 ] || ! test -e /mnt/open; do
      if [ $i -lt 50 ]; then echo $i; i=$((i+1)); fi; sleep 0.02; done; exit 5`;
    await create(first.containers, sh(script), { HostConfig: { Binds: [`${gate}:/mnt`] } }, 'counter');
    await create(first.containers, sh('sleep 0.2; exit 6'), {}, 'ends-meanwhile');
    await create(first.containers, sh('exit 0'), { HostConfig: { AutoRemove: true } }, 'removes-itself');
    await create(first.containers, ['true'], {}, 'never-started');
    await create(first.containers, ['sleep', '100'], {}, 'paused');
    for (const name of ['counter', 'ends-meanwhile', 'paused']) await first.containers.start(name);
    await first.containers.pause('paused');
    await first.kill();

    const second = await engine();
    expect(await second.containers.start('counter')).toBe(false);
    await writeFile(join(gate, 'open'), '');
    expect((await (await second.containers.wait('counter')).result).exitCode).toBe(5);
    expect((await (await second.containers.wait('ends-meanwhile')).result).exitCode).toBe(6);
    const { chunks } = await second.containers.logs('counter', { stdout: true });
    expect(await textOf(chunks)).toBe(Array.from({ length: 50 }, (_, i) => `${i}\n`).join(''));
    const tail = await second.containers.logs('counter', { stdout: true, tail: 2 });
    expect(await textOf(tail.chunks)).toBe('48\n49\n');
    expect((await second.containers.inspect('never-started')).record.state.status).toBe('created');
    expect((await second.containers.inspect('paused')).record.state.status).toBe('paused');
    await second.containers.unpause('paused');
    await second.containers.start('removes-itself');
    for (const { record } of await second.containers.list({ all: true }))
      await second.containers.remove(record.id, { force: true }).catch(() => {});
  }));

it('tells a taken name, an unknown image, an ambiguous prefix', () =>
  withPlace(async ({ engine }) => {
    const { containers } = await engine();
    const id = await create(containers, ['true'], {}, 'c1');
    await expect(create(containers, ['true'], {}, 'c1')).rejects.toThrow(
      `Conflict. The container name "/c1" is already in use by container "${id}". You have to remove (or rename) that container to be able to reuse that name.`,
    );
    await expect(containers.create(parseCreateRequest({ Image: 'nosuch:1' }))).rejects.toThrow(
      'No such image: nosuch:1',
    );
    await expect(create(containers, ['true'], {}, '!bad')).rejects.toThrow(
      'Invalid container name (!bad), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed',
    );
    const generated = await create(containers, ['true']);
    expect((await containers.inspect(generated)).record.name).toMatch(/^[a-z]+_[a-z]+$/);
    await containers.rename('c1', 'c2');
    expect((await containers.inspect('c2')).record.id).toBe(id);
    expect((await containers.list({ all: true, filters: { label: ['from=image'] } })).length).toBe(2);
    await expect(containers.list({ filters: { nosuch: ['x'] } })).rejects.toThrow("invalid filter 'nosuch'");
    await containers.prune();
  }));
