/** Files of containers by the real docker CLI and over the API: cp, export, commit, diff, and the CVEs of each. */
import { execFileSync } from 'node:child_process';
import { chmod, mkdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { collect } from '../../shared/streams.ts';
import { berth } from '../fixtures/programs.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
let image: string;
beforeAll(async () => {
  place = await openEnginePlace();
  image = place.image;
  await dockerOk(['pull', '-q', image]);
});
afterAll(() => place?.[Symbol.asyncDispose]());

const docker = (args: readonly string[], input?: string) => place.docker(args, input);
const dockerOk = (args: readonly string[], input?: string) => place.dockerOk(args, input);
const at = (...names: string[]) => join(place.host.root, ...names);
/** Runs a script in a running container. */
const inside = (name: string, script: string) => dockerOk(['exec', name, 'sh', '-c', script]);

interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Buffer;
}

async function api(method: string, path: string, body?: Buffer): Promise<Answer> {
  const sent = request({
    socketPath: place.engine.url.replace('unix://', ''),
    method,
    path,
    headers: body === undefined ? {} : { 'content-type': 'application/x-tar' },
  });
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  sent.on('error', reject);
  sent.on('response', (answer) => {
    collect(answer, 64 << 20, { what: 'answer' }).then(
      (bytes) => resolve({ status: answer.statusCode ?? 0, headers: answer.headers, body: bytes }),
      reject,
    );
  });
  sent.end(body);
  return promise;
}

function statIn({ headers }: Answer): unknown {
  return JSON.parse(Buffer.from(String(headers['x-docker-container-path-stat']), 'base64').toString());
}

const tarOf = (directory: string, ...args: string[]) =>
  execFileSync('tar', ['-c', '-C', directory, ...args], { maxBuffer: 64 << 20 });

async function running(name: string, ...args: string[]): Promise<string> {
  await dockerOk(['run', '-d', '--name', name, ...args, image, 'sleep', '1000']);
  return name;
}

describe('docker cp', () => {
  it('copies files and directories in and out of running, stopped and created containers', async () => {
    const name = await running('cp1');
    await dockerOk(['create', '--name', 'cp2', image, 'true']);
    await mkdir(at('in/sub'), { recursive: true });
    await writeFile(at('in/sub/file'), 'content');
    await chmod(at('in/sub/file'), 0o640);
    await symlink('file', at('in/sub/link'));
    for (const each of [name, 'cp2']) {
      await dockerOk(['cp', at('in'), `${each}:/copied`]);
      await dockerOk(['cp', at('in/.'), `${each}:/copied`]);
      await dockerOk(['cp', `${each}:/copied`, at(`out-${each}`)]);
      expect(await readFile(at(`out-${each}/sub/link`), 'utf8')).toBe('content');
      await dockerOk(['cp', '-L', `${each}:/copied/sub/link`, at(`followed-${each}`)]);
      expect(await readFile(at(`followed-${each}`), 'utf8')).toBe('content');
      const piped = await dockerOk(['cp', `${each}:/copied/sub/file`, '-']);
      expect(piped).toContain('content');
    }
    expect(await inside(name, 'cat /copied/sub/link; ls -l /copied/sub/file')).toMatch(/^content-rw-r-----/);
    await dockerOk(['kill', name]);
    await dockerOk(['cp', at('in/sub/file'), `${name}:/after`]);
    await dockerOk(['start', name]);
    expect(await inside(name, 'cat /after')).toBe('content');
  });
});

it('answers where a path leads and what it is, as recorded', async () => {
  const name = await running('stat1');
  await inside(name, 'ln -s /bin/busybox /usr/bin/tool; mkdir -m 1777 /sticky; touch -d @0 /old; mkfifo /pipe');
  const head = (path: string) => api('HEAD', `/containers/${name}/archive?path=${encodeURIComponent(path)}`);
  expect(statIn(await head('/old'))).toEqual({
    name: 'old',
    size: 0,
    mode: 0o644,
    mtime: '1970-01-01T00:00:00Z',
    linkTarget: '',
  });
  expect(statIn(await head('/sticky'))).toMatchObject({ name: 'sticky', mode: 2 ** 31 + 2 ** 20 + 0o777 });
  expect(statIn(await head('/usr/bin/tool'))).toMatchObject({ mode: 2 ** 27 + 0o777, linkTarget: '/bin/busybox' });
  expect(statIn(await head('/pipe'))).toMatchObject({ mode: 2 ** 25 + 0o644 });
  const missing = await api('GET', `/containers/${name}/archive?path=/nosuch`);
  expect(missing).toMatchObject({ status: 404, headers: { 'content-type': 'application/json' } });
  expect(JSON.parse(missing.body.toString()).message).toBe('Could not find the file /nosuch in container stat1');
  const onFile = await api('PUT', `/containers/${name}/archive?path=/etc/passwd`, tarOf('/etc', 'hostname'));
  expect(onFile.status).toBe(400);
  expect(JSON.parse(onFile.body.toString()).message).toBe('extraction point is not a directory');
});

