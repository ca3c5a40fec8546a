/** What containers promise beside their engine: its end is not theirs, and a slow reader costs time, not output. */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import Docker from 'dockerode';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { cgroupLayout, createCgroups } from '../../runtime/kernel/cgroups.ts';
import { createMounts } from '../../runtime/kernel/mount.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
beforeAll(async () => {
  place = await openEnginePlace();
  await place.dockerOk(['pull', '-q', place.image]);
});
afterAll(() => place?.[Symbol.asyncDispose]());

const MIB = 1 << 20;
const DEADLINE = { timeout: 20_000, interval: 100 };

// A systemd unit's stop, or the end of the login session that berthd was started in (docs/adr/0015).
it('lives on when everything in the cgroup of the engine is killed', async () => {
  const { image, host, dockerOk } = place;
  const cgroups = createCgroups(cgroupLayout(await createMounts({ architecture: process.arch }).list()));
  const cgroup = `/berth-test-${process.pid}`;
  host.owns(cgroup);
  await cgroups.create(cgroup);
  try {
    await cgroups.add(cgroup, place.engine.pid);
    const script = 'i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done';
    const detached = await dockerOk(['run', '-d', image, 'sh', '-c', script]);
    const interactive = await dockerOk(['run', '-di', image, 'sh', '-c', 'read a; echo got $a; sleep 1000']);
    // What it has started to put something away may still run; its helpers end with it.
    const others = async () => {
      const pids = (await cgroups.processes(cgroup)).filter((pid) => pid !== place.engine.pid);
      const names = pids.map((pid) => readFile(`/proc/${pid}/comm`, 'utf8').catch(() => ''));
      return (await Promise.all(names)).filter((name) => !/^(?:perl|nft-\w+)?\n?$/.test(name));
    };
    await expect.poll(others, DEADLINE).toEqual([]);
    await cgroups.kill(cgroup);
    await place.engine.ended;
    await place.restart('SIGKILL');
    const running = (await dockerOk(['ps', '-q', '--no-trunc'])).split('\n').sort();
    expect(running).toEqual([detached, interactive].sort());
    const docker = new Docker({ socketPath: place.engine.socketPath });
    const stdin = await docker.getContainer(interactive).attach({ stream: true, stdin: true, hijack: true });
    stdin.write('it\n');
    await expect.poll(() => dockerOk(['logs', interactive]), DEADLINE).toBe('got it');
    stdin.end();
    await dockerOk(['kill', detached, interactive]);
    const numbers = (await dockerOk(['logs', detached])).split('\n').map(Number);
    expect(numbers).toEqual(numbers.map((_, index) => index));
    await dockerOk(['rm', detached, interactive]);
  } finally {
    await cgroups.remove(cgroup);
  }
});

it('makes a container in the foreground wait for a reader that is slow, and loses nothing', async () => {
  const docker = new Docker({ socketPath: place.engine.socketPath });
  const bytes = 80 * MIB;
  const container = await docker.createContainer({
    Image: place.image,
    Cmd: ['sh', '-c', `yes ${'x'.repeat(1000)} | head -c ${bytes}`],
    AttachStdout: true,
    AttachStderr: true,
  });
  const stream = await container.attach({ stream: true, stdout: true, stderr: true });
  await container.start();
  const directory = join(place.engine.directory, 'containers', container.id, 'log');
  const written = async () => {
    const names = await readdir(directory);
    const infos = await Promise.all(names.map((name) => stat(join(directory, name))));
    return infos.reduce((sum, { size }) => sum + size, 0);
  };
  let before = -1;
  const isHeld = async () => {
    const now = await written();
    const isStill = now === before;
    before = now;
    return isStill && now > 16 * MIB;
  };
  await expect.poll(isHeld, { timeout: 20_000, interval: 500 }).toBe(true);
  expect((await container.inspect()).State.Running).toBe(true);
  expect(before).toBeLessThan(bytes / 2);
  let read = 0;
  container.modem.demuxStream(
    stream,
    counter((size) => (read += size)),
    process.stderr,
  );
  await container.wait();
  await expect.poll(() => read, DEADLINE).toBe(bytes);
  await container.remove();
});

function counter(count: (size: number) => void): NodeJS.WritableStream {
  return new Writable({
    write(chunk: Buffer, _encoding, done) {
      count(chunk.length);
      done();
    },
  });
}
