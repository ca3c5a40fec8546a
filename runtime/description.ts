/** What an engine and its host are, for `version`, `info` and the log. Pure but for reading /etc/os-release. */
import { readFile } from 'node:fs/promises';
import { hasCode } from '../shared/errors.ts';
import type { EngineConfig } from './config.ts';
import { type HostFacts, preferredRuntime } from './kernel/host.ts';
import { type Finding, judgeHost } from './kernel/host-findings.ts';
import type { RuntimeName } from './kernel/oci-runtime.ts';
import { type RegistryMirrors, type RegistrySettings, shownProxies } from './registries.ts';

export interface EngineDescription {
  /** Six characters that name everything of this engine on the host. */
  readonly tag: string;
  readonly version: string;
  readonly rootDirectory: string;
  readonly isDebugging: boolean;
  readonly cdiSpecDirs: readonly string[];
  readonly layerBackend: 'erofs' | 'directory';
  readonly runtime: ProgramDescription;
  readonly monitor: ProgramDescription;
  readonly host: {
    readonly name: string;
    readonly kernelVersion: string;
    /** For example `Debian GNU/Linux 12 (bookworm)`. */
    readonly operatingSystem: string;
    readonly osVersion: string;
    /** As uname says it: `x86_64`. */
    readonly machine: string;
    /** As Go says it: `amd64`. */
    readonly architecture: string;
    readonly cpus: number;
    readonly memoryBytes: number;
    readonly cgroupVersion: 1 | 2;
    /** Names of the cgroup controllers that limits can use. */
    readonly controllers: readonly string[];
    readonly hasSeccomp: boolean;
    readonly limitsSwap: boolean;
  };
  readonly registries: RegistryDescription;
  /** Why no container can run here; undefined when they can. */
  readonly containerObstacle: string | undefined;
  /** What a user of this engine should know about its host: what is missing, and the mend. */
  readonly warnings: readonly string[];
}

export interface RegistryDescription {
  /** HOST:PORT, beside loopback. */
  readonly insecure: readonly string[];
  readonly mirrors: RegistryMirrors;
  /** Without passwords; empty = none. */
  readonly proxies: { readonly http: string; readonly https: string; readonly no: string };
}

export interface ProgramDescription {
  readonly name: string;
  readonly path: string;
  readonly version: string;
}

export interface HostNames {
  readonly hostname: string;
  readonly machine: string;
}

export interface DescribeOptions {
  readonly tag: string;
  readonly version: string;
  readonly config: EngineConfig;
  readonly facts: HostFacts;
  readonly names: HostNames;
  readonly layerBackend: 'erofs' | 'directory';
  readonly runtime: RuntimeName;
  readonly registries: RegistrySettings;
  readonly osRelease: string;
  /** See containerObstacle. */
  readonly containerObstacle: string | undefined;
  /** See networkObstacle. */
  readonly networkObstacle: string | undefined;
}

/** Go's names of Node's architectures, where they differ; images and Docker's API use Go's. */
const GO_ARCHITECTURES: Readonly<Partial<Record<NodeJS.Architecture, string>>> = {
  x64: 'amd64',
  ia32: '386',
  ppc64: 'ppc64le',
};

export function goArchitecture(architecture: NodeJS.Architecture): string {
  return GO_ARCHITECTURES[architecture] ?? architecture;
}

export function describeEngine(options: DescribeOptions): EngineDescription {
  const { facts, config, names } = options;
  const os = parseOsRelease(options.osRelease);
  const program = (name: 'crun' | 'runc' | 'conmon'): ProgramDescription => ({
    name,
    path: facts.programs[name]?.path ?? name,
    version: facts.programs[name]?.version ?? '',
  });
  return {
    tag: options.tag,
    version: options.version,
    rootDirectory: config.root,
    isDebugging: config.logLevel === 'debug',
    cdiSpecDirs: config.cdiSpecDirs,
    layerBackend: options.layerBackend,
    runtime: program(options.runtime),
    monitor: program('conmon'),
    host: {
      name: names.hostname,
      kernelVersion: facts.kernel,
      operatingSystem: os.PRETTY_NAME ?? os.NAME ?? 'Linux',
      osVersion: os.VERSION_ID ?? '',
      machine: names.machine,
      architecture: goArchitecture(facts.architecture),
      cpus: facts.cpuCount,
      memoryBytes: facts.memoryBytes,
      cgroupVersion: facts.cgroups.mode === 'v2' ? 2 : 1,
      controllers: facts.cgroups.controllers,
      hasSeccomp: facts.hasSeccomp,
      limitsSwap: facts.cgroups.limitsSwap,
    },
    registries: {
      insecure: options.registries.insecure,
      mirrors: options.registries.mirrors,
      proxies: shownProxies(options.registries.proxies),
    },
    containerObstacle: options.containerObstacle,
    warnings: [
      ...judgeHost(facts).filter(isWarning).map(sentenceOf),
      ...(options.networkObstacle === undefined || facts.privilege !== 'full'
        ? []
        : [noNetworks(options.networkObstacle)]),
    ],
  };
}

function noNetworks(obstacle: string): string {
  return `WARNING: the default network is none (loopback only): ${obstacle}; --network host shares the host's`;
}

/** Why no bridges can be made here; undefined when they can. */
export function networkObstacle(facts: HostFacts): string | undefined {
  const { privilege, programs } = facts;
  if (privilege !== 'full') return containerObstacle(facts);
  const missing = (['ip', 'nft'] as const).filter((name) => programs[name] === undefined);
  return missing.length === 0 ? undefined : `networks need ${missing.join(' and ')}, which the host does not have`;
}

function isWarning({ severity }: Finding): boolean {
  return severity === 'warning' || severity === 'error';
}

function sentenceOf({ subject, state, mend }: Finding): string {
  return `WARNING: ${subject}: ${state}${mend === undefined ? '' : `; ${mend}`}`;
}

/** Everything that keeps containers from running here, with its mend; undefined when they can. */
export function containerObstacle(facts: HostFacts): string | undefined {
  const found = judgeHost(facts)
    .filter(({ severity }) => severity === 'error')
    .map(({ subject, state, mend }) => {
      const what = subject === 'privilege' ? state : `${subject}: ${state}`;
      return mend === undefined ? what : `${what} (${mend})`;
    });
  return found.length === 0 ? undefined : found.join('; ');
}

/** What was asked for, else what the host has. */
export function chooseRuntime(config: EngineConfig, facts: HostFacts): RuntimeName {
  return config.ociRuntime === 'auto' ? (preferredRuntime(facts) ?? 'crun') : config.ociRuntime;
}

export async function readOsRelease(): Promise<string> {
  for (const path of ['/etc/os-release', '/usr/lib/os-release']) {
    try {
      return await readFile(path, 'utf8');
    } catch (error) {
      if (!hasCode(error, 'ENOENT')) throw error;
    }
  }
  return '';
}

/** https://www.freedesktop.org/software/systemd/man/latest/os-release.html */
export function parseOsRelease(text: string): Readonly<Record<string, string>> {
  const fields: Record<string, string> = {};
  for (const line of text.split('\n')) {
    const match = /^([A-Z][A-Z0-9_]*)=(?:"([^"]*)"|'([^']*)'|(\S*))\s*$/.exec(line);
    if (match !== null) fields[match[1] ?? ''] = match[2] ?? match[3] ?? match[4] ?? '';
  }
  return fields;
}
