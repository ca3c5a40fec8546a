/** The keys that leave a container running: `ctrl-p,ctrl-q` unless the user chose others. Pure. */
import { AppError } from '../../shared/errors.ts';

export const DEFAULT_DETACH_KEYS = 'ctrl-p,ctrl-q';

/** The bytes of a sequence such as `ctrl-p,ctrl-q` or `a,ctrl-@`. @throws AppError 'invalid' */
export function parseDetachKeys(keys: string): readonly number[] {
  if (keys === '') return [];
  return keys.split(',').map((key) => {
    const control = /^ctrl-([a-z@[\\\]^_])$/i.exec(key)?.[1];
    if (control !== undefined) return control.toUpperCase().charCodeAt(0) & 0x1f;
    if (/^[\x21-\x7e]$/.test(key)) return key.charCodeAt(0);
    throw new AppError('invalid', `cannot use detach keys ${JSON.stringify(keys)}: unknown key ${JSON.stringify(key)}`);
  });
}

/** Answers true once the whole sequence has gone by, over any division into chunks. */
export function watchDetachKeys(sequence: readonly number[]): (typed: Uint8Array) => boolean {
  let matched = 0;
  return (typed) => {
    for (const byte of typed) {
      if (byte === sequence[matched]) matched += 1;
      else matched = byte === sequence[0] ? 1 : 0;
      if (sequence.length > 0 && matched === sequence.length) return true;
    }
    return false;
  };
}
