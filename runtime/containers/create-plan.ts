/**
 * From a request and an image to the record of a container: what Docker's create merges, checks and fills in. Pure; what
 * must be looked up on the host comes in as facts.
 */
import { isIP } from 'node:net';
import { AppError } from '../../shared/errors.ts';
import type { ImageRunConfig } from '../../shared/oci.ts';
import { parseSignal } from '../../shared/signals.ts';
import type { MountPoint } from './container.ts';
import { parseExtraHost } from './etc-files.ts';
import { maskedPaths, READONLY_PATHS } from './guarded-paths.ts';
import { mergeImageConfig } from './image-defaults.ts';
import { planLog } from './log-options.ts';
import { type MountPlan, planMounts } from './mount-plan.ts';
import { checkNamespaceModes, checkSharedNamespaces } from './namespaces.ts';
import { portWishesOf } from './networking.ts';
import type { ContainerConfig, CreateRequest, HostConfig } from './request.ts';
import { securityOptionsOf } from './security-options.ts';

const MEMORY_MIN_BYTES = 6 * 1024 * 1024;
const SHM_DEFAULT_BYTES = 64 * 1024 * 1024;
const NANO = 1e9;

export interface HostLimits {
  readonly cpus: number;
  readonly cgroupVersion: 1 | 2;
  readonly runtimeName: string;
  readonly hostname: string;
  /** Masked besides what Docker masks everywhere. */
  readonly thermalThrottlePaths: readonly string[];
  /** The network of a container that names none. */
  readonly defaultNetwork: 'bridge' | 'none';
}

export interface Plan {
  readonly config: ContainerConfig;
  readonly hostConfig: HostConfig;
  readonly mountPlan: MountPlan;
  readonly warnings: readonly string[];
}

/** @throws AppError 'invalid' and 'unsupported', with Docker's words where clients know them */
export function planContainer(
  request: CreateRequest,
  image: ImageRunConfig,
  context: {
    readonly id: string;
    readonly host: HostLimits;
    /** The mounts of another container, for --volumes-from. @throws AppError 'not-found' */
    readonly mountsOf: (container: string) => readonly MountPoint[];
  },
): Plan {
  const merged = mergeImageConfig(image, request.config);
  const hostConfig = normalizeHostConfig(request.hostConfig, context.host);
  const sharesHostname = hostConfig.NetworkMode === 'host' || hostConfig.UTSMode === 'host';
  const config = {
    ...merged,
    Hostname: merged.Hostname || (sharesHostname ? context.host.hostname : context.id.slice(0, 12)),
  };
  checkSharedNamespaces(request.config, hostConfig);
  checkConfig(config);
  checkHostConfig(hostConfig, context.host);
  // Refuses ports that are none. Those of a container with the host's network, or none, Docker discards.
  portWishesOf(config, hostConfig);
  return { config, hostConfig, mountPlan: planMounts(config, hostConfig, context.mountsOf), warnings: [] };
}

function normalizeHostConfig(wanted: HostConfig, host: HostLimits): HostConfig {
  const isDefaultNetwork = wanted.NetworkMode === '' || wanted.NetworkMode === 'default';
  return {
    ...wanted,
    NetworkMode: isDefaultNetwork ? host.defaultNetwork : wanted.NetworkMode,
    ShmSize: wanted.ShmSize || SHM_DEFAULT_BYTES,
    IpcMode: wanted.IpcMode || 'private',
    CgroupnsMode: wanted.CgroupnsMode || (host.cgroupVersion === 2 && !wanted.Privileged ? 'private' : 'host'),
    Runtime: wanted.Runtime || host.runtimeName,
    MemorySwap: wanted.Memory > 0 && wanted.MemorySwap === 0 ? wanted.Memory * 2 : wanted.MemorySwap,
    ...(!wanted.Privileged && {
      MaskedPaths: wanted.MaskedPaths ?? maskedPaths(host.thermalThrottlePaths),
      ReadonlyPaths: wanted.ReadonlyPaths ?? READONLY_PATHS,
    }),
  };
}

