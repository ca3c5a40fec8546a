/**
 * What tests of the engine from outside share: one host directory, our registry with a busybox image in it, pushed by
 * skopeo, and an engine. Close it in afterAll; it fails when anything is left on the host.
 */
import { join } from 'node:path';
import { busyboxImage, writeLayout } from '../fixtures/images.ts';
import {
  type EngineProgram,
  type Outcome,
  type RegistryProgram,
  run,
  startEngine,
  startRegistry,
  succeed,
} from '../fixtures/programs.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';

export interface EnginePlace extends AsyncDisposable {
  readonly host: TestHost;
  readonly registry: RegistryProgram;
  /** The engine that runs now. */
  readonly engine: EngineProgram;
  /** `127.0.0.1:port/busybox:latest` */
  readonly image: string;
  /** The real docker CLI against this engine. */
  docker(args: readonly string[], input?: string): Promise<Outcome>;
  /** The same; anything but success fails the test. Answers what was printed, without the final newline. */
  dockerOk(args: readonly string[], input?: string): Promise<string>;
  /** All of them, whatever they do: a test that failed must not fail the next one. */
  removeContainers(): Promise<void>;
  /** Ends the engine by a signal and starts it again on the same directories; `between` happens while there is none. */
  restart(signal: 'SIGTERM' | 'SIGKILL', between?: () => void | Promise<void>): Promise<void>;
}

/** `args`: more arguments of the engine, which may name the registry and its directory. */
export async function openEnginePlace(
  args: (registry: RegistryProgram, host: TestHost) => readonly string[] = () => [],
): Promise<EnginePlace> {
  await using undo = new AsyncDisposableStack();
  const host = undo.use(await testHost());
  const registry = undo.use(await startRegistry(host));
  const layout = join(host.root, 'layout');
  await writeLayout(await busyboxImage(), layout);
  const image = `${registry.address}/busybox:latest`;
  await succeed('skopeo', ['copy', '--dest-tls-verify=false', `oci:${layout}:latest`, `docker://${image}`], {
    env: host.env,
  });
  const options = { args: args(registry, host) };
  let engine = await startEngine(host, options);
  const removeContainers = async () => {
    const listed = await docker(['ps', '-aq']);
    const ids = listed.stdout.split('\n').filter((id) => id !== '');
    if (ids.length > 0) await docker(['rm', '-f', ...ids]);
  };
  const endEngine = async (signal: 'SIGTERM' | 'SIGKILL') => {
    const code = await engine.end(signal);
    if (signal === 'SIGTERM' && code !== 0) throw new Error(`the engine ended with code ${code}:\n${engine.output()}`);
  };
  undo.defer(async () => {
    await removeContainers();
    await endEngine('SIGTERM');
  });
  const docker = (args: readonly string[], input?: string) =>
    run('docker', ['-H', engine.url, ...args], { env: host.env, ...(input !== undefined && { input }) });
  const owned = undo.move();
  return {
    host,
    registry,
    image,
    get engine() {
      return engine;
    },
    docker,
    removeContainers,
    async dockerOk(args, input) {
      const { code, stdout, stderr } = await docker(args, input);
      if (code !== 0)
        throw new Error(`docker ${args.join(' ')} ended with code ${code}:\n${stdout}${stderr}\n${engine.output()}`);
      return stdout.replace(/\n$/, '');
    },
    async restart(signal, between) {
      await endEngine(signal);
      await between?.();
      engine = await startEngine(host, options);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
