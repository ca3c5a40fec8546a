import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import Docker from 'dockerode';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildImage, buildLayer, busyboxLayer, writeLayout } from '../fixtures/images.ts';
import { berth, succeed } from '../fixtures/programs.ts';
import { type TarEntry, tarOf } from '../fixtures/tar.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';
import { ask } from './http.ts';

let place: EnginePlace;
let docker: Docker;
beforeAll(async () => {
  place = await openEnginePlace();
  docker = new Docker({ socketPath: place.engine.socketPath });
  await place.dockerOk(['pull', '-q', place.image]);
});
afterAll(async () => {
  await place?.docker(['volume', 'prune', '-af']);
  await place?.[Symbol.asyncDispose]();
});

const ok = (...args: readonly string[]) => place.dockerOk(args);
const sh = (options: readonly string[], script: string) =>
  ok('run', '--rm', ...options, place.image, 'sh', '-c', script);
const names = async () => (await ok('volume', 'ls', '-q')).split('\n').filter(Boolean);
const rootOf = async (name: string) => (await docker.getVolume(name).inspect()).Mountpoint;

/** An image over busybox with these files and this config. */
async function image(
  name: string,
  entries: readonly TarEntry[],
  config: Record<string, unknown> = {},
): Promise<string> {
  const made = buildImage({
    layers: [await busyboxLayer(), buildLayer(entries)],
    config: { Env: ['PATH=/bin'], Cmd: ['sh'], ...config },
  });
  const layout = join(place.host.root, 'layouts', name);
  await writeLayout(made, layout);
  const reference = `${place.registry.address}/${name}:1`;
  await succeed('skopeo', ['copy', '-q', '--dest-tls-verify=false', `oci:${layout}:latest`, `docker://${reference}`], {
    env: place.host.env,
  });
  await ok('pull', '-q', reference);
  return reference;
}

describe('volume create, ls, inspect, rm and prune', () => {
  it('are as dockerd has them', async () => {
    expect(await ok('volume', 'create', '--label', 'a=b', 'kept')).toBe('kept');
    // Making it again is no error.
    expect(await ok('volume', 'create', 'kept')).toBe('kept');
    expect(JSON.parse(await ok('volume', 'inspect', 'kept'))).toEqual([
      {
        CreatedAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/),
        Driver: 'local',
        Labels: { a: 'b' },
        Mountpoint: join(place.engine.directory, 'volumes/kept/_data'),
        Name: 'kept',
        Options: null,
        Scope: 'local',
      },
    ]);
    const nameless = await ok('volume', 'create');
    expect(nameless).toMatch(/^[0-9a-f]{64}$/);
    expect(await ok('volume', 'ls', '-q', '--filter', 'label=a')).toBe('kept');
    expect(await ok('volume', 'ls', '-q', '--filter', 'dangling=false')).toBe('');
    expect((await ok('volume', 'prune', '-f')).split('\n')).toContain(nameless);
    expect(await names()).toEqual(['kept']);
    expect(await ok('volume', 'rm', 'kept')).toBe('kept');
    expect(await place.docker(['volume', 'rm', 'kept'])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('get kept: no such volume'),
    });
    expect((await place.docker(['volume', 'rm', '-f', 'kept'])).code).toBe(0);
    expect(await readdir(join(place.engine.directory, 'volumes'))).toEqual([]);
  });

  it.each([
    [['volume', 'create', '--driver', 'rexray', 'x1'], 'plugin "rexray" not found'],
    [['volume', 'create', '--opt', 'size=1g', 'x1'], 'invalid option: "size"'],
    [['volume', 'create', 'a/b'], 'includes invalid characters for a local volume name'],
    [['create', '-v', 'rel/ative:/x', 'IMAGE'], 'If you intended to pass a host directory, use absolute path'],
    [['create', '-v', 'x1:rel', 'IMAGE'], 'mount path must be absolute'],
  ])('refuses %j', async (args, words) => {
    const { code, stderr } = await place.docker(args.map((arg) => (arg === 'IMAGE' ? place.image : arg)));
    expect({ failed: code !== 0, stderr }).toEqual({ failed: true, stderr: expect.stringContaining(words) });
  });

  it('hides the files of containers from users of the host (CVE-2021-41091)', async () => {
    await ok('volume', 'create', 'private');
    expect((await stat(join(place.engine.directory, 'volumes'))).mode & 0o077).toBe(0);
    await ok('volume', 'rm', 'private');
  });
});