function checkConfig(config: ContainerConfig): void {
  if (config.WorkingDir !== '' && !config.WorkingDir.startsWith('/'))
    invalid(`the working directory '${config.WorkingDir}' is invalid, it needs to be an absolute path`);
  if (config.StopSignal !== '') parseSignal(config.StopSignal);
  if (config.Hostname.length > 64 || /[\s\0/]/.test(config.Hostname))
    invalid(`invalid hostname format: ${config.Hostname}`);
  for (const entry of config.Env)
    if (entry === '' || entry.includes('\0') || entry.startsWith('='))
      invalid(`invalid environment variable: ${entry}`);
  const { Healthcheck } = config;
  if (Healthcheck !== undefined) {
    for (const field of ['Interval', 'Timeout', 'StartPeriod', 'StartInterval'] as const)
      if (Healthcheck[field] !== 0 && Healthcheck[field] < 1e6)
        invalid(`${field} in Healthcheck cannot be less than 1ms`);
    if (Healthcheck.Retries < 0) invalid('Retries in Healthcheck cannot be negative');
  }
}

/** @throws AppError 'invalid' with Docker's words for limits and options that contradict each other or the host */
export function checkHostConfig(hostConfig: HostConfig, host: HostLimits): void {
  const { RestartPolicy, Memory, MemorySwap, MemoryReservation, NanoCpus, CpuPeriod, CpuQuota } = hostConfig;
  if (hostConfig.AutoRemove && RestartPolicy.Name !== 'no')
    invalid("can't create 'AutoRemove' container with restart policy");
  if (RestartPolicy.MaximumRetryCount !== 0 && RestartPolicy.Name !== 'on-failure')
    invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'");
  if (RestartPolicy.MaximumRetryCount < 0) invalid('invalid restart policy: maximum retry count cannot be negative');
  if (Memory !== 0 && Memory < MEMORY_MIN_BYTES) invalid('Minimum memory limit allowed is 6MB');
  if (Memory > 0 && MemorySwap !== -1 && MemorySwap < Memory)
    invalid('Minimum memoryswap limit should be larger than memory limit, see usage');
  if (Memory === 0 && MemorySwap > 0)
    invalid('You should always set the Memory limit when using Memoryswap limit, see usage');
  if (MemoryReservation > 0 && Memory > 0 && Memory < MemoryReservation)
    invalid('Minimum memory limit can not be less than memory reservation limit, see usage');
  if (NanoCpus !== 0 && (CpuPeriod !== 0 || CpuQuota !== 0))
    invalid('Conflicting options: Nano CPUs and CPU Period or Quota cannot both be set');
  if (NanoCpus < 0 || NanoCpus > host.cpus * NANO)
    invalid(`range of CPUs is from 0.01 to ${host.cpus.toFixed(2)}, as there are only ${host.cpus} CPUs available`);
  if (CpuPeriod !== 0 && (CpuPeriod < 1000 || CpuPeriod > 1_000_000))
    invalid('CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)');
  if (CpuQuota > 0 && CpuQuota < 1000) invalid('CPU cfs quota can not be less than 1ms (i.e. 1000)');
  if (hostConfig.CpuShares < 0)
    invalid(`invalid CPU shares (${hostConfig.CpuShares}): value must be a positive integer`);
  if (Object.hasOwn(hostConfig.Annotations, ''))
    invalid('invalid Annotations: the empty string is not permitted as an annotation key');
  if (hostConfig.Runtime !== host.runtimeName) invalid(`unknown or invalid runtime name: ${hostConfig.Runtime}`);
  securityOptionsOf(hostConfig.SecurityOpt);
  checkNamespaceModes(hostConfig);
  for (const entry of hostConfig.ExtraHosts) parseExtraHost(entry);
  for (const server of hostConfig.Dns)
    if (isIP(server) === 0) invalid(`invalid DNS server: ${JSON.stringify(server)} is not an IP address`);
  planLog(hostConfig.LogConfig);
}

function invalid(message: string): never {
  throw new AppError('invalid', message);
}
