/** Questions to who sits at the terminal. Few commands ask: what reads the answer is loaded by those that do. */
import { AppError } from '../../shared/errors.ts';

export interface AskOptions {
  /** Not echoed. */
  readonly hidden?: boolean;
  /** What to use where nobody can answer. */
  readonly otherwise: string;
}

/** @throws AppError 'invalid' where there is no terminal */
export async function ask(question: string, { hidden = false, otherwise }: AskOptions): Promise<string> {
  if (!process.stdin.isTTY) throw new AppError('invalid', `cannot ask: stdin is not a terminal; use ${otherwise}`);
  const { createInterface } = await import('node:readline/promises');
  const terminal = hidden || process.stderr.isTTY;
  const reader = createInterface({ input: process.stdin, output: hidden ? undefined : process.stderr, terminal });
  try {
    if (hidden) process.stderr.write(question);
    return await reader.question(hidden ? '' : question);
  } finally {
    if (hidden) process.stderr.write('\n');
    reader.close();
  }
}

/** Only yes is a yes. @throws AppError 'invalid' where there is no terminal */
export async function confirm(question: string, force: boolean | undefined): Promise<boolean> {
  return force === true || /^y(es)?$/i.test((await ask(`${question} [y/N] `, { otherwise: '--force' })).trim());
}
