/** Signals by name or number, as kill(1) and Docker's --stop-signal take them. Pure. */
import { constants } from 'node:os';
import { AppError } from './errors.ts';

const RTMIN = 34;
const RTMAX = 64;

/** `TERM`, `SIGTERM`, `15`, `RTMIN+3`. @throws AppError 'invalid' with Docker's words */
export function parseSignal(text: string): number {
  const bare = text.toUpperCase().replace(/^SIG/, '');
  const known: Readonly<Record<string, number>> = constants.signals;
  const byName = known[`SIG${bare}`];
  if (byName !== undefined) return byName;
  const realTime = /^RT(MIN|MAX)(?:([+-])(\d{1,2}))?$/.exec(bare);
  const offset = Number(`${realTime?.[2] ?? ''}${realTime?.[3] ?? '0'}`);
  const number =
    realTime === null
      ? Number(/^\d{1,2}$/.test(text) ? text : Number.NaN)
      : (realTime[1] === 'MIN' ? RTMIN : RTMAX) + offset;
  if (Number.isInteger(number) && number >= 1 && number <= RTMAX) return number;
  throw new AppError('invalid', `invalid signal: ${text}`);
}
