import { setTimeout as delay } from 'node:timers/promises';
import Docker from 'dockerode';
import { expect, it } from 'vitest';
import { succeed } from '../fixtures/programs.ts';
import { openEnginePlace } from './engine-place.ts';

const VERBS = 300;
const CLIENTS = 4;
const KILLS = 20;
const NAMES = ['k0', 'k1', 'k2', 'k3', 'k4', 'k5'];
const LEGAL = ['created', 'running', 'paused', 'exited', 'restarting'];

/** The same numbers for the same seed, so that a failure can be had again. */
function createRandom(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}

it('stays legal under random verbs of four clients while the engine is killed twenty times', async () => {
  await using place = await openEnginePlace();
  const { image } = place;
  await place.dockerOk(['pull', image]);
  const random = createRandom(42);
  const client = () => new Docker({ socketPath: place.engine.socketPath });
  const verbs: readonly ((docker: Docker, name: string) => Promise<unknown>)[] = [
    (docker, name) =>
      docker.createContainer({
        name,
        Image: image,
        Cmd: ['sh', '-c', 'trap "exit 0" TERM; while true; do sleep 0.05; done'],
      }),
    (docker, name) =>
      docker.createContainer({ name, Image: image, Cmd: ['true'], HostConfig: { AutoRemove: random(2) === 0 } }),
    (docker, name) => docker.getContainer(name).start(),
    (docker, name) => docker.getContainer(name).start(),
    (docker, name) => docker.getContainer(name).start(),
    (docker, name) => docker.getContainer(name).stop({ t: 1 }),
    (docker, name) => docker.getContainer(name).restart({ t: 1 }),
    (docker, name) => docker.getContainer(name).kill(),
    (docker, name) => docker.getContainer(name).pause(),
    (docker, name) => docker.getContainer(name).unpause(),
    (docker, name) => docker.getContainer(name).remove({ force: random(2) === 0 }),
    (docker) => docker.listContainers({ all: true }),
  ];
  let answered = 0;
  let kills = 0;
  const unexpected: string[] = [];
  const isOver = () => answered >= VERBS && kills >= KILLS;
  const work = async () => {
    while (!isOver()) {
      const verb = verbs[random(verbs.length)];
      const name = NAMES[random(NAMES.length)] ?? 'k0';
      try {
        await verb?.(client(), name);
        answered += 1;
      } catch (error) {
        // No answer at all is what a killed engine gives; 4xx is what a verb in the wrong state gets.
        const { statusCode, message } = error as { readonly statusCode?: number; readonly message: string };
        if (statusCode === undefined) await delay(20);
        else if (statusCode >= 500) unexpected.push(message);
        else answered += 1;
      }
    }
  };
  const kill = async () => {
    for (; kills < KILLS; kills += 1) {
      await delay(random(400));
      await place.restart('SIGKILL');
    }
  };
  await Promise.all([...Array.from({ length: CLIENTS }, work), kill()]);
  await place.restart('SIGKILL');

  const docker = client();
  const listed = await docker.listContainers({ all: true });
  for (const { State, Names } of listed) expect(LEGAL, Names.join()).toContain(State);
  for (const { Id, State } of listed) {
    const { State: state } = await docker.getContainer(Id).inspect();
    const isAlive = State === 'running' || State === 'paused';
    expect(state.Pid > 0).toBe(isAlive);
    if (isAlive) process.kill(state.Pid, 0);
  }
  expect(unexpected).toEqual([]);
  // Whatever it is now, it can be started again and removed.
  for (const { Id, State } of listed) {
    if (State === 'paused') await docker.getContainer(Id).unpause();
    if (State === 'created' || State === 'exited')
      await docker
        .getContainer(Id)
        .start()
        .catch(() => {});
    await docker.getContainer(Id).remove({ force: true });
  }
  const mounts = await succeed('sh', ['-c', `mount | grep -c ${place.host.root}/engine/containers || true`], {
    env: place.host.env,
  });
  expect(mounts.trim()).toBe('0');
}, 300_000);