describe('a named volume', () => {
  it('is made by its first use, shared, and outlives containers', async () => {
    await sh(['-v', 'shared:/data'], 'echo one > /data/f');
    expect(await sh(['-v', 'shared:/elsewhere:ro'], 'cat /elsewhere/f; echo two > /elsewhere/f || echo refused')).toBe(
      'one\nrefused',
    );
    expect(await sh(['--mount', 'type=volume,source=shared,target=/m'], 'cat /m/f')).toBe('one');
    expect(await names()).toEqual(['shared']);
    await ok('volume', 'rm', 'shared');
  });

  it('is never removed while a container refers to it, running or not', async () => {
    const id = await ok('create', '-v', 'used:/data', place.image);
    const words = `remove used: volume is in use - [${id}]`;
    expect(await place.docker(['volume', 'rm', '-f', 'used'])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining(words),
    });
    expect(await ok('volume', 'prune', '-af')).not.toContain('used');
    expect(JSON.parse(await ok('inspect', id))[0].Mounts).toEqual([
      {
        Type: 'volume',
        Name: 'used',
        Source: await rootOf('used'),
        Destination: '/data',
        Driver: 'local',
        Mode: 'z',
        RW: true,
        Propagation: '',
      },
    ]);
    expect(await ok('ps', '-aq', '--no-trunc', '--filter', 'volume=used')).toBe(id);
    await ok('rm', id);
    await ok('volume', 'rm', 'used');
  });

  it('keeps its data and its users when the engine is killed', async () => {
    const id = await ok('run', '-d', '-v', 'sturdy:/data', place.image, 'sh', '-c', 'echo kept > /data/f; sleep 300');
    await expect.poll(async () => readFile(join(await rootOf('sturdy'), 'f'), 'utf8').catch(() => '')).toBe('kept\n');
    await place.restart('SIGKILL');
    expect(await place.docker(['volume', 'rm', 'sturdy'])).toMatchObject({ stderr: expect.stringContaining('in use') });
    expect(await ok('exec', id, 'cat', '/data/f')).toBe('kept');
    await ok('rm', '-f', id);
    await place.restart('SIGKILL');
    expect(await sh(['-v', 'sturdy:/data'], 'cat /data/f')).toBe('kept');
    await ok('volume', 'rm', 'sturdy');
  });
});

describe('an anonymous volume', () => {
  it('goes with --rm and rm -v, stays otherwise, and never takes a named one along', async () => {
    await sh(['-v', '/anonymous', '-v', 'named:/n'], 'echo x > /anonymous/f');
    // What --rm takes along goes after the answer.
    await expect.poll(names).toEqual(['named']);
    const first = await ok('create', '-v', '/anonymous', '-v', 'named:/n', place.image);
    await ok('rm', '-v', first);
    expect(await names()).toEqual(['named']);
    const second = await ok('create', '-v', '/anonymous', place.image);
    await ok('rm', second);
    expect(await names()).toHaveLength(2);
    await ok('volume', 'prune', '-f');
    expect(await names()).toEqual(['named']);
    await ok('volume', 'rm', 'named');
  });

  it('comes with --volumes-from and stays while anybody refers to it', async () => {
    await ok('create', '--name', 'holder', '-v', '/anonymous', '-v', 'named:/n', place.image);
    await sh(['--volumes-from', 'holder'], 'echo through > /anonymous/f; echo n > /n/f');
    expect(await sh(['--volumes-from', 'holder:ro'], 'cat /anonymous/f; touch /n/f || echo refused')).toBe(
      'through\nrefused',
    );
    expect(await names()).toHaveLength(2);
    await ok('rm', '-v', 'holder');
    expect(await names()).toEqual(['named']);
    await ok('volume', 'rm', 'named');
  });
});

