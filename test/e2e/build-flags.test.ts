/** What `berth build` takes and gives: sources, results and caches by flags, terminals, and how it ends. */
import { mkdir, mkdtemp, readdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { berth, CLI, type Outcome, run, succeed } from '../fixtures/programs.ts';
import { tarOf } from '../fixtures/tar.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';
import { openTerminal } from './terminal.ts';

let place: EnginePlace;
beforeAll(async () => {
  place = await openEnginePlace();
});
afterAll(() => place?.[Symbol.asyncDispose]());

/** A directory with these files. */
async function directory(files: Readonly<Record<string, string>>): Promise<string> {
  const path = await mkdtemp(join(place.host.root, 'files-'));
  for (const [name, text] of Object.entries(files)) await writeFile(join(path, name), text);
  return path;
}

async function buildOk(args: readonly string[], input?: string): Promise<Outcome> {
  const outcome = await berth(place.host, place.engine, ['build', '--progress=plain', ...args], input);
  if (outcome.code !== 0) throw new Error(`berth build ${args.join(' ')}: ${outcome.stderr}${place.engine.output()}`);
  return outcome;
}

/** Of a program that this command line began, whoever runs it. */
async function runs(word: string): Promise<boolean> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const lines = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')));
  return lines.some((line) => line.split('\0').join(' ').trim() === word);
}

