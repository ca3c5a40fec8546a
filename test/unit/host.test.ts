import { describe, expect, it } from 'vitest';
import { cgroupLayout } from '../../runtime/kernel/cgroups.ts';
import { chooseLayerBackend, type HostFacts, imageMounting } from '../../runtime/kernel/host.ts';
import { judgeHost } from '../../runtime/kernel/host-findings.ts';
import { parseMountinfo } from '../../runtime/kernel/mount.ts';
import { isAtLeast } from '../../runtime/kernel/versions.ts';

const program = { path: '/usr/bin/x', version: '1.0' };
const good: HostFacts = {
  kernel: '6.18.4-amd64',
  architecture: 'x64',
  privilege: 'full',
  cpuCount: 2,
  memoryBytes: 4e9,
  filesystems: { erofs: 'present', overlay: 'present' },
  cgroups: {
    mode: 'v2',
    trees: [{ path: '/sys/fs/cgroup', version: 2, controllers: [] }],
    controllers: ['cpuset', 'cpu', 'io', 'memory', 'pids'],
    strayControllers: [],
    isWritable: true,
    rootProcesses: 0,
    limitsSwap: true,
  },
  hasSeccomp: true,
  hasApparmor: false,
  hasUserNamespaces: true,
  capabilityMask: '000001ffffffffff',
  canLockMemory: true,
  thermalThrottlePaths: [],
  programs: {
    crun: program,
    conmon: program,
    socat: program,
    ip: program,
    nft: program,
    'aardvark-dns': program,
    mount: program,
    umount: program,
    perl: program,
    tar: program,
  },
};

describe('judging a host', () => {
  it('finds nothing wrong with a good one', () => {
    expect(judgeHost(good).filter(({ severity }) => severity !== 'ok')).toEqual([]);
  });

  it.each<[string, Partial<HostFacts>, string, string, RegExp]>([
    ['no root', { privilege: 'user' }, 'privilege', 'error', /as root of the host/],
    ['the root of a container', { privilege: 'confined' }, 'privilege', 'error', /privileged container/],
    ['the root of a user namespace', { privilege: 'namespace' }, 'privilege', 'error', /as root of the host/],
    ['no overlayfs', { filesystems: { erofs: 'present', overlay: 'absent' } }, 'overlay', 'error', /modprobe overlay/],
    ['no EROFS', { filesystems: { erofs: 'absent', overlay: 'present' } }, 'layer images', 'note', /modprobe erofs/],
    ['an old kernel', { kernel: '6.1.0-38-amd64' }, 'layer images', 'note', /6\.12/],
    ['no runtime', { programs: {} }, 'runtime', 'error', /install crun/],
    ['no conmon', { programs: {} }, 'conmon', 'error', /install conmon/],
    ['no cgroups', { cgroups: { ...good.cgroups, mode: 'none', trees: [] } }, 'cgroups', 'error', /mount -t cgroup2/],
    ['read-only cgroups', { cgroups: { ...good.cgroups, isWritable: false } }, 'cgroups', 'error', /privileged/],
    [
      'a controller that the v2 tree of a hybrid host keeps',
      { cgroups: { ...good.cgroups, mode: 'hybrid', strayControllers: ['hugetlb'] } },
      'cgroups',
      'error',
      /mkdir -p \/sys\/fs\/cgroup\/hugetlb && mount -t cgroup -o hugetlb cgroup \/sys\/fs\/cgroup\/hugetlb/,
    ],
    [
      'other processes in the root of a container’s v2 tree',
      { cgroups: { ...good.cgroups, rootProcesses: 2 } },
      'cgroups',
      'warning',
      /mkdir -p \/sys\/fs\/cgroup\/init/,
    ],
    ['crun without the right to lock memory', { canLockMemory: false }, 'cgroups', 'error', /CAP_SYS_RESOURCE/],
    [
      'no memory controller',
      { cgroups: { ...good.cgroups, controllers: ['cpu', 'cpuset', 'io', 'pids'] } },
      'resource limits',
      'warning',
      /delegate/,
    ],
    ['no seccomp', { hasSeccomp: false }, 'seccomp', 'warning', /CONFIG_SECCOMP/],
  ])('%s', (_name, change, subject, severity, mend) => {
    const finding = judgeHost({ ...good, ...change }).find((one) => one.subject === subject);
    expect(finding).toMatchObject({ severity, mend: expect.stringMatching(mend) });
  });

  it.each([
    ['6.12', '6.12', true],
    ['6.12.0-rc1', '6.12', true],
    ['6.9.12', '6.12', false],
    ['10.0', '6.12', true],
    ['6', '6.0.1', false],
  ])('%s is at least %s: %s', (have, want, expected) => {
    expect(isAtLeast(have, want)).toBe(expected);
  });

  it('mounts images from files only where kernel and host both can', () => {
    expect(imageMounting(good)).toBe('file');
    expect(imageMounting({ ...good, programs: {} })).toBe('loop');
  });

  it('keeps layers as asked, and refuses images that the kernel cannot mount', () => {
    const without: HostFacts = { ...good, filesystems: { erofs: 'absent', overlay: 'present' } };
    expect(chooseLayerBackend('auto', good)).toBe('erofs');
    expect(chooseLayerBackend('auto', without)).toBe('directory');
    expect(chooseLayerBackend('directory', good)).toBe('directory');
    expect(() => chooseLayerBackend('erofs', without)).toThrow('--layer-backend auto');
  });
});

describe('cgroup layouts', () => {
  const layout = (lines: readonly string[]) => cgroupLayout(parseMountinfo(Buffer.from(lines.join('\n'))));
  const v2 = '31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate';
  const cpu = '32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct';
  const systemd = '33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd';
  const unified = '34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw';
  it.each([
    ['none', []],
    ['v2', [v2]],
    ['v1', [cpu, systemd]],
    ['hybrid', [cpu, systemd, unified]],
  ])('%s', (mode, lines) => {
    expect(layout(lines).mode).toBe(mode);
  });
  it('names the controllers of each tree and takes a tree once', () => {
    const again = '35 31 0:29 / /sys/fs/cgroup/again rw - cgroup cgroup rw,cpu,cpuacct';
    expect(layout([cpu, systemd, again]).trees).toEqual([
      { path: '/sys/fs/cgroup/cpu,cpuacct', version: 1, controllers: ['cpu', 'cpuacct'] },
      { path: '/sys/fs/cgroup/systemd', version: 1, controllers: ['name=systemd'] },
    ]);
  });
});
