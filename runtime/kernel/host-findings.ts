/**
 * What the facts of a host mean for the engine, and how to mend what is missing: `info` prints it, and whatever needs a
 * container that cannot run fails with it. Pure.
 */
import type { Privilege } from '../../shared/privilege.ts';
import {
  type FilesystemSupport,
  type HostFacts,
  type HostProgramName,
  imageMounting,
  preferredRuntime,
} from './host.ts';
import { isAtLeast } from './versions.ts';

export interface Finding {
  /** What it is about, for example `conmon`. */
  readonly subject: string;
  /** error: no container runs. warning: something works worse or not at all. note: good to know. */
  readonly severity: 'ok' | 'note' | 'warning' | 'error';
  readonly state: string;
  /** What the administrator can do. */
  readonly mend?: string | undefined;
}

/** One finding per subject, always in the same order. Without privilege nothing else of the host matters. */
export function judgeHost(facts: HostFacts): readonly Finding[] {
  if (facts.privilege !== 'full') return [judgePrivilege(facts)];
  return [
    judgePrivilege(facts),
    judgeKernel(facts),
    judgeFilesystem('overlay', facts.filesystems.overlay),
    judgeImages(facts),
    judgeCgroups(facts),
    judgeControllers(facts),
    judgeRuntime(facts),
    ...REQUIRED.map((program) => judgeProgram(facts, program)),
    facts.hasSeccomp
      ? { subject: 'seccomp', severity: 'ok', state: 'available' }
      : {
          subject: 'seccomp',
          severity: 'warning',
          state: 'the kernel has none: containers are not confined to safe system calls',
          mend: 'use a kernel with CONFIG_SECCOMP_FILTER',
        },
    { subject: 'apparmor', severity: 'ok', state: facts.hasApparmor ? 'enabled' : 'not enabled' },
    { subject: 'user namespaces', severity: 'ok', state: facts.hasUserNamespaces ? 'available' : 'not available' },
  ];
}

const NO_PRIVILEGE: Readonly<Record<Exclude<Privilege, 'full'>, Pick<Finding, 'state' | 'mend'>>> = {
  user: {
    state: 'berthd runs as an ordinary user, without CAP_SYS_ADMIN',
    mend: 'to run containers, start berthd as root of the host',
  },
  confined: {
    state: 'berthd runs as root without CAP_SYS_ADMIN, as in a container',
    mend: 'to run containers, start berthd on the host, or in a privileged container',
  },
  namespace: {
    state: 'berthd runs as root of a user namespace, which may not mount layers',
    mend: 'to run containers, start berthd as root of the host',
  },
};

function judgePrivilege({ privilege }: HostFacts): Finding {
  if (privilege === 'full') return { subject: 'privilege', severity: 'ok', state: 'root' };
  const { state, mend } = NO_PRIVILEGE[privilege];
  return {
    subject: 'privilege',
    severity: 'error',
    state: `${state}: it pulls, builds without RUN and pushes images, and runs no containers`,
    mend,
  };
}

function judgeKernel({ kernel }: HostFacts): Finding {
  if (isAtLeast(kernel, '5.10')) return { subject: 'kernel', severity: 'ok', state: kernel };
  return {
    subject: 'kernel',
    severity: 'warning',
    state: `${kernel} is older than what is tested`,
    mend: 'use 5.10 or later',
  };
}

function judgeFilesystem(name: string, support: FilesystemSupport): Finding {
  if (support !== 'absent')
    return {
      subject: name,
      severity: 'ok',
      state: support === 'present' ? 'available' : 'a module, loaded when needed',
    };
  return {
    subject: name,
    severity: 'error',
    state: 'the kernel has none, containers get no root filesystem',
    mend: `run "modprobe ${name}" on the host, or use a kernel with it`,
  };
}

function judgeImages(facts: HostFacts): Finding {
  const how = imageMounting(facts);
  if (how === 'file') return { subject: 'layer images', severity: 'ok', state: 'EROFS, mounted from their files' };
  if (how === 'none')
    return {
      subject: 'layer images',
      severity: 'note',
      state: 'the kernel has no EROFS: layers are unpacked to directories, which is slower',
      mend: 'run "modprobe erofs" on the host, or use kernel 5.4 or later',
    };
  return {
    subject: 'layer images',
    severity: 'note',
    state: 'EROFS, through loop devices',
    mend: facts.programs.perl === undefined ? 'install perl-base' : 'kernel 6.12 or later needs no loop devices',
  };
}

