import { describe, expect, it } from 'vitest';
import { planContainer } from '../../runtime/containers/create-plan.ts';
import { detailsPrefix, planLog } from '../../runtime/containers/log-options.ts';
import { parseCreateRequest, parseExecRequest, parseUpdateRequest } from '../../runtime/containers/request.ts';
import { parseSignal } from '../../shared/signals.ts';

const host = {
  cpus: 2,
  cgroupVersion: 1,
  runtimeName: 'crun',
  hostname: 'host',
  thermalThrottlePaths: ['/sys/devices/system/cpu/cpu0/thermal_throttle'],
  defaultNetwork: 'bridge',
} as const;
const ID = 'abcdef0123456789'.repeat(4);
const plan = (body: Record<string, unknown>, image = {}) =>
  planContainer(parseCreateRequest({ Image: 'i', Cmd: ['true'], ...body }), image, {
    id: ID,
    host,
    mountsOf: () => [],
  });

describe('masked and read-only paths', () => {
  it('are written out, so that inspect tells them', () => {
    const { MaskedPaths, ReadonlyPaths } = plan({}).hostConfig;
    expect(MaskedPaths).toEqual(expect.arrayContaining(['/proc/kcore', ...host.thermalThrottlePaths]));
    expect(ReadonlyPaths).toContain('/proc/sys');
  });

  it('are none for a privileged container, and what the client wants otherwise', () => {
    expect(plan({ HostConfig: { Privileged: true } }).hostConfig.MaskedPaths).toBeUndefined();
    expect(plan({ HostConfig: { MaskedPaths: [] } }).hostConfig.MaskedPaths).toEqual([]);
  });
});

describe('parseCreateRequest', () => {
  it('takes what docker run sends without flags', () => {
    const request = parseCreateRequest({
      Hostname: '',
      Cmd: null,
      Entrypoint: null,
      Image: 'i',
      Volumes: {},
      HostConfig: {
        NetworkMode: 'default',
        Binds: null,
        PortBindings: {},
        ConsoleSize: [24, 80],
        LogConfig: { Type: '', Config: {} },
      },
      NetworkingConfig: {
        EndpointsConfig: { default: { IPAMConfig: null, Aliases: null, DriverOpts: {}, MacAddress: '' } },
      },
      name: 'what dockerode sends along',
    });
    expect(request.config.Cmd).toBeNull();
    expect(request.hostConfig).toMatchObject({
      Binds: [],
      RestartPolicy: { Name: 'no' },
      LogConfig: { Type: 'json-file' },
    });
  });

  it('takes a command of one word without a list', () => {
    expect(parseCreateRequest({ Image: 'i', Cmd: 'ls', Entrypoint: '' }).config).toMatchObject({
      Cmd: ['ls'],
      Entrypoint: [''],
    });
  });

  it.each([
    [{ HostConfig: { Mounts: [{ Type: 'image', Target: '/data' }] } }, 'image mount at "/data"'],
    [{ HostConfig: { StorageOpt: { size: '1g' } } }, '--storage-opt'],
  ])('refuses by name what is not there: %j', (body, words) => {
    expect(() => parseCreateRequest({ Image: 'i', ...body })).toThrow(words);
    try {
      parseCreateRequest({ Image: 'i', ...body });
    } catch (error) {
      expect(error).toMatchObject({ kind: 'unsupported' });
    }
  });

  it('names the field that has another form', () => {
    expect(() => parseCreateRequest({ Image: 'i', HostConfig: { Memory: '64m' } })).toThrow('HostConfig.Memory');
  });
});

it.each([
  [{ Memory: 1, CpusetCpus: null, CpuShares: 0 }, { Memory: 1 }],
  // What docker update --memory sends.
  [
    { CpuShares: 0, Memory: 64e6, CgroupParent: '', Devices: null, RestartPolicy: { Name: '', MaximumRetryCount: 0 } },
    { Memory: 64e6 },
  ],
  [{ RestartPolicy: { Name: 'always' } }, { RestartPolicy: { Name: 'always', MaximumRetryCount: 0 } }],
  [
    { PidsLimit: -2, MemorySwap: -1 },
    { PidsLimit: 0, MemorySwap: -1 },
  ],
  [{ PidsLimit: null }, {}],
])('changes by update %j only %j', (body, changes) => {
  expect(parseUpdateRequest(body)).toEqual(changes);
});

it.each([{ CgroupParent: '/elsewhere' }, { Devices: [{ PathOnHost: '/dev/null' }] }])('does not update %j', (body) => {
  expect(() => parseUpdateRequest(body)).toThrow(`${Object.keys(body)[0]} cannot change`);
});