it('shows volumes, and refuses to write where the container may not', async () => {
  await mkdir(at('vol'), { recursive: true });
  await writeFile(at('vol/file'), 'of the host');
  const name = await running('vol1', '-v', `${at('vol')}:/vol:ro`, '-v', `${at('vol')}:/rw`, '--read-only');
  expect(await dockerOk(['cp', `${name}:/vol/file`, '-'])).toContain('of the host');
  const put = (path: string) => api('PUT', `/containers/${name}/archive?path=${path}`, tarOf('/etc', 'hostname'));
  expect((await put('/vol')).body.toString()).toContain('mounted volume is marked read-only');
  expect((await put('/vol')).status).toBe(403);
  expect((await put('/etc')).body.toString()).toContain('container rootfs is marked read-only');
  expect((await put('/rw')).status).toBe(200);
  expect(await inside(name, 'cat /rw/hostname')).toBe((await readFile('/etc/hostname', 'utf8')).trim());
  await dockerOk(['kill', name]);
  expect((await put('/vol')).status).toBe(403);
  expect((await put('/rw')).status).toBe(200);
});

it.each(['none', 'gzip', 'bzip2', 'xz', 'zstd'])('takes an archive with compression %s', async (form) => {
  const name = await running(`form-${form}`);
  const args = form === 'none' ? [] : [`--${form}`];
  const answer = await api('PUT', `/containers/${name}/archive?path=/tmp`, tarOf('/etc', ...args, 'hostname'));
  expect(answer.status).toBe(200);
  expect(await inside(name, 'test -s /tmp/hostname && echo there')).toBe('there');
});

it('keeps owners, gives them to the user on request, and keeps directories', async () => {
  const name = await running('own1', '--user', '33:33');
  const root = await running('own2');
  const put = (to: string, query: string, tar: Buffer) =>
    api('PUT', `/containers/${to}/archive?path=/tmp${query}`, tar);
  const tar = tarOf('/etc', '--owner=7', '--group=8', '--numeric-owner', 'hostname');
  expect((await put(name, '', tar)).status).toBe(200);
  expect(await inside(name, 'stat -c %u:%g /tmp/hostname')).toBe('7:8');
  expect((await put(name, '&copyUIDGID=1', tar)).status).toBe(200);
  expect(await inside(name, 'stat -c %u:%g /tmp/hostname')).toBe('33:33');
  await inside(root, 'mkdir -p /tmp/hostname/full');
  expect((await put(root, '&noOverwriteDirNonDir=1', tar)).status).toBe(400);
  expect((await put(root, '', tar)).status).toBe(200);
  expect(await inside(root, 'test -f /tmp/hostname && echo file')).toBe('file');
});

it('refuses what is no archive, and paths that lead out of the target', async () => {
  const name = await running('bad1');
  const put = (tar: Buffer) => api('PUT', `/containers/${name}/archive?path=/tmp`, tar);
  expect((await put(Buffer.alloc(2048, 'x'))).status).toBe(400);
  await writeFile(at('escape'), '');
  const refused = await put(tarOf(at('in'), '-P', '../escape'));
  expect(refused.status).toBe(400);
  expect(refused.body.toString()).toContain('outside of the target');
});

