import { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { addContainerFlags, type ContainerFlags, containerRequest } from '../../../runtime/cli/container-request.ts';

const files = {
  read: (path: string) => (path === 'vars' ? '# comment\n\nA=1\nHOME\nB=two words\n' : 'l=1\n'),
  env: { HOME: '/root', ONLY: 'here' },
};

function request(...argv: readonly string[]): Record<string, unknown> {
  let body: Record<string, unknown> = {};
  const program = new Command('test').exitOverride();
  program.enablePositionalOptions();
  addContainerFlags(program.command('run').argument('<image>').argument('[command...]'))
    .option('-d, --detach')
    .passThroughOptions()
    .action((image: string, args: string[], flags: ContainerFlags) => {
      body = containerRequest(flags, image, args, files);
    });
  program.parse(['run', ...argv], { from: 'user' });
  return body;
}

/** Every flag of `docker run` on Linux. */
const DOCKER_FLAGS =
  'add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach detach-keys device device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops dns dns-option dns-search domainname entrypoint env env-file expose gpus group-add health-cmd health-interval health-retries health-start-interval health-start-period health-timeout hostname init interactive ip ip6 ipc label label-file link link-local-ip log-driver log-opt mac-address memory memory-reservation memory-swap memory-swappiness mount name network network-alias no-healthcheck oom-kill-disable oom-score-adj pid pids-limit platform privileged publish publish-all pull quiet read-only restart rm runtime security-opt shm-size sig-proxy stop-signal stop-timeout storage-opt sysctl tmpfs tty ulimit use-api-socket user userns uts volume volume-driver volumes-from workdir'.split(
    ' ',
  );
/** What this engine has no meaning for; the command line refuses it by name. */
const NOT_OFFERED: readonly string[] = ['link-local-ip', 'use-api-socket'];

describe('the create request of run', () => {
  it('keeps the flags of the command that runs inside', () => {
    expect(request('--rm', 'img', 'ls', '-l', '--rm')).toMatchObject({
      Image: 'img',
      Cmd: ['ls', '-l', '--rm'],
      HostConfig: { AutoRemove: true },
    });
  });

  it('reads seccomp profiles here, and says unconfined system paths by empty lists', () => {
    const { HostConfig } = request('--security-opt', 'seccomp=vars', '--security-opt', 'systempaths=unconfined', 'img');
    expect(HostConfig).toMatchObject({
      SecurityOpt: [`seccomp=${files.read('vars')}`],
      MaskedPaths: [],
      ReadonlyPaths: [],
    });
    expect(request('--security-opt', 'seccomp=unconfined', 'img')).toMatchObject({
      HostConfig: { SecurityOpt: ['seccomp=unconfined'] },
    });
  });

  // https://docs.docker.com/reference/cli/docker/container/run/
  it.each(DOCKER_FLAGS)('knows --%s', (flag) => {
    const declared = addContainerFlags(new Command('run')).options.map(({ long }) => long?.replace('--', ''));
    const elsewhere = ['detach', 'detach-keys', 'sig-proxy'];
    expect([...declared, ...elsewhere, ...NOT_OFFERED]).toContain(flag);
  });

  it('attaches what docker attaches', () => {
    expect(request('img')).toMatchObject({
      AttachStdin: false,
      AttachStdout: true,
      AttachStderr: true,
      OpenStdin: false,
      StdinOnce: false,
    });
    expect(request('-i', 'img')).toMatchObject({ AttachStdin: true, OpenStdin: true, StdinOnce: true });
    expect(request('-dit', 'img')).toMatchObject({
      AttachStdin: false,
      AttachStdout: false,
      OpenStdin: true,
      StdinOnce: false,
      Tty: true,
    });
    expect(request('-a', 'stderr', 'img')).toMatchObject({ AttachStdout: false, AttachStderr: true });
  });

  it.each<[readonly string[], Record<string, unknown>]>([
    [
      ['--env-file', 'vars', '-e', 'ONLY', '-e', 'ABSENT', '-e', 'C=3'],
      { Env: ['A=1', 'HOME=/root', 'B=two words', 'ONLY=here', 'C=3'] },
    ],
    [
      ['--entrypoint', 'sh', '-w', '/w', '-u', '1:2', '--hostname', 'h'],
      { Entrypoint: ['sh'], WorkingDir: '/w', User: '1:2', Hostname: 'h' },
    ],
    [['--entrypoint', ''], { Entrypoint: [''] }],
    [['-v', '/a:/b:ro', '-v', '/anon'], { HostConfig: { Binds: ['/a:/b:ro'] }, Volumes: { '/anon': {} } }],
    [
      ['-m', '64m', '--cpus', '0.5', '--pids-limit', '50'],
      { HostConfig: { Memory: 67108864, NanoCpus: 500000000, PidsLimit: 50 } },
    ],
    [
      ['--ulimit', 'nofile=100:200', '--ulimit', 'core=0'],
      {
        HostConfig: {
          Ulimits: [
            { Name: 'nofile', Soft: 100, Hard: 200 },
            { Name: 'core', Soft: 0, Hard: 0 },
          ],
        },
      },
    ],
    [['--restart', 'on-failure:3'], { HostConfig: { RestartPolicy: { Name: 'on-failure', MaximumRetryCount: 3 } } }],
    [
      ['-p', '127.0.0.1:8080:80', '-p', '53/udp'],
      {
        ExposedPorts: { '80/tcp': {}, '53/udp': {} },
        HostConfig: {
          PortBindings: {
            '80/tcp': [{ HostIp: '127.0.0.1', HostPort: '8080' }],
            '53/udp': [{ HostIp: '', HostPort: '' }],
          },
        },
      },
    ],
    [
      ['-p', '8000-8001:80-81'],
      {
        HostConfig: {
          PortBindings: { '80/tcp': [{ HostIp: '', HostPort: '8000' }], '81/tcp': [{ HostIp: '', HostPort: '8001' }] },
        },
      },
    ],
    [
      ['--mount', 'type=bind,source=/a,target=/b,readonly,bind-propagation=rslave'],
      {
        HostConfig: {
          Mounts: [
            { Type: 'bind', Source: '/a', Target: '/b', ReadOnly: true, BindOptions: { Propagation: 'rslave' } },
          ],
        },
      },
    ],
    [['--tmpfs', '/run:size=1m', '--tmpfs', '/x'], { HostConfig: { Tmpfs: { '/run': 'size=1m', '/x': '' } } }],
    [
      ['--device', '/dev/null:/dev/n:r', '--device', '/dev/zero:r'],
      {
        HostConfig: {
          Devices: [
            { PathOnHost: '/dev/null', PathInContainer: '/dev/n', CgroupPermissions: 'r' },
            { PathOnHost: '/dev/zero', PathInContainer: '/dev/zero', CgroupPermissions: 'r' },
          ],
        },
      },
    ],
    [
      ['--network', 'net', '--ip', '10.0.0.9', '--network-alias', 'db'],
      { NetworkingConfig: { EndpointsConfig: { net: { Aliases: ['db'], IPAMConfig: { IPv4Address: '10.0.0.9' } } } } },
    ],
    [
      ['--health-cmd', 'true', '--health-interval', '1m30s'],
      { Healthcheck: { Test: ['CMD-SHELL', 'true'], Interval: 90_000_000_000 } },
    ],
    [['--no-healthcheck'], { Healthcheck: { Test: ['NONE'] } }],
    [['-h', 'name'], { Hostname: 'name' }],
  ])('%j', (argv, expected) => {
    expect(request(...argv, 'img')).toMatchObject(expected);
  });

  it.each([
    [['--ulimit', 'x']],
    [['--restart', 'sometimes']],
    [['--restart', 'always:3']],
    [['-p', 'a:b']],
    [['-p', '80-82:80-81']],
    [['--mount', 'type=bind,nosuch=1,target=/b']],
    [['--mount', 'type=bind,source=/a']],
    [['-e', '=x']],
    [['-a', 'stdfoo']],
    [['-m', 'lots']],
    [['--stop-timeout', 'soon']],
  ])('refuses %j', (argv) => {
    expect(() => request(...argv, 'img')).toThrow(/cannot/);
  });
});