it('wants a command for an exec', () => {
  expect(() => parseExecRequest({ Cmd: [] })).toThrow('no exec command specified');
  expect(parseExecRequest({ cmd: ['a'], detachKeys: 'ctrl-p' })).toMatchObject({ Cmd: ['a'], DetachKeys: 'ctrl-p' });
});

describe('planContainer', () => {
  it('merges over the image and fills in what docker fills in', () => {
    const { config, hostConfig, mountPlan } = plan(
      { Env: ['A=1'], HostConfig: { Memory: 64e6, NetworkMode: 'default' } },
      { Env: ['A=0', 'B=2'], Labels: { from: 'image' }, Volumes: { '/data': {} }, StopSignal: 'SIGQUIT' },
    );
    expect(config).toMatchObject({
      Hostname: ID.slice(0, 12),
      Env: ['A=1', 'B=2'],
      Labels: { from: 'image' },
      StopSignal: 'SIGQUIT',
    });
    expect(hostConfig).toMatchObject({
      MemorySwap: 128e6,
      ShmSize: 67_108_864,
      IpcMode: 'private',
      NetworkMode: 'bridge',
      CgroupnsMode: 'host',
      Runtime: 'crun',
    });
    expect(mountPlan.volumes).toMatchObject([{ name: '', destination: '/data' }]);
  });

  it.each([
    [{ Cmd: [] }, 'no command specified'],
    [{ WorkingDir: 'tmp' }, "the working directory 'tmp' is invalid, it needs to be an absolute path"],
    [{ StopSignal: 'SIGNOPE' }, 'invalid signal: SIGNOPE'],
    [{ StopSignal: 'SIG42' }, 'invalid signal: SIG42'],
    [{ StopSignal: '0' }, 'invalid signal: 0'],
    [{ HostConfig: { Memory: 1024 } }, 'Minimum memory limit allowed is 6MB'],
    [{ HostConfig: { NanoCpus: 3e9 } }, 'range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available'],
    [
      { HostConfig: { AutoRemove: true, RestartPolicy: { Name: 'always' } } },
      "can't create 'AutoRemove' container with restart policy",
    ],
    [
      { HostConfig: { RestartPolicy: { Name: 'always', MaximumRetryCount: 3 } } },
      "maximum retry count can only be used with 'on-failure'",
    ],
    [{ Env: [''] }, 'invalid environment variable: '],
    [{ HostConfig: { CpuShares: -1 } }, 'invalid CPU shares (-1): value must be a positive integer'],
    [{ HostConfig: { Annotations: { '': 'a' } } }, 'the empty string is not permitted as an annotation key'],
    [{ HostConfig: { Runtime: 'kata' } }, 'unknown or invalid runtime name: kata'],
    [{ HostConfig: { Binds: ['/a:/b', '/c:/b/'] } }, 'Duplicate mount point: /b'],
    [{ HostConfig: { Binds: ['/a:/'] } }, "invalid specification: destination can't be '/'"],
    [{ HostConfig: { Binds: ['/a:b'] } }, "invalid mount path: 'b' mount path must be absolute"],
    [{ HostConfig: { ExtraHosts: ['db'] } }, 'bad format for add-host: "db"'],
    [{ HostConfig: { LogConfig: { Type: 'gelf' } } }, "logger: no log driver named 'gelf' is registered"],
    [{ HostConfig: { LogConfig: { Type: 'json-file', Config: { nope: '1' } } } }, "unknown log opt 'nope'"],
  ])('refuses %j', (body, words) => {
    expect(() => plan(body)).toThrow(words);
  });
});

it.each([
  ['SIGTERM', 15],
  ['term', 15],
  ['9', 9],
  ['RTMIN+3', 37],
  ['SIGRTMAX-1', 63],
])('reads the signal %s', (text, number) => {
  expect(parseSignal(text)).toBe(number);
});

it('bounds logs unless told otherwise', () => {
  expect(planLog({ Type: 'json-file', Config: {} })).toMatchObject({ maxBytes: 20_000_000, maxFiles: 5 });
  expect(planLog({ Type: 'local', Config: { 'max-size': '1m', 'max-file': '2' } })).toMatchObject({
    maxBytes: 1_048_576,
    maxFiles: 2,
  });
  expect(planLog({ Type: 'none', Config: {} }).isKept).toBe(false);
});

it('tells the details that were asked for, sorted and escaped', () => {
  const config = { Labels: { b: 'x y', a: '1', other: '2' }, Env: ['V=v=w', 'W=1'] };
  const logPlan = planLog({ Type: 'json-file', Config: { labels: 'b,a', env: 'V' } });
  expect(detailsPrefix(logPlan, config)).toBe('V=v%3Dw,a=1,b=x+y ');
});
