/**
 * What one container's runtime is given: its root filesystem, its namespaces and the files that describe it. Made anew
 * for each run.
 *
 *   <directory>/config.json     beside conmon's attach and ctl
 */
import { mkdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import type { ContainerRecord } from './container.ts';
import type { ContainerNetwork } from './container-network.ts';
import { withSources } from './container-volumes.ts';
import { containerOfMode } from './namespaces.ts';
import type { ContainerPorts } from './ports.ts';
import type { ExecRequest } from './request.ts';
import type { LaunchRequest, StdinMode } from './supervisor.ts';

/** What a container shares that others may join. */
export interface SharedIpc {
  readonly joinedIpc?: string;
  readonly sharedMemory?: string;
}

export interface BundlePorts extends Pick<ContainerPorts, 'snapshots' | 'spec' | 'sharedMemory'> {
  readonly pidOf: (name: string) => number;
  /** Whose IPC namespace may be joined. @throws AppError 'not-found', 'conflict' */
  readonly ipcOf: (name: string) => SharedIpc;
}

export class ContainerBundle {
  readonly directory: string;
  readonly #record: () => ContainerRecord;
  readonly #network: ContainerNetwork;
  readonly #ports: BundlePorts;
  /** Where it is mounted while it runs. */
  #rootfs: string;

  /** `directory`: the container's. */
  constructor(
    record: () => ContainerRecord,
    context: { readonly directory: string; readonly network: ContainerNetwork; readonly ports: BundlePorts },
  ) {
    this.#record = record;
    this.#network = context.network;
    this.#ports = context.ports;
    this.directory = join(context.directory, 'bundle');
    this.#rootfs = join(context.directory, 'rootfs');
  }

  /** Makes the directory; nothing is in it. */
  async create(): Promise<void> {
    await mkdir(this.directory, { recursive: true, mode: 0o700 });
  }

  /**
   * For a run with these volumes, and with more environment than the record has. When it fails, nothing is still being made, and `close` takes back what was; the
   * snapshot and the network are the caller's to put away.
   */
  async make(volumeSources: readonly string[], env: readonly string[] = []): Promise<void> {
    const { snapshots, spec, pidOf } = this.#ports;
    const { id, mounts, hostConfig } = this.#record();
    const parts = [
      snapshots.mount(id, { throwAway: hostConfig.AutoRemove }),
      this.#network.prepare(),
      this.#openIpc(),
      this.#makeBindSources(),
    ] as const;
    await Promise.allSettled(parts);
    const [{ rootfs }, network, ipc] = await Promise.all(parts);
    this.#rootfs = rootfs;
    const linked = this.#linkedRecord();
    const record = {
      ...linked,
      config: { ...linked.config, Env: [...linked.config.Env, ...env] },
      mounts: withSources(mounts, volumeSources),
    };
    const config = await spec.container({ record, rootfs, etc: this.#network.etcPaths, network, pidOf, ...ipc });
    await writeFile(join(this.directory, 'config.json'), config, { mode: 0o600 });
  }

  /** The runtime has made the container; what it has made with it must still be there. */
  created(): Promise<void> {
    return this.#ports.spec.created(this.#record().id);
  }

  /** Idempotent. */
  async close(): Promise<void> {
    const { id, hostConfig } = this.#record();
    if (hostConfig.IpcMode === 'shareable') await this.#ports.sharedMemory.close(id);
  }

  launchRequest(logPath: string, cgroup: string): LaunchRequest {
    const { id, config, hostConfig } = this.#record();
    // A terminal has no end of input: its client going, the engine's among them, is not the shell's end.
    const stdin: StdinMode = !config.OpenStdin ? 'none' : config.StdinOnce && !config.Tty ? 'once' : 'open';
    const request = { id, bundle: this.directory, logPath, terminal: config.Tty, stdin };
    return hostConfig.CgroupParent === '' ? request : { ...request, cgroup };
  }

  /** Text of process.json for an exec in what runs. */
  execProcess(request: ExecRequest): Promise<string> {
    const { spec, pidOf } = this.#ports;
    return spec.process({
      record: this.#linkedRecord(),
      rootfs: this.#rootfs,
      etc: this.#network.etcPaths,
      network: this.#network.spec(),
      pidOf,
      request,
    });
  }

  /** With what links add to its environment. */
  #linkedRecord(): ContainerRecord {
    const record = this.#record();
    const { config } = record;
    return { ...record, config: { ...config, Env: [...this.#network.variables, ...config.Env] } };
  }

  /** What it shares with others, or others with it. */
  async #openIpc(): Promise<SharedIpc> {
    const { id, hostConfig } = this.#record();
    const joined = containerOfMode(hostConfig.IpcMode);
    if (joined !== undefined) return this.#ports.ipcOf(joined);
    if (hostConfig.IpcMode !== 'shareable') return {};
    await this.#ports.sharedMemory.open(id, hostConfig.ShmSize);
    return { sharedMemory: this.#ports.sharedMemory.pathOf(id) };
  }

  /** Docker makes the missing source of -v, and refuses that of --mount unless it is told to make it. */
  async #makeBindSources(): Promise<void> {
    const { mounts, hostConfig } = this.#record();
    const strict = new Set(
      hostConfig.Mounts.filter(({ BindOptions }) => BindOptions?.CreateMountpoint !== true).map(({ Source }) => Source),
    );
    for (const { type, source } of mounts) {
      if (type !== 'bind' || (await stat(source).catch(() => undefined)) !== undefined) continue;
      if (strict.has(source))
        throw new AppError(
          'invalid',
          `invalid mount config for type "bind": bind source path does not exist: ${source}`,
        );
      await mkdir(source, { recursive: true });
    }
  }
}
