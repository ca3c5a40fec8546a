/** nftables by nft(8): whole transactions, each done completely or not at all; and word of those that others make. */
import { createInterface } from 'node:readline';
import { AppError } from '../../shared/errors.ts';
import { openCommand, type RunCommand, runCommand } from './command.ts';

export interface Nft {
  /** One transaction, in the network namespace at a path if one is given. @throws AppError 'unavailable' with nft's words; nothing is changed then */
  apply(ruleset: string, options?: { readonly namespace?: string }): Promise<void>;
  /** As `nft list table FAMILY NAME` prints it; undefined when there is none. */
  table(family: string, name: string): Promise<string | undefined>;
  /** A chain with the handles of its rules; undefined when there is none. */
  chain(family: string, table: string, chain: string): Promise<string | undefined>;
  /**
   * Calls back after each transaction in this network namespace that was not made here, with lines that name what it
   * touched, such as `delete table inet x`. Disposing ends that; so does nft when it fails, and then `ended` says why.
   * It does not outlive this process, however that ends.
   */
  watch(onChange: (lines: readonly string[]) => void): AsyncDisposable & { readonly ended: Promise<string> };
}

/** Word of a transaction comes within this time after it, if it comes. */
const WORD_MS = 1000;

export interface NftOptions {
  readonly program?: string | undefined;
  readonly run?: RunCommand;
}

export function createNft({ program = 'nft', run = runCommand }: NftOptions = {}): Nft {
  /** Transactions of ours that nobody has been told of yet. Counted, since nft calls processes by the numbers that the host has for them. */
  const untold = new Set<symbol>();
  const list = async (args: readonly string[]): Promise<string | undefined> => {
    const result = await run(program, args);
    if (result.exitCode === 0) return result.stdout;
    if (/No such file or directory/.test(result.stderr)) return undefined;
    throw new AppError('unavailable', `cannot list nftables: ${result.stderr.trim().split('\n')[0] ?? ''}`);
  };
  return {
    async apply(ruleset, { namespace } = {}) {
      const [command, ...args] = namespace === undefined ? [program] : ['nsenter', `--net=${namespace}`, program];
      const transaction = Symbol();
      if (namespace === undefined) untold.add(transaction);
      const result = await run(command, [...args, '-f', '-'], { stdin: ruleset }).finally(() => {
        setTimeout(() => untold.delete(transaction), WORD_MS).unref();
      });
      if (result.exitCode === 0) return;
      untold.delete(transaction);
      throw new AppError('unavailable', `cannot write nftables: ${result.stderr.trim().split('\n')[0] ?? ''}`);
    },
    table: (family, name) => list(['list', 'table', family, name]),
    chain: (family, table, chain) => list(['-a', 'list', 'chain', family, table, chain]),
    watch(onChange) {
      const monitor = openCommand('setpriv', ['--pdeathsig', 'KILL', '--', program, 'monitor']);
      let lines: string[] = [];
      createInterface({ input: monitor.stdout }).on('line', (line) => {
        if (!line.startsWith('# new generation')) return void lines.push(line);
        const [own] = untold;
        const told = lines;
        lines = [];
        if (own === undefined) onChange(told);
        else untold.delete(own);
      });
      return {
        ended: monitor.ended.then(
          ({ exitCode, stderr }) => stderr || `exit code ${exitCode}`,
          (error: unknown) => String(error),
        ),
        [Symbol.asyncDispose]: () => monitor[Symbol.asyncDispose](),
      };
    },
  };
}
