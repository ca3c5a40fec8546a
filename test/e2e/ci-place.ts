/**
 * A place like a CI runner's: containers of our own engine, without added capabilities, that see this checkout and the
 * host's programs read-only, and reach the host's network. Berth in them has what a job has: a user, a home, and /tmp.
 */
import { realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildImage, buildLayer } from '../fixtures/images.ts';
import type { TarEntry } from '../fixtures/tar.ts';
import type { Rig } from './rig.ts';

const REPOSITORY = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '');
/** Nobody has this id on the host. */
export const CI_USER = 12345;

export interface CiContainers {
  /** Arguments of `run` up to the image, for a container of this user: a number, or root without capabilities of an administrator. */
  runArgs(user: typeof CI_USER | 0, env?: Readonly<Record<string, string>>): Promise<readonly string[]>;
  readonly image: string;
}

/** Pushes the image that jobs run in. */
export async function openCiContainers(rig: Rig): Promise<CiContainers> {
  const directories = ['usr', 'etc', 'dev', 'proc', 'sys', 'run', 'root', 'home', 'var'];
  const entries: TarEntry[] = [
    ...directories.map((name): TarEntry => ({ name: `${name}/`, type: 'directory' })),
    ...['bin', 'sbin', 'lib', 'lib64'].map((name): TarEntry => ({ name, type: 'symlink', linkname: `usr/${name}` })),
    { name: 'tmp/', type: 'directory', mode: 0o1777 },
    { name: 'home/ci/', type: 'directory', mode: 0o755, uid: CI_USER, gid: CI_USER },
    { name: 'etc/passwd', content: 'root:x:0:0:root:/root:/bin/sh\n' },
    { name: 'etc/group', content: 'root:x:0:\n' },
  ];
  const image = await rig.push(buildImage({ layers: [buildLayer(entries)] }), 'ci/runner:1');
  await rig.expectBerth(['pull', '-q', image]);
  const readOnly = async (path: string) => ['-v', `${path}:${path}:ro`];
  return {
    image,
    async runArgs(user, env = {}) {
      const home = user === 0 ? '/root' : '/home/ci';
      const all = { PATH: `${REPOSITORY}/deploy/bin:/usr/bin`, HOME: home, ...env };
      return [
        ...['--network', 'host', '--user', `${user}:${user}`, '--workdir', home],
        ...(await readOnly('/usr')),
        ...(await readOnly(REPOSITORY)),
        // Where it is a link, what it leads to.
        ...(await readOnly(await realpath(join(REPOSITORY, 'node_modules')))),
        ...Object.entries(all).flatMap(([name, value]) => ['-e', `${name}=${value}`]),
      ];
    },
  };
}
