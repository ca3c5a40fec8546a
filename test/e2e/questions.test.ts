/** What the command line client asks on a terminal, and where there is none. */
import { expect, it } from 'vitest';
import { CLI } from '../fixtures/programs.ts';
import { openRig, type Rig } from './rig.ts';
import { openTerminal } from './terminal.ts';

function ask({ host, engine }: Rig, command: string) {
  return openTerminal(`${process.execPath} ${CLI} ${command}`, { ...host.env, BERTH_HOST: engine.url });
}

it('removes only after a yes', async () => {
  await using rig = await openRig();
  await rig.expectBerth(['volume', 'create', 'data']);
  const unasked = await rig.berth(['volume', 'prune', '-a']);
  expect(unasked).toMatchObject({ code: 1, stderr: expect.stringContaining('use --force') });
  for (const [answer, left] of [
    ['n', 'data\n'],
    ['', 'data\n'],
    ['y', ''],
  ]) {
    await using terminal = ask(rig, 'volume prune -a');
    await terminal.until(/\[y\/N\] /);
    terminal.type(`${answer}\n`);
    expect(await terminal.ended()).toBe(0);
    expect(await rig.expectBerth(['volume', 'ls', '-q'])).toBe(left);
  }
});

it('shows the name that is typed, and never the password', async () => {
  await using rig = await openRig();
  await using terminal = ask(rig, 'login 127.0.0.1:9');
  await terminal.until(/Username: /);
  terminal.type('mary\n');
  await terminal.until(/Password: /);
  terminal.type('open sesame\n');
  expect(await terminal.ended()).toBe(1);
  expect(terminal.output()).toContain('mary');
  expect(terminal.output()).not.toContain('sesame');
});
