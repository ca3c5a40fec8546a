import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { createCgroupMoves, ownCgroup } from '../../runtime/kernel/cgroup-moves.ts';
import { cgroupLayout, createCgroups } from '../../runtime/kernel/cgroups.ts';
import { inspectHost } from '../../runtime/kernel/host.ts';
import { judgeHost } from '../../runtime/kernel/host-findings.ts';
import { createMounts } from '../../runtime/kernel/mount.ts';
import { testHost } from './leaks.ts';

async function open() {
  return createCgroups(cgroupLayout(await createMounts({ architecture: process.arch }).list()));
}

it('makes a cgroup, moves a process into it, kills what is in it and below, and removes it', async () => {
  await using host = await testHost();
  const cgroups = await open();
  const name = `/${host.root.split('/').at(-1)}`;
  host.owns(name);
  const inner = `${name}/inner/deep`;
  await cgroups.create(inner);
  await cgroups.create(inner);
  expect(await cgroups.children(name)).toEqual(['inner']);
  expect(await cgroups.processes(name)).toEqual([]);

  const sleepers = [spawn('sleep', ['100']), spawn('sleep', ['100'])];
  const ended = Promise.all(sleepers.map((child) => once(child, 'exit')));
  const [first = 0, second = 0] = sleepers.map(({ pid }) => pid ?? 0);
  await cgroups.add(name, first);
  await cgroups.add(inner, second);
  expect([...(await cgroups.processes(name))].sort()).toEqual([first, second].sort());
  expect(await readFile(`/proc/${second}/cgroup`, 'utf8')).toContain(inner);
  expect(await cgroups.read(name, 'pids', 'pids.current')).toBe('2\n');
  expect(await cgroups.read(name, 'pids', 'no.such.file')).toBeUndefined();

  await expect(cgroups.remove(name)).rejects.toMatchObject({ kind: 'conflict' });
  await cgroups.kill(name);
  await ended;
  await cgroups.remove(name);
  await cgroups.remove(name);
  await cgroups.kill(name);
  expect(await cgroups.children(name)).toEqual([]);
});

it('refuses names that lead out of the tree, and processes that are gone', async () => {
  const cgroups = await open();
  for (const name of ['/', 'relative', '/a/../../etc'])
    expect(() => cgroups.pathsOf(name)).toThrow(expect.objectContaining({ kind: 'invalid' }));
  await using host = await testHost();
  const name = `/${host.root.split('/').at(-1)}`;
  host.owns(name);
  await cgroups.create(name);
  await expect(cgroups.add(name, 2 ** 22 - 1)).rejects.toMatchObject({ kind: 'not-found' });
  await cgroups.remove(name);
});

it('moves this process to where it is, for a moment', async () => {
  const layout = cgroupLayout(await createMounts({ architecture: process.arch }).list());
  const before = await readFile('/proc/self/cgroup', 'utf8');
  const own = ownCgroup(layout, before);
  expect(await readFile(join(own ?? '', 'cgroup.procs'), 'utf8')).toContain(`${process.pid}\n`);
  const moves = createCgroupMoves(layout);
  // As long as moves are expected it is at it, and only once.
  const whileExpected = () => {
    moves.expect();
    moves.expect();
    return openCgroupFiles();
  };
  await expect.poll(whileExpected, { interval: 5 }).toHaveLength(1);
  await expect.poll(openCgroupFiles).toEqual([]);
  expect(await readFile('/proc/self/cgroup', 'utf8')).toBe(before);
});

async function openCgroupFiles(): Promise<readonly string[]> {
  const descriptors = await readdir('/proc/self/fd');
  const paths = await Promise.all(descriptors.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')));
  return paths.filter((path) => path.endsWith('/cgroup.procs'));
}

it('finds what this machine can do, and nothing that forbids running containers', async () => {
  const facts = await inspectHost({
    kernel: (await readFile('/proc/sys/kernel/osrelease', 'utf8')).trim(),
    architecture: process.arch,
    cpuCount: 1,
    memoryBytes: 1,
  });
  expect(judgeHost(facts).filter(({ severity }) => severity === 'error')).toEqual([]);
  expect(facts.programs.conmon?.version).toMatch(/^\d+\.\d+/);
  expect(facts.programs['aardvark-dns']?.path).toContain('aardvark-dns');
  expect(join('/', facts.programs.crun?.path ?? '')).toMatch(/crun$/);
});
