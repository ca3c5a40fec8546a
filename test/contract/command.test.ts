import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { feedCommand, openCommand, runCommand, streamCommand } from '../../runtime/kernel/command.ts';

async function textOf(chunks: AsyncIterable<Buffer>): Promise<string> {
  const parts: Buffer[] = [];
  for await (const chunk of chunks) parts.push(chunk);
  return Buffer.concat(parts).toString('utf8');
}

async function* nothing(): AsyncGenerator<Buffer> {}

describe('streamCommand', () => {
  it('passes on what a program writes', async () => {
    expect(await textOf(streamCommand('sh', ['-c', 'echo a; echo b >&2']))).toBe('a\n');
  });

  it('fails with the words of the program', async () => {
    await expect(textOf(streamCommand('sh', ['-c', 'echo why >&2; exit 3']))).rejects.toMatchObject({
      kind: 'unavailable',
      message: 'cannot run "sh": why',
    });
  });
});

it.each([
  ['streamCommand', () => textOf(streamCommand('no-such-program', []))],
  ['feedCommand', () => feedCommand('no-such-program', [], nothing())],
  ['openCommand', () => openCommand('no-such-program', []).ended],
])('%s tells what is not installed', async (_name, start) => {
  await expect(start()).rejects.toMatchObject({ kind: 'unsupported' });
});

it.each([
  ['streamCommand', 'spawn true EMFILE'],
  ['feedCommand', 'spawn true EMFILE'],
  ['openCommand', 'no descriptors are left'],
])('%s outlives a process that has no descriptors left', async (name, why) => {
  const module = fileURLToPath(new URL('../../runtime/kernel/command.ts', import.meta.url));
  const script = `
    import { closeSync, openSync } from 'node:fs';
    import { setTimeout as delay } from 'node:timers/promises';
    import { feedCommand, openCommand, streamCommand } from ${JSON.stringify(module)};
    const start = {
      streamCommand: () => streamCommand('true', []).next(),
      feedCommand: () => feedCommand('true', [], []),
      openCommand: async () => openCommand('true', []),
    };
    const taken = [];
    try { for (;;) taken.push(openSync('/dev/null')); } catch {}
    const failure = await start.${name}().then(() => undefined, (error) => error);
    await delay(10);
    for (const fd of taken) closeSync(fd);
    console.log(failure?.kind, failure?.message);`;
  const node = `ulimit -n 64; exec "$0" --input-type=module -e "$1"`;
  const { stdout, stderr } = await runCommand('sh', ['-c', node, process.execPath, script]);
  expect({ stdout, stderr }).toEqual({ stdout: `unavailable cannot run "true": ${why}\n`, stderr: '' });
});
