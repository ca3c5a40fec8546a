/** A registry and an engine as processes, with images pushed by skopeo: where the e2e tests of the engine begin. */
import { join } from 'node:path';
import { expect } from 'vitest';
import { type Image, writeLayout } from '../fixtures/images.ts';
import {
  berth,
  type EngineProgram,
  type Outcome,
  type RegistryProgram,
  startEngine,
  startRegistry,
  succeed,
} from '../fixtures/programs.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';

export interface Rig extends AsyncDisposable {
  readonly host: TestHost;
  readonly registry: RegistryProgram;
  readonly engine: EngineProgram;
  /** Kills the engine as a crash would, and starts it again. */
  crashEngine(): Promise<void>;
  /** Pushes an image and answers its full reference. */
  push(image: Image, name: string): Promise<string>;
  berth(args: readonly string[], input?: string): Promise<Outcome>;
  /** As berth, and it must succeed; answers stdout. */
  expectBerth(args: readonly string[], input?: string): Promise<string>;
}

export async function openRig(): Promise<Rig> {
  await using undo = new AsyncDisposableStack();
  const host = undo.use(await testHost());
  const registry = undo.use(await startRegistry(host));
  let engine = await startEngine(host);
  undo.defer(() => engine[Symbol.asyncDispose]());
  const call = (args: readonly string[], input?: string) => berth(host, engine, args, input);
  const owned = undo.move();
  return {
    host,
    registry,
    get engine() {
      return engine;
    },
    async crashEngine() {
      await engine.end('SIGKILL');
      engine = await startEngine(host);
    },
    async push(image, name) {
      const layout = join(host.root, 'layouts', name.replaceAll(/[^a-z0-9]/g, '-'));
      const reference = `${registry.address}/${name}`;
      await writeLayout(image, layout);
      const from = `oci:${layout}:latest`;
      const args = ['--insecure-policy', 'copy', '-q', '--dest-tls-verify=false', from, `docker://${reference}`];
      await succeed('skopeo', args, { env: host.env });
      return reference;
    },
    berth: call,
    async expectBerth(args, input) {
      const outcome = await call(args, input);
      expect(outcome, `berth ${args.join(' ')}`).toMatchObject({ code: 0 });
      return outcome.stdout;
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
