/** Images that try to leave their container: links where the runtime mounts, working directories, volumes, variables. */
import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { ImageRunConfig } from '../../shared/oci.ts';
import { buildImage, buildLayer, busyboxLayer, writeLayout } from '../fixtures/images.ts';
import { succeed } from '../fixtures/programs.ts';
import type { TarEntry } from '../fixtures/tar.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
beforeAll(async () => {
  place = await openEnginePlace();
  await mkdir(at('victim'));
  await writeFile(at('victim/secret'), 'of the host');
});
afterAll(() => place?.[Symbol.asyncDispose]());

const at = (...names: string[]) => join(place.host.root, ...names);
const run = (...args: string[]) => place.docker(['run', '--rm', '--network', 'none', ...args]);
const ENV = ['PATH=/bin:/usr/bin'];

/** An image over busybox, in the registry. */
async function hostile(name: string, entries: readonly TarEntry[], config: ImageRunConfig = {}): Promise<string> {
  const layers = [await busyboxLayer(), ...(entries.length === 0 ? [] : [buildLayer(entries)])];
  await writeLayout(buildImage({ layers, config: { Env: ENV, Cmd: ['true'], ...config } }), at('layouts', name));
  const reference = `${place.registry.address}/${name}:latest`;
  const args = ['copy', '--dest-tls-verify=false', `oci:${at('layouts', name)}:latest`, `docker://${reference}`];
  await succeed('skopeo', args, { env: place.host.env });
  return reference;
}

const link = (name: string, linkname: string): TarEntry => ({ name, type: 'symlink', linkname });

it.each(['dev', 'proc', 'sys'])(
  'CVE-2026-41579, CVE-2026-47766, CVE-2019-19921, CVE-2023-27561: refuses an image whose /%s is a link',
  async (name) => {
    const image = await hostile(`link-${name}`, [{ name: `.wh.${name}`, content: '' }, link(name, at('victim'))]);
    const { code, stderr } = await run(image);
    expect(code).toBe(125);
    expect(stderr).toContain(`/${name} of its image is not a directory`);
    expect(await readFile(at('victim/secret'), 'utf8')).toBe('of the host');
  },
);

it('CVE-2026-55686: makes a working directory behind a link inside the container, not on the host', async () => {
  const image = await hostile('workdir', [link('escape', at('victim'))], { WorkingDir: '/escape/made' });
  await run(image);
  await expect(stat(at('victim/made'))).rejects.toThrow('ENOENT');
});

it('CVE-2024-21626: a working directory in /proc/self/fd reaches no directory of the host', async () => {
  for (const fd of [3, 5, 7, 8, 9]) {
    const image = await hostile(`fd-${fd}`, [], { WorkingDir: `/proc/self/fd/${fd}` });
    const { stdout } = await run(image, 'sh', '-c', `cat ../../../../../../..${at('victim/secret')} 2>/dev/null`);
    expect(stdout).not.toContain('of the host');
  }
});

it('CVE-2022-23648: a VOLUME that climbs shows nothing of the host', async () => {
  const climbing = `/../../../../../../../..${at('victim')}`;
  const image = await hostile('volume', [], { Volumes: { [climbing]: {} } });
  const { stdout } = await run(
    image,
    'sh',
    '-c',
    `cat ${at('victim/secret')} 2>/dev/null; ls -R ${at('')} 2>/dev/null`,
  );
  expect(stdout).not.toContain('of the host');
});

it('CVE-2024-9676: a passwd that is a pipe, or a link to a file of the host, is not waited for and not read', async () => {
  const pipe = await hostile('pipe', [{ name: 'etc/passwd', type: 'fifo' }], { User: 'somebody' });
  expect((await run(pipe)).stderr).toContain('unable to find user somebody');
  await writeFile(at('victim/passwd'), 'somebody:x:0:0::/:/bin/sh\n');
  const linked = await hostile(
    'linked',
    [{ name: 'etc/.wh.passwd', content: '' }, link('etc/passwd', at('victim/passwd'))],
    {
      User: 'somebody',
    },
  );
  expect((await run(linked)).stderr).toContain('unable to find user somebody');
});

it('CVE-2026-46680: a numeric USER is never a name', async () => {
  const passwd = { name: 'etc/passwd', content: 'root:x:0:0::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n' };
  const image = await hostile('numeric', [passwd], { User: '1000' });
  expect((await run(image, 'id', '-u')).stdout).toBe('1000\n');
});

it('CVE-2026-57231: a variable without a value takes none from the host', async () => {
  const image = await hostile('env', [], { Env: [...ENV, 'HOME', 'BERTH_TEST_RUN'] });
  const { stdout } = await run(image, 'env');
  expect(stdout).not.toContain(place.host.root);
});

it('CVE-2022-24769, CVE-2022-29162: capabilities are neither inheritable nor ambient', async () => {
  const image = await hostile('caps', []);
  const { stdout } = await run('--user', '1000', image, 'grep', '-E', '^Cap(Inh|Eff|Amb)', '/proc/self/status');
  expect(stdout.match(/\t0{16}\n/g)).toHaveLength(3);
});

it('CVE-2026-53488: labels and names are words, never commands', async () => {
  const words = `$(touch ${at('victim/ran')}); \`touch ${at('victim/ran')}\``;
  const image = await hostile('labels', [], { Labels: { [words]: words }, StopSignal: 'SIGTERM' });
  expect((await run('--label', `x=${words}`, '--env', `X=${words}`, image, 'env')).stdout).toContain(`X=${words}`);
  await expect(stat(at('victim/ran'))).rejects.toThrow('ENOENT');
});
