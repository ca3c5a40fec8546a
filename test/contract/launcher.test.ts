import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { afterAll, describe, expect, it } from 'vitest';
import { createLauncher } from '../../runtime/kernel/launcher.ts';

const ENV = { PATH: '/usr/bin:/bin' };

describe.each([
  ['through a process of its own', undefined],
  ['where there is no perl', 'no-such-perl'],
])('a launcher %s', (_name, perl) => {
  const launcher = createLauncher(perl === undefined ? {} : { perl });
  afterAll(() => launcher[Symbol.asyncDispose]());
  const sh = (script: string, options = {}) => launcher.run('sh', ['-c', script], options);

  it('runs programs to their end, and tells what they said', async () => {
    expect(await sh('echo out; echo err >&2; exit 3')).toMatchObject({ exitCode: 3, stdout: 'out\n', stderr: 'err\n' });
    expect(
      await sh('pwd; echo $MORE; env | cut -d= -f1 | sort', { cwd: '/proc', env: { MORE: 'a\nb' } }),
    ).toMatchObject({
      stdout: expect.stringMatching(/^\/proc\na b\n(?!.*HOME)/),
    });
    const input = 'x'.repeat(1 << 20);
    expect((await launcher.run('cat', [], { stdin: input })).stdout).toBe(input);
    // One that does not read its input.
    expect(await launcher.run('true', [], { stdin: input })).toMatchObject({ exitCode: 0 });
    expect((await launcher.run('printf', ['%s|', 'a b', '$c', '', '\u00fc'])).stdout).toBe('a b|$c||\u00fc|');
  });

  it('runs many at once, and none waits for another', async () => {
    const slow = sh('sleep 5', { timeoutMs: 1500 });
    const many = await Promise.all(Array.from({ length: 40 }, (_, i) => sh(`echo ${i}`)));
    expect(many.map(({ stdout }) => Number(stdout))).toEqual(Array.from({ length: 40 }, (_, i) => i));
    await expect(slow).rejects.toMatchObject({
      kind: 'timeout',
      message: expect.stringContaining('did not end in time'),
    });
  });

  it('refuses by kinds', async () => {
    await expect(launcher.run('no-such-program', [])).rejects.toMatchObject({ kind: 'unsupported' });
    await expect(launcher.run('/etc/passwd', [])).rejects.toMatchObject({ kind: 'denied' });
    await expect(launcher.run('true', [], { cwd: '/no-such-directory' })).rejects.toMatchObject({
      kind: 'unsupported',
    });
    await expect(launcher.run('yes', [])).rejects.toMatchObject({ kind: 'too-large' });
    await expect(launcher.run('sleep', ['5'], { signal: AbortSignal.timeout(50) })).rejects.toMatchObject({
      kind: 'timeout',
    });
    const options = { cwd: '/', env: ENV, outputs: [1], inputs: [] };
    await expect(launcher.start('no-such-program', [], options)).rejects.toMatchObject({ kind: 'unsupported' });
  });

  it('talks with a program over the descriptors that it names', async () => {
    const script = 'echo ready >&3; read word <&4; echo "got $word" >&3; echo bad >&2; exec sleep 5 3>&- 2>&-';
    const options = { cwd: '/proc', env: ENV, outputs: [2, 3], inputs: [4] };
    const program = await launcher.start('sh', ['-c', script], options);
    const lines = createInterface({ input: program.output(3) })[Symbol.asyncIterator]();
    expect(await lines.next()).toMatchObject({ value: 'ready' });
    program.write(4, 'hello\n');
    expect(await lines.next()).toMatchObject({ value: 'got hello' });
    expect(await lines.next()).toMatchObject({ done: true });
    expect(process.kill(program.pid, 0)).toBe(true);
    program.kill(9);
    program.release();
    program.release();
  });
});

it('a launcher that dies fails what it ran, and is there for what comes next', async () => {
  await using launcher = createLauncher();
  const { stdout } = await launcher.run('sh', ['-c', 'echo $PPID']);
  const running = launcher.run('sleep', ['1']);
  const options = { cwd: '/', env: ENV, outputs: [1], inputs: [] };
  const program = await launcher.start('sleep', ['1'], options);
  const ended = once(program.output(1).resume(), 'end');
  process.kill(Number(stdout), 'SIGKILL');
  await expect(running).rejects.toMatchObject({ kind: 'unavailable' });
  await ended;
  expect(await launcher.run('true', [])).toMatchObject({ exitCode: 0 });
});
