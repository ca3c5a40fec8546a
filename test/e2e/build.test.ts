import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { request as httpRequest } from 'node:http';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import Docker from 'dockerode';
import { pack } from 'tar-stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { berth, type Outcome, run } from '../fixtures/programs.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
let context = '';
beforeAll(async () => {
  place = await openEnginePlace();
  context = join(place.host.root, 'context');
  await mkdir(join(context, 'sub'), { recursive: true });
  await write('Dockerfile', [
    `FROM ${place.image} AS base`,
    'ARG NAME=nobody',
    'RUN echo "hello $NAME" >/greeting; echo out; echo err >&2',
    `FROM ${place.image}`,
    'COPY --from=base /greeting /greeting',
    'COPY . /src',
    'LABEL a=b',
    'CMD ["cat", "/greeting"]',
  ]);
  await write('file', ['content']);
  await write('sub/script', ['#!/bin/sh', 'echo script']);
  await chmod(join(context, 'sub/script'), 0o755);
  await write('.dockerignore', ['ignored', 'Dockerfile', '.dockerignore']);
  await write('ignored', ['never sent']);
});
afterAll(() => place?.[Symbol.asyncDispose]());

async function write(path: string, lines: readonly string[]): Promise<void> {
  await writeFile(join(context, path), `${lines.join('\n')}\n`);
}

/** The docker CLI with the classic builder. */
function dockerBuild(args: readonly string[], input?: string): Promise<Outcome> {
  return run('docker', ['-H', place.engine.url, 'build', ...args], {
    env: { ...place.host.env, DOCKER_BUILDKIT: '0' },
    ...(input !== undefined && { input }),
  });
}
const build = (args: readonly string[], input?: string) => berth(place.host, place.engine, ['build', ...args], input);
async function buildOk(...args: readonly string[]): Promise<Outcome> {
  const outcome = await build(args);
  if (outcome.code !== 0) throw new Error(`berth build ${args.join(' ')}: ${outcome.stderr}${place.engine.output()}`);
  return outcome;
}

describe('docker build, the classic way', () => {
  it('builds, tags, and says so in the words that clients parse', async () => {
    const built = await dockerBuild(['-t', 'local/built:v1', '-t', 'local/also', '--build-arg', 'NAME=ann', context]);
    expect(built, built.stderr + place.engine.output()).toMatchObject({ code: 0 });
    for (const words of [
      `Step 1/8 : FROM ${place.image} AS base`,
      /Step 3\/8 : RUN echo "hello \$NAME"[^\n]*\n ---> Running in [0-9a-f]{12}\n/,
      / ---> Removed intermediate container [0-9a-f]{12}\n ---> [0-9a-f]{12}\n/,
      /Successfully built [0-9a-f]{12}\n/,
      'Successfully tagged local/built:v1\nSuccessfully tagged local/also:latest\n',
    ])
      expect(built.stdout).toMatch(words);
    expect(await place.dockerOk(['run', '--rm', 'local/built:v1'])).toBe('hello ann');
    // The context's own .dockerignore counts for the two files that the client must send.
    expect(await place.dockerOk(['run', '--rm', 'local/also', 'sh', '-c', 'ls -A /src; /src/sub/script'])).toBe(
      'file\nsub\nscript',
    );

    const again = await dockerBuild(['-q', '-t', 'local/built:v1', '--build-arg', 'NAME=ann', context]);
    expect(again.stdout).toBe(`${await place.dockerOk(['inspect', '-f', '{{.Id}}', 'local/built:v1'])}\n`);
    const cached = await dockerBuild(['--build-arg', 'NAME=ann', context]);
    expect(cached.stdout.match(/ ---> Using cache\n/g)?.length).toBe(6);
    expect(cached.stdout).not.toContain('Running in');
  });

  it('ends with the code of the command that failed', async () => {
    const failed = await dockerBuild(['-'], `FROM ${place.image}\nRUN exit 9\n`);
    expect(failed.code).toBe(9);
    expect(failed.stderr).toContain("The command '/bin/sh -c exit 9' returned a non-zero code: 9");
    // Its own Dockerfile beside a directory: the client leaves out how such an archive ends.
    const beside = await dockerBuild(['-q', '-f', '-', context], `FROM ${place.image}\nCOPY file /\n`);
    expect(beside, beside.stderr).toMatchObject({ code: 0 });
    const missing = await dockerBuild(['-'], `FROM ${place.image}\nCOPY nosuch /\n`);
    expect(missing.code).toBe(1);
    expect(missing.stderr).toContain('nosuch');
    expect((await dockerBuild(['-'], 'FROM scratch\nNONSENSE\n')).stderr).toMatch(/unknown instruction: NONSENSE/i);
  });

  it('refuses by name what it does not have', async () => {
    expect((await dockerBuild(['--squash', context])).stderr).toMatch(/squash/);
    expect((await dockerBuild(['--isolation', 'hyperv', context])).stderr).toContain('isolation');
    for (const path of ['/session', '/grpc']) expect((await post(path)).body).toMatch(/BuildKit.*DOCKER_BUILDKIT=0/);
    expect((await post('/build?version=2')).body).toContain('DOCKER_BUILDKIT=0');
  });
});

