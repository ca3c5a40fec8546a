import { expect, it } from 'vitest';
import { ownCgroup } from '../../runtime/kernel/cgroup-moves.ts';
import type { CgroupLayout } from '../../runtime/kernel/cgroups.ts';

const V2 = { path: '/sys/fs/cgroup', version: 2, controllers: [] } as const;
const UNIFIED = { ...V2, path: '/sys/fs/cgroup/unified' };
const CPU = { path: '/sys/fs/cgroup/cpu', version: 1, controllers: ['cpu', 'cpuacct'] } as const;

it.each<
  readonly [
    what: string,
    mode: CgroupLayout['mode'],
    trees: CgroupLayout['trees'],
    text: string,
    path: string | undefined,
  ]
>([
  ['v2', 'v2', [V2], '0::/system.slice/berthd.service\n', '/sys/fs/cgroup/system.slice/berthd.service'],
  ['the root', 'v2', [V2], '0::/\n', '/sys/fs/cgroup/'],
  ['v1', 'v1', [CPU], '3:cpu,cpuacct:/a:b\n0::/\n', '/sys/fs/cgroup/cpu/a:b'],
  ['hybrid', 'hybrid', [UNIFIED, CPU], '4:memory:/m\n0::/u\n', '/sys/fs/cgroup/unified/u'],
  ['beyond its namespace', 'v2', [V2], '0::/../other\n', undefined],
  ['no such tree', 'v1', [CPU], '3:memory:/m\n', undefined],
  ['nothing', 'none', [], '', undefined],
])('knows where this process is: %s', (_what, mode, trees, text, path) => {
  expect(ownCgroup({ mode, trees }, text)).toBe(path);
});
