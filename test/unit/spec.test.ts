import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ALL_CAPABILITIES, DEFAULT_CAPABILITIES } from '../../runtime/containers/capabilities.ts';
import { mergeImageConfig } from '../../runtime/containers/image-defaults.ts';
import { parseCreateRequest, parseExecRequest } from '../../runtime/containers/request.ts';
import { encodeSpec, execProcessOf, type OciSpec, type SpecInput, specOf } from '../../runtime/containers/spec.ts';
import type { ImageRunConfig } from '../../shared/oci.ts';

const FIXTURES = new URL('../fixtures/', import.meta.url).pathname;

interface Changes extends Partial<Omit<SpecInput, 'config' | 'hostConfig'>> {
  readonly image?: ImageRunConfig;
  readonly config?: Record<string, unknown>;
  readonly hostConfig?: Record<string, unknown>;
}

const HOST: SpecInput['host'] = {
  kernel: '6.18.4',
  architecture: 'x64',
  cgroupMode: 'v2',
  capabilityMask: '000001ffffffffff',
  hasSeccomp: true,
  thermalThrottlePaths: [],
  runtimeNamespaces: ['mount', 'network', 'uts', 'pid', 'ipc', 'cgroup'],
};

function inputOf({ image = {}, config, hostConfig, ...rest }: Changes = {}): SpecInput {
  const request = parseCreateRequest({ Cmd: ['sh'], Hostname: 'h', ...config, HostConfig: hostConfig });
  return {
    id: 'c1',
    config: mergeImageConfig(image, request.config),
    hostConfig: request.hostConfig,
    mounts: [],
    user: { uid: 0, gid: 0, additionalGids: [], home: '/root' },
    host: HOST,
    paths: {
      rootfs: '/s/rootfs',
      resolvConf: '/s/resolv.conf',
      hostname: '/s/hostname',
      hosts: '/s/hosts',
      init: '/usr/bin/catatonit',
    },
    cgroupParent: '/berth_t',
    network: { kind: 'private' },
    ...rest,
  };
}

const spec = (changes: Changes = {}): OciSpec => specOf(inputOf(changes));
const mountAt = (made: OciSpec, destination: string) => made.mounts.find((mount) => mount.destination === destination);
const namespaces = (made: OciSpec) => made.linux.namespaces.map(({ type }) => type);
const plain = (made: OciSpec): unknown => JSON.parse(encodeSpec(made));

describe('golden bundles', () => {
  const read = (path: string): unknown => JSON.parse(readFileSync(path, 'utf8'));
  for (const name of readdirSync(join(FIXTURES, 'bundles'))) {
    const file = (part: string) => join(FIXTURES, 'bundles', name, `${part}.json`);
    it(name, () => {
      const request = parseCreateRequest(read(file('request')));
      const host = read(file('host')) as SpecInput;
      const config = mergeImageConfig(read(file('image-config')) as ImageRunConfig, request.config);
      const text = JSON.stringify(
        JSON.parse(encodeSpec(specOf({ ...host, config, hostConfig: request.hostConfig }))),
        null,
        1,
      );
      if (process.env.UPDATE_GOLDEN === '1') writeFileSync(file('config'), `${text}\n`);
      expect(`${text}\n`).toBe(readFileSync(file('config'), 'utf8'));
    });
  }
});

/** Where we differ from dockerd on purpose. Paths are of the fields; `*` is any index. */
const DIFFERENCES: Readonly<Record<string, string>> = {
  ociVersion: 'the version that crun 1.8 and runc 1.1 speak',
  'root.path': 'our state directory',
  'linux.cgroupsPath': 'our cgroup parent',
  'process.env': 'HOME is set here, so that the runtime need not read the passwd file of an image (CVE-2024-9676)',
  'linux.namespaces': 'a time namespace only where the runtime can make one',
  'linux.resources': 'the same rules written once: dockerd writes its device list twice and empty objects for no limit',
  mounts:
    'paths of our files and init program, which is mounted after what it might lie in; single files are ro, not rro: nothing lies below them',
  'linux.seccomp.syscalls': 'the same rules in another order',
  'linux.devices': 'the nodes of that host',
  hostname: 'an id',
};

