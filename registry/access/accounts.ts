/** Who has an account here: users of the password file, and robots of the policy. Both files may change at any time. */
import { createHash } from 'node:crypto';
import type { PasswordCheck } from './passwords.ts';
import { type Policy, ROBOT_PREFIX } from './policy.ts';

export interface Accounts {
  /** @throws AppError 'unavailable' when too many logins are waiting */
  verify(login: Login): Promise<boolean>;
  /**
   * Changes with the account's password, and is undefined while there is no such account or its time is over. What was
   * given to the holder of one fingerprint is void under another.
   */
  fingerprint(name: string): string | undefined;
}

export interface Login {
  readonly name: string;
  readonly password: string;
  readonly network: string;
}

export interface AccountsPorts {
  readonly users: () => ReadonlyMap<string, string>;
  readonly policy: () => Policy;
  readonly checkPassword: PasswordCheck;
  readonly now: () => Date;
}

export function createAccounts({ users, policy, checkPassword, now }: AccountsPorts): Accounts {
  function storedHash(name: string): string | undefined {
    if (!name.startsWith(ROBOT_PREFIX)) return users().get(name);
    const robot = policy().robot(name.slice(ROBOT_PREFIX.length));
    const isOver = robot?.expiresAt !== undefined && robot.expiresAt.getTime() <= now().getTime();
    return isOver ? undefined : robot?.secretHash;
  }

  return {
    verify: ({ name, password, network }) => checkPassword({ name, password, network, storedHash: storedHash(name) }),
    fingerprint(name) {
      const stored = storedHash(name);
      return stored === undefined ? undefined : createHash('sha256').update(stored).digest('base64url');
    },
  };
}
