/**
 * SpecBuilder on this host: looks up what spec.ts, which is pure, has to be told: users in the image's files, devices,
 * namespaces of other containers.
 */
import { lstatSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import { deviceEditsOf } from './cdi.ts';
import type { MountPoint } from './container.ts';
import { blockDevicesOf, devicesOf, nodesOf } from './devices.ts';
import { containerOfMode } from './namespaces.ts';
import type { SpecBuilder, SpecRequest } from './ports.ts';
import type { HostConfig } from './request.ts';
import { userFilesIn } from './rootfs-files.ts';
import { createSeccompFilters } from './seccomp-filters.ts';
import { encodeSpec, execProcessOf, type SpecHost, type SpecInput, specOf } from './spec.ts';
import { limitsOf } from './spec-resources.ts';
import { resolveUser } from './users.ts';

export interface SpecBuilderOptions {
  readonly host: SpecHost;
  /** The program for --init, undefined when none is installed. */
  readonly init: string | undefined;
  readonly cgroupParent: string;
  /** Where CDI specs are; later ones win. */
  readonly cdiDirectories: readonly string[];
  /** See SeccompFiltersOptions. */
  readonly compiledSeccomp: (containerId: string) => Promise<Buffer | undefined>;
}

/** As many as a kernel can have. */
const PIDS_MAX = 4_194_304;

export function createSpecBuilder(options: SpecBuilderOptions): SpecBuilder {
  const filters = createSeccompFilters({ compiledOf: options.compiledSeccomp });
  const inputOf = async (request: SpecRequest): Promise<SpecInput> => {
    const { record, rootfs, etc, network, pidOf } = request;
    const { config } = record;
    const hostConfig = { ...record.hostConfig, Sysctls: { ...network.sysctls, ...record.hostConfig.Sysctls } };
    refuseLinks(rootfs);
    const user = resolveUser(config.User, hostConfig.GroupAdd, userFilesIn(rootfs));
    const [devices, deviceEdits, blockDevices, fileSources] = await Promise.all([
      devicesOf(hostConfig),
      deviceEditsOf(hostConfig.DeviceRequests, options.cdiDirectories),
      blockDevicesOf(limitedDevices(hostConfig)),
      fileSourcesOf(record.mounts),
    ]);
    const joined = containerOfMode(hostConfig.PidMode);
    return {
      id: record.id,
      config,
      hostConfig,
      mounts: record.mounts,
      fileSources,
      user,
      host: options.host,
      paths: { rootfs, ...etc, init: options.init },
      cgroupParent: options.cgroupParent,
      network: network.namespace,
      joinedPid: joined === undefined ? undefined : `/proc/${pidOf(joined)}/ns/pid`,
      joinedIpc: request.joinedIpc,
      sharedMemory: request.sharedMemory,
      devices: deviceEdits === undefined ? devices : [...devices, ...(await nodesOf(deviceEdits.nodes))],
      deviceEdits,
      blockDevices,
    };
  };

  return {
    container: async (request) => encodeSpec(filters.applied(request.record.id, specOf(await inputOf(request)))),
    created: (containerId) => filters.created(containerId),
    async process({ request, record, rootfs, etc }) {
      const { config, hostConfig } = record;
      const user = resolveUser(request.User || config.User, hostConfig.GroupAdd, userFilesIn(rootfs));
      const paths = { rootfs, ...etc, init: options.init };
      return encodeSpec(execProcessOf({ config, hostConfig, host: options.host, paths }, request, user));
    },
    async resources(hostConfig, before) {
      const devices = await blockDevicesOf(limitedDevices(hostConfig));
      // A limit that there was must go. Older crun cannot write that there is none.
      const isLifted = hostConfig.PidsLimit === 0 && before.PidsLimit !== 0;
      const pids = isLifted ? { pids: { limit: PIDS_MAX } } : {};
      return { ...limitsOf(hostConfig, options.host.cgroupMode, devices), ...pids };
    },
  };
}

async function fileSourcesOf(mounts: readonly MountPoint[]): Promise<ReadonlySet<string>> {
  const files = new Set<string>();
  for (const { type, source } of mounts) {
    if (type === 'tmpfs') continue;
    // A source that is gone is the runtime's to report.
    const info = await stat(source).catch(() => undefined);
    if (info !== undefined && !info.isDirectory()) files.add(source);
  }
  return files;
}

/** What is mounted there would land where the link points (CVE-2026-41579, CVE-2026-47766, CVE-2019-19921). */
function refuseLinks(rootfs: string): void {
  for (const name of ['dev', 'proc', 'sys']) {
    const info = lstatSync(join(rootfs, name), { throwIfNoEntry: false });
    if (info !== undefined && !info.isDirectory())
      throw new AppError('invalid', `cannot start container: /${name} of its image is not a directory`);
  }
}

function limitedDevices(hostConfig: HostConfig): readonly string[] {
  const { BlkioWeightDevice, BlkioDeviceReadBps, BlkioDeviceWriteBps, BlkioDeviceReadIOps, BlkioDeviceWriteIOps } =
    hostConfig;
  return [
    BlkioWeightDevice,
    BlkioDeviceReadBps,
    BlkioDeviceWriteBps,
    BlkioDeviceReadIOps,
    BlkioDeviceWriteIOps,
  ].flatMap((list) => list.map(({ Path }) => Path));
}
