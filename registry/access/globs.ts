/**
 * Globs over repository names and tags: `*` is any run of characters within one path component, `**` any run at all.
 * `team/**` is everything below team, not team itself. Pure.
 */
import { AppError } from '../../shared/errors.ts';

/** Names come from strangers: each further wildcard would multiply what one match may cost. */
const WILDCARDS_MAX = 3;

export type Matcher = (text: string) => boolean;

/** @throws AppError 'invalid' */
export function compileGlob(glob: string): Matcher {
  if (!/^[a-zA-Z0-9._/*-]{1,255}$/.test(glob))
    throw new AppError('invalid', `cannot use pattern ${JSON.stringify(glob)}: want a name with * or ** in it`);
  const parts = glob.split(/(\*+)/);
  if (parts.length > WILDCARDS_MAX * 2 + 1)
    throw new AppError(
      'invalid',
      `cannot use pattern ${JSON.stringify(glob)}: it has more than ${WILDCARDS_MAX} stars`,
    );
  const pattern = parts.map((part) => {
    if (!part.startsWith('*')) return part.replaceAll('.', '\\.');
    return part === '*' ? '[^/]*' : '.*';
  });
  const regexp = new RegExp(`^${pattern.join('')}$`);
  return (text) => regexp.test(text);
}

/** Matches what any of them matches. */
export function compileGlobs(globs: readonly string[]): Matcher {
  const matchers = globs.map(compileGlob);
  return (text) => matchers.some((matches) => matches(text));
}
