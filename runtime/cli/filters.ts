/** `--filter KEY=VALUE`, as the API wants them. Pure. */
import { AppError } from '../../shared/errors.ts';

/** JSON of `{key: [values]}`; undefined when there are none. @throws AppError 'invalid' */
export function filterQuery(filters: readonly string[] | undefined): string | undefined {
  if (filters === undefined || filters.length === 0) return undefined;
  const byKey: Record<string, string[]> = {};
  for (const filter of filters) {
    const at = filter.indexOf('=');
    if (at < 1) throw new AppError('invalid', `cannot use --filter ${JSON.stringify(filter)}: want KEY=VALUE`);
    const key = filter.slice(0, at);
    const values = byKey[key] ?? [];
    values.push(filter.slice(at + 1));
    byKey[key] = values;
  }
  return JSON.stringify(byKey);
}