describe('CVEs', () => {
  it('CVE-2018-15664: a link that is swapped while it is copied leads nowhere but into the container', async () => {
    await writeFile(at('host-secret'), 'secret of the host');
    const name = await running('swap');
    await inside(
      name,
      `mkdir -p /real ${place.host.root}; echo inner > /real/host-secret; echo inner > ${at('host-secret')}`,
    );
    await dockerOk([
      'exec',
      '-d',
      name,
      'sh',
      '-c',
      `while :; do rm -rf /w; ln -s ${place.host.root} /w; rm /w; mkdir /w; done`,
    ]);
    for (let round = 0; round < 15; round++) {
      // One that vanishes while it is read is cut off.
      const answer = await api('GET', `/containers/${name}/archive?path=/w/host-secret`).catch(() => undefined);
      expect(answer?.body.toString() ?? '').not.toContain('secret of the host');
      await api('PUT', `/containers/${name}/archive?path=/w`, tarOf('/etc', 'hostname'));
    }
    expect(await readFile(at('host-secret'), 'utf8')).toBe('secret of the host');
    await expect(readFile(at('hostname'))).rejects.toThrow('ENOENT');
  });

  it('CVE-2019-14271: nothing of the container is loaded or executed by what copies', async () => {
    const name = await running('preload');
    // A library that the host has, so that loading it would work; in the container it would be the container's.
    const library = execFileSync('sh', ['-c', 'ls /usr/lib/*/libacl.so.1 | head -1']).toString().trim();
    const copy = (path: string) => dockerOk(['cp', '-L', path, `${name}:/evil.so`]);
    await copy(library);
    await inside(
      name,
      'mkdir -p /lib /dev /usr/local/bin; echo /evil.so > /etc/ld.so.preload; for n in tar stat sh; do cp /bin/busybox /usr/local/bin/$n; done',
    );
    expect(await dockerOk(['cp', `${name}:/etc/passwd`, '-'])).toContain('root:x:0:0');
    // What the loader says when it was asked to load it and could not.
    const files = await api('GET', `/containers/${name}/archive?path=/etc/ld.so.preload`);
    expect(files.status).toBe(200);
  });

  it('CVE-2019-18466, CVE-2019-10152, CVE-2021-41089: links of the container never mean files of the host', async () => {
    await writeFile(at('mode'), 'x', { mode: 0o600 });
    const name = await running('links');
    await inside(
      name,
      `mkdir -p ${place.host.root}; ln -s ${at('mode')} /to-host; ln -s / /root-link; ln -s ../../../../../.. /up`,
    );
    expect(statIn(await api('HEAD', `/containers/${name}/archive?path=/to-host`))).toMatchObject({
      linkTarget: at('mode'),
    });
    for (const link of ['root-link', 'up']) {
      const answer = await api(
        'PUT',
        `/containers/${name}/archive?path=/${link}/tmp`,
        tarOf(at('.'), '--mode=777', 'mode'),
      );
      expect(answer.status).toBe(200);
    }
    expect(
      execFileSync('stat', ['-c', '%a', at('mode')])
        .toString()
        .trim(),
    ).toBe('600');
    expect(await inside(name, 'stat -c %a /tmp/mode')).toBe('777');
  });

  it("CVE-2026-41567: a compressed archive is not unpacked by the container's programs", async () => {
    const name = await running('path');
    await inside(
      name,
      'for n in xz unpigz gzip bzip2 zstd; do for d in /bin /usr/bin /usr/local/bin; do mkdir -p $d; printf "#!/bin/sh\\ntouch /ran\\n" > /n; chmod 755 /n; cp /n $d/$n; done; done',
    );
    for (const form of ['xz', 'gzip', 'bzip2', 'zstd'])
      expect(
        (await api('PUT', `/containers/${name}/archive?path=/tmp`, tarOf('/etc', `--${form}`, 'hostname'))).status,
      ).toBe(200);
    expect(await inside(name, 'test -e /ran || echo clean')).toBe('clean');
  });

  it('CVE-2026-42306: the target of a volume that is swapped for a link makes nothing on the host', async () => {
    await mkdir(at('bind'), { recursive: true });
    const name = await running('link-maker');
    await inside(name, `ln -s ${at('victim')} /a`);
    await dockerOk(['commit', name, 'hostile:1']);
    await dockerOk(['create', '--name', 'target', '-v', `${at('bind')}:/a/b`, 'hostile:1', 'sleep', '1000']);
    const answer = await api('GET', '/containers/target/archive?path=/etc/passwd');
    await expect(stat(at('victim'))).rejects.toThrow('ENOENT');
    expect([200, 503]).toContain(answer.status);
    await dockerOk(['rm', 'target']);
    await dockerOk(['rmi', 'hostile:1']);
  });

  it('CVE-2026-42306: a volume below /var/run, which is a link to /run, is still found', async () => {
    await mkdir(at('sock'), { recursive: true });
    await writeFile(at('sock/file'), 'by the link');
    await dockerOk(['create', '--name', 'prepared', image, 'true']);
    await mkdir(at('var/run-target'), { recursive: true });
    await symlink('/run', at('var/run'));
    await mkdir(at('run-dir/run'), { recursive: true });
    await dockerOk(['cp', at('run-dir/run'), 'prepared:/run']);
    await dockerOk(['cp', at('var/run'), 'prepared:/var/run']);
    await dockerOk(['commit', 'prepared', 'linked:1']);
    await dockerOk(['run', '-d', '--name', 'linked', '-v', `${at('sock')}:/var/run/app`, 'linked:1', 'sleep', '1000']);
    expect(await inside('linked', 'readlink /var/run; cat /run/app/file')).toBe('/run\nby the link');
    for (const path of ['/var/run/app/file', '/run/app/file'])
      expect(await dockerOk(['cp', `linked:${path}`, '-'])).toContain('by the link');
    await dockerOk(['rm', '-f', 'linked']);
    await dockerOk(['rm', 'prepared']);
    await dockerOk(['rmi', 'linked:1']);
  });
});