describe('an empty volume begins with what the image has', () => {
  const CONTENT: readonly TarEntry[] = [
    { name: 'data/', type: 'directory', mode: 0o2750, uid: 33, gid: 100 },
    { name: 'data/a', content: 'first', mode: 0o640, uid: 33, gid: 33 },
    { name: 'data/b', type: 'link', linkname: 'data/a' },
    { name: 'data/sub/', type: 'directory', mode: 0o700, uid: 1000, gid: 1000 },
    { name: 'data/sub/link', type: 'symlink', linkname: '/etc/passwd' },
  ];
  let filled: string;
  beforeAll(async () => {
    filled = await image('filled', CONTENT, { Volumes: { '/data': {} } });
  });

  it('with owners, modes, links and all', async () => {
    const script = 'stat -c "%n %a %u:%g %h" /data /data/a /data/sub; cat /data/a; readlink /data/sub/link';
    const expected = ['/data 2750 33:100 3', '/data/a 640 33:33 2', '/data/sub 700 1000:1000 2', 'first/etc/passwd'];
    expect((await ok('run', '--rm', filled, 'sh', '-c', script)).split('\n')).toEqual(expected);
    expect((await ok('run', '--rm', '-v', 'copy:/data', filled, 'sh', '-c', script)).split('\n')).toEqual(expected);
    // Only an empty one.
    await ok('run', '--rm', '-v', 'copy:/data', filled, 'sh', '-c', 'rm /data/b; echo second > /data/a');
    expect(await ok('run', '--rm', '-v', 'copy:/data', filled, 'sh', '-c', 'ls /data; cat /data/a')).toBe(
      'a\nsub\nsecond',
    );
    await ok('volume', 'rm', 'copy');
  });

  it('but not with nocopy', async () => {
    expect(await ok('run', '--rm', '-v', 'bare:/data:nocopy', filled, 'ls', '/data')).toBe('');
    await ok('volume', 'rm', 'bare');
  });

  it('CVE-2022-23648: a VOLUME that leads out of the image brings no file of the host', async () => {
    const entries: readonly TarEntry[] = [
      { name: 'escape', type: 'symlink', linkname: '../../../../../../../../usr/share' },
      { name: 'usr/share/', type: 'directory' },
      { name: 'usr/share/inside', content: 'x' },
      { name: 'absolute', type: 'symlink', linkname: '/home/of' },
      { name: 'home/of/', type: 'directory' },
    ];
    const hostile = await image('escaping', entries, { Volumes: { '/../../../etc/../escape': {}, '/absolute': {} } });
    expect(await ok('run', '--rm', hostile, 'ls', '/escape/', '/absolute/')).toBe('/absolute/:\n\n/escape/:\ninside');
  });

  it('CVE-2020-1726: content that is there is not written over', async () => {
    await ok('volume', 'create', 'mine');
    await writeFile(join(await rootOf('mine'), 'a'), 'precious');
    expect(await ok('run', '--rm', '-v', 'mine:/data', filled, 'cat', '/data/a')).toBe('precious');
    await ok('volume', 'rm', 'mine');
  });

  it('and a file cannot be one', async () => {
    expect(await place.docker(['create', '-v', 'x1:/etc/passwd', place.image])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('cannot mount volume over existing file, file exists'),
    });
    expect(await names()).toEqual([]);
  });
});

describe('a subpath', () => {
  const at = (subpath: string) => `type=volume,source=parts,target=/p,volume-subpath=${subpath}`;
  const create = (subpath: string) =>
    docker.createContainer({
      Image: place.image,
      Cmd: ['sh', '-c', 'ls /p'],
      HostConfig: {
        Mounts: [
          { Type: 'volume', Source: 'parts', Target: '/p', ReadOnly: false, VolumeOptions: volumeOptions(subpath) },
        ],
      },
    });
  // The typings lag behind the API.
  const volumeOptions = (Subpath: string): Docker.MountSettings['VolumeOptions'] =>
    Object.assign({ NoCopy: false, Labels: {}, DriverConfig: { Name: '', Options: {} } }, { Subpath });

  it('is all that the container sees', async () => {
    await sh(['-v', 'parts:/p'], 'mkdir -p /p/in/side; echo x > /p/in/side/f; ln -s /etc /p/out; ln -s in /p/inner');
    expect(await sh(['--mount', at('in/side')], 'ls /p')).toBe('f');
  });

  it.each([
    ['out', 'is a symbolic link'],
    ['inner/side', 'is a symbolic link'],
    ['nosuch', 'no such file or directory'],
  ])('CVE-2024-23651: does not lead out: %s', async (subpath, words) => {
    const container = await create(subpath);
    await expect(container.start()).rejects.toThrow(words);
    await container.remove();
    await expect(create('../..')).rejects.toThrow('must be a relative path within the volume');
  });

  it('is where files are copied to and from', async () => {
    const id = await ok('create', '--mount', at('in/side'), place.image);
    await place.dockerOk(['cp', '-', `${id}:/p`], tarOf([{ name: 'copied', content: 'x' }]).toString('latin1'));
    expect((await readdir(join(await rootOf('parts'), 'in/side'))).sort()).toEqual(['copied', 'f']);
    await ok('rm', id);
  });

  it('leaves nothing behind', async () => {
    await ok('volume', 'rm', 'parts');
    expect(await names()).toEqual([]);
  });
});

