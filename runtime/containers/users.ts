/**
 * Who a container runs as: the USER of an image or request, resolved by the image's own passwd and group files to
 * numbers. These files are the image's, so hostile: bounded, and never a reason to wait. Pure.
 */
import { AppError } from '../../shared/errors.ts';

export interface ResolvedUser {
  readonly uid: number;
  readonly gid: number;
  readonly additionalGids: readonly number[];
  readonly home: string;
}

export interface UserFiles {
  /** Text of /etc/passwd and /etc/group; undefined = there is none. */
  readonly passwd: string | undefined;
  readonly group: string | undefined;
}

/** Larger files are not read (CVE-2026-47262); those of big sites have some hundred KiB. */
export const USER_FILE_MAX_BYTES = 8 * 1024 * 1024;
const ID_MAX = 2 ** 31 - 1;

interface PasswdEntry {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly home: string;
}
interface GroupEntry {
  readonly name: string;
  readonly gid: number;
  readonly members: string;
}

/**
 * `user`, `uid`, `user:group` and so on; empty = root. A number is always an id, whatever names there are
 * (CVE-2026-46680). Without a group the user gets all groups that list them; `groupAdd` come on top.
 * @throws AppError 'invalid' in Docker's words
 */
export function resolveUser(spec: string, groupAdd: readonly string[], files: UserFiles): ResolvedUser {
  const colon = spec.indexOf(':');
  const userPart = colon === -1 ? spec : spec.slice(0, colon);
  const groupPart = colon === -1 ? '' : spec.slice(colon + 1);
  const user = findUser(userPart || '0', files.passwd ?? '');
  const groups = files.group ?? '';
  const gid = groupPart === '' ? user.gid : groupId(groupPart, groups);
  const own = groupPart === '' && user.name !== '' ? groupsOf(user.name, groups) : [];
  const added = groupAdd.map((name) => groupId(name, groups));
  return { uid: user.uid, gid, additionalGids: [...new Set([...own, ...added])], home: user.home || '/' };
}

function findUser(wanted: string, passwd: string): PasswdEntry {
  const uid = parseId(wanted);
  for (const entry of passwdEntries(passwd))
    if (uid === undefined ? entry.name === wanted : entry.uid === uid) return entry;
  if (uid === undefined)
    throw new AppError('invalid', `unable to find user ${wanted}: no matching entries in passwd file`);
  return { name: '', uid, gid: 0, home: '/' };
}

function groupId(wanted: string, group: string): number {
  const gid = parseId(wanted);
  if (gid !== undefined) return gid;
  for (const entry of groupEntries(group)) if (entry.name === wanted) return entry.gid;
  throw new AppError('invalid', `unable to find group ${wanted}: no matching entries in group file`);
}

function groupsOf(user: string, group: string): readonly number[] {
  const found: number[] = [];
  for (const { gid, members } of groupEntries(group)) if (members.split(',').includes(user)) found.push(gid);
  return found;
}

/** undefined = a name. */
function parseId(text: string): number | undefined {
  if (!/^[+-]?\d+$/.test(text)) return undefined;
  const id = Number(text);
  if (id < 0 || id > ID_MAX) throw new AppError('invalid', `uids and gids must be in range 0-${ID_MAX}`);
  return id;
}

function* passwdEntries(text: string): Generator<PasswdEntry> {
  for (const line of lines(text)) {
    const [name = '', , uid, gid, , home = ''] = line.split(':', 7);
    if (isNumber(uid) && isNumber(gid)) yield { name, uid: Number(uid), gid: Number(gid), home };
  }
}

function* groupEntries(text: string): Generator<GroupEntry> {
  for (const line of lines(text)) {
    const [name = '', , gid, members = ''] = line.split(':', 4);
    if (isNumber(gid)) yield { name, gid: Number(gid), members };
  }
}

/** One at a time: a file of newlines must not become a list of a million strings. */
function* lines(text: string): Generator<string> {
  for (let start = 0; start < text.length; ) {
    const end = text.indexOf('\n', start);
    const line = text.slice(start, end === -1 ? text.length : end).trim();
    if (line !== '' && !line.startsWith('#')) yield line;
    if (end === -1) return;
    start = end + 1;
  }
}

function isNumber(text: string | undefined): text is string {
  return text !== undefined && /^\d{1,10}$/.test(text) && Number(text) <= ID_MAX;
}
