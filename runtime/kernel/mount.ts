/**
 * The only door to mounts: layer images, overlays, binds, and what is mounted now.
 *
 * mount(8) puts a loop device under every regular file, which newer kernels do not need for EROFS (since 6.12), and
 * only util-linux 2.41 can be told not to (https://github.com/util-linux/util-linux/pull/3290). So layer images are
 * mounted by mount(2) itself, called by perl (Essential on Debian and Ubuntu): one process mounts a whole batch. Where
 * the kernel or the host has not got it, mount(8) makes the loop devices. Everything else is mount(8) and umount(8).
 *
 * Nothing here decides what should be mounted, and nothing is remembered but what the kernel has been found to lack.
 */
import { readFile } from 'node:fs/promises';
import { AppError, isKind } from '../../shared/errors.ts';
import { type CommandResult, type RunCommand, runCommand } from './command.ts';

/** One line of mountinfo, proc_pid_mountinfo(5). */
export interface MountEntry {
  readonly mountId: number;
  readonly target: string;
  /** Path within the filesystem that is visible at target; `/` but for bind mounts. */
  readonly root: string;
  readonly type: string;
  /** Device, image file or a word, as it was given to mount(2). */
  readonly source: string;
  readonly options: readonly string[];
  readonly superOptions: readonly string[];
}

export interface ImageMount {
  /** Absolute path of an EROFS image. */
  readonly image: string;
  readonly target: string;
}

export interface OverlayMount {
  readonly target: string;
  /** Uppermost first, as overlayfs reads them; relative to cwd. At least two when there is no upper. */
  readonly lowers: readonly string[];
  /** Both or neither; relative to cwd. Without them the overlay is read-only. */
  readonly writable?: { readonly upper: string; readonly work: string } | undefined;
  /** Where relative names start: keeps mount data within its one page. */
  readonly cwd: string;
  /** Nothing is ever synced: for what dies with the container. After a crash the upper directory is worthless. */
  readonly volatile?: boolean | undefined;
}

export interface BindMount {
  /** Also /proc/<pid>/fd/<n>: exactly what that descriptor names, wherever its path leads meanwhile. */
  readonly source: string;
  readonly target: string;
  readonly readOnly?: boolean | undefined;
  /** Nothing there can be executed or used as a device, and set-user-id bits do nothing. */
  readonly inert?: boolean | undefined;
}

export interface DeviceMount {
  /** As for mount(8), `-t`. */
  readonly type: string;
  readonly device: string;
  /** As for mount(8), `-o`; may be empty. */
  readonly options: string;
  readonly target: string;
}

export interface Mounts {
  /** All or none. @throws AppError 'integrity' for an image that the kernel refuses, 'not-found', 'denied' */
  mountImages(images: readonly ImageMount[]): Promise<void>;
  /** @throws AppError 'too-large' when the names do not fit into mount data, 'unavailable' with the kernel's words */
  mountOverlay(overlay: OverlayMount): Promise<void>;
  mountBind(bind: BindMount): Promise<void>;
  /** Whatever mount(8) and its helpers can mount: tmpfs, nfs, a bind by options. @throws AppError 'unavailable', 'denied' */
  mountDevice(mount: DeviceMount): Promise<void>;
  /**
   * Unmounts what is mounted on these paths, the topmost mount of each; what is not mounted is success. A busy one is
   * detached when `lazy` is set: it leaves the tree now and ends with its last user. @throws AppError 'conflict' if busy
   */
  unmount(targets: readonly string[], options?: { readonly lazy?: boolean }): Promise<void>;
  /** Everything mounted in our namespace, in mount order. */
  list(): Promise<readonly MountEntry[]>;
}

/** mount(2) copies its data into one page, and the last byte is the terminator. */
export const MOUNT_DATA_MAX_BYTES = 4095;
/** OVL_MAX_STACK of the kernel. */
export const OVERLAY_LOWERS_MAX = 500;

const INERT = ['noexec', 'nosuid', 'nodev'];

const ENOENT = 2;
const EPERM = 1;
const EACCES = 13;
const ENOTBLK = 15;
const ENODEV = 19;
const EINVAL = 22;
const EUCLEAN = 117;

/** The number of mount(2), include/uapi/asm-generic/unistd.h and the architectures' own tables. */
const MOUNT_SYSCALL: Readonly<Partial<Record<NodeJS.Architecture, number>>> = {
  x64: 165,
  arm64: 40,
  riscv64: 40,
  loong64: 40,
  ia32: 21,
  arm: 21,
  ppc64: 21,
  s390x: 21,
};

// Reads pairs of image and target, each ended by NUL; prints one "errno NUL target NUL message NUL" per failure.
// Flags: MS_RDONLY | MS_NOSUID | MS_NODEV; overlayfs judges by its own mount's flags, so containers keep theirs.
const MOUNT_IMAGES = `
local $/; my @fields = split /\\0/, <STDIN>; my $number = $ARGV[0] + 0;
while (my ($source, $target) = splice @fields, 0, 2) {
  my ($type, $data) = ("erofs", "");
  next if syscall($number, $source, $target, $type, 7, $data) == 0;
  print $! + 0, "\\0", $target, "\\0", $!, "\\0";
}`;