describe('a volume with options', () => {
  it('is mounted while somebody runs with it', async () => {
    await ok('volume', 'create', '--opt', 'type=tmpfs', '--opt', 'device=tmpfs', '--opt', 'o=size=1m,uid=7', 'memory');
    const isMounted = async () =>
      (await readFile('/proc/self/mountinfo', 'utf8')).includes(`${await rootOf('memory')} `);
    const first = await ok('run', '-d', '-v', 'memory:/m', place.image, 'sleep', '300');
    expect(await ok('exec', first, 'sh', '-c', 'stat -c %u /m; echo x > /m/f')).toBe('7');
    expect(await sh(['-v', 'memory:/m'], 'cat /m/f')).toBe('x');
    await place.restart('SIGKILL');
    expect(await isMounted()).toBe(true);
    await ok('rm', '-f', first);
    await expect.poll(isMounted).toBe(false);
    await ok('volume', 'rm', 'memory');
  });

  it('never has the data of somebody else deleted', async () => {
    const theirs = join(place.host.root, 'theirs');
    await mkdir(theirs);
    await writeFile(join(theirs, 'f'), 'theirs');
    await ok('volume', 'create', '--opt', 'type=none', '--opt', `device=${theirs}`, '--opt', 'o=bind', 'bound');
    expect(await sh(['-v', 'bound:/b'], 'cat /b/f')).toBe('theirs');
    const id = await ok('run', '-d', '-v', 'bound:/b', place.image, 'sleep', '300');
    await ok('rm', '-f', id);
    await ok('volume', 'rm', 'bound');
    expect(await readFile(join(theirs, 'f'), 'utf8')).toBe('theirs');
  });

  it('tells what mount(8) says', async () => {
    await ok('volume', 'create', '--opt', 'type=none', '--opt', 'device=/no/such', '--opt', 'o=bind', 'broken');
    const { code, stderr } = await place.docker(['run', '--rm', '-v', 'broken:/b', place.image, 'true']);
    expect({ code, stderr }).toEqual({ code: 125, stderr: expect.stringContaining('failed to mount local volume') });
    await ok('volume', 'rm', 'broken');
  });
});

describe('a volume as a tar', () => {
  const path = (name: string, verb: string) => `/berth/v1/volumes/${name}/${verb}`;
  const post = (name: string, body: Buffer) =>
    ask(place.engine.socketPath, { method: 'POST', path: path(name, 'import'), body });

  it('comes out and goes into another', async () => {
    await sh(
      ['-v', 'from:/v'],
      'mkdir -m 700 /v/d; echo data > /v/d/f; chown -R 5:6 /v/d; ln -s f /v/d/l; mknod /v/p p',
    );
    const { bytes } = await ask(place.engine.socketPath, { method: 'GET', path: path('from', 'export') });
    await ok('volume', 'create', 'to');
    expect(await post('to', bytes)).toMatchObject({ status: 204 });
    expect(await sh(['-v', 'to:/v'], 'stat -c "%n %a %u:%g %F" /v/d /v/d/f /v/p; readlink /v/d/l; cat /v/d/f')).toBe(
      '/v/d 700 5:6 directory\n/v/d/f 644 5:6 regular file\n/v/p 644 0:0 fifo\nf\ndata',
    );
    expect(await post('to', bytes)).toMatchObject({ status: 409 });
    await ok('volume', 'rm', 'from', 'to');
  });

  it.each([
    ['a name that goes up', [{ name: '../out', content: 'x' }]],
    ['an absolute name', [{ name: '/out', content: 'x' }]],
    ['a hard link that goes up', [{ name: 'l', type: 'link', linkname: '../../berth.db' }]],
    [
      'a way through a link',
      [
        { name: 'd', type: 'symlink', linkname: '../../..' },
        { name: 'd/out', content: 'x' },
      ],
    ],
  ] as const)('CVE-2023-0778: does not lead out by %s', async (_name, entries) => {
    await ok('volume', 'create', 'target');
    const before = await readdir(place.engine.directory);
    expect((await post('target', tarOf(entries))).status).toBeGreaterThanOrEqual(400);
    expect(await readdir(place.engine.directory)).toEqual(before);
    expect(await readdir(await rootOf('target'))).toEqual([]);
    expect(await readdir(join(place.engine.directory, 'volumes/target'))).toEqual(['_data']);
    await ok('volume', 'rm', 'target');
  });

  it('is whole or nothing', async () => {
    await ok('volume', 'create', 'target');
    const tar = tarOf([{ name: 'a', content: 'x'.repeat(5000) }]);
    expect((await post('target', tar.subarray(0, 2000))).status).toBeGreaterThanOrEqual(400);
    expect(await readdir(await rootOf('target'))).toEqual([]);
    await ok('volume', 'rm', 'target');
  });
});

