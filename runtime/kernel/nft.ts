/** nftables by nft(8): whole transactions, each done completely or not at all. */
import { AppError } from '../../shared/errors.ts';
import { runCommand } from './command.ts';

export interface Nft {
  /** One transaction, in the network namespace at a path if one is given. @throws AppError 'unavailable' with nft's words; nothing is changed then */
  apply(ruleset: string, options?: { readonly namespace?: string }): Promise<void>;
  /** As `nft list table FAMILY NAME` prints it; undefined when there is none. */
  table(family: string, name: string): Promise<string | undefined>;
  /** A chain with the handles of its rules; undefined when there is none. */
  chain(family: string, table: string, chain: string): Promise<string | undefined>;
}

export function createNft(program = 'nft'): Nft {
  const list = async (args: readonly string[]): Promise<string | undefined> => {
    const result = await runCommand(program, args);
    if (result.exitCode === 0) return result.stdout;
    if (/No such file or directory/.test(result.stderr)) return undefined;
    throw new AppError('unavailable', `cannot list nftables: ${result.stderr.trim().split('\n')[0] ?? ''}`);
  };
  return {
    async apply(ruleset, { namespace } = {}) {
      const [command, ...args] = namespace === undefined ? [program] : ['nsenter', `--net=${namespace}`, program];
      const result = await runCommand(command, [...args, '-f', '-'], { stdin: ruleset });
      if (result.exitCode !== 0)
        throw new AppError('unavailable', `cannot write nftables: ${result.stderr.trim().split('\n')[0] ?? ''}`);
    },
    table: (family, name) => list(['list', 'table', family, name]),
    chain: (family, table, chain) => list(['-a', 'list', 'chain', family, table, chain]),
  };
}