export interface MountsOptions {
  /** Processor architecture, for the number of mount(2). */
  readonly architecture: NodeJS.Architecture;
  readonly run?: RunCommand;
}

export function createMounts({ architecture, run = runCommand }: MountsOptions): Mounts {
  const syscall = MOUNT_SYSCALL[architecture];
  let fileBacked = syscall !== undefined;

  return {
    async mountImages(images) {
      if (images.length === 0) return;
      if (fileBacked) {
        const failures = await mountFileBacked(run, images, syscall ?? 0);
        if (failures !== undefined && failures.length === 0) return;
        await undoImages(run, images, failures ?? []);
        if (failures?.some(({ errno }) => errno !== ENOTBLK) === true) throw imageFailure(images, failures);
        fileBacked = false;
      }
      await mountByLoop(run, images);
    },

    async mountOverlay(overlay) {
      const data = overlayData(overlay);
      const result = await mountCommand(run, ['-t', 'overlay', '-o', data, 'overlay', overlay.target], overlay.cwd);
      if (result.exitCode === 0) return;
      throw mountFailure(`cannot mount overlay at ${JSON.stringify(overlay.target)}`, result);
    },

    async mountBind({ source, target, readOnly, inert }) {
      const options = ['bind', ...(readOnly === true ? ['ro'] : []), ...(inert === true ? INERT : [])];
      const result = await mountCommand(run, ['--no-canonicalize', '-o', options.join(','), source, target]);
      if (result.exitCode !== 0) throw mountFailure(`cannot bind ${JSON.stringify(source)}`, result);
    },

    async mountDevice({ type, device, options: words, target }) {
      const result = await mountCommand(run, [
        '-t',
        type,
        ...(words === '' ? [] : ['-o', words]),
        '--',
        device,
        target,
      ]);
      if (result.exitCode !== 0) throw mountFailure(`cannot mount ${JSON.stringify(device)}`, result);
    },

    async unmount(targets, { lazy = false } = {}) {
      if (targets.length === 0) return;
      const result = await run('umount', ['--', ...targets]);
      if (result.exitCode === 0) return;
      const busy = refusedBy(result.stderr, targets);
      if (busy.length === 0) return;
      if (!lazy)
        throw new AppError('conflict', `cannot unmount ${JSON.stringify(busy[0])}: ${firstLine(result.stderr)}`, {
          detail: { busy },
        });
      const detached = await run('umount', ['--lazy', '--', ...busy]);
      if (detached.exitCode !== 0 && refusedBy(detached.stderr, busy).length > 0)
        throw mountFailure(`cannot detach ${JSON.stringify(busy[0])}`, detached);
    },

    list: async () => parseMountinfo(await readFile('/proc/self/mountinfo')),
  };
}

/** Writes a value for overlayfs and for mount(8), which both split at `,`; lower names are also split at `:`. */
export function escapeOverlayValue(value: string, { isLower }: { readonly isLower: boolean }): string {
  return value.replace(isLower ? /[\\,:]/g : /[\\,]/g, '\\$&');
}

/** The data of an overlay's mount(2). @throws AppError 'too-large', 'invalid' */
export function overlayData({ lowers, writable, volatile: isVolatile, target }: OverlayMount): string {
  if (lowers.length === 0 || (lowers.length === 1 && writable === undefined))
    throw new AppError(
      'invalid',
      `cannot mount overlay at ${JSON.stringify(target)}: it has too few lower directories`,
    );
  if (lowers.length > OVERLAY_LOWERS_MAX)
    throw new AppError(
      'too-large',
      `cannot mount overlay at ${JSON.stringify(target)}: ${lowers.length} layers, the kernel takes ${OVERLAY_LOWERS_MAX}`,
    );
  const parts = [`lowerdir=${lowers.map((lower) => escapeOverlayValue(lower, { isLower: true })).join(':')}`];
  if (writable !== undefined) {
    parts.push(`upperdir=${escapeOverlayValue(writable.upper, { isLower: false })}`);
    parts.push(`workdir=${escapeOverlayValue(writable.work, { isLower: false })}`);
  }
  // index: layers serve many containers at once, and an index ties them to one. redirect_dir, metacopy: an upper
  // directory must stay a plain changeset, and a layer must not point elsewhere by xattrs that it brought along.
  parts.push('index=off', 'redirect_dir=nofollow', 'metacopy=off');
  if (isVolatile === true) parts.push('volatile');
  const data = parts.join(',');
  const bytes = Buffer.byteLength(data);
  if (bytes > MOUNT_DATA_MAX_BYTES)
    throw new AppError(
      'too-large',
      `cannot mount overlay at ${JSON.stringify(target)}: its options need ${bytes} bytes, the kernel takes ${MOUNT_DATA_MAX_BYTES}`,
    );
  return data;
}

