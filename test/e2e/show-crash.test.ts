import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { busyboxImage } from '../fixtures/images.ts';
import { openRig } from './rig.ts';

const LAST = 400;

it('loses no output and no exit code when the engine is killed', async () => {
  await using rig = await openRig();
  const busybox = await rig.push(await busyboxImage(), 'busybox:1');
  const script = `i=0; while [ $i -le ${LAST} ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 3`;
  await rig.expectBerth(['run', '-d', '--name', 'counter', busybox, 'sh', '-c', script]);
  const numbers = async () => (await rig.expectBerth(['logs', 'counter'])).split('\n').slice(0, -1).map(Number);
  const reaches = async (number: number) => {
    const deadline = Date.now() + 30_000;
    while (((await numbers()).at(-1) ?? -1) < number) {
      if (Date.now() > deadline) throw new Error(`the counter never reached ${number}`);
      await delay(50);
    }
  };
  const pid = () => rig.expectBerth(['inspect', '--format', '{{.State.Pid}}', 'counter']);
  await reaches(10);
  const before = await pid();

  await rig.crashEngine();

  expect(await pid()).toBe(before);
  await reaches(200);
  await rig.crashEngine();
  expect(await rig.expectBerth(['wait', 'counter'])).toBe('3\n');
  expect(await numbers()).toEqual(Array.from({ length: LAST + 1 }, (_, i) => i));
  await rig.expectBerth(['rm', 'counter']);
}, 120_000);

it('learns the exit code of a container that ended while there was no engine', async () => {
  await using rig = await openRig();
  const busybox = await rig.push(await busyboxImage(), 'busybox:1');
  await rig.expectBerth(['run', '-d', '--name', 'brief', busybox, 'sh', '-c', 'sleep 1; echo done; exit 9']);
  const { pid } = JSON.parse(await rig.expectBerth(['inspect', '--format', '{"pid":{{.State.Pid}}}', 'brief']));
  await rig.engine.end('SIGKILL');
  const deadline = Date.now() + 20_000;
  while (isAlive(pid)) {
    if (Date.now() > deadline) throw new Error('the container never ended');
    await delay(50);
  }
  await rig.crashEngine();
  expect(await rig.expectBerth(['wait', 'brief'])).toBe('9\n');
  expect(await rig.expectBerth(['logs', 'brief'])).toBe('done\n');
  await rig.expectBerth(['rm', 'brief']);
}, 120_000);

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
