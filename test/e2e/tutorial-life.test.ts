/** A tutorial's commands about the life of containers, through docker's CLI and through ours. */
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { succeed } from '../fixtures/programs.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';
import { CLIENTS, tutorialClient } from './tutorial.ts';

let place: EnginePlace;
let image: string;
beforeAll(async () => {
  place = await openEnginePlace();
  image = place.image;
  await place.dockerOk(['pull', '-q', image]);
});
afterAll(() => place?.[Symbol.asyncDispose]());
afterEach(() => place.removeContainers());

const DEADLINE = { timeout: 20_000, interval: 50 };

describe.each(CLIENTS)('%s', (name) => {
  const client = tutorialClient(name, () => place);
  const { run, ok, field } = client;

  it('create, start, ps, inspect, stop, rm', async () => {
    const id = await ok([
      'create',
      '--name',
      'web',
      '-e',
      'A=1',
      image,
      'sh',
      '-c',
      'trap "exit 3" TERM; sleep 1000 & wait',
    ]);
    expect(await ok(['ps', '-aq', '--no-trunc', '--filter', 'status=created'])).toBe(id);
    expect(await ok(['start', 'web'])).toBe('web');
    expect(await ok(['ps', '--format', '{{.Names}} {{.Image}} {{.Status}}'])).toMatch(/^web \S+ Up /);
    expect(await field('web', '{{.State.Status}} {{.State.Running}} {{.Config.Image}}')).toBe(`running true ${image}`);
    expect((await run(['rm', 'web'])).stderr).toContain(
      'container is running: stop the container before removing or force remove',
    );
    expect(await ok(['stop', 'web'])).toBe('web');
    expect(await field('web', '{{.State.Status}} {{.State.ExitCode}}')).toBe('exited 3');
    expect(await ok(['ps', '-q'])).toBe('');
    expect(await ok(['ps', '-a', '--filter', 'exited=3', '--format', '{{.Status}}'])).toMatch(/^Exited \(3\) /);
    expect(await ok(['rm', id.slice(0, 12)])).toBe(id.slice(0, 12));
    expect((await run(['inspect', 'web'])).code).not.toBe(0);
  });

  it('run -w -e, and --rm', async () => {
    const printed = await ok([
      'run',
      '--rm',
      '--name',
      'once',
      '-w',
      '/made/here',
      '-e',
      'GREETING=hello',
      image,
      'sh',
      '-c',
      'echo $GREETING $PWD',
    ]);
    expect(printed).toBe('hello /made/here');
    await expect.poll(() => ok(['ps', '-aq', '--filter', 'name=once']), DEADLINE).toBe('');
  });

  it('rm -f, container prune', async () => {
    await ok(['run', '-d', '--name', 'forced', image, 'sleep', '1000']);
    expect(await ok(['rm', '-f', 'forced'])).toBe('forced');
    const id = await ok(['create', '--name', 'unused', image]);
    await ok(['run', '-d', '--name', 'used', image, 'sleep', '1000']);
    expect(await ok(['container', 'prune', '-f'])).toContain(id);
    expect(await ok(['ps', '-a', '--format', '{{.Names}}'])).toBe('used');
    await ok(['rm', '-f', 'used']);
  });

  it('rename, kill', async () => {
    await ok(['run', '-d', '--name', 'before', image, 'sh', '-c', 'trap "exit 5" USR1; while :; do sleep 0.1; done']);
    await ok(['rename', 'before', 'after']);
    expect((await run(['rename', 'before', 'x'])).stderr).toContain('No such container: before');
    // The shell must have set its trap.
    await expect.poll(() => ok(['exec', 'after', 'grep', 'SigCgt', '/proc/1/status']), DEADLINE).toMatch(/[1-9a-f]/);
    await ok(['kill', '-s', 'USR1', 'after']);
    expect(await ok(['wait', 'after'])).toBe('5');
    expect((await run(['kill', 'after'])).stderr).toContain('is not running');
    await ok(['start', 'after']);
    await ok(['kill', 'after']);
    expect(await ok(['wait', 'after'])).toBe('137');
    await ok(['rm', 'after']);
  });

  it('--restart always after exit, until it is stopped', async () => {
    await ok(['run', '-d', '--name', 'stubborn', '--restart', 'always', image, 'sh', '-c', 'sleep 0.2; exit 1']);
    await expect.poll(async () => Number(await field('stubborn', '{{.RestartCount}}')), DEADLINE).toBeGreaterThan(1);
    await ok(['stop', 'stubborn']);
    expect(await field('stubborn', '{{.State.Status}}')).toBe('exited');
    await place.restart('SIGTERM');
    // always, unlike unless-stopped, comes back with the engine.
    await expect.poll(() => field('stubborn', '{{.State.Status}}'), DEADLINE).toMatch(/running|restarting/);
    await ok(['update', '--restart', 'no', 'stubborn']);
    await expect.poll(() => field('stubborn', '{{.State.Status}}'), DEADLINE).toBe('exited');
    await ok(['rm', 'stubborn']);
  });

  it('update of limits while it runs', async () => {
    await ok(['run', '-d', '--name', 'limited', '--memory', '64m', '--cpus', '0.5', image, 'sleep', '1000']);
    await ok(['update', '--memory', '96m', '--memory-swap', '96m', '--pids-limit', '50', 'limited']);
    expect(await field('limited', '{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}')).toBe(
      `${96 << 20} 500000000 50`,
    );
    const stats = JSON.parse(await ok(['stats', '--no-stream', '--format', '{{json .}}', 'limited']));
    expect(stats.MemUsage).toMatch(/\/ 96MiB$/);
    await ok(['rm', '-f', 'limited']);
  });

  it('--init reaps orphans and hands on signals', async () => {
    await ok(['run', '-d', '--init', '--name', 'initiated', image, 'sleep', '1000']);
    expect(await ok(['exec', 'initiated', 'cat', '/proc/1/comm'])).toMatch(/init|tini/);
    await ok(['exec', 'initiated', 'sh', '-c', '(sleep 0 &)']);
    await expect.poll(() => ok(['exec', 'initiated', 'ps', '-o', 'stat']), DEADLINE).not.toContain('Z');
    // sleep as process 1 would ignore SIGTERM and have to be killed.
    await ok(['stop', '-t', '15', 'initiated']);
    expect(await field('initiated', '{{.State.ExitCode}}')).toBe('143');
    await ok(['rm', 'initiated']);
  });

  it('tells that memory ran out', async () => {
    const since = String(Math.floor(Date.now() / 1000));
    const eater = 'dd if=/dev/zero of=/dev/null bs=200M count=1';
    const ended = await run([
      'run',
      '--name',
      'hungry',
      '--memory',
      '16m',
      '--memory-swap',
      '16m',
      image,
      'sh',
      '-c',
      `exec ${eater}`,
    ]);
    expect(ended.code).toBe(137);
    expect(await field('hungry', '{{.State.OOMKilled}} {{.State.ExitCode}}')).toBe('true 137');
    const until = String(Math.ceil(Date.now() / 1000));
    const events = [
      'events',
      '--since',
      since,
      '--until',
      until,
      '--filter',
      'container=hungry',
      '--format',
      '{{.Action}}',
    ];
    expect((await ok(events)).split('\n')).toEqual(expect.arrayContaining(['oom', 'die']));
    await ok(['rm', 'hungry']);
  });

  it.each([
    ['/no/such', 127, 'no such file or directory'],
    ['nosuch', 127, 'executable file not found in $PATH'],
    ['/etc/passwd', 126, 'permission denied'],
    // Which of the two depends on the runtime's version.
    ['/etc', 126, /permission denied|is a directory/],
  ])('%s cannot be run: %i', async (command, code, words) => {
    const failed = await run(['run', '--name', 'failing', image, command]);
    expect(failed.code).toBe(code);
    expect(failed.stderr).toMatch(words);
    expect(await field('failing', '{{.State.Status}} {{.State.ExitCode}}')).toBe(`created ${code}`);
    await ok(['rm', 'failing']);
  });

  it('rm that fails leaves it dead, and can be repeated', async () => {
    const id = await ok(['create', '--name', 'undead', image]);
    const busy = join(place.engine.directory, 'containers', id, 'bundle');
    await succeed('mount', ['-t', 'tmpfs', 'none', busy], { env: place.host.env });
    try {
      expect((await run(['rm', 'undead'])).code).toBe(1);
      expect(await ok(['ps', '-a', '--filter', 'status=dead', '--format', '{{.Names}} {{.Status}}'])).toBe(
        'undead Dead',
      );
      expect((await run(['start', 'undead'])).stderr).toContain('marked for removal and cannot be started');
    } finally {
      await succeed('umount', [busy], { env: place.host.env });
    }
    await ok(['rm', 'undead']);
    expect(await ok(['ps', '-aq'])).toBe('');
  });
});