/** Parses mountinfo; names are unescaped. Lines of an unknown form are left out. */
export function parseMountinfo(bytes: Buffer): readonly MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of bytes.toString('latin1').split('\n')) {
    const separator = line.indexOf(' - ');
    if (separator === -1) continue;
    const [mountId, , , root, target, options] = line.slice(0, separator).split(' ');
    const [type, source, superOptions = ''] = line.slice(separator + 3).split(' ');
    if (root === undefined || target === undefined || options === undefined || type === undefined) continue;
    entries.push({
      mountId: Number(mountId),
      target: unescapeName(target),
      root: unescapeName(root),
      type,
      source: unescapeName(source ?? ''),
      options: options.split(','),
      superOptions: superOptions.split(',').map(unescapeName),
    });
  }
  return entries;
}

function unescapeName(escaped: string): string {
  // The kernel escapes bytes; only after that do they make up characters.
  const bytes = escaped.replace(/\\([0-7]{3})/g, (_match, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
  return Buffer.from(bytes, 'latin1').toString('utf8');
}

interface ImageFailure {
  readonly errno: number;
  readonly target: string;
  readonly message: string;
}

/** undefined = this host cannot do it (no perl). */
async function mountFileBacked(
  run: RunCommand,
  images: readonly ImageMount[],
  syscall: number,
): Promise<readonly ImageFailure[] | undefined> {
  const stdin = images.map(({ image, target }) => `${image}\0${target}\0`).join('');
  let result: CommandResult;
  try {
    result = await run('perl', ['-e', MOUNT_IMAGES, String(syscall)], { stdin });
  } catch (error) {
    if (isKind(error, 'unsupported')) return undefined;
    throw error;
  }
  if (result.exitCode !== 0) throw mountFailure('cannot mount layer images', result);
  const fields = result.stdout.split('\0');
  const failures: ImageFailure[] = [];
  for (let index = 0; index + 2 < fields.length; index += 3)
    failures.push({ errno: Number(fields[index]), target: fields[index + 1] ?? '', message: fields[index + 2] ?? '' });
  return failures;
}

async function undoImages(
  run: RunCommand,
  images: readonly ImageMount[],
  failures: readonly ImageFailure[],
): Promise<void> {
  const failed = new Set(failures.map(({ target }) => target));
  const mounted = images.map(({ target }) => target).filter((target) => !failed.has(target));
  if (failures.length > 0 && mounted.length > 0) await run('umount', ['--', ...mounted]);
}

function imageFailure(images: readonly ImageMount[], failures: readonly ImageFailure[]): AppError {
  const first = failures.find(({ errno }) => errno !== ENOTBLK);
  const image = JSON.stringify(images.find(({ target }) => target === first?.target)?.image);
  switch (first?.errno) {
    case ENOENT:
      return new AppError('not-found', `cannot mount layer image ${image}: it or its mount point does not exist`);
    case EPERM:
    case EACCES:
      return new AppError('denied', `cannot mount layer image ${image}: permission denied, mounting needs root`);
    case EINVAL:
    case EUCLEAN:
      return new AppError('integrity', `cannot mount layer image ${image}: the kernel does not accept its content`);
    case ENODEV:
      return new AppError(
        'unsupported',
        `cannot mount layer image ${image}: this kernel has no EROFS, try modprobe erofs`,
      );
    default:
      return new AppError('unavailable', `cannot mount layer image ${image}: ${first?.message ?? 'mount(2) failed'}`);
  }
}

/** One mount(8) each: only old kernels come here. */
async function mountByLoop(run: RunCommand, images: readonly ImageMount[]): Promise<void> {
  const mounted: string[] = [];
  for (const { image, target } of images) {
    const result = await mountCommand(run, ['-t', 'erofs', '-o', 'loop,ro,nosuid,nodev', image, target]);
    if (result.exitCode === 0) {
      mounted.push(target);
      continue;
    }
    if (mounted.length > 0) await run('umount', ['--', ...mounted]);
    throw mountFailure(`cannot mount layer image ${JSON.stringify(image)}`, result);
  }
}

function mountCommand(run: RunCommand, args: readonly string[], cwd?: string): Promise<CommandResult> {
  // util-linux 2.39 and later pass options one by one, each cut at 256 bytes: too little for four lower directories.
  return run('mount', args, { cwd, env: { LIBMOUNT_FORCE_MOUNT2: 'always' } });
}

/** Which targets umount(8) could not unmount; "not mounted" is what we wanted. */
function refusedBy(stderr: string, targets: readonly string[]): readonly string[] {
  const complaints = stderr.split('\n').filter((line) => !/: (not mounted|no mount point specified)/.test(line));
  return targets.filter((target) => complaints.some((line) => line.startsWith(`umount: ${target}: `)));
}

function mountFailure(action: string, { stderr, exitCode }: CommandResult): AppError {
  const words = firstLine(stderr) || `exit code ${exitCode}`;
  const kind = /permission denied|not permitted|must be superuser/i.test(words) ? 'denied' : 'unavailable';
  return new AppError(kind, `${action}: ${words}`);
}

function firstLine(text: string): string {
  return (text.trim().split('\n')[0] ?? '').replace(/^u?mount: /, '').replace(/\.$/, '');
}
