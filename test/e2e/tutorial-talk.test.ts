/** A tutorial's commands that talk to containers and watch them, through docker's CLI and through ours. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';
import { CTRL_P_CTRL_Q } from './terminal.ts';
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

  it('run -dit, attach, Ctrl-P Ctrl-Q, attach again, exit', async () => {
    await ok(['run', '-dit', '--name', 'shell', '-e', 'PS1=prompt>', image, 'sh']);
    {
      await using terminal = client.terminal(['attach', 'shell']);
      terminal.type('echo $((6*7))\r');
      await terminal.until(/\n42\r*\n/);
      terminal.type(CTRL_P_CTRL_Q);
      await terminal.ended();
    }
    expect(await field('shell', '{{.State.Running}}')).toBe('true');
    await using again = client.terminal(['attach', 'shell']);
    again.type('exit 9\r');
    expect(await again.ended()).toBe(9);
    expect(await field('shell', '{{.State.Status}} {{.State.ExitCode}}')).toBe('exited 9');
    await ok(['rm', 'shell']);
  });

  it('run -it, and its stdin after a crash of the engine', async () => {
    await using first = client.terminal(['run', '-it', '--name', 'kept', '-e', 'PS1=prompt>', image, 'sh']);
    await first.until(/prompt>/);
    // Not the next prompt: a shell that learns its terminal's size may print that of before again.
    first.type('X=remembered; echo known-$((6*7))\r');
    await first.until(/known-42/);
    await place.restart('SIGKILL');
    expect(await field('kept', '{{.State.Running}}')).toBe('true');
    await using second = client.terminal(['attach', 'kept']);
    second.type('echo $X-$((6*7))\r');
    await second.until(/remembered-42/);
    second.type('exit\r');
    expect(await second.ended()).toBe(0);
    await ok(['rm', 'kept']);
  });

  it('a terminal has the size of the client’s', async () => {
    await using terminal = client.terminal(['run', '--rm', '-it', image, 'sh', '-c', 'read x; stty size']);
    terminal.type('\r');
    await terminal.until(/40 100/);
    expect(await terminal.ended()).toBe(0);
  });

  it('pause, attach refused, exec refused, unpause', async () => {
    await ok(['run', '-d', '--name', 'frozen', image, 'sleep', '1000']);
    expect(await ok(['pause', 'frozen'])).toBe('frozen');
    expect(await ok(['ps', '--format', '{{.Status}}'])).toMatch(/\(Paused\)$/);
    expect((await run(['attach', 'frozen'])).stderr).toMatch(/paused.*unpause/);
    expect((await run(['exec', 'frozen', 'true'])).stderr).toContain('is paused, unpause the container before exec');
    expect((await run(['start', 'frozen'])).stderr).toContain('cannot start a paused container, try unpause instead');
    expect(await ok(['unpause', 'frozen'])).toBe('frozen');
    expect((await run(['unpause', 'frozen'])).stderr).toContain('is not paused');
    await ok(['rm', '-f', 'frozen']);
  });

  it('exec into a web server', async () => {
    const serve = 'mkdir /www; echo welcome > /www/index.html; exec httpd -f -p 8080 -h /www';
    await ok(['run', '-d', '--name', 'web', image, 'sh', '-c', serve]);
    const fetched = () => run(['exec', 'web', 'wget', '-qO-', 'http://127.0.0.1:8080/']);
    await expect.poll(async () => (await fetched()).stdout, DEADLINE).toBe('welcome\n');
    await ok(['exec', '-i', 'web', 'sh', '-c', 'cat > /www/index.html'], 'changed\n');
    expect((await fetched()).stdout).toBe('changed\n');
    expect(await ok(['exec', '-w', '/www', '-e', 'A=b', '-u', '33', 'web', 'sh', '-c', 'echo $PWD $A $(id -u)'])).toBe(
      '/www b 33',
    );
    expect((await run(['exec', 'web', 'sh', '-c', 'exit 4'])).code).toBe(4);
    expect((await run(['exec', 'web', '/no/such'])).code).toBe(127);
    expect((await run(['exec', 'web', '/etc/passwd'])).code).toBe(126);
    await using terminal = client.terminal(['exec', '-it', 'web', 'sh']);
    terminal.type('tty; exit 6\r');
    await terminal.until(/\/dev\/(?:pts\/\d+|console)/);
    expect(await terminal.ended()).toBe(6);
    await ok(['rm', '-f', 'web']);
  });

  it('logs -f, -ft, --tail, --since, --details', async () => {
    const counting = 'for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done; echo bad >&2';
    await ok([
      'run',
      '-d',
      '--name',
      'chatty',
      '--label',
      'tier=web',
      '--log-opt',
      'labels=tier',
      image,
      'sh',
      '-c',
      counting,
    ]);
    const followed = await run(['logs', '-f', 'chatty']);
    expect(followed.stdout).toBe('line 1\nline 2\nline 3\nline 4\nline 5\n');
    expect(followed.stderr).toBe('bad\n');
    const timed = (await run(['logs', '-ft', '--tail', '2', 'chatty'])).stdout;
    expect(timed).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z line 5\n$/);
    const since = timed.split(' ')[0] ?? '';
    expect((await run(['logs', '--since', since, 'chatty'])).stdout).toBe('line 5\n');
    expect((await run(['logs', '--details', '--tail', '1', 'chatty'])).stderr).toBe('tier=web bad\n');
    await ok(['rm', 'chatty']);
  });

  it('stats of --cpus=0.3 under load, and top', async () => {
    await ok(['run', '-d', '--name', 'busy', '--cpus=0.3', image, 'sh', '-c', 'while :; do :; done']);
    const percent = async () =>
      Number.parseFloat(await ok(['stats', '--no-stream', '--format', '{{.CPUPerc}}', 'busy']));
    // A host with much else to do may give it less, never more.
    await expect.poll(percent, DEADLINE).toBeGreaterThan(20);
    expect(await percent()).toBeLessThan(40);
    const top = await ok(['top', 'busy']);
    expect(top).toMatch(/UID\s+PID\s+PPID/);
    expect(top).toContain('while :');
    expect(await ok(['top', 'busy', '-o', 'pid,comm'])).toMatch(/PID\s+COMMAND\s+\d+\s+\S*sh/);
    await ok(['rm', '-f', 'busy']);
  });

  it('health: states, events, the log of the last five', async () => {
    const since = String(Math.floor(Date.now() / 1000));
    const health = [
      '--health-cmd',
      'echo probed; test -e /well',
      '--health-interval',
      '200ms',
      '--health-retries',
      '2',
    ];
    await ok(['run', '-d', '--name', 'patient', ...health, image, 'sleep', '1000']);
    const status = () => field('patient', '{{.State.Health.Status}}');
    await expect.poll(status, DEADLINE).toBe('unhealthy');
    expect(await ok(['ps', '--filter', 'health=unhealthy', '--format', '{{.Status}}'])).toMatch(/\(unhealthy\)$/);
    await ok(['exec', 'patient', 'touch', '/well']);
    await expect.poll(status, DEADLINE).toBe('healthy');
    const log = async () => JSON.parse(await field('patient', '{{json .State.Health.Log}}'));
    await expect.poll(async () => (await log()).length, DEADLINE).toBe(5);
    expect((await log()).at(-1)).toMatchObject({ ExitCode: 0, Output: 'probed\n' });
    const until = String(Math.ceil(Date.now() / 1000));
    const events = await ok([
      'events',
      '--since',
      since,
      '--until',
      until,
      '--filter',
      'container=patient',
      '--format',
      '{{.Action}}',
    ]);
    const told = events.split('\n').filter((action) => action.startsWith('health_status'));
    expect(told).toEqual(['health_status: unhealthy', 'health_status: healthy']);
    await ok(['rm', '-f', 'patient']);
  });
});
