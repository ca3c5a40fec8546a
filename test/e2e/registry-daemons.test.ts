/** The registry under dockerd and containerd, each started here, in a network namespace that ends with the test. */
import { mkdir, mkdtempDisposable, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildImage, buildLayer, writeLayout } from '../fixtures/images.ts';
import { type Place, type Program, run, startProgram, succeed } from '../fixtures/programs.ts';

const MAIN = join(import.meta.dirname, '../../registry/main.ts');
const PASSWORD = 'correct horse';

describe('daemons of others', () => {
  const stack = new AsyncDisposableStack();
  let place: Place;
  let address: string;
  let archive: string;
  let startInside: (name: string, command: string, args: readonly string[], ready: Ready) => Promise<Program>;
  type Ready = (program: Program) => Promise<boolean> | boolean;

  beforeAll(async () => {
    const directory = await mkdtempDisposable(join(tmpdir(), 'berth-daemons-'));
    stack.defer(() => directory.remove());
    const root = directory.path;
    place = { root, runDir: join(root, 'run'), env: { PATH: process.env.PATH, HOME: root } };

    const script = 'ip link set lo up && echo up && exec sleep infinity';
    const namespace = stack.use(
      await startProgram(place, {
        name: 'namespace',
        command: 'unshare',
        args: ['--net', '--', 'sh', '-c', script],
        ready: (program) => (program.output().includes('up') ? program : undefined),
      }),
    );
    startInside = async (name, command, args, ready) =>
      stack.use(
        await startProgram(place, {
          name,
          command: 'nsenter',
          args: [`--net=/proc/${namespace.pid}/ns/net`, '--', command, ...args],
          ready: async (program) => ((await ready(program)) ? program : undefined),
        }),
      );

    const passwords = join(root, 'users');
    const hash = ['hash-password', 'ann'];
    await writeFile(passwords, await succeed(process.execPath, [MAIN, ...hash], { env: place.env, input: PASSWORD }));
    const serve = [MAIN, 'serve', '--root', join(root, 'registry'), '--listen', '127.0.0.1:0'];
    const isReady: Ready = (program) => program.output().includes('ready on');
    const registry = await startInside('registry', process.execPath, [...serve, '--password-file', passwords], isReady);
    address = /ready on http:\/\/(\S+)/.exec(registry.output())?.[1] ?? '';

    const layers = [buildLayer([{ name: 'file', content: 'x'.repeat(100_000) }])];
    await writeLayout(buildImage({ layers }), join(root, 'layout'));
    archive = join(root, 'image.tar');
    const copy = ['--insecure-policy', 'copy', '-q', `oci:${join(root, 'layout')}:latest`];
    await succeed('skopeo', [...copy, `docker-archive:${archive}:local:v1`], { env: place.env });
  });
  afterAll(() => stack.disposeAsync());

  it('dockerd: login, push, pull; and nothing without login', async () => {
    const at = (name: string) => join(place.root, 'dockerd', name);
    await mkdir(at('data'), { recursive: true });
    await writeFile(at('config.json'), '{}');
    const host = `unix://${at('docker.sock')}`;
    const docker = (...args: readonly string[]) => run('docker', ['-H', host, ...args], { env: place.env });
    const ok = async (...args: readonly string[]) => {
      expect(await docker(...args), args.join(' ')).toMatchObject({ code: 0 });
    };
    const directories = ['--data-root', at('data'), '--exec-root', at('exec'), '--pidfile', at('pid')];
    const args = ['--host', host, ...directories, '--config-file', at('config.json'), '--log-level', 'warn'];
    await startInside('dockerd', 'dockerd', args, async () => (await docker('version')).code === 0);

    const name = `${address}/team/app:v1`;
    await ok('load', '-i', archive);
    await ok('tag', 'local:v1', name);
    const refused = await docker('push', name);
    expect(refused.code).not.toBe(0);
    expect(refused.stderr).toMatch(/no basic auth credentials|unauthorized|authentication required/);
    await ok('login', '-u', 'ann', '-p', PASSWORD, address);
    await ok('push', name);
    await ok('rmi', name, 'local:v1');
    await ok('pull', name);
  });

  it('containerd: ctr pushes and pulls', async () => {
    const at = (name: string) => join(place.root, 'containerd', name);
    await mkdir(at('.'), { recursive: true });
    const config = { root: at('root'), state: at('state'), socket: at('containerd.sock') };
    const lines = ['version = 2', `root = "${config.root}"`, `state = "${config.state}"`];
    const plugins = ['disabled_plugins = ["io.containerd.grpc.v1.cri"]', '[grpc]', `address = "${config.socket}"`];
    await writeFile(at('config.toml'), [...lines, ...plugins, ''].join('\n'));
    const ctr = (...args: readonly string[]) => run('ctr', ['-a', config.socket, ...args], { env: place.env });
    const ready: Ready = async () => (await ctr('version')).code === 0;
    const daemon = await startInside('containerd', 'containerd', ['--config', at('config.toml')], ready);

    const name = `${address}/team/ctr:v1`;
    const inside = async (...args: readonly string[]) => {
      const enter = [`--net=/proc/${daemon.pid}/ns/net`, '--', 'ctr', '-a', config.socket, ...args];
      expect(await run('nsenter', enter, { env: place.env }), args.join(' ')).toMatchObject({ code: 0 });
    };
    const plain = ['--plain-http', '--user', `ann:${PASSWORD}`];
    await inside('images', 'import', '--snapshotter', 'native', archive);
    await inside('images', 'tag', 'docker.io/library/local:v1', name);
    await inside('images', 'push', ...plain, name);
    await inside('images', 'rm', name, 'docker.io/library/local:v1');
    await inside('images', 'pull', ...plain, '--snapshotter', 'native', name);
  });
});
