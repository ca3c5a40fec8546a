/**
 * The keys that leave a container running and its terminal behind: `ctrl-p,ctrl-q`. A sequence that breaks off half-way
 * is input like any other. Pure.
 * https://docs.docker.com/reference/cli/docker/container/attach/#detach-keys
 */
import { AppError } from '../../shared/errors.ts';

export const DEFAULT_DETACH_KEYS = 'ctrl-p,ctrl-q';

/** @throws AppError 'invalid' */
export function parseDetachKeys(text: string): Buffer {
  const keys = text.split(',').map((key) => {
    const control = /^ctrl-([a-zA-Z@[\\\]^_])$/.exec(key)?.[1];
    if (control !== undefined) return control.toUpperCase().charCodeAt(0) & 0x1f;
    if (/^[\x20-\x7e]$/.test(key)) return key.charCodeAt(0);
    throw new AppError(
      'invalid',
      `cannot parse detach keys ${JSON.stringify(text)}: want characters and ctrl-<character>, separated by commas`,
    );
  });
  return Buffer.from(keys);
}

export interface DetachScanner {
  /** What of `bytes` (and of earlier, held back ones) goes to the container, and whether the sequence is complete. */
  scan(bytes: Buffer): { readonly input: Buffer; readonly detached: boolean };
}

export function createDetachScanner(keys: Buffer): DetachScanner {
  let matched = 0;
  return {
    scan(bytes) {
      const input: number[] = [];
      for (const byte of bytes) {
        if (byte === keys[matched]) {
          matched += 1;
          if (matched === keys.length) return { input: Buffer.from(input), detached: true };
          continue;
        }
        for (const held of keys.subarray(0, matched)) input.push(held);
        matched = byte === keys[0] ? 1 : 0;
        if (matched === 0) input.push(byte);
      }
      return { input: Buffer.from(input), detached: false };
    },
  };
}
