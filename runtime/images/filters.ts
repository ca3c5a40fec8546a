/**
 * Filters of image lists, with Docker's meaning. Pure: no I/O.
 */
import { familiarName, parseReference } from '../../shared/reference.ts';

/** Whether all of `wanted` (`key` or `key=value`) hold. */
export function hasLabels(labels: Readonly<Record<string, string>>, wanted: readonly string[]): boolean {
  return wanted.every((text) => {
    const equals = text.indexOf('=');
    if (equals === -1) return Object.hasOwn(labels, text);
    const key = text.slice(0, equals);
    return Object.hasOwn(labels, key) && labels[key] === text.slice(equals + 1);
  });
}

/**
 * Whether a familiar reference (`name:tag` or `name@digest`) matches a pattern, with or without its tag. As in Go's
 * path.Match, `*` and `?` stop at a slash.
 */
export function matchesReference(familiar: string, pattern: string): boolean {
  const expression = globExpression(pattern);
  return expression.test(familiar) || expression.test(familiarName(parseReference(familiar)));
}

function globExpression(pattern: string): RegExp {
  const source = pattern.replace(/\[[^\]/]*\]|[*?]|[\\^$.|+(){}[\]]/g, (token) => {
    if (token === '*') return '[^/]*';
    if (token === '?') return '[^/]';
    if (token.length > 1)
      return `[${token
        .slice(1, -1)
        .replaceAll('\\', '\\\\')
        .replace(/^\^?/, (not) => not)}]`;
    return `\\${token}`;
  });
  try {
    return new RegExp(`^${source}$`);
  } catch {
    // A malformed class, such as [z-a], matches nothing, as in Go.
    return /(?!)/;
  }
}
