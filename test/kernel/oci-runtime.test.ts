import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, readlinkSync } from 'node:fs';
import { copyFile, mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { createMounts } from '../../runtime/kernel/mount.ts';
import { createOciRuntime, type OciRuntime, type RuntimeName } from '../../runtime/kernel/oci-runtime.ts';
import { sealProgram } from '../../runtime/kernel/sealed-program.ts';
import { type TestHost, testHost } from './leaks.ts';

const run = promisify(execFile);
const DEADLINE_MS = 20_000;

/** A bundle of busybox that runs args. */
async function bundle(host: TestHost, args: readonly string[]): Promise<{ path: string; id: string }> {
  const path = join(host.root, 'bundle');
  await mkdir(join(path, 'rootfs/bin'), { recursive: true });
  await copyFile('/usr/bin/busybox', join(path, 'rootfs/bin/busybox'));
  for (const name of ['sh', 'sleep', 'true']) await symlink('busybox', join(path, 'rootfs/bin', name));
  const id = host.root.split('/').at(-1) ?? '';
  host.owns(id);
  const config = {
    ociVersion: '1.0.2',
    process: { terminal: false, user: { uid: 0, gid: 0 }, args, env: ['PATH=/bin'], cwd: '/' },
    root: { path: 'rootfs' },
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc' },
      { destination: '/dev', type: 'tmpfs', source: 'tmpfs' },
    ],
    linux: {
      cgroupsPath: `/${id}`,
      namespaces: ['mount', 'pid', 'ipc', 'uts', 'network'].map((type) => ({ type })),
      resources: { devices: [{ allow: false, access: 'rwm' }] },
    },
  };
  await writeFile(join(path, 'config.json'), JSON.stringify(config));
  return { path, id };
}

async function create(runtime: OciRuntime, { path, id }: { path: string; id: string }): Promise<void> {
  await run('sh', [
    '-c',
    'exec "$@" </dev/null >/dev/null 2>&1',
    'sh',
    runtime.program,
    ...runtime.globalArgs,
    'create',
    '--bundle',
    path,
    id,
  ]);
}

async function stopped(runtime: OciRuntime, id: string): Promise<void> {
  const deadline = performance.now() + DEADLINE_MS;
  while ((await runtime.state(id))?.status !== 'stopped') {
    if (performance.now() > deadline)
      throw new Error(`${id} does not stop: ${JSON.stringify(await runtime.state(id))}`);
    await delay(20);
  }
}

describe.each<RuntimeName>(['crun', 'runc'])('%s', (name) => {
  it('takes a container from created to deleted, and refuses what its state forbids', async () => {
    await using host = await testHost();
    const calls: string[] = [];
    const runtime = createOciRuntime({ name, root: join(host.runDir, name), onCall: ({ verb }) => calls.push(verb) });
    const made = await bundle(host, ['sleep', '1000']);
    const { id } = made;
    expect(await runtime.state(id)).toBeUndefined();
    await create(runtime, made);
    expect(await runtime.state(id)).toMatchObject({ id, status: 'created', pid: expect.any(Number) });
    await runtime.start(id);
    await expect(runtime.start(id)).rejects.toMatchObject({ kind: 'conflict' });
    expect(await runtime.list()).toMatchObject([{ id, status: 'running' }]);

    await runtime.pause(id);
    await expect(runtime.pause(id)).rejects.toMatchObject({ kind: 'conflict' });
    expect((await runtime.state(id))?.status).toBe('paused');
    await runtime.resume(id);
    await expect(runtime.resume(id)).rejects.toMatchObject({ kind: 'conflict' });
    await runtime.update(id, { pids: { limit: 20 } });

    const processPath = join(host.root, 'process.json');
    await writeFile(
      processPath,
      JSON.stringify({
        user: { uid: 0, gid: 0 },
        args: ['sh', '-c', 'echo out; exit 7'],
        env: ['PATH=/bin'],
        cwd: '/',
      }),
    );
    const exec = run(runtime.program, [...runtime.execArgs(id, { processPath })]);
    await expect(exec).rejects.toMatchObject({ code: 7, stdout: 'out\n' });

    const pid = (await runtime.state(id))?.pid;
    await runtime.kill(id, 9);
    await stopped(runtime, id);
    // Whoever inherited it has to reap it first: signals to a zombie succeed.
    await expect.poll(() => existsSync(`/proc/${pid}`), { timeout: DEADLINE_MS }).toBe(false);
    await expect(runtime.kill(id, 9)).rejects.toMatchObject({ kind: 'conflict' });
    await runtime.delete(id);
    await runtime.delete(id);
    expect(await runtime.state(id)).toBeUndefined();
    await expect(runtime.start(id)).rejects.toMatchObject({ kind: 'not-found' });
    expect(new Set(calls)).toEqual(new Set(['state', 'start', 'list', 'pause', 'resume', 'update', 'kill', 'delete']));
  });

  it('deletes a running container by force, and says which namespaces it can make', async () => {
    await using host = await testHost();
    const runtime = createOciRuntime({ name, root: join(host.runDir, name) });
    const made = await bundle(host, ['sleep', '1000']);
    await create(runtime, made);
    await runtime.start(made.id);
    await runtime.pause(made.id);
    await runtime.delete(made.id, { force: true });
    expect(await runtime.list()).toEqual([]);
    expect([...(await runtime.namespaces())]).toEqual(expect.arrayContaining(['mount', 'pid', 'network']));
  });

  it('cannot be overwritten through a call that is under way (CVE-2019-5736), and need not copy itself', async () => {
    await using host = await testHost();
    const mounts = createMounts({ architecture: process.arch });
    const program = (await run('which', [name])).stdout.trim();
    // As after a crash: the mount of an engine before is there.
    await sealProgram(mounts, { program, directory: host.runDir });
    await using sealed = await sealProgram(mounts, { program, directory: host.runDir });
    expect((await mounts.list()).filter(({ target }) => target === sealed.path)).toHaveLength(1);
    const runtime = createOciRuntime({ name, program: sealed.path, env: sealed.env, root: join(host.root, name) });
    const made = await bundle(host, ['sleep', '1000']);
    await create(runtime, made);
    await runtime.start(made.id);

    const processPath = join(host.root, 'process.json');
    const command = { user: { uid: 0, gid: 0 }, args: ['sh', '-c', 'echo; read _'], env: ['PATH=/bin'], cwd: '/' };
    await writeFile(processPath, JSON.stringify(command));
    const child = spawn(runtime.program, runtime.execArgs(made.id, { processPath }), {
      env: { ...process.env, ...runtime.env },
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const closed = once(child, 'close');
    await once(child.stdout, 'data');
    expect(readlinkSync(`/proc/${child.pid}/exe`)).toBe(sealed.path);
    const held = openSync(`/proc/${child.pid}/exe`, 'r');
    child.stdin.end('\n');
    await closed;
    // What a process of the container would do: reopen what it holds, once nobody runs it any more.
    expect(() => openSync(`/proc/self/fd/${held}`, 'r+')).toThrow('EROFS');
    closeSync(held);
    await runtime.delete(made.id, { force: true });
  });
});

it('says that a runtime is not installed', async () => {
  const runtime = createOciRuntime({ name: 'crun', program: 'no-such-runtime', root: '/nonexistent' });
  await expect(runtime.state('x')).rejects.toMatchObject({ kind: 'unsupported', message: /no-such-runtime/ });
});
