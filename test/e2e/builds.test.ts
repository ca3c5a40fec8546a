/** Builds of one engine from outside: what is done again and what not, what commands see, and what is left afterwards. */
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, startEngine, startProgram, succeed } from '../fixtures/programs.ts';
import type { TarEntry } from '../fixtures/tar.ts';
import { tarOf } from '../fixtures/tar.ts';
import { type BuildOrder, buildAll, outcomes, printed, startBuild } from './build-client.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';
import { ask } from './http.ts';

let place: EnginePlace;
beforeAll(async () => {
  place = await openEnginePlace();
});
afterAll(() => place[Symbol.asyncDispose]());

const build = (order: BuildOrder) => buildAll(place.engine.socketPath, order);
const begin = (order: BuildOrder) => startBuild(place.engine.socketPath, order);
const get = (path: string) => ask(place.engine.socketPath, { method: 'GET', path });
const post = (path: string, body?: Uint8Array) =>
  ask(place.engine.socketPath, { method: 'POST', path, ...(body !== undefined && { body }) });
/** Commands that ran, as opposed to results that were found. */
const ran = (events: readonly { kind: string }[]) => events.filter(({ kind }) => kind === 'running').length;

describe('a step is done again', () => {
  const files = (a: Partial<TarEntry> = {}, b: Partial<TarEntry> = {}): readonly TarEntry[] => [
    { name: 'a', content: 'a', ...a },
    { name: 'b', content: 'b', ...b },
  ];
  const order = (more: Partial<BuildOrder> = {}): BuildOrder => ({
    dockerfile: [
      `FROM ${place.image} AS one`,
      'ARG USED',
      'COPY a /a',
      'RUN cat /a > /ran',
      `FROM ${place.image} AS two`,
      'ARG OTHER',
      'RUN --mount=type=bind,source=b,target=/src cat /src > /b',
      'FROM one',
      'COPY --from=two /b /b',
    ].join('\n'),
    files: files(),
    ...more,
  });
  const ONE = 'RUN cat /a > /ran';
  const TWO = 'RUN --mount=type=bind,source=b,target=/src cat /src > /b';
  const again = async (more: Partial<BuildOrder>) => {
    const { events, error } = await build(order(more));
    expect(error).toBeUndefined();
    return outcomes(events).filter((line) => line.startsWith('RUN') && line.endsWith('done'));
  };

  it('for what it sees and for nothing else', async () => {
    expect(await again({})).toEqual([`${TWO}: done`, `${ONE}: done`].sort());
    expect(await again({})).toEqual([]);
    expect(await again({ files: files({ mtime: 1 }, { mtime: 2 }) })).toEqual([]);
    expect(await again({ files: [...files(), { name: 'c', content: 'c' }] })).toEqual([]);
    expect(await again({ files: files({ content: 'A' }) })).toEqual([`${ONE}: done`]);
    expect(await again({ files: files({ mode: 0o600 }) })).toEqual([`${ONE}: done`]);
    expect(await again({ files: files({}, { content: 'B' }) })).toEqual([`${TWO}: done`]);
    expect(await again({ body: { buildArgs: { USED: '1' } } })).toEqual([`${ONE}: done`]);
    expect(await again({ body: { buildArgs: { USED: '1', OTHER: '1' } } })).toEqual([`${TWO}: done`]);
    expect(await again({ body: { noCache: ['two'] } })).toEqual([`${TWO}: done`]);
    expect(await again({ body: { target: 'one', noCache: true } })).toEqual([`${ONE}: done`]);
    expect(await again({ body: { target: 'one', buildArgs: { OTHER: '9' } } })).toEqual([]);
  });

  it('never for what somebody else’s image says of itself (CVE-2024-24557)', async () => {
    const poisoned = `${place.registry.address}/poisoned:latest`;
    const text = `FROM ${place.image}\nCOPY a /bin/tool`;
    const own = await build({ dockerfile: text, files: [{ name: 'a', content: 'evil' }], body: { tags: [poisoned] } });
    expect(own.error).toBeUndefined();
    await place.dockerOk(['push', poisoned]);
    const { images } = await build({
      dockerfile: text,
      files: [{ name: 'a', content: 'good' }],
      body: { cacheFrom: [{ kind: 'registry', reference: poisoned }], tags: ['good:latest'] },
    });
    expect(images[0].id).not.toBe(own.images[0].id);
    expect(await place.dockerOk(['run', '--rm', 'good:latest', 'cat', '/bin/tool'])).toBe('good');
  });
});

