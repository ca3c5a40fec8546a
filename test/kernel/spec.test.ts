import { execFile } from 'node:child_process';
import { copyFile, mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { mergeImageConfig } from '../../runtime/containers/image-defaults.ts';
import { parseCreateRequest } from '../../runtime/containers/request.ts';
import { encodeSpec, type SpecInput, specOf } from '../../runtime/containers/spec.ts';
import { inspectHost } from '../../runtime/kernel/host.ts';
import { createOciRuntime, type RuntimeName } from '../../runtime/kernel/oci-runtime.ts';
import { type TestHost, testHost } from './leaks.ts';

const run = promisify(execFile);

/** What a shell says inside a container that is made by our spec. */
async function inside(
  host: TestHost,
  name: RuntimeName,
  script: string,
  request: {
    readonly config?: Record<string, unknown>;
    readonly hostConfig?: Record<string, unknown>;
    readonly user?: SpecInput['user'];
  } = {},
): Promise<string> {
  const bundle = join(host.root, 'bundle');
  const rootfs = join(bundle, 'rootfs');
  await mkdir(join(rootfs, 'bin'), { recursive: true });
  await mkdir(join(rootfs, 'etc'));
  await copyFile('/usr/bin/busybox', join(rootfs, 'bin/busybox'));
  await symlink('busybox', join(rootfs, 'bin/sh'));
  for (const file of ['resolv.conf', 'hostname', 'hosts']) await writeFile(join(bundle, file), `${file}\n`);
  const facts = await inspectHost({
    kernel: (await run('uname', ['-r'])).stdout.trim(),
    architecture: process.arch,
    cpuCount: 2,
    memoryBytes: 1,
  });
  const runtime = createOciRuntime({ name, root: join(host.runDir, name) });
  const id = host.root.split('/').at(-1) ?? '';
  host.owns(id);
  const { config, hostConfig } = parseCreateRequest({
    Hostname: 'inside',
    Cmd: ['/bin/sh', '-c', script],
    ...request.config,
    HostConfig: request.hostConfig,
  });
  const spec = specOf({
    id,
    config: mergeImageConfig({ Env: ['PATH=/bin'] }, config),
    hostConfig,
    mounts: [],
    user: request.user ?? { uid: 0, gid: 0, additionalGids: [], home: '/root' },
    host: { ...facts, cgroupMode: facts.cgroups.mode, runtimeNamespaces: [...(await runtime.namespaces())] },
    paths: {
      rootfs,
      resolvConf: join(bundle, 'resolv.conf'),
      hostname: join(bundle, 'hostname'),
      hosts: join(bundle, 'hosts'),
    },
    cgroupParent: '/',
    network: { kind: 'private' },
  });
  await writeFile(join(bundle, 'config.json'), encodeSpec(spec));
  const { stdout } = await run(runtime.program, [...runtime.globalArgs, 'run', '--bundle', bundle, id]);
  return stdout;
}

describe.each<RuntimeName>(['crun', 'runc'])('a container by %s', (name) => {
  it('has Docker’s confinement', async () => {
    await using host = await testHost();
    const script = `busybox grep -E '^(Cap|Seccomp:|NoNew)' /proc/self/status; busybox hostname; busybox pwd; echo $HOME
      busybox cat /etc/resolv.conf; busybox ls /sys/class/net; busybox wc -c < /proc/keys; busybox ls /sys/firmware
      busybox mkdir /sys/fs/cgroup/pids/x /sys/fs/cgroup/x 2>&1; echo 1 2>&1 > /proc/sys/kernel/panic; busybox mount -t tmpfs t /mnt 2>&1; busybox ls -x /dev`;
    const text = await inside(host, name, script, { config: { WorkingDir: '/work/dir' } });
    expect(text).toContain('CapInh:\t0000000000000000');
    expect(text).toContain('CapEff:\t00000000a80425fb');
    expect(text).toContain('CapAmb:\t0000000000000000');
    expect(text).toMatch(/Seccomp:\t2\n/);
    expect(text).toContain('inside\n/work/dir\n/root\nresolv.conf\nlo\n0\n');
    expect(text).toMatch(/cgroup.*Read-only file system/);
    expect(text).toMatch(/mount.*(not permitted|denied)/i);
  });

  it('has the limits, and the user by number', async () => {
    await using host = await testHost();
    const script = `busybox id; ulimit -n; busybox touch /x 2>&1; busybox touch /scratch/x && echo scratch
      busybox cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null
      busybox df -k /dev/shm | busybox tail -1; busybox grep NoNew /proc/self/status; echo $A`;
    const text = await inside(host, name, script, {
      config: { Env: ['A=1'] },
      user: { uid: 1000, gid: 100, additionalGids: [5], home: '/' },
      hostConfig: {
        Memory: 64 * 2 ** 20,
        PidsLimit: 50,
        ReadonlyRootfs: true,
        Tmpfs: { '/scratch': '' },
        CapDrop: ['ALL'],
        ShmSize: 2 ** 20,
        SecurityOpt: ['no-new-privileges'],
        Ulimits: [
          { Name: 'nofile', Soft: 100, Hard: 200 },
          { Name: 'core', Soft: -1, Hard: -1 },
        ],
      },
    });
    expect(text).toContain('uid=1000 gid=100 groups=5,100\n100\n');
    expect(text).toMatch(/\/x: Read-only file system\nscratch\n50\n67108864\n/);
    expect(text).toMatch(/ 1024 .*\/dev\/shm\nNoNewPrivs:\t1\n1\n/);
  });
});
