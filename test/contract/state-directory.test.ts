import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openStateDirectory } from '../../runtime/state-directory.ts';

const MODULE = fileURLToPath(new URL('../../runtime/state-directory.ts', import.meta.url));

let base = '';
beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), 'berth-state-'));
});
afterEach(() => rm(base, { recursive: true }));

function open(root: string, runDir: string) {
  return openStateDirectory({ root: join(base, root), runDir: join(base, runDir), randomId: () => 'ab-cd-ef-0123' });
}

/** Another process that holds the directories until it is killed. */
async function holder(root: string, runDir: string) {
  const script = `
    const { openStateDirectory } = await import(${JSON.stringify(MODULE)});
    globalThis.held = await openStateDirectory({ root: ${JSON.stringify(join(base, root))},
      runDir: ${JSON.stringify(join(base, runDir))}, randomId: () => 'zzzzzz' });
    process.stdout.write('held');
    setInterval(() => {}, 1 << 30);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  return {
    pid: child.pid ?? 0,
    async kill() {
      child.kill('SIGKILL');
      await once(child, 'exit');
    },
  };
}

describe('StateDirectory', () => {
  it('keeps its tag', async () => {
    const first = await open('root', 'run');
    expect(first.tag).toBe('abcdef');
    first[Symbol.dispose]();
    using again = await openStateDirectory({ root: first.root, runDir: first.runDir, randomId: () => '999999' });
    expect(again.tag).toBe('abcdef');
    expect(await readFile(join(first.root, 'instance'), 'utf8')).toBe('abcdef\n');
  });

  it('CVE-2021-41091: nobody but root can list it, also where it was open before', async () => {
    (await open('root', 'run'))[Symbol.dispose]();
    await chmod(join(base, 'root'), 0o755);
    using directory = await open('root', 'run');
    expect((await stat(directory.root)).mode & 0o777).toBe(0o711);
    expect((await stat(directory.runDir)).mode & 0o777).toBe(0o711);
  });

  it('is refused to a second engine, which is told whom to look at', async () => {
    const other = await holder('root', 'run');
    await expect(open('root', 'run2')).rejects.toMatchObject({
      kind: 'conflict',
      message: expect.stringContaining(`process id ${other.pid} is using it`),
    });
    await expect(open('root2', 'run')).rejects.toMatchObject({ kind: 'conflict' });
    using beside = await open('root3', 'run3');
    expect(beside.tag).toBe('abcdef');
    await other.kill();
  });

  it('is free again after SIGKILL', async () => {
    const other = await holder('root', 'run');
    await other.kill();
    using directory = await open('root', 'run');
    expect(directory.tag).toBe('zzzzzz');
  });

  it('refuses a tag that is none', async () => {
    (await open('root', 'run'))[Symbol.dispose]();
    await writeFile(join(base, 'root', 'instance'), '../../x\n');
    await expect(open('root', 'run')).rejects.toMatchObject({ kind: 'integrity' });
  });
});