describe('builds at the same time', () => {
  it('run independent stages side by side', async () => {
    const meet = (mine: string, other: string) =>
      `RUN --mount=type=cache,id=meet,target=/m touch /m/${mine} && until [ -e /m/${other} ]; do sleep 0.05; done`;
    const from = `FROM ${place.image}`;
    const { error } = await build({
      dockerfile: [
        `${from} AS a`,
        meet('a', 'b'),
        `${from} AS b`,
        meet('b', 'a'),
        from,
        'COPY --from=a /bin/true /1',
        'COPY --from=b /bin/true /2',
      ].join('\n'),
    });
    expect(error).toBeUndefined();
  });

  it('share a step, and go on without a build that is cancelled', async () => {
    const mount = '--mount=type=cache,id=share,target=/m';
    const dockerfile = [
      `FROM ${place.image}`,
      `RUN ${mount} echo x >> /m/runs; until [ -e /m/go ]; do sleep 0.05; done; wc -l < /m/runs`,
    ].join('\n');
    using first = await begin({ dockerfile });
    await first.until(({ kind }) => kind === 'running');
    using second = await begin({ dockerfile });
    await second.until(({ kind, step }) => kind === 'started' && step.line === 2);
    expect(ran(second.events)).toBe(0);
    first.cancel();
    expect(await second.until(({ kind }) => kind === 'running')).toBeDefined();
    using third = await begin({ dockerfile });
    await third.until(({ kind, step }) => kind === 'started' && step.line === 2);
    third.cancel();
    await build({ dockerfile: `FROM ${place.image}\nRUN ${mount} touch /m/go` });
    expect((await second.ended)?.error).toBeUndefined();
    expect(printed(second.events)).toBe('2\n');
    await expect.poll(() => place.dockerOk(['ps', '-aq'])).toBe('');
  });
});

