/**
 * What a process may do to its host. Being uid 0 says nothing: the root of a container usually cannot mount anything,
 * and the root of a user namespace cannot mount layer images. https://man7.org/linux/man-pages/man7/capabilities.7.html
 */
import { readFileSync } from 'node:fs';

/**
 * `full`: root of the host, or of a privileged container. `user`: any other user. `confined`: uid 0 without
 * CAP_SYS_ADMIN, as in a container. `namespace`: root of a user namespace only, as in a rootless container.
 */
export type Privilege = 'full' | 'user' | 'confined' | 'namespace';

export interface PrivilegeFacts {
  readonly uid: number;
  /** /proc/self/status */
  readonly status: string;
  /** /proc/self/uid_map; empty where the kernel has no user namespaces. */
  readonly uidMap: string;
}

/** CAP_SYS_ADMIN */
const SYS_ADMIN = 1n << 21n;
/** uid_map of the host's own user namespace: all ids, as they are. */
const WHOLE_HOST = /^\s*0\s+0\s+4294967295\s*$/;

/** Pure. */
export function judgePrivilege({ uid, status, uidMap }: PrivilegeFacts): Privilege {
  if (uid !== 0) return 'user';
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0';
  if ((BigInt(`0x${effective}`) & SYS_ADMIN) === 0n) return 'confined';
  return uidMap === '' || WHOLE_HOST.test(uidMap) ? 'full' : 'namespace';
}

/** Of this process. */
export function ownPrivilege(): Privilege {
  return judgePrivilege({
    uid: process.geteuid?.() ?? 0,
    status: textOf('/proc/self/status'),
    uidMap: textOf('/proc/self/uid_map'),
  });
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