function post(path: string): Promise<{ readonly status: number; readonly body: string }> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ socketPath: place.engine.socketPath, method: 'POST', path }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (chunk) => (body += chunk));
      response.once('end', () => resolve({ status: response.statusCode ?? 0, body }));
    });
    request.once('error', reject).end();
  });
}

describe('dockerode', () => {
  it('builds from a tar', async () => {
    const docker = new Docker({ socketPath: place.engine.socketPath });
    const tar = pack();
    tar.entry({ name: 'Dockerfile' }, `FROM ${place.image}\nCOPY a /a\nENV X=1\n`);
    tar.entry({ name: 'a' }, 'from a tar');
    tar.finalize();
    const stream = await docker.buildImage(Readable.from(tar) as NodeJS.ReadableStream, {
      t: 'by/dockerode',
      labels: { l: '1' },
    });
    const said = await new Promise<readonly { aux?: { ID: string }; stream?: string }[]>((resolve, reject) =>
      docker.modem.followProgress(stream, (error, output) => (error ? reject(error) : resolve(output))),
    );
    const { Id, Config } = await docker.getImage('by/dockerode').inspect();
    expect(said.flatMap(({ aux }) => aux ?? [])).toEqual([{ ID: Id }]);
    expect(Config).toMatchObject({ Labels: { l: '1' }, Env: expect.arrayContaining(['X=1']) });
  });
});

describe('docker-py', () => {
  it('builds, and finds the image in what the engine says', async () => {
    const script = [
      'import docker, sys',
      'client = docker.DockerClient(base_url=sys.argv[1])',
      'image, log = client.images.build(path=sys.argv[2], tag="by/python", buildargs={"NAME": "py"}, rm=True)',
      'print(image.tags[0], client.containers.run(image.id, remove=True).decode().strip())',
      'try: client.images.build(fileobj=open(sys.argv[3], "rb"))',
      'except docker.errors.BuildError as error: print(error.msg)',
    ].join('\n');
    const bad = join(place.host.root, 'bad');
    await writeFile(bad, `FROM ${place.image}\nRUN exit 3\n`);
    const { stdout } = await promisify(execFile)('/usr/bin/python3', ['-c', script, place.engine.url, context, bad]);
    expect(stdout).toBe("by/python:latest hello py\nThe command '/bin/sh -c exit 3' returned a non-zero code: 3\n");
  });
});

