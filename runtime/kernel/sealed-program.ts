/**
 * An OCI runtime behind a read-only mount of its own file.
 *
 * A process of a container can get hold of the program that enters the container, by /proc/<pid>/exe, and overwrite it
 * on the host (CVE-2019-5736). crun and runc therefore begin every call by mounting a read-only view of themselves,
 * unmounting it and starting again from what is left of it: half of the time of a short call. Behind this mount they
 * find themselves on a read-only filesystem. They look at that themselves and take no one's word for it: when the mount
 * is not there, they do as always.
 */
import { writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Mounts } from './mount.ts';

/** Disposing takes the mount away; a call that is under way goes on. */
export interface SealedProgram extends AsyncDisposable {
  /** Has the program's own base name: crun looks at it. */
  readonly path: string;
  /** Tells it to look; for every call. */
  readonly env: Readonly<Record<string, string>>;
}

/**
 * Mounts `program`, an absolute path, below `directory`. What an earlier engine left there is replaced: the program may
 * have been upgraded. @throws AppError 'denied', 'unavailable' when it cannot be mounted
 */
export async function sealProgram(
  mounts: Mounts,
  { program, directory }: { readonly program: string; readonly directory: string },
): Promise<SealedProgram> {
  const path = join(directory, basename(program));
  const unmount = () => mounts.unmount([path], { lazy: true });
  const left = (await mounts.list()).filter(({ target }) => target === path);
  for (const _ of left) await unmount();
  await writeFile(path, '', { mode: 0o600 });
  await mounts.mountBind({ source: program, target: path, readOnly: true });
  return { path, env: { _LIBCONTAINER_CLONED_BINARY: '1' }, [Symbol.asyncDispose]: unmount };
}
