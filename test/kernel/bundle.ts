/** A small OCI bundle over a directory with the host's static busybox, and the doors to the kernel that run it. */
import { copyFile, mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ContainerSupervisor } from '../../runtime/containers/supervisor.ts';
import { createConmonSupervisor } from '../../runtime/containers/supervisor-conmon.ts';
import { type CgroupMoves, createCgroupMoves } from '../../runtime/kernel/cgroup-moves.ts';
import { type Cgroups, cgroupLayout, createCgroups } from '../../runtime/kernel/cgroups.ts';
import { createMounts } from '../../runtime/kernel/mount.ts';
import { createOciRuntime, type OciRuntime } from '../../runtime/kernel/oci-runtime.ts';
import { createSilentLog } from '../../shared/log.ts';
import type { TestHost } from './leaks.ts';

const APPLETS = [
  'sh',
  'cat',
  'true',
  'echo',
  'sleep',
  'seq',
  'printf',
  'head',
  'tr',
  'sha256sum',
  'wc',
  'yes',
  'dd',
  'stty',
  'mkdir',
  'touch',
  'rm',
  'test',
];

export interface BusyboxHost {
  readonly runtime: OciRuntime;
  readonly cgroups: Cgroups;
  readonly moves: CgroupMoves;
  readonly cgroupParent: string;
  readonly rootfs: string;
  /** config.json of a process in this cgroup. */
  config(cgroup: string, options: { readonly args: readonly string[]; readonly terminal: boolean }): object;
  /** Another engine over the same directories; `program` instead of crun. */
  supervisor(program?: string): ContainerSupervisor;
  /** Answers the bundle's directory. */
  bundle(id: string, options: { readonly args: readonly string[]; readonly terminal?: boolean }): Promise<string>;
}

export async function busyboxHost(host: TestHost): Promise<BusyboxHost> {
  const rootfs = join(host.root, 'rootfs');
  await mkdir(join(rootfs, 'bin'), { recursive: true });
  await copyFile('/bin/busybox', join(rootfs, 'bin/busybox'));
  for (const applet of APPLETS) await symlink('busybox', join(rootfs, 'bin', applet));

  const tag = host.root.split('-').at(-1) ?? '';
  const cgroupParent = `/berth_${tag}`;
  host.owns(`berth_${tag}`);
  const runtime = createOciRuntime({ name: 'crun', program: '/usr/bin/crun', root: join(host.runDir, 'crun') });
  const layout = cgroupLayout(await createMounts({ architecture: process.arch }).list());
  const cgroups = createCgroups(layout);
  const moves = createCgroupMoves(layout);
  return {
    runtime,
    cgroups,
    moves,
    cgroupParent,
    rootfs,
    config: (cgroup, options) => configOf(cgroup, { ...options, rootfs }),
    supervisor: (program = '/usr/bin/crun') =>
      createConmonSupervisor({
        runtime: createOciRuntime({ name: 'crun', program, root: join(host.runDir, 'crun') }),
        cgroups,
        moves,
        cgroupParent,
        runDirectory: join(host.runDir, 'containers'),
        now: () => new Date(),
        log: createSilentLog(),
      }),
    async bundle(id, { args, terminal = false }) {
      const bundle = join(host.root, 'bundles', id);
      await mkdir(bundle, { recursive: true });
      await writeFile(
        join(bundle, 'config.json'),
        JSON.stringify(configOf(`${cgroupParent}/${id}`, { args, terminal, rootfs })),
      );
      return bundle;
    },
  };
}

function configOf(
  cgroup: string,
  options: { readonly args: readonly string[]; readonly terminal: boolean; readonly rootfs: string },
): object {
  const { args, terminal, rootfs } = options;
  return {
    ociVersion: '1.0.2',
    process: { terminal, user: { uid: 0, gid: 0 }, args, env: ['PATH=/bin'], cwd: '/' },
    root: { path: rootfs },
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc' },
      { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'mode=755'] },
      { destination: '/dev/pts', type: 'devpts', source: 'devpts', options: ['newinstance', 'ptmxmode=0666'] },
    ],
    linux: {
      cgroupsPath: cgroup,
      namespaces: ['pid', 'mount', 'ipc', 'uts', 'network'].map((type) => ({ type })),
    },
  };
}