describe('berth build', () => {
  it('sends what changed, and only that', async () => {
    const first = await buildOk('-t', 'local/own', '--progress', 'plain', context);
    expect(first.stderr).toMatch(/#\d+ \[.*2\/5\] COPY --from=base/);
    expect(await place.dockerOk(['run', '--rm', 'local/own', 'ls', '-A', '/src'])).toBe('file\nsub');
    const again = await buildOk('-q', context);
    expect((await buildOk('-q', context)).stdout).toBe(again.stdout);
    await write('file', ['changed']);
    await rm(join(context, 'sub/script'));
    await symlink('file', join(context, 'sub/link'));
    await buildOk('-t', 'local/own', context);
    expect(await place.dockerOk(['run', '--rm', 'local/own', 'sh', '-c', 'cat /src/file; ls -A /src/sub'])).toBe(
      'changed\nlink',
    );
  });

  it('gives the result as files, tars and layouts, and tells of it', async () => {
    const at = (name: string) => join(place.host.root, 'out', name);
    await mkdir(at(''), { recursive: true });
    const outputs = [
      '-o',
      at('files'),
      '-o',
      `type=oci,dest=${at('oci.tar')}`,
      '-o',
      `type=docker,dest=${at('docker.tar')}`,
    ];
    const extra = ['--iidfile', at('id'), '--metadata-file', at('metadata')];
    await buildOk('-t', 'local/out', ...outputs, ...extra, context);
    expect(await readFile(at('files/greeting'), 'utf8')).toBe('hello nobody\n');
    const id = await readFile(at('id'), 'utf8');
    expect(JSON.parse(await readFile(at('metadata'), 'utf8'))).toMatchObject({ 'containerimage.config.digest': id });
    expect(await place.dockerOk(['load', '-i', at('docker.tar')])).toContain('local/out');
    const inspected = await run('skopeo', ['inspect', '--config', `oci-archive:${at('oci.tar')}`], {
      env: place.host.env,
    });
    expect(JSON.parse(inspected.stdout).config.Labels).toEqual({ a: 'b' });
    const tar = await build(['-o', '-', context]);
    expect(tar.stdout).toContain('hello nobody');
  });

  it('publishes', async () => {
    const target = `${place.registry.address}/pushed/image:v1`;
    const { stderr } = await buildOk('-t', target, '--push', '--provenance=true', context);
    const digest = /pushed \S+ (sha256:[0-9a-f]{64})/.exec(stderr)?.[1];
    const inspected = await run('skopeo', ['inspect', '--tls-verify=false', `docker://${target}`], {
      env: place.host.env,
    });
    expect(JSON.parse(inspected.stdout).Digest).toBe(digest);
    const referrers = await fetch(`http://${place.registry.address}/v2/pushed/image/referrers/${digest}`);
    expect(((await referrers.json()) as { manifests: unknown[] }).manifests).toHaveLength(1);
  });

  it('gives secrets to a step, and to nothing else', async () => {
    const dockerfile = `FROM ${place.image}\nRUN --mount=type=secret,id=t sha1sum /run/secrets/t >/sum; cat /run/secrets/t | wc -c\n`;
    await writeFile(join(place.host.root, 'secret'), 's3cret');
    const args = [
      '-t',
      'local/secret',
      '--progress',
      'plain',
      '--secret',
      `id=t,src=${join(place.host.root, 'secret')}`,
      '-',
    ];
    const built = await build(args, dockerfile);
    expect(built, built.stderr).toMatchObject({ code: 0 });
    expect(
      await place.dockerOk([
        'run',
        '--rm',
        'local/secret',
        'sh',
        '-c',
        'cut -c1-8 /sum; ls /run/secrets 2>&1 | grep -c t$; true',
      ]),
    ).toMatch(/^[0-9a-f]{8}\n0$/);
    const found = await run(
      'grep',
      ['-rlsF', 's3cret', join(place.host.root, 'engine'), join(place.host.root, 'logs')],
      {
        env: place.host.env,
      },
    );
    expect(found.stdout).toBe('');
  });

  it('shows where it failed, and what the step said', async () => {
    await writeFile(join(place.host.root, 'Failing'), `FROM ${place.image}\nRUN echo before\nRUN echo words; exit 4\n`);
    const failing = ['-f', join(place.host.root, 'Failing'), context];
    const failed = await build(failing);
    expect(failed.code).toBe(1);
    expect(failed.stderr).toMatch(/#\d+ [\d.]+ words\n#\d+ ERROR: .*\nerror: .*exit code: 4\nFailing:3:1\n/);
    const quiet = await build(['-q', ...failing]);
    expect(quiet.stderr).toMatch(/^.*RUN echo words; exit 4\n {4}words\nerror: /);
    for (const { stderr } of [failed, quiet]) expect(stderr.match(/>>> RUN echo words; exit 4$/gm)).toHaveLength(1);
    const checked = await build(['--check', '-'], 'FROM scratch as x\nMAINTAINER me\n');
    expect(checked).toMatchObject({ code: 1 });
    expect(checked.stdout).toContain('FromAsCasing');

    // With what only the engine and the ignore file know. Here that leaves itself out, too.
    const knowing = join(place.host.root, 'Knowing');
    await writeFile(knowing, `FROM ${place.image}\nUSER $PATH$HOEM\nCOPY ignored /\n`);
    expect((await build(['--check', '-f', knowing, context])).stdout.match(/^\w+(?= \(line)/gm)).toEqual([
      'UndefinedVar',
      'CopyIgnoredFile',
    ]);
    const ignored = /"\/ignored": not found: it is excluded by \.dockerignore/;
    expect((await build(['-f', knowing, context])).stderr).toMatch(ignored);
    expect((await dockerBuild(['-f', knowing, context])).stderr).toMatch(ignored);
    // A cache that is not there is told, and no more.
    const cache = '127.0.0.1:1/none:cache';
    const without = [await build(['--cache-from', cache, '-'], 'FROM scratch'), await build(['-'], 'FROM scratch')];
    expect(without.map(({ code }) => code)).toEqual([0, 0]);
    expect(without[0]?.stderr).toContain(`warning: UnreadableCache: cannot read the build cache "${cache}"`);
    const classic = await dockerBuild(['--cache-from', cache, '-'], 'FROM scratch\nLABEL a=b\n');
    expect(classic.stdout).toContain(`[Warning] cannot read the build cache "${cache}"`);
  });

  it('stops in the engine when the client goes', async () => {
    const dockerfile = `FROM ${place.image}\nRUN echo started; sleep 1000\n`;
    const docker = new Docker({ socketPath: place.engine.socketPath });
    const body = JSON.stringify({ context: { kind: 'empty' }, dockerfile: { name: 'Dockerfile', text: dockerfile } });
    const request = httpRequest({
      ...{ socketPath: place.engine.socketPath, method: 'POST', path: '/berth/v1/builds' },
      headers: { 'content-type': 'application/json' },
    });
    request.end(body);
    const [response] = (await once(request, 'response')) as [Readable];
    let said = '';
    response.setEncoding('utf8').on('data', (chunk: string) => (said += chunk));
    await expect.poll(() => said).toContain('started\\n');
    request.destroy();
    request.on('error', () => undefined);
    const usage = async () => (await docker.df()) as { BuildCache: readonly { InUse: boolean }[] };
    await expect.poll(async () => (await usage()).BuildCache.some(({ InUse }) => InUse)).toBe(false);
  });
});

describe('the build cache', () => {
  it('is told by df and du, and pruned', async () => {
    const rows = (await place.dockerOk(['system', 'df', '--format', '{{json .}}']))
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(Number(rows[3].TotalCount)).toBeGreaterThan(3);
    const own = (args: readonly string[]) => berth(place.host, place.engine, args);
    expect((await own(['builder', 'du', '-v'])).stdout).toContain('local source for');
    expect((await own(['builder', 'prune', '-f', '--filter', 'until=24h'])).stdout).toContain('space: 0B');
    const pruned = await own(['builder', 'prune', '-a', '-f']);
    expect(pruned.stdout).toMatch(/Deleted build cache objects:\n[^\n]+\n[\s\S]*Total reclaimed space: [1-9]/);
    const usage = (await new Docker({ socketPath: place.engine.socketPath }).df()) as { BuildCache: unknown[] };
    expect(usage.BuildCache).toEqual([]);
    const events = await place.dockerOk([
      'events',
      '--since',
      '10m',
      '--until',
      String(Date.now() / 1000 + 0.001),
      '--filter',
      'type=builder',
      '--format',
      '{{.Action}} {{.Actor.Attributes.reclaimed}}',
    ]);
    expect(events).toMatch(/^prune \d+/m);
  });
});
