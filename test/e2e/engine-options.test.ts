/** What a container may have, of its host and of other containers, asked for by the docker CLI and by the API. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
let image: string;
beforeAll(async () => {
  place = await openEnginePlace();
  image = place.image;
  await place.dockerOk(['pull', '-q', image]);
});
afterAll(() => place?.[Symbol.asyncDispose]());

const docker = (args: readonly string[], input?: string) => place.docker(args, input);
const dockerOk = (args: readonly string[], input?: string) => place.dockerOk(args, input);
const namespaceOf = (container: string, type: string) =>
  dockerOk(['exec', container, 'readlink', `/proc/self/ns/${type}`]);

describe('namespaces of another container', () => {
  it('are shared: IPC with its memory, processes, network', async () => {
    await dockerOk(['run', '-d', '--name', 'owner', '--ipc', 'shareable', '--shm-size', '1m', image, 'sleep', '1000']);
    const joined = ['--ipc', 'container:owner', '--pid', 'container:owner', '--network', 'container:owner'];
    await dockerOk(['run', '-d', '--name', 'guest', ...joined, image, 'sleep', '1000']);
    for (const type of ['ipc', 'pid', 'net'])
      expect(await namespaceOf('guest', type), type).toBe(await namespaceOf('owner', type));
    expect(await namespaceOf('guest', 'uts')).not.toBe(await namespaceOf('owner', 'uts'));
    await dockerOk(['exec', 'owner', 'sh', '-c', 'echo shared > /dev/shm/word']);
    expect(await dockerOk(['exec', 'guest', 'cat', '/dev/shm/word'])).toBe('shared');
    expect(await dockerOk(['exec', 'guest', 'df', '-k', '/dev/shm'])).toMatch(/ 1024 /);
    expect(await dockerOk(['inspect', '-f', '{{.HostConfig.IpcMode}}', 'owner'])).toBe('shareable');
  });

  it('run again after both have ended, the owner first', async () => {
    await dockerOk(['update', '--restart', 'always', 'owner', 'guest']);
    const guest = await dockerOk(['inspect', '-f', '{{.State.Pid}}', 'guest']);
    const owner = await dockerOk(['inspect', '-f', '{{.State.Pid}}', 'owner']);
    expect([guest, owner]).toEqual([expect.stringMatching(/^[1-9]\d+$/), expect.stringMatching(/^[1-9]\d+$/)]);
    // Everything that ran is gone when the next engine looks.
    await place.restart('SIGKILL', () => {
      for (const pid of [guest, owner]) process.kill(Number(pid), 'SIGKILL');
    });
    await expect
      .poll(() => dockerOk(['ps', '--format', '{{.Names}}', '--filter', 'status=running']), { timeout: 20_000 })
      .toBe('guest\nowner');
    expect(await namespaceOf('guest', 'ipc')).toBe(await namespaceOf('owner', 'ipc'));
    await dockerOk(['rm', '-f', 'guest', 'owner']);
    expect(await readdir(join(place.host.runDir, 'engine', 'shm'))).toEqual([]);
  });

  it.each([
    [['--ipc', 'container:hermit'], "can't join IPC of container hermit: non-shareable IPC"],
    [['--ipc', 'container:nobody'], 'No such container: nobody'],
    [['--network', 'container:hermit', '--dns', '10.0.0.1'], 'conflicting options: dns and the network mode'],
  ])('refuses %j', async (flags, words) => {
    if ((await docker(['inspect', 'hermit'])).code !== 0)
      await dockerOk(['run', '-d', '--name', 'hermit', image, 'sleep', '1000']);
    const refused = await docker(['run', '--rm', ...flags, image, 'true']);
    expect(refused.code).toBe(125);
    expect(refused.stderr).toContain(words);
  });
});

describe('--cgroup-parent', () => {
  it('is the cgroup of the container, and nothing of it is left when a crash took the container along', async () => {
    const parent = `berth-test-${process.pid}`;
    const id = await dockerOk(['run', '-d', '--name', 'placed', '--cgroup-parent', parent, image, 'sleep', '1000']);
    expect(await dockerOk(['exec', 'placed', 'cat', '/proc/self/cgroup'])).toContain(`/${parent}/${id}`);
    await dockerOk(['rm', '-f', 'placed']);
  });
});

describe('limits', () => {
  it('that two clients change at once are both changed', async () => {
    await dockerOk(['run', '-d', '--name', 'both', image, 'sleep', '1000']);
    await Promise.all([
      dockerOk(['update', '--pids-limit', '77', 'both']),
      dockerOk(['update', '--cpus', '0.5', 'both']),
    ]);
    expect(await dockerOk(['inspect', '-f', '{{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}}', 'both'])).toBe(
      '77 500000000',
    );
    await dockerOk(['rm', '-f', 'both']);
  });
});
