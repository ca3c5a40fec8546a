import { describe, expect, it } from 'vitest';
import type { MountPoint } from '../../runtime/containers/container.ts';
import { planMounts } from '../../runtime/containers/mount-plan.ts';
import { parseCreateRequest } from '../../runtime/containers/request.ts';
import { checkSubpath, checkVolumeDriver, checkVolumeName, volumeMount } from '../../runtime/volumes/names.ts';

const OTHER: readonly MountPoint[] = [
  { type: 'bind', source: '/src', destination: '/bound', mode: '', writable: true, propagation: 'rprivate' },
  { type: 'tmpfs', source: '', destination: '/tmp', mode: '', writable: true, propagation: '' },
  {
    type: 'volume',
    source: '/v/db/_data',
    destination: '/db',
    mode: 'z',
    writable: true,
    propagation: '',
    volume: { name: 'db', isAnonymous: false, subpath: '' },
  },
];

function plan(body: Record<string, unknown>) {
  const { config, hostConfig } = parseCreateRequest({ Image: 'i', ...body });
  return planMounts(config, hostConfig, () => OTHER);
}
const bind = (text: string) => plan({ HostConfig: { Binds: [text] } });

describe('-v', () => {
  it.each([
    ['/a:/b', { source: '/a', destination: '/b', writable: true, propagation: 'rprivate', mode: '' }],
    ['/a/../c:/b//d/:ro,rshared', { source: '/c', destination: '/b/d', writable: false, propagation: 'rshared' }],
  ])('%s binds a path', (text, expected) => {
    expect(bind(text).mounts).toMatchObject([expected]);
  });

  it.each([
    ['data:/b', { name: 'data', destination: '/b', writable: true, copy: true, mode: 'z' }],
    ['data:/b:ro', { name: 'data', writable: false, mode: 'ro' }],
    ['data:/b:nocopy', { name: 'data', copy: false, mode: 'nocopy' }],
    ['/b', { name: '', destination: '/b', copy: true }],
  ])('%s is a volume', (text, expected) => {
    expect(bind(text)).toMatchObject({ mounts: [], volumes: [expected] });
  });

  it.each([
    ['a:b:c:d', 'invalid volume specification'],
    [':/b', 'invalid volume specification'],
    ['/a:/b:nope', 'invalid mode: nope'],
    ['/a:/b:nocopy', 'invalid volume specification'],
    ['data:/b:rshared', 'invalid volume specification'],
    ['data:b', "invalid mount path: 'b' mount path must be absolute"],
    ['data:/', "invalid specification: destination can't be '/'"],
  ])('refuses %s', (text, words) => {
    expect(() => bind(text)).toThrow(words);
  });
});

describe('--mount', () => {
  it('takes everything that a volume may have', () => {
    const VolumeOptions = {
      NoCopy: true,
      Labels: { a: 'b' },
      Subpath: 'in/side',
      DriverConfig: { Name: 'local', Options: { type: 'tmpfs', device: 'tmpfs' } },
    };
    const mount = { Type: 'volume', Source: 'data', Target: '/d', ReadOnly: true, VolumeOptions };
    expect(plan({ HostConfig: { Mounts: [mount] } }).volumes).toEqual([
      {
        name: 'data',
        driver: 'local',
        labels: { a: 'b' },
        options: { type: 'tmpfs', device: 'tmpfs' },
        copy: false,
        subpath: 'in/side',
        destination: '/d',
        mode: 'z',
        writable: false,
      },
    ]);
  });

  it.each([
    [{ Type: 'bind', Source: 'rel', Target: '/d' }, "invalid mount path: 'rel' mount path must be absolute"],
    [{ Type: 'volume', Source: '/abs', Target: '/d' }, 'must be a volume name'],
  ])('refuses %j', (mount, words) => {
    expect(() => plan({ HostConfig: { Mounts: [mount] } })).toThrow(words);
  });
});

describe('which mount wins', () => {
  it('takes those of another container but its tmpfs, read-only if that is asked for', () => {
    const { mounts } = plan({ HostConfig: { VolumesFrom: ['other:ro'] } });
    expect(mounts.map(({ destination, writable }) => [destination, writable])).toEqual([
      ['/bound', false],
      ['/db', false],
    ]);
  });

  it('lets own mounts replace inherited ones, and both replace volumes of the image', () => {
    const { mounts, volumes } = plan({
      Volumes: { '/bound': {}, '/db': {}, '/more': {}, '/more/': {} },
      HostConfig: { VolumesFrom: ['other'], Binds: ['mine:/bound'] },
    });
    expect(mounts.map(({ destination }) => destination)).toEqual(['/db']);
    expect(volumes.map(({ name, destination }) => [name, destination])).toEqual([
      ['mine', '/bound'],
      ['', '/more'],
    ]);
  });

  it.each([['a:b:c'], [':ro'], ['a:rshared']])('refuses --volumes-from %s', (text) => {
    expect(() => plan({ HostConfig: { VolumesFrom: [text] } })).toThrow(/volumes-from|invalid mode/);
  });
});

describe('names and options of volumes', () => {
  it.each([['a.b-c_1'], ['0f']])('takes %s', (name) => expect(() => checkVolumeName(name)).not.toThrow());
  it.each([
    ['./x', 'If you intended to pass a host directory, use absolute path'],
    ['..', 'includes invalid characters'],
    ['a', 'volume name is too short'],
    ['a/b', 'includes invalid characters'],
  ])('refuses %s', (name, words) => expect(() => checkVolumeName(name)).toThrow(words));

  it('knows one driver', () => {
    expect(() => checkVolumeDriver('x1', 'rexray')).toThrow('plugin "rexray" not found');
  });

  it.each([
    [{ size: '1g' }, 'invalid option: "size"'],
    [{ type: 'tmpfs' }, 'missing required option: "device"'],
    [{ device: '/x' }, 'missing required option: "type"'],
    [{ type: 'a b', device: '/x' }, 'invalid type: "a b"'],
  ])('refuses the options %j', (options: Readonly<Record<string, string>>, words) => {
    expect(() => volumeMount(options)).toThrow(words);
  });

  it.each([['/abs'], ['../up'], ['a/../..'], ['a\0b']])('refuses the subpath %j', (subpath) => {
    expect(() => checkSubpath(subpath)).toThrow('must be a relative path within the volume');
  });
});
