import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { copyFile, mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type TestHost, testHost } from './leaks.ts';

const TEARDOWN_MS = 200;

/** Runs a test that leaks, and answers what the check says. */
async function leaksOf(body: (host: TestHost) => Promise<void>): Promise<string> {
  const host = await testHost({ teardownMs: TEARDOWN_MS });
  await body(host);
  const failure = await host[Symbol.asyncDispose]().then(
    () => undefined,
    (error: Error) => error,
  );
  expect(existsSync(host.root)).toBe(false);
  return failure?.message ?? '';
}

/** A state directory with a tag that no one else has. */
async function tagged(host: TestHost): Promise<string> {
  const tag = host.root.slice(-6).toLowerCase();
  await mkdir(join(host.root, 'state'));
  await writeFile(join(host.root, 'state', 'instance'), `${tag}\n`);
  return tag;
}

describe('leak check', () => {
  it('is content with a test that cleans up', async () => {
    await using host = await testHost();
    await mkdir(join(host.root, 'm'));
    execFileSync('mount', ['-t', 'tmpfs', 'none', join(host.root, 'm')]);
    execFileSync('umount', [join(host.root, 'm')]);
  });

  it('waits for a process that is about to end', async () => {
    await using host = await testHost();
    const child = spawn('cat', { env: host.env, stdio: ['pipe', 'ignore', 'ignore'] });
    await once(child, 'spawn');
    setTimeout(() => child.stdin.end(), 300);
  });

  it('refuses a second host in one process', async () => {
    await using host = await testHost();
    await expect(testHost()).rejects.toThrow(host.root);
  });

  it('names a mount', async () => {
    const said = await leaksOf(async (host) => {
      await mkdir(join(host.root, 'm'));
      execFileSync('mount', ['-t', 'tmpfs', 'none', join(host.root, 'm')]);
    });
    expect(said).toMatch(/^the test left 1 thing\(s\).*\n {2}mount {4}\S+\/m \(tmpfs\)$/);
  });

  it('names a process that was given away, by the environment that it inherited', async () => {
    const said = await leaksOf(async () => {
      execFileSync('setsid', ['--fork', 'sleep', '1000'], { stdio: 'ignore' });
    });
    expect(said).toMatch(/process {2}\d+ sleep 1000/);
  });

  it('names a child that has no mark', async () => {
    const said = await leaksOf(async () => {
      await once(spawn('sleep', ['1000'], { env: { PATH: '/usr/bin:/bin' }, stdio: 'ignore' }), 'spawn');
    });
    expect(said).toMatch(/process {2}\d+ sleep 1000/);
  });

  it('names a process that shows no path of the host, by what its root is mounted from', async () => {
    const said = await leaksOf(async (host) => {
      const at = (name: string) => join(host.root, name);
      for (const name of ['lower', 'upper', 'work', 'rootfs']) await mkdir(at(name));
      await mkdir(at('upper/old'));
      await copyFile('/bin/busybox', at('lower/busybox'));
      const script = `
        mount -t overlay overlay -o lowerdir=${at('lower')},upperdir=${at('upper')},workdir=${at('work')} ${at('rootfs')}
        cd ${at('rootfs')} && pivot_root . old && /busybox umount -l /old && exec /busybox setsid /busybox sleep 1000 &`;
      const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' };
      execFileSync('unshare', ['--mount', 'setsid', '--fork', 'sh', '-c', script], { env, stdio: 'ignore', cwd: '/' });
      const isThere = () => execFileSync('ps', ['-eo', 'args'], { encoding: 'utf8' }).includes('/busybox sleep 1000');
      await expect.poll(isThere).toBe(true);
    });
    expect(said).toMatch(/process {2}\d+ \/busybox sleep 1000/);
  });

  it('names a cgroup, a namespace, a link and a table by the instance tag', async () => {
    let mark = '';
    const said = await leaksOf(async (host) => {
      const tag = await tagged(host);
      mark = tag;
      const hierarchy = existsSync('/sys/fs/cgroup/cgroup.controllers') ? '/sys/fs/cgroup' : '/sys/fs/cgroup/pids';
      await mkdir(join(hierarchy, `berth-${tag}`, 'c1'), { recursive: true });
      execFileSync('ip', ['netns', 'add', `berth-${tag}-1`]);
      execFileSync('ip', ['link', 'add', `bt${tag}0`, 'type', 'bridge']);
      execFileSync('nft', ['add', 'table', 'inet', `berth_${tag}`]);
    });
    for (const kind of ['cgroup', 'netns', 'link', 'nft']) expect(said).toMatch(new RegExp(`^ {2}${kind} `, 'm'));
    const left = [
      execFileSync('ip', ['-o', 'link'], { encoding: 'utf8' }),
      execFileSync('nft', ['list', 'tables'], { encoding: 'utf8' }),
      ...(await readdir('/run/netns').catch(() => [])),
    ];
    expect(left.join('\n')).not.toContain(mark);
  });

  it('sees nothing of another test', async () => {
    const theirs = spawn('cat', { env: { PATH: '/usr/bin:/bin', BERTH_TEST_RUN: '/tmp/berth-others' } });
    await once(theirs, 'spawn');
    expect(await leaksOf(async () => undefined)).toBe('');
    theirs.kill();
    await once(theirs, 'exit');
  });
});
