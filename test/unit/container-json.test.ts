import { describe, expect, it } from 'vitest';
import { containerDetailsJson, containerSummaryJson } from '../../runtime/api/container-json.ts';
import { type ContainerDetails, type ContainerState, parseCreateRequest } from '../../runtime/engine.ts';
import { digestOf } from '../../shared/digest.ts';

const AT = new Date('2026-01-02T03:04:05.006Z');

function details(state: ContainerState, body: Record<string, unknown> = {}): ContainerDetails {
  const { config, hostConfig, endpoints } = parseCreateRequest({
    Image: 'busybox:1',
    Cmd: ['sh', '-c', 'echo hi'],
    ExposedPorts: { '80/tcp': {} },
    StopTimeout: 5,
    Healthcheck: { Test: ['NONE'] },
    ...body,
  });
  const record = {
    id: 'a'.repeat(64),
    name: 'web',
    createdAt: AT,
    imageId: digestOf('image'),
    imageName: 'busybox:1',
    chain: [],
    platform: { os: 'linux', architecture: 'amd64' },
    config,
    hostConfig,
    endpoints,
    mounts: [],
    state,
    restartCount: 0,
    stoppedByUser: false,
  };
  const paths = { resolvConf: '/r', hostname: '/h', hosts: '/hs', log: '/l' };
  return {
    record,
    linkNames: [],
    statusText: 'Created',
    health: undefined,
    connections: [],
    sandbox: undefined,
    size: undefined,
    paths,
    execIds: [],
  };
}

/** What two generations of dockerd answer; clients of either read from all of it. */
const TOP = `AppArmorProfile Args Config Created Driver ExecIDs GraphDriver HostConfig HostnamePath HostsPath Id Image
  LogPath MountLabel Mounts Name NetworkSettings Path Platform ProcessLabel ResolvConfPath RestartCount State`;
const HOST_CONFIG = `AutoRemove Binds BlkioDeviceReadBps BlkioDeviceReadIOps BlkioDeviceWriteBps BlkioDeviceWriteIOps
  BlkioWeight BlkioWeightDevice CapAdd CapDrop Cgroup CgroupParent CgroupnsMode ConsoleSize ContainerIDFile CpuCount
  CpuPercent CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpuShares CpusetCpus CpusetMems DeviceCgroupRules
  DeviceRequests Devices Dns DnsOptions DnsSearch ExtraHosts GroupAdd IOMaximumBandwidth IOMaximumIOps Init IpcMode
  Isolation Links LogConfig MaskedPaths Memory MemoryReservation MemorySwap MemorySwappiness NanoCpus NetworkMode
  OomKillDisable OomScoreAdj PidMode PidsLimit PortBindings Privileged PublishAllPorts ReadonlyPaths ReadonlyRootfs
  RestartPolicy Runtime SecurityOpt ShmSize Tmpfs UTSMode Ulimits UsernsMode VolumeDriver VolumesFrom`;
const CONFIG = `AttachStderr AttachStdin AttachStdout Cmd Domainname Entrypoint Env ExposedPorts Healthcheck Hostname
  Image Labels OnBuild OpenStdin StdinOnce StopTimeout Tty User Volumes WorkingDir`;
const NETWORK_SETTINGS = `Bridge EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen HairpinMode IPAddress
  IPPrefixLen IPv6Gateway LinkLocalIPv6Address LinkLocalIPv6PrefixLen MacAddress Networks Ports SandboxID SandboxKey
  SecondaryIPAddresses SecondaryIPv6Addresses`;
const LISTED = `Command Created HostConfig Id Image ImageID Labels Mounts Names NetworkSettings Ports State Status`;

/** As a client sees it. */
function wire(value: unknown): Record<string, Record<string, unknown>> {
  return JSON.parse(JSON.stringify(value));
}
const words = (text: string) => text.split(/\s+/);

describe('a container in JSON', () => {
  it('has every field that dockerd has', () => {
    const json = wire(
      containerDetailsJson(details({ status: 'created' }, { HostConfig: { Init: true, Tmpfs: { '/t': '' } } }), {
        apiMinor: 52,
      }),
    );
    expect(Object.keys(json)).toEqual(expect.arrayContaining(words(TOP)));
    expect(Object.keys(json.HostConfig ?? {})).toEqual(expect.arrayContaining(words(HOST_CONFIG)));
    expect(Object.keys(json.Config ?? {})).toEqual(expect.arrayContaining(words(CONFIG)));
    expect(Object.keys(json.NetworkSettings ?? {})).toEqual(expect.arrayContaining(words(NETWORK_SETTINGS)));
    expect(Object.keys(wire(containerSummaryJson(details({ status: 'created' }), { apiMinor: 52 })))).toEqual(
      expect.arrayContaining(words(LISTED)),
    );
  });

  it('writes sets as maps and empty lists as null, as Go does', () => {
    const json = wire(containerDetailsJson(details({ status: 'created' }), { apiMinor: 52 }));
    expect(json.Config).toMatchObject({ ExposedPorts: { '80/tcp': {} }, Volumes: null, OnBuild: null });
    expect(json.HostConfig).toMatchObject({ Binds: null, CapAdd: null, NetworkMode: '', MemorySwappiness: null });
    expect(json).toMatchObject({ Path: 'sh', Args: ['-c', 'echo hi'], Name: '/web', ExecIDs: null, Mounts: [] });
  });

  it('tells annotations to whoever knows them', () => {
    const annotated = details({ status: 'created' }, { HostConfig: { Annotations: { a: 'b' } } });
    const hostConfig = (apiMinor: number) => containerSummaryJson(annotated, { apiMinor }).HostConfig;
    expect(hostConfig(46)).toMatchObject({ Annotations: { a: 'b' } });
    expect(hostConfig(45)).not.toHaveProperty('Annotations');
  });

  it('quotes words with blanks in the command of a list', () => {
    expect(containerSummaryJson(details({ status: 'created' }), { apiMinor: 52 })).toMatchObject({
      Command: "sh -c 'echo hi'",
      Names: ['/web'],
      Created: 1767323045,
    });
  });

  const ended = { startedAt: AT, finishedAt: AT, exitCode: 3, oomKilled: false };
  it.each<[ContainerState, Record<string, unknown>]>([
    [{ status: 'created' }, { Status: 'created', Running: false, Pid: 0, StartedAt: '0001-01-01T00:00:00Z' }],
    [
      { status: 'created', failure: { message: 'no', exitCode: 127 } },
      { Status: 'created', ExitCode: 127, Error: 'no' },
    ],
    [
      { status: 'running', startedAt: AT, pid: 7 },
      { Running: true, Paused: false, Pid: 7, StartedAt: AT.toISOString() },
    ],
    [
      { status: 'paused', startedAt: AT, pid: 7 },
      { Status: 'paused', Running: true, Paused: true, Pid: 7 },
    ],
    [
      { status: 'restarting', ...ended },
      { Running: true, Restarting: true, ExitCode: 3, Pid: 0 },
    ],
    [
      { status: 'exited', ...ended },
      { Status: 'exited', Running: false, ExitCode: 3, FinishedAt: AT.toISOString() },
    ],
    [
      { status: 'dead', last: { status: 'exited', ...ended }, error: 'busy' },
      { Dead: true, Error: 'busy', ExitCode: 3 },
    ],
  ])('tells the state %j', (state, expected) => {
    expect(containerDetailsJson(details(state), { apiMinor: 52 }).State).toMatchObject(expected);
  });
});
