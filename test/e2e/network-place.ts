/**
 * Two hosts on one wire, as network namespaces: `here` with an engine in it, and `there`. Nothing of it is reachable
 * from the machine that the tests run on.
 */
import { join } from 'node:path';
import { busyboxImage, writeLayout } from '../fixtures/images.ts';
import { type EngineProgram, type Outcome, run, startEngine, succeed } from '../fixtures/programs.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';

export const HERE = { v4: '10.214.0.1', v6: 'fd00:214::1' } as const;
export const THERE = { v4: '10.214.0.2', v6: 'fd00:214::2' } as const;
export const IMAGE = 'busybox:latest';

export interface NetworkPlace extends AsyncDisposable {
  readonly host: TestHost;
  readonly engine: EngineProgram;
  /** A command that starts others on the host of the engine. */
  readonly through: readonly string[];
  /** The image as docker-archive, for other engines. */
  readonly archive: string;
  docker(...args: readonly string[]): Promise<Outcome>;
  /** Anything but success fails the test. Answers what was printed, trimmed. */
  dockerOk(...args: readonly string[]): Promise<string>;
  /** Runs a shell command on one of the hosts. */
  on(where: 'here' | 'there', command: string): Promise<Outcome>;
  /** What an HTTP server answers, without the headers; undefined = nobody answers within 2 seconds. */
  get(where: 'here' | 'there', url: string): Promise<string | undefined>;
  /** The same from inside a container, by address. */
  getFrom(container: string, address: string, port: number): Promise<string | undefined>;
  /** Ends the engine by a signal; `meanwhile` happens before the next one starts. */
  restart(signal: 'SIGTERM' | 'SIGKILL', meanwhile?: () => Promise<unknown>): Promise<void>;
}

export async function openNetworkPlace(): Promise<NetworkPlace> {
  await using undo = new AsyncDisposableStack();
  const host = undo.use(await testHost());
  const mark = host.root.slice(-6);
  const names = { here: `here-${mark}`, there: `there-${mark}` };
  const plain = (command: string, ...args: string[]) => succeed(command, args, { env: host.env });
  for (const name of Object.values(names)) {
    host.owns(name);
    await plain('ip', 'netns', 'add', name);
    undo.defer(async () => void (await plain('ip', 'netns', 'delete', name)));
  }
  const on = (where: 'here' | 'there', command: string) =>
    run('nsenter', [`--net=/run/netns/${names[where]}`, 'sh', '-c', command], { env: host.env });
  const must = async (where: 'here' | 'there', command: string) => {
    const { code, stderr } = await on(where, command);
    if (code !== 0) throw new Error(`${command} on ${where}: ${stderr}`);
  };
  await plain(
    'ip',
    'link',
    'add',
    'wire',
    'netns',
    names.here,
    'type',
    'veth',
    'peer',
    'name',
    'wire',
    'netns',
    names.there,
  );
  for (const [where, { v4, v6 }] of [
    ['here', HERE],
    ['there', THERE],
  ] as const)
    await must(
      where,
      `ip link set lo up && ip addr add ${v4}/24 dev wire && ip addr add ${v6}/64 dev wire nodad && ip link set wire up`,
    );
  await must('here', `ip route add default via ${THERE.v4}`);
  // A neighbour that knows the way to the containers, to see that knowing it does not help.
  await must('there', `ip route add 10.213.0.0/16 via ${HERE.v4} && ip route add fd00:213::/32 via ${HERE.v6}`);

  const options = { namespace: `/run/netns/${names.here}`, args: ['--address-pools', '10.213.0.0/16'] };
  let engine = await startEngine(host, options);
  const docker = (...args: readonly string[]) => run('docker', ['-H', engine.url, ...args], { env: host.env });
  const dockerOk = async (...args: readonly string[]) => {
    const { code, stdout, stderr } = await docker(...args);
    if (code !== 0)
      throw new Error(`docker ${args.join(' ')} ended with code ${code}:\n${stdout}${stderr}\n${engine.output()}`);
    return stdout.trim();
  };
  undo.defer(async () => {
    const ids = (await docker('ps', '-aq')).stdout.split('\n').filter((id) => id !== '');
    if (ids.length > 0) await docker('rm', '-f', ...ids);
    await docker('network', 'prune', '-f');
    const code = await engine.end('SIGTERM');
    if (code !== 0) throw new Error(`the engine ended with code ${code}:\n${engine.output()}`);
  });
  const [layout, archive] = [join(host.root, 'layout'), join(host.root, 'image.tar')];
  await writeLayout(await busyboxImage(), layout);
  await plain(
    'skopeo',
    '--insecure-policy',
    'copy',
    '-q',
    `oci:${layout}:latest`,
    `docker-archive:${archive}:${IMAGE}`,
  );
  await dockerOk('load', '-qi', archive);

  const owned = undo.move();
  return {
    host,
    archive,
    through: ['nsenter', `--net=/run/netns/${names.here}`, '--'],
    get engine() {
      return engine;
    },
    docker,
    dockerOk,
    on,
    async get(where, url) {
      const { code, stdout } = await on(where, `curl -s -f -g -m 2 '${url}'`);
      return code === 0 ? stdout.trim() : undefined;
    },
    async getFrom(container, address, port) {
      const request = `printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 ${address} ${port}`;
      const { stdout } = await docker('exec', container, 'sh', '-c', request);
      return stdout.includes('200 OK') ? stdout.trim().split('\n').at(-1) : undefined;
    },
    async restart(signal, meanwhile) {
      await engine.end(signal);
      await meanwhile?.();
      engine = await startEngine(host, options);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