it('is what the berth CLI shows, too', async () => {
  const cli = async (args: readonly string[]) => {
    const { code, stdout, stderr } = await berth(place.host, place.engine, args);
    expect({ code, stderr }, args.join(' ')).toEqual({ code: 0, stderr: '' });
    return stdout.trimEnd();
  };
  const file = join(place.host.root, 'volume.tar');
  expect(await cli(['volume', 'create', '--label', 'a=b', 'mine'])).toBe('mine');
  await cli(['run', '--rm', '-v', 'mine:/v', place.image, 'sh', '-c', 'echo x > /v/f']);
  await cli(['volume', 'export', '-o', file, 'mine']);
  await cli(['volume', 'create', 'other']);
  expect(await berth(place.host, place.engine, ['volume', 'import', 'other', '/no/such'])).toMatchObject({
    code: 1,
    stderr: 'error: cannot read "/no/such": there is no such file\n',
  });
  await cli(['volume', 'import', 'other', file]);
  expect(await cli(['run', '--rm', '-v', 'other:/v', place.image, 'cat', '/v/f'])).toBe('x');
  expect(await cli(['volume', 'ls', '-q'])).toBe('mine\nother');
  expect(await cli(['volume', 'inspect', '--format', '{{.Labels.a}}', 'mine'])).toBe('b');
  expect(await cli(['volume', 'rm', 'mine'])).toBe('mine');
  expect(await cli(['volume', 'prune', '-af'])).toContain('other');
});

it('counts volumes in system df', async () => {
  const id = await ok('create', '-v', 'counted:/data', place.image);
  await writeFile(join(await rootOf('counted'), 'f'), Buffer.alloc(1 << 20, 1));
  await ok('volume', 'create', 'free');
  const { VolumeUsage, Volumes } = await docker.df();
  expect(VolumeUsage).toMatchObject({ ActiveCount: 1, TotalCount: 2 });
  expect(VolumeUsage.TotalSize - VolumeUsage.Reclaimable).toBeGreaterThanOrEqual(1 << 20);
  expect(Volumes.map(({ Name, UsageData }: Docker.VolumeInspectInfo) => [Name, UsageData?.RefCount])).toEqual([
    ['counted', 1],
    ['free', 0],
  ]);
  await ok('rm', id);
  await ok('volume', 'rm', 'counted', 'free');
});

it('tells what happens to volumes', async () => {
  const events = await docker.getEvents({ filters: { type: ['volume'] } });
  const id = await ok('create', '-v', 'told:/data', place.image, 'true');
  await ok('start', '-a', id);
  await ok('rm', id);
  await ok('volume', 'rm', 'told');
  let text = '';
  for await (const chunk of events) {
    text += String(chunk);
    if (text.includes('destroy')) break;
  }
  const seen = text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  expect(seen.map(({ Action, Actor }) => [Action, Actor.ID])).toEqual([
    ['create', 'told'],
    ['mount', 'told'],
    ['unmount', 'told'],
    ['destroy', 'told'],
  ]);
  expect(seen[1].Actor.Attributes).toMatchObject({ destination: '/data', driver: 'local', 'read/write': 'true' });
});