function judgeCgroups(facts: HostFacts): Finding {
  const { cgroups } = facts;
  const subject = 'cgroups';
  if (cgroups.mode === 'none')
    return {
      subject,
      severity: 'error',
      state: 'none are mounted',
      mend: 'mount -t cgroup2 cgroup2 /sys/fs/cgroup',
    };
  if (!cgroups.isWritable)
    return {
      subject,
      severity: 'error',
      state: `${cgroups.mode}, read-only`,
      mend: 'in a container, run it privileged; otherwise remount /sys/fs/cgroup read-write',
    };
  const [stray] = cgroups.strayControllers;
  if (cgroups.mode === 'hybrid' && stray !== undefined)
    return {
      subject,
      severity: 'error',
      state: `hybrid, with ${cgroups.strayControllers.join(', ')} in the v2 tree, where runtimes cannot use it`,
      mend: cgroups.strayControllers
        .map((name) => `mkdir -p /sys/fs/cgroup/${name} && mount -t cgroup -o ${name} cgroup /sys/fs/cgroup/${name}`)
        .join(' && '),
    };
  if (cgroups.mode === 'v2' && preferredRuntime(facts) === 'crun' && !facts.canLockMemory)
    return {
      subject,
      severity: 'error',
      state: 'v2, where crun raises RLIMIT_MEMLOCK to load the rules for devices, which the engine may not',
      mend: 'give the engine CAP_SYS_RESOURCE, or start it after "ulimit -l unlimited"',
    };
  if (cgroups.rootProcesses > 0)
    return {
      subject,
      severity: 'warning',
      state: `v2, with ${cgroups.rootProcesses} processes in the root: containers start late and cannot be limited`,
      mend: "mkdir -p /sys/fs/cgroup/init && xargs -n 1 sh -c 'echo $0 > /sys/fs/cgroup/init/cgroup.procs' < /sys/fs/cgroup/cgroup.procs",
    };
  return { subject, severity: 'ok', state: cgroups.mode };
}

function judgeControllers({ cgroups }: HostFacts): Finding {
  const missing = ['cpu', 'cpuset', 'memory', 'pids', 'io']
    .map((name) => (name === 'io' && cgroups.mode !== 'v2' ? 'blkio' : name))
    .filter((name) => !cgroups.controllers.includes(name));
  if (missing.length === 0) return { subject: 'resource limits', severity: 'ok', state: cgroups.controllers.join(' ') };
  return {
    subject: 'resource limits',
    severity: 'warning',
    state: `containers cannot be limited by ${missing.join(', ')}`,
    mend: 'delegate these cgroup controllers to the engine (systemd: Delegate=yes)',
  };
}

function judgeRuntime(facts: HostFacts): Finding {
  const name = preferredRuntime(facts);
  if (name === undefined)
    return { subject: 'runtime', severity: 'error', state: 'neither crun nor runc is installed', mend: 'install crun' };
  return { subject: 'runtime', severity: 'ok', state: `${name} ${facts.programs[name]?.version ?? ''}`.trim() };
}

interface Requirement {
  readonly name: HostProgramName;
  readonly severity: 'warning' | 'error';
  readonly lack: string;
  /** Its package in Debian. */
  readonly package: string;
}
const REQUIRED: readonly Requirement[] = [
  { name: 'conmon', severity: 'error', lack: 'no container can run', package: 'conmon' },
  { name: 'mount', severity: 'error', lack: 'nothing can be mounted', package: 'mount' },
  { name: 'umount', severity: 'error', lack: 'nothing can be unmounted', package: 'mount' },
  { name: 'socat', severity: 'warning', lack: 'containers get no input', package: 'socat' },
  { name: 'ip', severity: 'warning', lack: 'containers get no network', package: 'iproute2' },
  { name: 'nft', severity: 'warning', lack: 'containers get no network', package: 'nftables' },
  {
    name: 'aardvark-dns',
    severity: 'warning',
    lack: 'containers cannot find each other by name',
    package: 'aardvark-dns',
  },
  { name: 'tar', severity: 'warning', lack: 'no changes can be committed', package: 'tar' },
];

function judgeProgram({ programs }: HostFacts, { name, severity, lack, package: debian }: Requirement): Finding {
  const program = programs[name];
  if (program !== undefined) return { subject: name, severity: 'ok', state: program.version ?? program.path };
  return { subject: name, severity, state: `not installed: ${lack}`, mend: `install ${debian}` };
}
