/** Programs of other architectures: which of them this kernel hands to an emulator. binfmt_misc(5) */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hasCode } from '../../shared/errors.ts';

const DIRECTORY = '/proc/sys/fs/binfmt_misc';

/** What emulators call what images call. */
const NAMES: Readonly<Record<string, string>> = {
  amd64: 'x86_64',
  '386': 'i386',
  arm64: 'aarch64',
  loong64: 'loongarch64',
  mips64le: 'mips64el',
  mipsle: 'mipsel',
};

/** Whether a program of an image's architecture is started by an emulator that is found inside of a container, too. */
export async function hasEmulator(architecture: string, directory = DIRECTORY): Promise<boolean> {
  const wanted = `qemu-${NAMES[architecture] ?? architecture}`;
  try {
    const name = (await readdir(directory)).find((entry) => entry === wanted);
    if (name === undefined) return false;
    const text = await readFile(join(directory, name), 'latin1');
    // F: the kernel has opened the emulator already, so it need not be in the image.
    return /^enabled$/m.test(text) && /^flags: .*F/m.test(text);
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'EACCES')) return false;
    throw error;
  }
}
