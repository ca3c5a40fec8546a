/**
 * Names by a client's regular expression. Docker's are of a kind that takes linear time; JavaScript's can take for ever,
 * so one that could runs under a deadline, which interrupts it.
 */
import { createContext, Script } from 'node:vm';
import { AppError } from '../../shared/errors.ts';

/** For all names together; the engine does nothing else meanwhile. */
const DEADLINE_MS = 100;
/** Nothing in it repeats or branches. */
const PLAIN = /^\^?[\w./-]*\$?$/;
const TEST = new Script('const expression = new RegExp(pattern); names.map((name) => expression.test(name))');

/** Those of the names in which the pattern is found, with or without Docker's slash before them. @throws AppError 'invalid' */
export function namesMatching(pattern: string, names: readonly string[]): ReadonlySet<string> {
  const test = PLAIN.test(pattern) ? testPlainly : testUnderDeadline;
  const found = test(
    pattern,
    names.flatMap((name) => [`/${name}`, name]),
  );
  return new Set(names.filter((_name, index) => found[2 * index] === true || found[2 * index + 1] === true));
}

function testPlainly(pattern: string, names: readonly string[]): readonly boolean[] {
  const expression = new RegExp(pattern);
  return names.map((name) => expression.test(name));
}

function testUnderDeadline(pattern: string, names: readonly string[]): readonly boolean[] {
  try {
    return TEST.runInContext(createContext({ pattern, names }), { timeout: DEADLINE_MS }) as readonly boolean[];
  } catch (cause) {
    // Its class is the context's own, so hasCode does not know it.
    const { code } = Object(cause) as { readonly code?: unknown };
    const reason = code === 'ERR_SCRIPT_EXECUTION_TIMEOUT' ? ': it takes too long' : '';
    throw new AppError('invalid', `invalid filter 'name=${pattern}'${reason}`, { cause });
  }
}
