/** Questions to who sits at the terminal. Few commands ask: what reads the answer is loaded by those that do. */
import { AppError } from '../../shared/errors.ts';

/** Refuses to guess where nobody can answer. @throws AppError 'invalid' */
export async function confirm(question: string, force: boolean | undefined): Promise<boolean> {
  if (force === true) return true;
  if (!process.stdin.isTTY)
    throw new AppError('invalid', 'cannot ask for confirmation: stdin is not a terminal; use --force');
  const { createInterface } = await import('node:readline/promises');
  const reader = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await reader.question(`${question} [y/N] `)).trim());
  } finally {
    reader.close();
  }
}

/** A hidden answer is not echoed. @throws AppError 'invalid' */
export async function ask(question: string, { hidden }: { readonly hidden: boolean }): Promise<string> {
  if (!process.stdin.isTTY)
    throw new AppError('invalid', 'cannot ask for a password: stdin is not a terminal; use --password-stdin');
  const { createInterface } = await import('node:readline/promises');
  const reader = createInterface({ input: process.stdin, output: hidden ? undefined : process.stderr, terminal: true });
  try {
    if (hidden) process.stderr.write(question);
    return await reader.question(hidden ? '' : question);
  } finally {
    if (hidden) process.stderr.write('\n');
    reader.close();
  }
}
