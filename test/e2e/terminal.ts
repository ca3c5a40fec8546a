/**
 * A terminal with a program in it, for what only happens on terminals: prompts, detach keys, sizes. The terminal is
 * script(1)'s; what the program prints is collected, and what is typed reaches it as from a keyboard.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';

const DEADLINE_MS = 20_000;
/** A client that waits for an engine which is no more may not hear that its terminal has gone. */
const HANG_UP_MS = 2_000;
/** Docker's default detach keys. */
export const CTRL_P_CTRL_Q = '\x10\x11';

export interface Terminal extends AsyncDisposable {
  /** Everything that was printed so far. */
  output(): string;
  /** Waits until that which was printed after the last match matches. */
  until(pattern: RegExp): Promise<void>;
  type(text: string): void;
  /** The program's exit code. */
  ended(): Promise<number>;
}

/** Runs a shell command line in a terminal of 40 rows and 100 columns. Disposing hangs up. */
export function openTerminal(command: string, env: NodeJS.ProcessEnv): Terminal {
  const child = spawn('script', ['-qfec', `stty rows 40 cols 100; ${command}`, '/dev/null'], {
    env,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit');
  let printed = '';
  let seen = 0;
  let changed = Promise.withResolvers<void>();
  child.stdin.on('error', () => undefined);
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    printed += text;
    changed.resolve();
    changed = Promise.withResolvers();
  });
  const within = async <T>(promise: Promise<T>, what: string, ms = DEADLINE_MS): Promise<T> => {
    const late = Promise.withResolvers<never>();
    const fail = () =>
      late.reject(new Error(`${command}: ${what} did not come in time; printed: ${JSON.stringify(printed)}`));
    const timer = setTimeout(fail, ms);
    return await Promise.race([promise, late.promise]).finally(() => clearTimeout(timer));
  };
  const ended = async () => {
    await within(exited, 'the end');
    return child.exitCode ?? -1;
  };
  return {
    output: () => printed,
    async until(pattern) {
      // In all: what is printed without end must not put it off.
      const deadline = performance.now() + DEADLINE_MS;
      for (;;) {
        const found = pattern.exec(printed.slice(seen));
        if (found !== null) {
          seen += found.index + found[0].length;
          return;
        }
        await within(Promise.race([changed.promise, exited]), String(pattern), deadline - performance.now());
        if (child.exitCode !== null && pattern.exec(printed.slice(seen)) === null)
          throw new Error(`${command}: it ended without ${pattern}; printed: ${JSON.stringify(printed)}`);
      }
    },
    type: (text) => void child.stdin.write(text),
    ended,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null) child.kill('SIGHUP');
      const killer = setTimeout(() => child.kill('SIGKILL'), HANG_UP_MS);
      await exited.finally(() => clearTimeout(killer));
    },
  };
}