describe('docker export, diff and commit', () => {
  it('exports the whole filesystem', async () => {
    const name = await running('exp1');
    await inside(name, 'echo new > /added; ln /added /hard');
    await dockerOk(['export', '-o', at('exp.tar'), name]);
    const names = execFileSync('tar', ['-tf', at('exp.tar')])
      .toString()
      .split('\n');
    expect(names).toEqual(expect.arrayContaining(['added', 'hard', 'bin/busybox', 'etc/passwd']));
    expect(names.some((entry) => entry.startsWith('.'))).toBe(false);
  });

  it('commits what diff shows, without what is there only to mount on', async () => {
    const name = await running('com1', '-e', 'A=1');
    await inside(name, 'echo new > /added; rm /etc/group; mkdir /d; echo x > /d/f');
    expect((await dockerOk(['diff', name])).split('\n').sort()).toEqual([
      'A /added',
      'A /d',
      'A /d/f',
      'C /etc',
      'D /etc/group',
    ]);
    const id = await dockerOk([
      'commit',
      '-a',
      'me',
      '-m',
      'hello',
      '-c',
      'ENV Z=9 Y="two words"',
      '-c',
      'CMD ["cat", "/added"]',
      '-c',
      'EXPOSE 80',
      '-c',
      'LABEL a=b',
      name,
      'local/committed:v1',
    ]);
    const [made] = JSON.parse(await dockerOk(['image', 'inspect', 'local/committed:v1']));
    expect(made).toMatchObject({
      Id: id,
      Author: 'me',
      Config: { Cmd: ['cat', '/added'], Labels: { a: 'b' }, ExposedPorts: { '80/tcp': {} } },
    });
    expect(made.Config.Env).toEqual(expect.arrayContaining(['A=1', 'Z=9', 'Y=two words']));
    expect(await dockerOk(['history', '--format', '{{.CreatedBy}} {{.Comment}}', 'local/committed:v1'])).toContain(
      'sleep 1000 hello',
    );
    expect(await dockerOk(['run', '--rm', 'local/committed:v1'])).toBe('new');
    expect(await dockerOk(['run', '--rm', 'local/committed:v1', 'sh', '-c', 'ls -A /etc; cat /d/f'])).not.toContain(
      'group',
    );
    await dockerOk(['save', '-o', at('saved.tar'), 'local/committed:v1']);
    await dockerOk(['rmi', 'local/committed:v1']);
    expect((await docker(['commit', '-c', 'RUN true', name, 'x'])).stderr).toContain(
      'run is not a valid change command',
    );
    expect(await inside(name, 'cat /added')).toBe('new');
  });
});

describe('berth cp', () => {
  const cli = (...args: string[]) => berth(place.host, place.engine, args);

  it('puts files where docker puts them', async () => {
    const name = await running('berth-cp');
    await mkdir(at('src/sub'), { recursive: true });
    await writeFile(at('src/sub/file'), 'by berth');
    const ok = async (...args: string[]) => {
      const { code, stderr } = await cli('cp', '-q', ...args);
      if (code !== 0) throw new Error(`berth cp ${args.join(' ')}: ${stderr}`);
    };
    await ok(at('src'), `${name}:/new`);
    await ok(at('src'), `${name}:/new`);
    await ok(`${at('src')}/.`, `${name}:/tmp`);
    await ok(at('src/sub/file'), `${name}:/tmp/renamed`);
    expect(await inside(name, 'cd /; cat new/sub/file new/src/sub/file tmp/sub/file tmp/renamed')).toBe(
      'by berth'.repeat(4),
    );
    await ok(`${name}:/new`, at('fresh'));
    await ok(`${name}:/new/.`, at('src'));
    await ok(`${name}:/tmp/renamed`, at('one'));
    await inside(name, 'ln -s /tmp/renamed /link');
    await ok('-L', `${name}:/link`, at('followed'));
    for (const path of ['fresh/sub/file', 'fresh/src/sub/file', 'src/src/sub/file', 'one', 'followed'])
      expect(await readFile(at(path), 'utf8')).toBe('by berth');
    expect((await cli('cp', `${name}:/one`, '-')).stderr).toContain(
      'Could not find the file /one in container berth-cp',
    );
    expect((await cli('cp', at('src'), `${name}:/tmp/renamed`)).stderr).toContain('cannot copy directory');
    expect((await cli('cp', at('one'), `${name}:/no/`)).stderr).toContain('must exist');
  });
});
