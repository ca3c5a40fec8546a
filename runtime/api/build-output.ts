/** What a command prints while it builds, on its way to a client that may read slowly or not at all. */
import type { Writable } from 'node:stream';
import { formatBytes } from '../../shared/units.ts';

/** Unsent bytes from which a command's output is cut: it has no other place to wait than our memory. */
const BACKLOG_BYTES = 16 << 20;

/** Answers what to send of some output: all of it, or nothing while the client is too far behind; then it says so. */
export function createOutputValve(res: Writable): (bytes: Buffer) => Buffer {
  let cutBytes = 0;
  return (bytes) => {
    if (res.writableLength > BACKLOG_BYTES) {
      cutBytes += bytes.length;
      return Buffer.alloc(0);
    }
    if (cutBytes === 0) return bytes;
    const note = Buffer.from(`\n[${formatBytes(cutBytes)} of output left out: the client was too slow]\n`);
    cutBytes = 0;
    return Buffer.concat([note, bytes]);
  };
}
