import { expect, it } from 'vitest';
import { blockDevicesOf, devicesOf } from '../../runtime/containers/devices.ts';

const wanted = (PathOnHost: string, PathInContainer = '', CgroupPermissions = '') => ({
  Privileged: false,
  Devices: [{ PathOnHost, PathInContainer, CgroupPermissions }],
});

it('describes the nodes that a request names', async () => {
  expect(await devicesOf(wanted('/dev/null', '/dev/zilch', 'r'))).toEqual([
    { path: '/dev/zilch', type: 'c', major: 1, minor: 3, mode: 0o666, uid: 0, gid: 0, access: 'r' },
  ]);
  await expect(devicesOf(wanted('/etc/passwd'))).rejects.toThrow('not a device node');
  await expect(devicesOf(wanted('/dev/no-such'))).rejects.toThrow('no such file or directory');
  await expect(devicesOf(wanted('/dev/null', '', 'x'))).rejects.toThrow('invalid device cgroup permissions');
});

it('gives a privileged container all of them, each once, and no terminals of other people', async () => {
  const paths = (await devicesOf({ ...wanted('/dev/null'), Privileged: true })).map(({ path }) => path);
  expect(paths).toEqual(expect.arrayContaining(['/dev/null', '/dev/full']));
  expect(new Set(paths).size).toBe(paths.length);
  expect(paths.filter((path) => path.startsWith('/dev/pts/'))).toEqual([]);
});

it('knows block devices from others', async () => {
  expect(await blockDevicesOf(['/dev/null', '/dev/absent', '/dev/loop0'])).toEqual({
    '/dev/loop0': { major: 7, minor: 0 },
  });
});
