import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { busyboxImage, debianImage } from '../fixtures/images.ts';
import { CLI, run, succeed } from '../fixtures/programs.ts';
import { openRig } from './rig.ts';

it('runs an image of real Debian files, pushed by skopeo', async () => {
  await using rig = await openRig();
  const debian = await rig.push(await debianImage(), 'debian:12');
  expect(await rig.expectBerth(['run', '--rm', debian, 'cat', '/etc/os-release'])).toMatch(/^ID=debian$/m);
  expect((await rig.berth(['run', '--rm', debian, 'sh', '-c', 'exit 7'])).code).toBe(7);
  expect(await rig.expectBerth(['run', '-i', '--rm', debian, 'cat'], 'hi\n')).toBe('hi\n');
  expect(await rig.expectBerth(['ps', '-a', '-q'])).toBe('');
}, 180_000);

it("runs the same by docker's client", async () => {
  await using rig = await openRig();
  const busybox = await rig.push(await busyboxImage(), 'busybox:1');
  const docker = (args: readonly string[], input?: string) =>
    run('docker', ['-H', rig.engine.url, ...args], { env: rig.host.env, ...(input !== undefined && { input }) });
  expect(await docker(['run', '--rm', busybox, 'echo', 'hello'])).toMatchObject({ code: 0, stdout: 'hello\n' });
  expect((await docker(['run', '--rm', busybox, 'sh', '-c', 'exit 7'])).code).toBe(7);
  expect(await docker(['run', '-i', '--rm', busybox, 'cat'], 'hi\n')).toMatchObject({ code: 0, stdout: 'hi\n' });
  expect(await docker(['run', '--rm', busybox, 'sh', '-c', 'echo out; echo err >&2'])).toMatchObject({
    stdout: 'out\n',
    stderr: 'err\n',
  });
  expect((await docker(['run', '--rm', busybox, 'no-such-program'])).code).toBe(127);
  expect((await docker(['run', '--rm', busybox, '/etc/passwd'])).code).toBe(126);
  expect((await docker(['run', '--rm', '--volume', 're/lative:/data', busybox, 'true'])).code).toBe(125);
  expect((await docker(['version', '--format', '{{.Server.Os}}'])).stdout).toBe('linux\n');
}, 120_000);

it('runs a shell under a real terminal', async () => {
  await using rig = await openRig();
  const busybox = await rig.push(await busyboxImage(), 'busybox:1');
  await rig.expectBerth(['pull', '-q', busybox]);
  const socket = join(rig.host.runDir, 'tmux');
  const env = { ...rig.host.env, BERTH_HOST: rig.engine.url, TERM: 'xterm' };
  const tmux = (...args: string[]) => succeed('tmux', ['-S', socket, '-f', '/dev/null', ...args], { env });
  const shown = async (text: RegExp) => {
    const deadline = Date.now() + 20_000;
    for (;;) {
      const screen = await tmux('capture-pane', '-p');
      if (text.test(screen)) return;
      if (Date.now() > deadline) throw new Error(`the terminal never showed ${text}:\n${screen}`);
      await delay(50);
    }
  };
  const command = `${process.execPath} ${CLI} run -it --rm --name shell ${busybox} sh; echo "ended with $?"; exec sh`;
  await tmux('new-session', '-d', '-x', '101', '-y', '31', command);
  try {
    await shown(/\/ #/);
    await tmux('send-keys', 'tty; stty size', 'Enter');
    await shown(/\/dev\/pts\/0\s+31 101/);
    await tmux('send-keys', 'exit 5', 'Enter');
    await shown(/ended with 5/);
  } finally {
    await tmux('kill-server');
  }
}, 120_000);
