/** Reading the engine's JSON: each helper takes what may be anything and gives what a command can print. Pure. */

export type Json = { readonly [key: string]: unknown };

export function object(value: unknown): Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : {};
}

export function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

export function text(value: unknown): string {
  return typeof value === 'string'
    ? value
    : typeof value === 'number' || typeof value === 'boolean'
      ? String(value)
      : '';
}

export function number(value: unknown): number {
  return typeof value === 'number' ? value : 0;
}

export function strings(value: unknown): readonly string[] {
  return list(value).map(text);
}
