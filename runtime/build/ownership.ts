/** `--chown` and `--chmod` of COPY and ADD. */
import { AppError } from '../../shared/errors.ts';
import { type ResolvedUser, resolveUser, USER_FILE_MAX_BYTES } from '../containers/users.ts';
import { type FileTree, readText } from './file-tree.ts';

export type Owner = Pick<ResolvedUser, 'uid' | 'gid'>;

/**
 * `user[:group]`, by the passwd and group files of the tree that is copied to; a user's number alone is the group's too.
 * These files are the image's: a pipe or a link out of it is no file (CVE-2024-9676), large ones are not read
 * (CVE-2026-47262). @throws AppError 'invalid' in Docker's words
 */
export async function resolveOwner(chown: string, tree: FileTree | undefined): Promise<Owner> {
  const [user = '', group] = chown.split(':', 2);
  const spec = group === undefined && /^\d+$/.test(user) ? `${user}:${user}` : chown;
  const isNumeric = /^\d+:\d+$/.test(spec);
  const read = async (path: string) =>
    isNumeric || tree === undefined ? undefined : await readText(tree, path, USER_FILE_MAX_BYTES);
  const { uid, gid } = resolveUser(spec, [], { passwd: await read('/etc/passwd'), group: await read('/etc/group') });
  return { uid, gid };
}

/** Answers the permission bits that something of these bits gets. */
export type ModeChange = (mode: number, about: { readonly isDirectory: boolean }) => number;

const CLAUSE = /^([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)$/;
const ACTION = /([-+=])([rwxXst]*|[ugo])/g;
const WHO = { u: 0o4700, g: 0o2070, o: 0o1007, a: 0o7777 } as const;
const BITS = { r: 0o444, w: 0o222, x: 0o111, s: 0o6000, t: 0o1000 } as const;

/** Octal, or symbolic as chmod(1) reads it with a umask of 0: `u=rwX,go=rX`. @throws AppError 'invalid' in Docker's words */
export function parseModeChange(chmod: string): ModeChange {
  if (/^[0-7]{1,5}$/.test(chmod) && Number.parseInt(chmod, 8) <= 0o7777) {
    const mode = Number.parseInt(chmod, 8);
    return () => mode;
  }
  const clauses = chmod.split(',').map((clause) => CLAUSE.exec(clause) ?? invalid(chmod));
  return (mode, { isDirectory }) => {
    let now = mode;
    for (const [, who = '', actions = ''] of clauses) {
      const mask = maskOf(who);
      for (const [, operator, letters = ''] of actions.matchAll(ACTION)) {
        const bits = bitsOf(letters, now, isDirectory) & mask;
        if (operator === '+') now |= bits;
        else if (operator === '-') now &= ~bits;
        // chmod(1) leaves setuid and setgid of directories alone unless they are named.
        else now = (now & ~(mask & (isDirectory ? 0o1777 : 0o7777))) | bits;
      }
    }
    return now & 0o7777;
  };
}

function maskOf(who: string): number {
  if (who === '') return WHO.a;
  let mask = 0;
  for (const letter of who) mask |= isKey(WHO, letter) ? WHO[letter] : 0;
  return mask;
}

function bitsOf(letters: string, mode: number, isDirectory: boolean): number {
  if (letters === 'u' || letters === 'g' || letters === 'o') {
    const own = (mode >> { u: 6, g: 3, o: 0 }[letters]) & 7;
    return own * 0o111;
  }
  let bits = 0;
  for (const letter of letters) {
    if (letter === 'X') bits |= isDirectory || (mode & 0o111) !== 0 ? BITS.x : 0;
    else if (isKey(BITS, letter)) bits |= BITS[letter];
  }
  return bits;
}

function isKey<T extends object>(table: T, key: string): key is Extract<keyof T, string> {
  return Object.hasOwn(table, key);
}

function invalid(chmod: string): never {
  throw new AppError(
    'invalid',
    `invalid chmod parameter: '${chmod}'. it should be octal string and between 0 and 07777`,
  );
}
