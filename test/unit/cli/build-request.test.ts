import { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { type BuildFlags, planBuild } from '../../../runtime/cli/build-request.ts';
import { isArchive } from '../../../runtime/cli/build-sources.ts';
import { buildProgram } from '../../../runtime/cli/commands.ts';
import { proxyArguments } from '../../../runtime/cli/proxies.ts';

/** Flags as commander gives them to `berth build`. */
function flagsOf(...args: readonly string[]): BuildFlags {
  const program = new Command('berth').exitOverride().configureOutput({ writeErr: () => undefined });
  buildProgram({ program, act: () => async () => undefined, words: new Set(['build']) });
  const command = program.commands.find((found) => found.name() === 'build');
  if (command === undefined) throw new Error('there is no build');
  command.exitOverride().configureOutput({ writeErr: () => undefined });
  program.parse(['build', ...args, '.'], { from: 'user' });
  return command.opts();
}
const plan = (args: readonly string[], env: Record<string, string> = {}) => planBuild(flagsOf(...args), env);
const body = (args: readonly string[], env?: Record<string, string>) => plan(args, env).body;

describe('flags of berth build', () => {
  it.each<[readonly string[], Record<string, unknown>]>([
    [[], { call: 'build', keep: false, ssh: {}, tags: [] }],
    [['-t', 'a', '--tag', 'b:1'], { tags: ['a', 'b:1'] }],
    [
      ['--build-arg', 'A=1=2', '--build-arg', 'FROM_ENV', '--build-arg', 'ABSENT'],
      { buildArgs: { A: '1=2', FROM_ENV: 'e' } },
    ],
    [['--label', 'a', '--label', 'b=c'], { labels: { a: '', b: 'c' } }],
    [['--annotation', 'manifest:a=b', '--annotation', 'c:d=e'], { annotations: { a: 'b', 'c:d': 'e' } }],
    [
      ['--platform', 'linux/amd64,linux/arm64', '--platform', 'linux/arm'],
      { platforms: ['linux/amd64', 'linux/arm64', 'linux/arm'] },
    ],
    [['--no-cache'], { noCache: true }],
    [['--no-cache-filter', 'a,b', '--no-cache-filter', 'c'], { noCache: ['a', 'b', 'c'] }],
    [['--pull', '--target', 's'], { pull: true, target: 's' }],
    [
      ['--cache-from', 'x/y:1', '--cache-from', 'type=local,src=/c'],
      {
        cacheFrom: [
          { kind: 'registry', reference: 'x/y:1' },
          { kind: 'local', directory: '/c' },
        ],
      },
    ],
    [
      ['--cache-to', 'type=registry,ref=x/y,mode=max', '--cache-to', 'type=inline', '--cache-to', 'type=local,dest=/c'],
      {
        cacheTo: [
          { kind: 'registry', reference: 'x/y', mode: 'max' },
          { kind: 'inline' },
          { kind: 'local', directory: '/c', mode: 'min' },
        ],
      },
    ],
    [['--ssh', 'default', '--ssh', 'k=/s'], { ssh: { default: '/agent', k: '/s' } }],
    [
      [
        '--memory',
        '64m',
        '--memory-swap=-1',
        '--ulimit',
        'nofile=1:2',
        '--add-host',
        'h=1.2.3.4',
        '--shm-size',
        '1k',
        '-c',
        '5',
      ],
      {
        run: {
          ...{ memoryBytes: 64 << 20, memorySwapBytes: -1, cpuShares: 5, shmBytes: 1024 },
          ...{ ulimits: [{ Name: 'nofile', Soft: 1, Hard: 2 }], extraHosts: ['h:1.2.3.4'] },
        },
      },
    ],
    [['--check'], { call: 'check' }],
    [['-o', 'out', '-t', 'a'], { keep: true }],
    [['--rm', '--force-rm', '--sbom=false'], { call: 'build' }],
  ])('%j', (args, expected) => {
    expect(body(args, { FROM_ENV: 'e', SSH_AUTH_SOCK: '/agent' })).toMatchObject(expected);
  });

  it('name the image only where it stays', () => {
    expect(body(['-o', 'out', '-t', 'a'])).not.toHaveProperty('tags');
    expect(body(['-o', 'out', '-t', 'a', '--load'])).toMatchObject({ tags: ['a'] });
    expect(body(['-t', 'a'], { SOURCE_DATE_EPOCH: '17' })).toMatchObject({ tags: ['a'], sourceDateEpoch: 17 });
  });

  it.each<[readonly string[], unknown]>([
    [[], [{ kind: 'store' }]],
    [['--push', '-t', 'a'], [{ kind: 'push' }]],
    [
      ['--push', '--load', '-t', 'a'],
      [{ kind: 'push' }, { kind: 'store' }],
    ],
    [['-o', '-'], [{ kind: 'tar', file: '-' }]],
    [['-o', 'dir'], [{ kind: 'local', directory: 'dir' }]],
    [['-o', 'type=local,dest=dir'], [{ kind: 'local', directory: 'dir' }]],
    [
      ['-o', 'type=oci,dest=x.tar', '-o', 'type=tar,dest=-'],
      [
        { kind: 'oci', file: 'x.tar' },
        { kind: 'tar', file: '-' },
      ],
    ],
    [['-o', 'type=docker,dest=x.tar'], [{ kind: 'docker', file: 'x.tar' }]],
    [['-o', 'type=image,name=a/b,push=true'], [{ kind: 'push' }]],
    [['-o', 'type=registry,name=a/b'], [{ kind: 'push' }]],
  ])('%j give outputs', (args, outputs) => {
    expect(plan(args).outputs).toEqual(outputs);
  });

  it('take secrets from files and the environment', () => {
    expect(
      plan(['--secret', 'id=a,src=f', '--secret', 'id=b,env=E', '--secret', 'id=c', '--secret', 'type=env,id=d'])
        .secrets,
    ).toEqual([
      { id: 'a', file: 'f' },
      { id: 'b', env: 'E' },
      { id: 'c', guess: true },
      { id: 'd', env: 'd' },
    ]);
  });

  it.each<[readonly string[], string]>([
    [['--squash'], '--squash'],
    [['--compress'], '--compress'],
    [['--sbom=true'], '--sbom'],
    [['--attest', 'type=sbom'], 'type=sbom'],
    [['--builder', 'other'], '--builder'],
    [['--call', 'outline'], '--call outline'],
    [['--allow', 'device'], '--allow device'],
    [['--isolation', 'hyperv'], '--isolation'],
    [['-o', 'type=cacheonly,dest=x'], 'type=cacheonly'],
    [['-o', 'type=oci,dest=x,tar=false'], 'tar=false'],
    [['-o', 'type=oci'], 'dest=FILE'],
    [['-o', '-', '-o', 'type=oci,dest=-'], 'several outputs to stdout'],
    [['--cache-to', 'type=gha'], 'type=gha'],
    [['--cache-from', 'type=s3,ref=x'], 'type=s3'],
    [['--annotation', 'index:a=b'], 'annotations are the manifest'],
    [['--push'], 'has no name'],
    [['--provenance=true', '-t', 'a'], '--provenance without --push'],
    [['--provenance=mode=max', '-t', 'a', '--push'], '--provenance mode=max'],
    [['--attest', 'type=provenance,mode=max', '-t', 'a', '--push'], '--attest mode=max'],
    [['--secret', 'src=x'], 'id=ID'],
    [['--ssh', 'default'], 'SSH_AUTH_SOCK'],
    [['--build-context', 'x'], '--build-context'],
    [['--cpu-quota', 'x'], '--cpu-quota'],
    [['--progress', 'loud'], '--progress'],
    [['-t', `a@sha256:${'a'.repeat(64)}`], 'without a digest'],
    [['--check', '--push', '-t', 'a'], '--check with'],
  ])('%j fails by name', (args, message) => {
    expect(() => plan(args)).toThrow(message);
  });
});

it('gives the proxies of docker’s configuration, those of the engine before the default ones', () => {
  const config = {
    proxies: {
      default: { httpProxy: 'http://p', noProxy: '' },
      'tcp://h:2375': { allProxy: 'socks5://q' },
    },
  };
  const unix = { kind: 'unix', path: '/run/x.sock', isStartable: false } as const;
  expect(proxyArguments(config, unix)).toEqual({ HTTP_PROXY: 'http://p', http_proxy: 'http://p' });
  expect(proxyArguments(config, { kind: 'tcp', host: 'h', port: 2375 })).toEqual({
    ALL_PROXY: 'socks5://q',
    all_proxy: 'socks5://q',
  });
  expect(proxyArguments({}, unix)).toEqual({});
});

it('tells archives from Dockerfiles', () => {
  const tar = Buffer.alloc(512);
  tar.write('ustar', 257);
  for (const head of [tar, Buffer.from([0x1f, 0x8b, 8]), Buffer.from('BZh9'), Buffer.from([0x28, 0xb5, 0x2f, 0xfd])])
    expect(isArchive(head)).toBe(true);
  for (const head of ['FROM scratch\n', '# syntax=x\n', '']) expect(isArchive(Buffer.from(head))).toBe(false);
});
