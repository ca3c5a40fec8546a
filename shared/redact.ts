/** What must not be read in a log or an error message: credentials, and the parts of URLs that carry them. */

const SECRET_KEY = /^(?:.*(?:authorization|password|passwd|secret|cookie|api[-_]?key)|.*tokens?|auth|credentials?)$/i;
const URL_TEXT = /\b([a-z][a-z0-9+.-]*:\/\/)(?:[^\s/?#"'<>@]*@)?([^\s?#"'<>]*)(\?[^\s#"'<>]*)?(#[^\s"'<>]*)?/gi;
const PROOF = /\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{6,}/gi;
const DEPTH_MAX = 6;

export const REDACTED = '[redacted]';

/** Removes user info, query and fragment of every URL in the text, and what follows `Bearer` and `Basic`. */
export function redactText(text: string): string {
  if (!text.includes('://') && !/bearer|basic/i.test(text)) return text;
  return text
    .replace(URL_TEXT, (_whole, scheme: string, rest: string, query: string | undefined) =>
      query === undefined ? `${scheme}${rest}` : `${scheme}${rest}?${REDACTED}`,
    )
    .replace(PROOF, `$1 ${REDACTED}`);
}

/** A copy of any value in which texts are redacted and fields with a secret's name are replaced. Errors become objects. */
export function redactValue(value: unknown, depth = 0): unknown {
  if (typeof value === 'string') return redactText(value);
  if (typeof value === 'bigint') return String(value);
  if (typeof value !== 'object' || value === null) return value;
  if (depth >= DEPTH_MAX) return '[deep]';
  if (value instanceof Error) return redactError(value, depth);
  if (value instanceof Date || ArrayBuffer.isView(value)) return value instanceof Date ? value : '[bytes]';
  if (value instanceof URL) return redactText(value.href);
  if (Array.isArray(value)) return value.map((item) => redactValue(item, depth + 1));
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => [key, SECRET_KEY.test(key) ? REDACTED : redactValue(item, depth + 1)]),
  );
}

function redactError(error: Error, depth: number): Record<string, unknown> {
  const own: Record<string, unknown> = { type: error.name, message: redactText(error.message) };
  for (const key of ['kind', 'code', 'detail'])
    if (key in error && error[key as keyof Error] !== undefined)
      own[key] = redactValue(error[key as keyof Error], depth + 1);
  if (error.stack !== undefined) own.stack = redactText(error.stack);
  if (error.cause !== undefined) own.cause = redactValue(error.cause, depth + 1);
  if (error instanceof AggregateError) own.errors = redactValue(error.errors, depth + 1);
  return own;
}
