/**
 * SOURCE_DATE_EPOCH: the moment that times of an image are held to, so that equal input gives equal bytes. What a build
 * itself writes is of that moment exactly, since keys of steps know no times of files; what a command writes, and what
 * comes with a base, is of that moment at the latest. Pure.
 * https://reproducible-builds.org/specs/source-date-epoch/
 */
import { AppError } from '../../shared/errors.ts';
import type { BuildRequest } from './builds.ts';

const ARGUMENT = 'SOURCE_DATE_EPOCH';

/** The moment and the argument say the same: each of them gives the other. @throws AppError 'invalid' */
export function withSourceDate(request: BuildRequest): BuildRequest {
  const { sourceDateEpoch, buildArgs = {} } = request;
  const text = buildArgs[ARGUMENT] ?? '';
  if (sourceDateEpoch !== undefined)
    return text !== '' ? request : { ...request, buildArgs: { ...buildArgs, [ARGUMENT]: String(sourceDateEpoch) } };
  if (text === '') return request;
  if (!/^\d{1,11}$/.test(text))
    throw new AppError(
      'invalid',
      `invalid SOURCE_DATE_EPOCH: ${JSON.stringify(text.slice(0, 40))}: want seconds since 1970`,
    );
  return { ...request, sourceDateEpoch: Number(text) };
}

/** Of what is made by the build itself. */
export function madeAt(now: Date, epochSeconds: number | undefined): Date {
  return epochSeconds === undefined ? now : new Date(epochSeconds * 1000);
}

/** Of what others have made. */
export function clamped(at: Date, epochSeconds: number | undefined): Date {
  return epochSeconds === undefined ? at : new Date(Math.min(at.getTime(), epochSeconds * 1000));
}
