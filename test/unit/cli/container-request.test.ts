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

describe('the create request of run', () => {
  it('keeps the flags of the command that runs inside', () => {
    expect(request('--rm', 'img', 'ls', '-l', '--rm')).toMatchObject({
      Image: 'img',
      Cmd: ['ls', '-l', '--rm'],
      HostConfig: { AutoRemove: true },
    });
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
