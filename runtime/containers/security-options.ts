/** `--security-opt`, parsed. Pure. */
import { AppError } from '../../shared/errors.ts';

export interface SecurityOptions {
  readonly noNewPrivileges: boolean;
  /** `unconfined`, `builtin` or a profile's JSON; undefined = the default. */
  readonly seccomp: string | undefined;
  /** Name of a loaded profile, or `unconfined`. */
  readonly apparmor: string | undefined;
  readonly writableCgroups: boolean;
}

/** @throws AppError 'invalid' in Docker's words, 'unsupported' */
export function securityOptionsOf(options: readonly string[]): SecurityOptions {
  let noNewPrivileges = false;
  let seccomp: string | undefined;
  let apparmor: string | undefined;
  let writableCgroups = false;
  for (const option of options) {
    const [, name = option, value = ''] = /^([a-z-]+)[=:](.*)$/s.exec(option) ?? [];
    if (name === 'no-new-privileges') noNewPrivileges = booleanOf(option, value);
    else if (name === 'writable-cgroups') writableCgroups = booleanOf(option, value);
    else if (name === 'seccomp' && value !== '') seccomp = value;
    else if (name === 'apparmor' && value !== '') apparmor = value;
    else if (name === 'label') refuseLabel(value);
    else throw new AppError('invalid', `invalid --security-opt 2: ${JSON.stringify(option.slice(0, 100))}`);
  }
  return { noNewPrivileges, seccomp, apparmor, writableCgroups };
}

function booleanOf(option: string, value: string): boolean {
  if (value === '' || value === 'true') return true;
  if (value === 'false') return false;
  throw new AppError('invalid', `invalid --security-opt 2: ${JSON.stringify(option)}`);
}

/** Containers are not labelled, so `disable` asks for what is. */
function refuseLabel(value: string): void {
  if (value !== 'disable')
    throw new AppError('unsupported', `cannot use security label ${JSON.stringify(value)}: SELinux is not supported`);
}