describe('sources', () => {
  it('are named contexts: directories, which can be a base too, and images', async () => {
    const extra = await directory({ f: 'from a directory\n' });
    const out = join(place.host.root, 'named');
    const context = await directory({
      Dockerfile: 'FROM img\nCOPY --from=extra f /f\nRUN cp /f /g\nFROM extra\nCOPY --from=0 /g /sub/g\n',
    });
    const named = [`--build-context=extra=${extra}`, `--build-context=img=docker-image://${place.image}`];
    await buildOk([...named, '-o', out, context]);
    expect((await readdir(out)).sort()).toEqual(['f', 'sub']);
    expect(await readFile(join(out, 'sub/g'), 'utf8')).toBe('from a directory\n');
  });

  it('come by stdin, as a Dockerfile beside a directory or as a tarball', async () => {
    const context = await directory({ f: 'f\n', Dockerfile: 'NONSENSE' });
    await buildOk(['-t', 'stdin/one', '-f', '-', context], `FROM ${place.image}\nCOPY f /\n`);
    expect(await place.dockerOk(['run', '--rm', 'stdin/one', 'cat', '/f'])).toBe('f');
    const tar = tarOf([
      { name: 'other', content: `FROM ${place.image}\nCOPY t /\n` },
      { name: 't', content: 't\n' },
    ]);
    const built = await run(process.execPath, [CLI, 'build', '-t', 'stdin/two', '-f', 'other', '-'], {
      env: { ...place.host.env, BERTH_HOST: place.engine.url },
      input: Readable.from([tar]),
    });
    expect(built, built.stderr).toMatchObject({ code: 0 });
    expect(await place.dockerOk(['run', '--rm', 'stdin/two', 'cat', '/t'])).toBe('t');
  });

  it('are fetched by the engine, for the classic builder’s remote, too', async () => {
    const tar = tarOf([
      { name: 'Dockerfile', content: `FROM ${place.image}\nCOPY r /\n` },
      { name: 'r', content: 'r\n' },
    ]);
    const server = createServer((_, response) => response.setHeader('content-type', 'application/x-tar').end(tar));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    try {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/context.tar`;
      const classic = await run('docker', ['-H', place.engine.url, 'build', '-t', 'remote/one', url], {
        env: { ...place.host.env, DOCKER_BUILDKIT: '0' },
      });
      expect(classic, classic.stderr).toMatchObject({ code: 0 });
      expect(await place.dockerOk(['run', '--rm', 'remote/one', 'cat', '/r'])).toBe('r');
      expect((await buildOk([url])).stderr).toMatch(/COPY r \/\n#\d+ CACHED/);
    } finally {
      server.close();
    }
  });
});

describe('results', () => {
  it('are for several platforms: a layout, and an index in a registry', async () => {
    const context = await directory({
      Dockerfile: 'FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\n',
      amd64: 'amd64',
      arm64: 'arm64',
    });
    const target = `${place.registry.address}/flags/multi:v1`;
    const layout = join(place.host.root, 'multi.tar');
    const platforms = ['--platform', 'linux/amd64,linux/arm64'];
    await buildOk([...platforms, '-t', target, '--push', '-o', `type=oci,dest=${layout}`, context]);
    const unpacked = join(place.host.root, 'multi');
    await mkdir(unpacked);
    await succeed('tar', ['-xf', layout, '-C', unpacked], { env: place.host.env });
    for (const source of [`oci:${unpacked}`, `docker://${target}`])
      for (const arch of ['amd64', 'arm64']) {
        const args = [
          '--override-arch',
          arch,
          'inspect',
          '--config',
          ...(source.startsWith('d') ? ['--tls-verify=false'] : []),
        ];
        expect(JSON.parse(await succeed('skopeo', [...args, source], { env: place.host.env })).architecture).toBe(arch);
      }
  });

  it('are found again in a directory, after the build cache has gone', async () => {
    const context = await directory({ Dockerfile: `FROM ${place.image}\nRUN echo cached > /c\n` });
    const cache = join(place.host.root, 'kept');
    await buildOk(['--cache-to', `type=local,dest=${cache},mode=max`, '-o', join(place.host.root, 'c1'), context]);
    await berth(place.host, place.engine, ['builder', 'prune', '-af']);
    const again = await buildOk([
      ...['--cache-from', `type=local,src=${cache}`, '-o', join(place.host.root, 'c2')],
      context,
    ]);
    expect(again.stderr).toMatch(/RUN echo cached > \/c\n#\d+ CACHED/);
    expect(await readFile(join(place.host.root, 'c2/c'), 'utf8')).toBe('cached\n');
  });
});

it('the proxies of docker’s configuration reach commands and containers, and no image and no key', async () => {
  const context = await directory({
    Dockerfile: `FROM ${place.image}\nRUN echo "$HTTP_PROXY $no_proxy" > /p; cat /p\n`,
  });
  const withProxy = async (httpProxy: string, ...args: readonly string[]) => {
    const config = await directory({
      'config.json': JSON.stringify({ proxies: { default: { httpProxy, noProxy: 'localhost' } } }),
    });
    return await run(process.execPath, [CLI, ...args], {
      env: { ...place.host.env, BERTH_HOST: place.engine.url, DOCKER_CONFIG: config },
    });
  };
  const build = ['build', '-t', 'proxied', '--progress=plain', context];
  expect((await withProxy('http://one.example:3128', ...build)).stderr).toContain(
    ' http://one.example:3128 localhost\n',
  );
  expect((await withProxy('http://two.example:3128', ...build)).stderr).toMatch(/cat \/p\n#\d+ CACHED/);
  const container = ['run', '--rm', '-e', 'HTTP_PROXY=mine', 'proxied', 'sh', '-c', 'echo $HTTP_PROXY $http_proxy'];
  expect((await withProxy('http://three.example:3128', ...container)).stdout).toBe('mine http://three.example:3128\n');
  const { Config } = JSON.parse(await place.dockerOk(['inspect', 'proxied']))[0];
  expect(Config.Env.join()).not.toMatch(/proxy/i);
});

it('on a terminal, what ran is one line each, and Ctrl-C ends what runs', async () => {
  const context = await directory({
    Dockerfile: `FROM ${place.image}\nRUN echo quick\nRUN echo begun; sleep 73119\n`,
  });
  const env = { ...place.host.env, BERTH_HOST: place.engine.url, TERM: 'xterm' };
  await using terminal = openTerminal(`'${process.execPath}' '${CLI}' build '${context}'`, env);
  await terminal.until(/✔ \[stage-0 2\/3\] RUN echo quick +\d/);
  await terminal.until(
    /Building [\d.]+s 2\/3\r\n {2}\[stage-0 3\/3\] RUN echo begun; sleep 73119 +[\d.]+s\r\n {4}begun\r\n/,
  );
  expect(await runs('sleep 73119')).toBe(true);
  terminal.type('\x03');
  expect(await terminal.ended()).toBe(130);
  await expect.poll(() => runs('sleep 73119')).toBe(false);
  await expect.poll(() => place.dockerOk(['ps', '-aq'])).toBe('');
});

it('system prune takes the build cache along', async () => {
  const prune = async (...args: readonly string[]) =>
    (await berth(place.host, place.engine, ['system', 'prune', '-f', ...args])).stdout;
  await buildOk(['-'], `FROM ${place.image}\nRUN head -c 100000 /dev/urandom > /r\n`);
  expect(await prune('--filter', 'label=x')).toBe('Total reclaimed space: 0B\n');
  expect(await prune('-a')).toMatch(/Deleted build cache objects:\n[^\n]+\n[\s\S]*\nTotal reclaimed space: [1-9]/);
  const usage = await berth(place.host, place.engine, ['builder', 'du']);
  expect(usage.stdout).toMatch(/^Total: 0B$/m);
});