describe('dockerd 29.7 generates the same', () => {
  const host: SpecInput['host'] = { ...HOST, cgroupMode: 'hybrid', capabilityMask: '000001fffeffffff' };
  const image: ImageRunConfig = { Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'] };
  const command = { Cmd: ['sleep', '100'] };
  const nodes = [
    { path: '/dev/x', type: 'c', major: 1, minor: 2, mode: 0o644, uid: 0, gid: 0, access: 'rwm' },
  ] as const;
  const cases: Record<string, SpecInput> = {
    default: inputOf({ host, image, config: command }),
    limited: inputOf({
      host,
      image,
      config: { ...command, Hostname: 'h1' },
      user: { uid: 1000, gid: 1000, additionalGids: [], home: '/' },
      hostConfig: {
        Memory: 64 * 2 ** 20,
        NanoCpus: 5e8,
        PidsLimit: 50,
        ReadonlyRootfs: true,
        Tmpfs: { '/scratch': '' },
        CapDrop: ['ALL'],
        CapAdd: ['NET_BIND_SERVICE'],
        SecurityOpt: ['no-new-privileges'],
        Ulimits: [{ Name: 'nofile', Soft: 100, Hard: 200 }],
        ShmSize: 2 ** 20,
        Sysctls: { 'net.core.somaxconn': '99' },
        Init: true,
      },
    }),
    privileged: inputOf({ host, image, config: command, hostConfig: { Privileged: true }, devices: nodes }),
    tty: inputOf({ host, image, config: { ...command, Tty: true, WorkingDir: '/tmp', Env: ['A=1'] } }),
  };
  for (const [name, input] of Object.entries(cases)) {
    it(name, () => {
      const recorded = JSON.parse(
        readFileSync(join(FIXTURES, `oci-config/docker-29.7-${name}.json`), 'utf8'),
      ) as OciSpec;
      const ours = specOf(input);
      const unexplained = differencesOf(plain(ours), recorded, '').filter(
        (path) => !Object.keys(DIFFERENCES).some((known) => path === known || path.startsWith(`${known}.`)),
      );
      expect(unexplained).toEqual([]);

      // The explained ones, compared for what they have in common.
      expect(ours.process.env.filter((entry) => !entry.startsWith('H'))).toEqual(
        recorded.process.env.filter((entry) => !entry.startsWith('H')),
      );
      expect(namespaces(ours)).toEqual(namespaces(recorded).filter((type) => type !== 'time'));
      expect(ours.mounts.map(({ destination }) => destination).sort()).toEqual(
        recorded.mounts.map(({ destination }) => destination).sort(),
      );
      for (const mount of recorded.mounts.filter(({ type }) => type !== 'bind'))
        expect(mountAt(ours, mount.destination)).toEqual(mount);
      expect(sorted(ours.linux.seccomp?.syscalls)).toEqual(sorted(recorded.linux.seccomp?.syscalls));
      const { devices: _devices, ...limits } = ours.linux.resources;
      expect(recorded.linux.resources).toMatchObject(limits);
      if (name !== 'privileged')
        expect(ours.linux.resources.devices).toEqual(recorded.linux.resources.devices?.slice(0, 8));
    });
  }
});

function sorted(list: readonly unknown[] | undefined): readonly string[] {
  return (list ?? [])
    .map((item) =>
      JSON.stringify(item, (_key, value: unknown) =>
        isRecord(value) ? Object.fromEntries(Object.entries(value).sort()) : value,
      ),
    )
    .sort();
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Paths at which two JSON values differ; lists are compared whole. */
function differencesOf(a: unknown, b: unknown, path: string): readonly string[] {
  if (!isRecord(a) || !isRecord(b)) return JSON.stringify(a) === JSON.stringify(b) ? [] : [path];
  return [...new Set([...Object.keys(a), ...Object.keys(b)])].flatMap((key) =>
    differencesOf(a[key], b[key], path === '' ? key : `${path}.${key}`),
  );
}

describe('process', () => {
  it('CVE-2022-24769: inheritable and ambient capabilities stay empty', () => {
    expect(Object.keys(spec().process.capabilities)).toEqual(['bounding', 'effective', 'permitted']);
    expect(spec().process.capabilities.effective).toEqual(DEFAULT_CAPABILITIES);
  });

  it.each([
    [
      'adds, in any spelling',
      ['sys_admin', 'CAP_NET_ADMIN'],
      [],
      [...DEFAULT_CAPABILITIES, 'CAP_SYS_ADMIN', 'CAP_NET_ADMIN'],
    ],
    ['drops', [], ['chown', 'KILL'], DEFAULT_CAPABILITIES.filter((name) => !['CAP_CHOWN', 'CAP_KILL'].includes(name))],
    ['drops all but', ['CHOWN'], ['ALL'], ['CAP_CHOWN']],
    ['adds all but', ['ALL'], ['CHOWN'], ALL_CAPABILITIES.filter((name) => name !== 'CAP_CHOWN')],
  ])('capabilities: %s', (_name, CapAdd, CapDrop, expected) => {
    expect(spec({ hostConfig: { CapAdd, CapDrop } }).process.capabilities.bounding).toEqual(expected);
  });

  it('gives only capabilities that the host has', () => {
    const host = { ...HOST, capabilityMask: '000001fffeffffff' };
    expect(spec({ host, hostConfig: { Privileged: true } }).process.capabilities.bounding).not.toContain(
      'CAP_SYS_RESOURCE',
    );
    expect(() => spec({ host, hostConfig: { CapAdd: ['SYS_RESOURCE'] } })).toThrow(/CAP_SYS_RESOURCE: this host/);
    expect(() => spec({ hostConfig: { CapAdd: ['NO_SUCH'] } })).toThrow('unknown capability: "CAP_NO_SUCH"');
  });

  it('CVE-2022-36109, CVE-2022-2989, CVE-2022-2990, CVE-2023-25173: the primary group is among the additional ones', () => {
    const user = { uid: 5, gid: 6, additionalGids: [7, 6], home: '/' };
    expect(spec({ user }).process.user).toEqual({ uid: 5, gid: 6, additionalGids: [6, 7] });
  });

  it('CVE-2026-57231: an entry without = takes nothing from anywhere, it unsets', () => {
    const made = spec({
      image: { Env: ['SECRET', 'PATH=/bin', 'A=image', '=x'] },
      config: { Env: ['A=1', 'B=2', 'B', 'C='] },
    });
    expect(made.process.env).toEqual(['PATH=/bin', 'HOSTNAME=h', 'A=1', 'C=', 'HOME=/root']);
  });

  it('CVE-2024-21626: refuses a working directory among a process’s descriptors', () => {
    for (const WorkingDir of ['/proc/self/fd/8', '/proc/./self/fd', '/x/../proc/1/root/etc'])
      expect(() => spec({ config: { WorkingDir } })).toThrow(/working directory/);
    expect(() => spec({ config: { WorkingDir: 'relative' } })).toThrow('needs to be an absolute path');
    expect(spec({ config: { WorkingDir: '/a//b/../c/' } }).process.cwd).toBe('/a/c');
  });

  it('writes unlimited as the 64-bit number that it is', () => {
    const made = spec({ hostConfig: { Ulimits: [{ Name: 'core', Soft: 0, Hard: -1 }] } });
    expect(encodeSpec(made)).toContain('"rlimits":[{"type":"RLIMIT_CORE","hard":18446744073709551615,"soft":0}]');
    expect(() => spec({ hostConfig: { Ulimits: [{ Name: 'nofile', Soft: 3, Hard: 2 }] } })).toThrow('soft limit');
    expect(() => spec({ hostConfig: { Ulimits: [{ Name: 'nofiles', Soft: 1, Hard: 2 }] } })).toThrow(
      'invalid ulimit type',
    );
  });

  it('an exec is the same process with what it asks for instead', () => {
    const input = inputOf({
      config: { Env: ['A=1'], WorkingDir: '/w', Tty: true },
      hostConfig: { SecurityOpt: ['no-new-privileges'] },
    });
    const exec = {
      AttachStdin: false,
      AttachStdout: true,
      AttachStderr: true,
      DetachKeys: '',
      Tty: false,
      Cmd: ['id'],
      Env: ['A=2'],
      User: '',
      WorkingDir: '',
      Privileged: false,
      ConsoleSize: undefined,
    };
    const user = { uid: 9, gid: 9, additionalGids: [], home: '/nine' };
    const made = execProcessOf(input, exec, user);
    expect(made).toMatchObject({ args: ['id'], cwd: '/w', noNewPrivileges: true, user: { uid: 9 } });
    expect(made.terminal).toBeUndefined();
    expect(made.env).toEqual(expect.arrayContaining(['A=2', 'HOME=/nine']));
    expect(execProcessOf(input, { ...exec, Privileged: true }, user).capabilities.bounding).toEqual(ALL_CAPABILITIES);
  });
});

describe('namespaces and cgroups', () => {
  it.each<[string, Changes, string, boolean]>([
    ['cgroup is private on v2', {}, 'cgroup', true],
    ['cgroup is the host’s on v1', { host: { ...HOST, cgroupMode: 'v1' } }, 'cgroup', false],
    ['cgroup as asked', { hostConfig: { CgroupnsMode: 'host' } }, 'cgroup', false],
    ['network host', { network: { kind: 'host' } }, 'network', false],
    ['pid host', { hostConfig: { PidMode: 'host' } }, 'pid', false],
    ['uts host', { hostConfig: { UTSMode: 'host' } }, 'uts', false],
    ['ipc host', { hostConfig: { IpcMode: 'host' } }, 'ipc', false],
    ['ipc none', { hostConfig: { IpcMode: 'none' } }, 'ipc', true],
    ['no time namespace by a runtime that cannot', {}, 'time', false],
    ['time where the runtime can', { host: { ...HOST, runtimeNamespaces: ['time'] } }, 'time', true],
  ])('%s', (_name, changes, type, isMade) => {
    expect(namespaces(spec(changes)).includes(type)).toBe(isMade);
  });

  it('joins a namespace by its path', () => {
    const made = spec({
      network: { kind: 'path', path: '/run/netns/x' },
      hostConfig: { PidMode: 'container:a', IpcMode: 'container:a' },
      joinedPid: '/proc/7/ns/pid',
      joinedIpc: '/proc/7/ns/ipc',
      sharedMemory: '/run/shm/a',
    });
    expect(made.mounts).toContainEqual(
      expect.objectContaining({ destination: '/dev/shm', type: 'bind', source: '/run/shm/a' }),
    );
    expect(made.linux.namespaces).toEqual(
      expect.arrayContaining([
        { type: 'network', path: '/run/netns/x' },
        { type: 'pid', path: '/proc/7/ns/pid' },
        { type: 'ipc', path: '/proc/7/ns/ipc' },
      ]),
    );
  });

  it.each<[string, Record<string, unknown>, RegExp]>([
    ['IpcMode', { IpcMode: 'shared' }, /invalid IPC mode: shared/],
    ['another UTS', { UTSMode: 'container:a' }, /invalid UTS mode: container:a/],
    ['PidMode', { PidMode: 'container:gone' }, /container:gone/],
    ['UsernsMode', { UsernsMode: 'keep-id' }, /keep-id/],
  ])('refuses %s', (_name, hostConfig, message) => {
    expect(() => spec({ hostConfig })).toThrow(message);
  });

  it('puts the cgroup below the parent that was asked for', () => {
    expect(spec().linux.cgroupsPath).toBe('/berth_t/c1');
    expect(spec({ hostConfig: { CgroupParent: 'a/../b/' } }).linux.cgroupsPath).toBe('/b/c1');
  });

  it('refuses on v2 what only v1 has', () => {
    for (const hostConfig of [{ OomKillDisable: true }, { MemorySwappiness: 5 }, { CpuRealtimeRuntime: 1 }]) {
      expect(() => spec({ hostConfig })).toThrow(/cgroup v2/);
      expect(() => spec({ hostConfig, host: { ...HOST, cgroupMode: 'v1' } })).not.toThrow();
    }
  });

  it('translates limits', () => {
    const hostConfig = {
      Memory: 100,
      MemoryReservation: 50,
      MemorySwap: -1,
      CpuShares: 7,
      CpusetCpus: '0-1',
      BlkioWeight: 10,
      BlkioDeviceReadBps: [{ Path: '/dev/a', Rate: 9 }],
      PidsLimit: -1,
      DeviceCgroupRules: ['c 7:* mr'],
    };
    const { resources } = spec({ hostConfig, blockDevices: { '/dev/a': { major: 8, minor: 1 } } }).linux;
    expect(resources).toMatchObject({
      memory: { limit: 100, reservation: 50, swap: -1 },
      cpu: { shares: 7, cpus: '0-1' },
      blockIO: { weight: 10, throttleReadBpsDevice: [{ major: 8, minor: 1, rate: 9 }] },
    });
    expect(resources.pids).toBeUndefined();
    expect(resources.devices?.at(-1)).toEqual({ allow: true, type: 'c', major: 7, access: 'mr' });
    expect(() => spec({ hostConfig })).toThrow('"/dev/a": it is not a block device');
    expect(() => spec({ hostConfig: { DeviceCgroupRules: ['c 7'] } })).toThrow(
      "invalid device cgroup rule format: 'c 7'",
    );
  });

  it.each([
    ['kernel.hostname', {}, /whole host/],
    ['vm.swappiness', {}, /whole host/],
    ['net.core.somaxconn', { network: { kind: 'host' } }, /host network/],
    ['kernel.shmmax', { hostConfig: { IpcMode: 'host' } }, /host ipc/],
  ] as const)('refuses the sysctl %s %j', (name, changes, message) => {
    const hostConfig = { ...('hostConfig' in changes ? changes.hostConfig : {}), Sysctls: { [name]: '1' } };
    expect(() => spec({ ...changes, hostConfig })).toThrow(message);
  });
});

describe('mounts', () => {
  const bind = (destination: string, writable = true) =>
    ({ type: 'bind', source: '/src', destination, mode: '', writable, propagation: '' }) as const;

  it('makes parents first, and lets the user replace what the engine would mount', () => {
    const made = spec({ mounts: [bind('/a/b'), bind('/a'), bind('/etc/hosts'), bind('/dev')] });
    const order = made.mounts.map(({ destination }) => destination);
    expect(order.indexOf('/a')).toBeLessThan(order.indexOf('/a/b'));
    expect(order.filter((path) => path === '/etc/hosts')).toHaveLength(1);
    expect(order.filter((path) => path.startsWith('/dev/'))).toEqual([]);
    expect(() => spec({ mounts: [bind('/')] })).toThrow("destination can't be '/'");
  });

  it('makes read-only binds read-only all the way down', () => {
    expect(mountAt(spec({ mounts: [bind('/a', false)] }), '/a')?.options).toEqual(['rbind', 'rro', 'rprivate']);
    const old = { ...HOST, kernel: '5.10.0' };
    expect(mountAt(spec({ host: old, mounts: [bind('/a', false)] }), '/a')?.options).toEqual([
      'rbind',
      'ro',
      'rprivate',
    ]);
  });

  it('binds one mount alone when that was asked for: any `r` would bring those below it along', () => {
    const hostConfig = {
      Mounts: [{ Type: 'bind', Source: '/src', Target: '/a', BindOptions: { NonRecursive: true } }],
    };
    const options = (propagation: string) =>
      mountAt(spec({ hostConfig, mounts: [{ ...bind('/a', false), propagation }] }), '/a')?.options;
    expect(options('')).toEqual(['bind', 'ro', 'private']);
    expect(options('rslave')).toEqual(['bind', 'ro', 'slave']);
  });

  it('shares the root when a bind is shared', () => {
    expect(spec({ mounts: [{ ...bind('/a'), propagation: 'rshared' }] }).linux.rootfsPropagation).toBe('shared');
    expect(spec({ mounts: [{ ...bind('/a'), propagation: 'slave' }] }).linux.rootfsPropagation).toBe('rslave');
    expect(spec().linux.rootfsPropagation).toBeUndefined();
  });

  it('takes tmpfs options and refuses others', () => {
    const made = spec({
      hostConfig: {
        Tmpfs: { '/t': 'exec,size=1m,mode=700,ro' },
        Mounts: [{ Type: 'tmpfs', Target: '/u', TmpfsOptions: { SizeBytes: 5, Mode: 0o750 } }],
      },
    });
    expect(mountAt(made, '/t')?.options).toEqual(['nosuid', 'nodev', 'exec', 'size=1m', 'mode=700', 'ro', 'rprivate']);
    expect(mountAt(made, '/u')?.options).toEqual(['noexec', 'nosuid', 'nodev', 'size=5', 'mode=750', 'rprivate']);
    expect(() => spec({ hostConfig: { Tmpfs: { '/t': 'lowerdir=/etc' } } })).toThrow(
      'invalid tmpfs option "lowerdir=/etc"',
    );
  });

  it('CVE-2023-25809: only a privileged container writes to the cgroups', () => {
    expect(mountAt(spec(), '/sys/fs/cgroup')?.options).toContain('ro');
    expect(mountAt(spec({ hostConfig: { Privileged: true } }), '/sys/fs/cgroup')?.options).not.toContain('ro');
    expect(
      mountAt(spec({ hostConfig: { SecurityOpt: ['writable-cgroups=true'] } }), '/sys/fs/cgroup')?.options,
    ).not.toContain('ro');
  });

  it('masks what leaks, unless told otherwise', () => {
    const host = { ...HOST, thermalThrottlePaths: ['/sys/devices/system/cpu/cpu0/thermal_throttle'] };
    expect(spec({ host }).linux.maskedPaths).toEqual(
      expect.arrayContaining(['/proc/kcore', '/sys/devices/virtual/powercap', ...host.thermalThrottlePaths]),
    );
    expect(spec({ hostConfig: { MaskedPaths: [], ReadonlyPaths: [] } }).linux).toMatchObject({
      maskedPaths: [],
      readonlyPaths: [],
    });
    expect(spec({ hostConfig: { Privileged: true } }).linux.maskedPaths).toBeUndefined();
  });
});

describe('security options', () => {
  const allows = (made: OciSpec, call: string) =>
    made.linux.seccomp?.syscalls.some(
      ({ names, args, action }) => names.includes(call) && args === undefined && action === 'SCMP_ACT_ALLOW',
    );

  it('unlocks system calls with capabilities', () => {
    expect(allows(spec(), 'mount')).toBe(false);
    expect(allows(spec({ hostConfig: { CapAdd: ['SYS_ADMIN'] } }), 'mount')).toBe(true);
    expect(allows(spec({ hostConfig: { CapAdd: ['SYS_ADMIN'] } }), 'clone3')).toBe(true);
  });

  it('CVE-2026-31431: no AF_ALG sockets', () => {
    const families = spec()
      .linux.seccomp?.syscalls.filter(({ names }) => names.includes('socket'))
      .map(({ args }) => args?.[0]);
    expect(families).toEqual([
      { index: 0, value: 38, op: 'SCMP_CMP_LT' },
      { index: 0, value: 39, op: 'SCMP_CMP_EQ' },
      { index: 0, value: 40, op: 'SCMP_CMP_GT' },
    ]);
  });

  it('names the architecture and its relatives', () => {
    expect(spec().linux.seccomp?.architectures).toEqual(['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86', 'SCMP_ARCH_X32']);
    const arm = spec({ host: { ...HOST, architecture: 'arm64' } });
    expect(arm.linux.seccomp?.architectures).toEqual(['SCMP_ARCH_AARCH64', 'SCMP_ARCH_ARM']);
    expect([allows(arm, 'cacheflush'), allows(arm, 'modify_ldt')]).toEqual([true, false]);
  });

  it.each<[string, string, RegExp]>([
    ['a profile that is not JSON', 'seccomp={', /not JSON/],
    ['a profile with unknown fields', 'seccomp={"defaultAction":"SCMP_ACT_ALLOW","x":1}', /profile/],
    ['an unknown option', 'nonsense=1', /invalid --security-opt/],
    ['a label', 'label=type:x', /SELinux/],
    ['a wrong boolean', 'no-new-privileges=maybe', /invalid --security-opt/],
  ])('refuses %s', (_name, option, message) => {
    expect(() => spec({ hostConfig: { SecurityOpt: [option] } })).toThrow(message);
  });

  it('takes profiles of its own, and none', () => {
    const profile = {
      defaultAction: 'SCMP_ACT_ALLOW',
      architectures: ['SCMP_ARCH_X86_64'],
      syscalls: [{ name: 'chmod', action: 'SCMP_ACT_ERRNO' }],
    };
    const SecurityOpt = [`seccomp=${JSON.stringify(profile)}`];
    for (const Privileged of [false, true])
      expect(spec({ hostConfig: { SecurityOpt, Privileged } }).linux.seccomp).toEqual({
        defaultAction: 'SCMP_ACT_ALLOW',
        architectures: ['SCMP_ARCH_X86_64'],
        syscalls: [{ names: ['chmod'], action: 'SCMP_ACT_ERRNO' }],
      });
    expect(spec({ hostConfig: { SecurityOpt: ['seccomp=unconfined', 'apparmor=unconfined'] } })).toMatchObject({
      process: { apparmorProfile: 'unconfined' },
    });
    expect(spec({ hostConfig: { SecurityOpt: ['seccomp=unconfined'] } }).linux.seccomp).toBeUndefined();
  });
});

describe('advisories about /proc and /sys', () => {
  it.each([
    ['CVE-2017-16539', '/proc/scsi'],
    ['CVE-2018-10892', '/proc/acpi'],
    ['CVE-2016-9962', '/proc/kcore'],
    ['GHSA-6fw5-f8r9-fgfm', '/proc/interrupts'],
    ['GHSA-jq35-85cj-fj4p', '/sys/devices/virtual/powercap'],
  ])('%s: %s is masked', (_name, path) => {
    expect(spec().linux.maskedPaths).toContain(path);
  });

  it('CVE-2025-52881: what writes to the kernel is read-only', () => {
    expect(spec().linux.readonlyPaths).toEqual(expect.arrayContaining(['/proc/sys', '/proc/sysrq-trigger']));
  });

  it.each(['/proc', '/proc/', '/x/../proc', '/proc/self/attr', '/proc/sys'])(
    'CVE-2019-16884: nothing pretends to be %s',
    (destination) => {
      const tmpfs = () => spec({ hostConfig: { Tmpfs: { [destination]: '' } } });
      expect(tmpfs).toThrow('cannot be mounted because it is inside /proc');
    },
  );

  it('but the host’s own /proc, and files that only tell of limits, can be mounted', () => {
    const bind = (source: string, destination: string) =>
      ({ type: 'bind', source, destination, mode: '', writable: true, propagation: 'rprivate' }) as const;
    const made = spec({ mounts: [bind('/proc', '/proc'), bind('/lxcfs/meminfo', '/proc/meminfo')] });
    expect(mountAt(made, '/proc')?.source).toBe('/proc');
    expect(mountAt(made, '/proc/meminfo')?.source).toBe('/lxcfs/meminfo');
  });

  it('CVE-2026-30892: the user of an exec goes to the runtime as numbers, in a file', () => {
    const exec = parseExecRequest({ Cmd: ['id'], User: '1' });
    const made = execProcessOf(inputOf(), exec, { uid: 1, gid: 1, additionalGids: [], home: '/' });
    expect(made.user).toEqual({ uid: 1, gid: 1, additionalGids: [1] });
  });
});
