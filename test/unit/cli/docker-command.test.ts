import { CommanderError } from 'commander';
import { describe, expect, it } from 'vitest';
import { buildProgram } from '../../../runtime/cli/commands.ts';
import { DockerCommand } from '../../../runtime/cli/declare/docker-command.ts';

interface Parsed {
  readonly flags: Readonly<Record<string, unknown>>;
  readonly operands: readonly unknown[];
}

/** What the action of a command of `berth` would get. */
async function parse(line: string): Promise<Parsed> {
  const argv = line.split(' ');
  const program = new DockerCommand('berth').exitOverride().configureOutput({ writeErr: () => undefined });
  let parsed: Parsed | undefined;
  const act =
    () =>
    async (...args: unknown[]) => {
      const command = args.at(-1) as DockerCommand;
      parsed = { flags: command.opts(), operands: command.args };
    };
  buildProgram({ program, act, words: new Set(argv) });
  await program.parseAsync(argv, { from: 'user' });
  if (parsed === undefined) throw new Error(`${line}: no command has run`);
  return parsed;
}

describe('boolean flags', () => {
  it.each([
    ['build --rm=true --force-rm=0 .', { rm: true, forceRm: false }],
    ['build --pull=true --quiet=F .', { pull: true, quiet: false }],
    ['build --no-cache=false .', { cache: true }],
    ['build --no-cache=true .', { cache: false }],
    ['build --no-cache --no-cache=0 .', { cache: true }],
    ['build --no-cache=0 --no-cache .', { cache: false }],
    ['builder prune -f=true --all=false', { force: true, all: false }],
    ['run --tty=false -d=false --rm=1 image', { tty: false, detach: false, rm: true }],
    ['run -it=false image', { interactive: true, tty: false }],
    ['run -it=true image', { interactive: true, tty: true }],
    ['run -t -t=false image', { tty: false }],
    ['run --sig-proxy=false image', { sigProxy: false }],
    ['run --no-sig-proxy --sig-proxy=true image', { sigProxy: true }],
    ['run --read-only=TRUE --init=t --privileged=False image', { readOnly: true, init: true, privileged: false }],
    ['exec -it=0 web sh', { interactive: true, tty: false }],
    ['ps -a=true --no-trunc=true', { all: true, trunc: false }],
    ['container rm -f=true -v=false web', { force: true, volumes: false }],
    ['logs --follow=false web', { follow: false }],
  ])('%s', async (line, flags) => {
    expect((await parse(line)).flags).toMatchObject(flags);
  });

  it('ends where the command of the container begins', async () => {
    expect(await parse('run --rm=true image ls --rm=false -d=false -- -x=1')).toMatchObject({
      flags: { rm: true },
      operands: ['image', 'ls', '--rm=false', '-d=false', '--', '-x=1'],
    });
    expect((await parse('exec -i=true web -- -t=false')).operands).toEqual(['web', '--', '-t=false']);
  });

  it('is no boolean what is the value of another flag', async () => {
    expect((await parse('run -e --rm=true --name=a=b -e=X=1 -ite=Y=2 -p 80:80 image')).flags).toMatchObject({
      env: ['--rm=true', 'X=1', 'Y=2'],
      name: 'a=b',
      publish: ['80:80'],
      interactive: true,
      tty: true,
    });
    expect((await parse('build -t=name -f=Dockerfile.x --build-arg=A=1 .')).flags).toMatchObject({
      tag: ['name'],
      file: 'Dockerfile.x',
      buildArg: ['A=1'],
    });
  });

  it.each([
    ['build --rm=maybe .', /invalid argument "maybe" for --rm: want true or false/],
    ['run -d= image', /invalid argument "" for -d/],
    ['build --nonsense=true .', /unknown option '--nonsense=true'/],
    ['run -iX=1 image', /unknown option '-X=1'/],
  ])('%s fails', async (line, message) => {
    const failed = parse(line);
    await expect(failed).rejects.toThrow(CommanderError);
    await expect(failed).rejects.toThrow(message);
  });
});
