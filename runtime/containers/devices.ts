/**
 * Device nodes of the host for config.json: those that a request names, all of them for a privileged container, and the
 * numbers of block devices that limits name.
 */
import { lstat, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError, hasCode } from '../../shared/errors.ts';
import type { DeviceEdits } from './cdi.ts';
import type { HostConfig } from './request.ts';
import type { SpecDevice } from './spec.ts';
import type { DeviceNumbers } from './spec-resources.ts';

/** Made by the runtime for each container, or mounts of their own. */
const SKIPPED = new Set(['pts', 'shm', 'mqueue', 'fd', '.lxc', '.lxd-mounts', '.udev', 'console', 'ptmx', 'tty']);
const S_IFMT = 0o170000;
const S_IFCHR = 0o020000;
const S_IFBLK = 0o060000;

/** For SpecInput.devices. @throws AppError 'invalid' in Docker's words for a path that is no device */
export async function devicesOf(
  hostConfig: Pick<HostConfig, 'Privileged' | 'Devices'>,
): Promise<readonly SpecDevice[]> {
  const wanted = await Promise.all(
    hostConfig.Devices.map(async ({ PathOnHost, PathInContainer, CgroupPermissions }) => {
      const access = CgroupPermissions || 'rwm';
      if (!/^[rwm]{1,3}$/.test(access)) throw new AppError('invalid', `invalid device cgroup permissions: ${access}`);
      return named(PathOnHost, PathInContainer || PathOnHost, access);
    }),
  );
  const devices = hostConfig.Privileged ? [...(await hostDevices('/dev')), ...wanted.flat()] : wanted.flat();
  return [...new Map(devices.map((device) => [device.path, device])).values()];
}

/** Nodes that a CDI spec names, as they are on the host but for what it says. @throws as devicesOf */
export async function nodesOf(nodes: DeviceEdits['nodes']): Promise<readonly SpecDevice[]> {
  const found = nodes.map(async ({ hostPath, path, access, mode, uid, gid }) =>
    (await named(hostPath, path, access)).map((device) => ({
      ...device,
      ...(mode !== undefined && { mode }),
      ...(uid !== undefined && { uid }),
      ...(gid !== undefined && { gid }),
    })),
  );
  return (await Promise.all(found)).flat();
}

/** For SpecInput.blockDevices. */
export async function blockDevicesOf(paths: readonly string[]): Promise<Readonly<Record<string, DeviceNumbers>>> {
  const found: Record<string, DeviceNumbers> = {};
  for (const path of new Set(paths)) {
    const info = await stat(path).catch(() => undefined);
    if (info?.isBlockDevice() === true) found[path] = numbersOf(info.rdev);
  }
  return found;
}

/** A directory stands for all devices in it. */
async function named(source: string, path: string, access: string): Promise<readonly SpecDevice[]> {
  const info = await stat(source).catch((cause: unknown) => {
    throw new AppError(
      'invalid',
      `error gathering device information while adding custom device "${source}": no such file or directory`,
      { cause },
    );
  });
  const device = deviceOf(path, info, access);
  if (device !== undefined) return [device];
  const inside = info.isDirectory() ? await hostDevices(source) : [];
  if (inside.length === 0)
    throw new AppError(
      'invalid',
      `error gathering device information while adding custom device "${source}": not a device node`,
    );
  return inside.map((one) => ({ ...one, path: join(path, one.path.slice(source.length)), access }));
}

async function hostDevices(directory: string): Promise<readonly SpecDevice[]> {
  const found: SpecDevice[] = [];
  for (const name of await readdir(directory)) {
    if (SKIPPED.has(name)) continue;
    const path = join(directory, name);
    // Nodes come and go.
    const info = await lstat(path).catch((error: unknown) => {
      if (hasCode(error, 'ENOENT')) return undefined;
      throw error;
    });
    if (info?.isDirectory() === true) found.push(...(await hostDevices(path)));
    const device = info === undefined ? undefined : deviceOf(path, info, 'rwm');
    if (device !== undefined) found.push(device);
  }
  return found;
}

interface NodeInfo {
  readonly mode: number;
  readonly rdev: number;
  readonly uid: number;
  readonly gid: number;
}

function deviceOf(path: string, { mode, rdev, uid, gid }: NodeInfo, access: string): SpecDevice | undefined {
  const format = mode & S_IFMT;
  if (format !== S_IFCHR && format !== S_IFBLK) return undefined;
  return { path, type: format === S_IFCHR ? 'c' : 'b', ...numbersOf(rdev), mode: mode & 0o7777, uid, gid, access };
}

/** makedev(3): twelve low bits of the major number from bit 8, eight of the minor below, the rest above. */
function numbersOf(rdev: number): DeviceNumbers {
  const wide = BigInt(rdev);
  return {
    major: Number(((wide >> 8n) & 0xfffn) | ((wide >> 32n) & 0xfffff000n)),
    minor: Number((wide & 0xffn) | ((wide >> 12n) & 0xffffff00n)),
  };
}