describe('what a command sees', () => {
  it('is gone with it: mounts, secrets and agents leave nothing in layers, keys, history, logs and on the disk', async () => {
    const secret = 'correct-horse-battery-staple';
    const agentPath = join(place.host.runDir, 'agent');
    const agent = createServer((client) => void client.end('i am the agent\n'));
    await once(agent.listen(agentPath), 'listening');
    await using _ = { [Symbol.asyncDispose]: async () => void agent.close() };
    const mounts = [
      'type=secret,id=s,target=/var/run/deep/s,uid=33,mode=0440',
      'type=secret,id=s,env=TOKEN',
      'type=secret,id=none,target=/none',
      'type=ssh',
      'type=bind,target=/ctx,rw',
      'type=tmpfs,target=/tmp/t,size=1m',
      'type=cache,target=/cache/c,uid=33,mode=0700',
      'type=cache,id=twice,target=/c1,sharing=locked',
      'type=cache,id=twice,target=/c2,sharing=locked',
    ].map((mount) => `--mount=${mount}`);
    const order = (more: Record<string, unknown> = {}): BuildOrder => ({
      dockerfile: [
        `FROM ${place.image}`,
        'COPY root /',
        `RUN --network=none ${mounts.join(' ')} <<EOF`,
        'set -e',
        'stat -c "%u %a" /var/run/deep/s /cache/c',
        'test "$(cat /run/deep/s)" = "$TOKEN" && echo same',
        'test ! -e /none',
        'test -S $SSH_AUTH_SOCK',
        'touch /ctx/new /tmp/t/new /cache/c/new /c1/new; ls /c2',
        'ls /sys/class/net',
        'echo kept > /kept',
        'EOF',
      ].join('\n'),
      files: [
        { name: 'root/var/', type: 'directory' },
        { name: 'root/var/run', type: 'symlink', linkname: '/run' },
      ],
      body: {
        keep: true,
        secrets: { s: Buffer.from(secret).toString('base64') },
        ssh: { default: agentPath },
        ...more,
      },
    });
    using one = await begin(order());
    const end = await one.ended;
    expect(end?.error).toBeUndefined();
    expect(printed(one.events)).toBe('33 440\n33 700\nsame\nnew\nlo\n');
    const tar = await get(`/berth/v1/builds/${one.id}/files`);
    const listed = await run('tar', ['-t'], { env: place.host.env, input: Readable.from([tar.bytes]) });
    const names = listed.stdout.split('\n').map((name) => name.replace(/^\.?\//, '').replace(/\/$/, ''));
    expect(names).toContain('kept');
    for (const name of [
      'run',
      'run/deep',
      'run/deep/s',
      'none',
      'ctx',
      'tmp/t',
      'cache',
      'cache/c',
      'c1',
      'run/buildkit',
    ])
      expect(names).not.toContain(name);
    one.cancel();
    // Another secret, and the result is the same; the other mounts are what it depends on.
    const other = await build(order({ keep: false, secrets: { s: Buffer.from('other').toString('base64') } }));
    expect(ran(other.events)).toBe(0);
    const found = await run(
      'grep',
      ['-rlaF', secret, place.engine.directory, place.engine.socketPath.replace(/\/[^/]*$/, '')],
      {
        env: place.host.env,
      },
    );
    expect(found.stdout).toBe('');
    expect(place.engine.output()).not.toContain(secret);
    expect(JSON.stringify(one.events)).not.toContain(secret);
    expect(await readdir(join(place.engine.socketPath, '..', 'build'))).toEqual([]);
  });

  it('are the keys of a real agent, as far as it signs with them', async () => {
    const { env, root, runDir } = place.host;
    const socket = join(runDir, 'real-agent');
    const listKeys = () => run('ssh-add', ['-l'], { env: { ...env, SSH_AUTH_SOCK: socket } });
    await using _ = await startProgram(place.host, {
      name: 'ssh-agent',
      command: 'ssh-agent',
      args: ['-D', '-a', socket],
      ready: async (program) => ((await listKeys()).code === 1 ? program : undefined),
    });
    const key = join(root, 'key');
    await succeed('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key], { env });
    await succeed('ssh-add', ['-q', key], { env: { ...env, SSH_AUTH_SOCK: socket } });
    // The host's own client, with what it is linked to.
    const linked = await succeed('ldd', ['/usr/bin/ssh-add'], { env });
    const paths = ['/usr/bin/ssh-add', `${key}.pub`, ...(linked.match(/\/\S+/g) ?? [])];
    const files = await Promise.all(
      paths.map(async (path) => ({ name: path.slice(1), mode: 0o755, content: await readFile(path) })),
    );
    const dockerfile = [
      'FROM scratch',
      'COPY . /',
      'USER 1234:1234',
      'RUN --network=none --mount=type=ssh,uid=1234 ["/usr/bin/ssh-add", "-l"]',
      // It asks for a signature and checks it.
      `RUN --network=none --mount=type=ssh,uid=1234 ["/usr/bin/ssh-add", "-T", "${key}.pub"]`,
    ].join('\n');
    const { events, error } = await build({ dockerfile, files, body: { ssh: { default: socket } } });
    expect(error).toBeUndefined();
    expect(printed(events)).toBe((await listKeys()).stdout);
  });

  it('is a cache of its own where others have theirs, each begun with the same seed', async () => {
    const stage = (name: string, other: string) => [
      `FROM ${place.image} AS ${name}`,
      'RUN --mount=type=cache,target=/meet --mount=type=cache,id=own,target=/own,sharing=private,from=seed,source=/link \\',
      `  echo ${name} >>/own/d/f && touch /meet/${name} && until [ -e /meet/${other} ]; do sleep 0.1; done && \\`,
      "  stat -c '%u %a' /own/d/f >/out && cat /own/d/f >>/out",
    ];
    const dockerfile = [
      `FROM ${place.image} AS seed`,
      'RUN mkdir -p /s/d && echo seeded >/s/d/f && chown 33:33 /s/d/f && chmod 600 /s/d/f && ln -s s /link',
      ...stage('one', 'two'),
      ...stage('two', 'one'),
      `FROM ${place.image}`,
      'COPY --from=one /out /one',
      'COPY --from=two /out /two',
      // Both have been given back: either of them may be the one that is had now.
      'RUN --mount=type=cache,id=own,target=/own,sharing=private,from=seed,source=/link \\',
      '  cat /one /two && wc -l </own/d/f',
    ].join('\n');
    const { events, error } = await build({ dockerfile });
    expect(error).toBeUndefined();
    expect(printed(events)).toBe('33 600\nseeded\none\n33 600\nseeded\ntwo\n2\n');
    const df = (await get('/system/df?type=build-cache')).json;
    const mounts = df.BuildCache.filter(({ Description }: { Description: string }) =>
      /cached mount own/.test(Description),
    );
    expect(mounts.length).toBe(2);
  });

  it('is no more than it was allowed to have (CVE-2024-23653)', async () => {
    const lines = (line: string) => `FROM ${place.image}\nRUN ${line}`;
    for (const [line, name] of [
      ['--security=insecure true', 'security.insecure'],
      ['--network=host true', 'network.host'],
    ] as const) {
      const refused = await build({ dockerfile: lines(line) });
      expect(refused.error.message).toContain(`${name} is not allowed`);
      expect((await build({ dockerfile: lines(line), body: { run: { allow: [name] } } })).error).toBeUndefined();
      // That it is in the cache now allows nothing.
      expect((await build({ dockerfile: lines(line) })).error.message).toContain(`${name} is not allowed`);
    }
  });

  it.each([
    [
      'a link to the host as the source',
      'COPY l /l\nRUN --mount=type=bind,source=out,target=/x cat /x/shadow',
      'CVE-2024-1753, CVE-2024-11218',
    ],
    ['a link in another stage', `RUN --mount=type=bind,from=s,source=/out,target=/x cat /x/shadow`, 'CVE-2024-9407'],
    [
      'a cache whose source is a link',
      'RUN --mount=type=cache,from=s,source=/out,target=/x cat /x/shadow',
      'CVE-2024-9675, CVE-2024-23651',
    ],
    [
      'a link as the target',
      'RUN --mount=type=tmpfs,target=/out/made ls /etc/made\nRUN cat /out/hostname-of-host',
      'CVE-2024-23652',
    ],
  ])('does not lead out: %s (%s)', async (_, line) => {
    const { error, events } = await build({
      dockerfile: [`FROM ${place.image} AS s`, 'COPY out /', `FROM s`, line].join('\n').replace('COPY l /l\n', ''),
      files: [
        { name: 'out/', type: 'directory' },
        { name: 'out/out', type: 'symlink', linkname: '../../../../../etc' },
      ],
    });
    expect(error).toMatchObject({ message: expect.stringMatching(/not found|exit code: 1/) });
    expect(printed(events)).not.toContain('root:');
  });
});

describe('a command that fails', () => {
  it('is told with its place and words, and leaves what was done before', async () => {
    const dockerfile = `FROM ${place.image}\nRUN echo fine > /fine\n\nRUN echo so far; \\\n  exit 7\nRUN never`;
    const { error, events } = await build({ dockerfile });
    expect(error).toMatchObject({
      detail: { exitCode: 7, line: 4, file: 'Dockerfile', step: expect.stringContaining('exit 7') },
      message: expect.stringMatching(/exit code: 7[\s\S]*Dockerfile:4[\s\S]*>>> RUN echo so far/),
    });
    expect(printed(events)).toBe('so far\n');
    const again = await build({ dockerfile });
    expect(outcomes(again.events)).toContain('RUN echo fine > /fine: cached');
    expect(ran(again.events)).toBe(1);
    expect(await place.dockerOk(['ps', '-aq'])).toBe('');
  });

  it('cannot be made to wait for itself by the triggers of a base', async () => {
    const base = `${place.registry.address}/triggered:latest`;
    await build({ dockerfile: 'FROM scratch\nONBUILD COPY --from=end /x /y', body: { tags: [base] } });
    for (const end of ['FROM scratch AS end\nCOPY --from=begin / /', 'FROM begin AS end'])
      expect((await build({ dockerfile: `FROM ${base} AS begin\n${end}` })).error.message).toContain(
        'circular dependency detected on stage',
      );
  });
});

describe('requests that are wrong', () => {
  it.each(['../../../../etc/passwd', '/etc/passwd', 'a/../../etc/passwd', 'link'])(
    'find no Dockerfile out of the context: %s (podman PR 28072, CVE-2022-4123)',
    async (name) => {
      const context = tarOf([{ name: 'link', type: 'symlink', linkname: '/etc/passwd' }]);
      const answer = await post(`/build?dockerfile=${encodeURIComponent(name)}`, context);
      expect(answer.status).toBeGreaterThanOrEqual(400);
      expect(answer.bytes.toString()).toMatch(/forbidden path|failed to read dockerfile/);
      expect(answer.bytes.toString()).not.toContain('root:');
    },
  );

  it('end a build, and never the engine (CVE-2024-23650)', async () => {
    const bad: readonly (readonly [string, RegExp])[] = [
      ['FROM scratch\nFLY away', /unknown instruction: FLY/i],
      ['FROM scratch\nCOPY --fly a /', /unknown flag/i],
      ['FROM scratch\nCOPY --from=No?Image a /', /invalid reference format|could not find|pull/i],
      ['FROM a AS b\nCOPY --from=b /x /y', /circular dependency/],
      ['RUN x', /no build stage/],
      ['', /cannot be empty/],
      [`FROM scratch\nENV A=xxxxxxxx\n${'ENV A=$A$A$A$A$A$A$A$A\n'.repeat(30)}`, /longer than|too/],
    ];
    for (const [dockerfile, message] of bad) expect((await build({ dockerfile })).error.message).toMatch(message);
    for (const json of [{}, { context: 1 }, { context: { kind: 'files' }, dockerfile: { name: 'x' }, fly: 1 }])
      expect((await ask(place.engine.socketPath, { method: 'POST', path: '/berth/v1/builds', json })).status).toBe(400);
    using sent = await begin({ dockerfile: 'FROM scratch', files: [] });
    const again = { method: 'PUT', path: `/berth/v1/builds/${sent.id}/context`, body: tarOf([]) };
    expect((await ask(place.engine.socketPath, again)).status).toBeGreaterThanOrEqual(404);
    expect((await get('/_ping')).status).toBe(200);
  });
});

describe('what was built', () => {
  it('is published for several platforms, with what is known of how it was made', async () => {
    const reference = `${place.registry.address}/multi:latest`;
    using one = await begin({
      dockerfile: 'FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch',
      files: ['amd64', 'arm64'].map((name) => ({ name, content: name })),
      body: {
        ...{ keep: true, platforms: ['linux/amd64', 'linux/arm64'], tags: [reference] },
        ...{ annotations: { 'org.example.a': 'b' }, labels: { l: '1' } },
      },
    });
    const end = await one.ended;
    expect(end?.error).toBeUndefined();
    const json = { reference, provenance: true };
    const pushed = await ask(place.engine.socketPath, {
      method: 'POST',
      path: `/berth/v1/builds/${one.id}/push`,
      json,
    });
    expect(pushed.bytes.toString()).toContain('"descriptor"');
    one.cancel();
    for (const { platform, manifest } of end?.result.images ?? []) {
      const args = ['--override-arch', platform.architecture, 'inspect', '--tls-verify=false'];
      const inspected = JSON.parse(
        await succeed('skopeo', [...args, `docker://${reference}`], { env: place.host.env }),
      );
      expect(inspected).toMatchObject({ Architecture: platform.architecture, Labels: { l: '1' } });
      const at = `http://${place.registry.address}/v2/multi`;
      expect(await (await fetch(`${at}/manifests/${manifest.digest}`)).json()).toMatchObject({
        annotations: { 'org.example.a': 'b' },
      });
      expect(await (await fetch(`${at}/referrers/${manifest.digest}`)).json()).toMatchObject({
        manifests: [{ artifactType: 'application/vnd.in-toto+json' }],
      });
    }
  });

  it('is a cache for other engines: in a registry, in a directory, inside an image', async () => {
    const { address } = place.registry;
    const directory = join(place.host.root, 'cache');
    const image = `${address}/inline:latest`;
    const dockerfile = `FROM ${place.image} AS s\nRUN echo s > /s\nFROM ${place.image}\nCOPY --from=s /s /s\nRUN echo e > /e`;
    const first = await build({
      dockerfile,
      body: {
        tags: [image],
        cacheTo: [
          { kind: 'registry', reference: `${address}/cache:v1`, mode: 'max' },
          { kind: 'local', directory, mode: 'max' },
          { kind: 'inline' },
        ],
      },
    });
    expect(first.error).toBeUndefined();
    await place.dockerOk(['push', '-q', image]);
    await using second = await startEngine(place.host, { name: 'second' });
    const there = async (cacheFrom: unknown) => {
      const built = await buildAll(second.socketPath, { dockerfile, body: { cacheFrom } });
      expect(built.error).toBeUndefined();
      await ask(second.socketPath, { method: 'POST', path: '/images/prune?filters={"dangling":["false"]}' });
      await ask(second.socketPath, { method: 'POST', path: '/build/prune?all=1' });
      return ran(built.events);
    };
    expect(await there([{ kind: 'registry', reference: `${address}/cache:v1` }])).toBe(0);
    expect(await there([{ kind: 'local', directory }])).toBe(0);
    // Only what is in the image: the other stage's command runs again.
    expect(await there([{ kind: 'registry', reference: image }])).toBeLessThanOrEqual(1);
    expect(await there([{ kind: 'local', directory: '/nowhere' }])).toBe(2);
  });

  it('is counted, kept from image prune, and given back by builder prune', async () => {
    const dockerfile = `FROM ${place.image}\nRUN --mount=type=cache,target=/c head -c 100000 /dev/urandom | tee /c/x > /x`;
    await build({ dockerfile });
    await place.dockerOk(['image', 'prune', '-af']);
    expect(ran((await build({ dockerfile })).events)).toBe(0);
    await place.dockerOk(['image', 'prune', '-af']);
    using busy = await begin({
      dockerfile: `FROM ${place.image}\nRUN --mount=type=cache,id=busy,target=/c touch /c/on; sleep 1000`,
    });
    await busy.until(({ kind }) => kind === 'running');
    const { json: df } = await get('/v1.52/system/df?verbose=1');
    const { json: usage } = await get('/berth/v1/usage');
    const part = usage.Parts.find(({ Name }: { Name: string }) => Name === 'build cache');
    expect(df.BuildCacheUsage).toMatchObject({ ActiveCount: 1, TotalSize: part.Bytes });
    expect(df.BuildCacheUsage.Items.map(({ Type }: { Type: string }) => Type)).toContain('exec.cachemount');
    const { json: pruned } = await post('/build/prune?all=1');
    expect(pruned.SpaceReclaimed).toBe(df.BuildCacheUsage.Reclaimable);
    expect(pruned.SpaceReclaimed).toBeGreaterThan(200_000);
    const { json: left } = await get('/v1.52/system/df?verbose=1');
    expect(left.BuildCacheUsage).toMatchObject({ ActiveCount: 1, TotalCount: 1 });
    busy.cancel();
    await busy.ended;
    await expect.poll(async () => (await get('/v1.52/system/df')).json.BuildCacheUsage.ActiveCount).toBeUndefined();
    await post('/build/prune?all=1');
    expect(await readdir(join(place.engine.directory, 'build', 'mounts'))).toEqual([]);
    await place.dockerOk(['image', 'prune', '-af']);
    const { json: after } = await get('/berth/v1/usage');
    expect(
      after.Parts.filter(({ Name }: { Name: string }) => ['images', 'orphans', 'build cache'].includes(Name)),
    ).toEqual([
      { Name: 'images', Bytes: 0 },
      { Name: 'orphans', Bytes: 0 },
      { Name: 'build cache', Bytes: 0 },
    ]);
    expect((await readdir(join(place.engine.directory, 'layers'))).filter((name) => name.endsWith('.erofs'))).toEqual(
      [],
    );
  });
});
