/** The user's terminal: raw mode while a container owns it, its size, its signals. Disposing puts everything back. */
import { constants } from 'node:os';

export interface TerminalSize {
  readonly rows: number;
  readonly columns: number;
}

export function terminalSize(): TerminalSize | undefined {
  const { rows, columns } = process.stdout;
  return process.stdout.isTTY && rows !== undefined && columns !== undefined ? { rows, columns } : undefined;
}

/** Every key goes to the container, Ctrl-C too. */
export function rawTerminal(): Disposable {
  const { stdin } = process;
  if (stdin.isTTY) stdin.setRawMode(true);
  return {
    [Symbol.dispose]() {
      if (stdin.isTTY) stdin.setRawMode(false);
    },
  };
}

/** Calls `changed` now and at every change of size. */
export function watchSize(changed: (size: TerminalSize) => void): Disposable {
  const report = () => {
    const size = terminalSize();
    if (size !== undefined) changed(size);
  };
  report();
  process.stdout.on('resize', report);
  return { [Symbol.dispose]: () => void process.stdout.off('resize', report) };
}

/** Signals that Node or the kernel need themselves, or that are about our own process only. */
const NOT_FORWARDED = new Set<string>([
  'SIGKILL',
  'SIGSTOP',
  'SIGCHLD',
  'SIGCLD',
  'SIGPIPE',
  'SIGURG',
  'SIGPROF',
  'SIGWINCH',
  'SIGSEGV',
  'SIGBUS',
  'SIGFPE',
  'SIGILL',
  'SIGABRT',
  'SIGIOT',
  'SIGTTIN',
  'SIGTTOU',
  'SIGSTKFLT',
  'SIGPOLL',
  'SIGIO',
  'SIGVTALRM',
  'SIGSYS',
  'SIGTRAP',
  'SIGXCPU',
  'SIGXFSZ',
  'SIGALRM',
  'SIGUNUSED',
  'SIGLOST',
  'SIGBREAK',
  'SIGINFO',
  'SIGTSTP',
]);

/** Passes the signals of this process on, instead of dying of them. */
export function forwardSignals(send: (signal: string) => void): Disposable {
  const names = Object.keys(constants.signals).filter((name) => !NOT_FORWARDED.has(name)) as NodeJS.Signals[];
  const listeners = names.map((name) => [name, () => send(name)] as const);
  for (const [name, listener] of listeners) process.on(name, listener);
  return {
    [Symbol.dispose]() {
      for (const [name, listener] of listeners) process.off(name, listener);
    },
  };
}
