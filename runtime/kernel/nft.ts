/** nftables by nft(8): whole transactions, each done completely or not at all; and word of those that others make. */
import { rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
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

export interface NftOptions {
  /** undefined = it is not installed. */
  readonly program: string | undefined;
  /** Of this process alone, and it exists. */
  readonly directory: string;
  /** At most 15 bytes, and no other process on the host uses it. */
  readonly name: string;
  readonly run?: RunCommand;
}

/**
 * nft under a name of its own: the kernel tells with each transaction which program made it, by the last part of the path
 * that was executed. Its process id would not do, since that is the host's, whatever namespace this is.
 */
export async function openNft({ program, directory, name, run = runCommand }: NftOptions): Promise<Nft> {
  const alias = join(directory, name);
  if (program !== undefined) {
    await rm(alias, { force: true });
    await symlink(program, alias);
  }
  const own = program === undefined ? 'nft' : alias;
  const list = async (args: readonly string[]): Promise<string | undefined> => {
    const result = await run(own, args);
    if (result.exitCode === 0) return result.stdout;
    if (/No such file or directory/.test(result.stderr)) return undefined;
    throw new AppError('unavailable', `cannot list nftables: ${result.stderr.trim().split('\n')[0] ?? ''}`);
  };
  return {
    async apply(ruleset, { namespace } = {}) {
      const [command, ...args] = namespace === undefined ? [own] : ['nsenter', `--net=${namespace}`, own];
      const result = await run(command, [...args, '-f', '-'], { stdin: ruleset });
      if (result.exitCode === 0) return;
      throw new AppError('unavailable', `cannot write nftables: ${result.stderr.trim().split('\n')[0] ?? ''}`);
    },
    table: (family, name) => list(['list', 'table', family, name]),
    chain: (family, table, chain) => list(['-a', 'list', 'chain', family, table, chain]),
    watch(onChange) {
      const monitor = openCommand('setpriv', ['--pdeathsig', 'KILL', '--', own, 'monitor']);
      let lines: string[] = [];
      createInterface({ input: monitor.stdout }).on('line', (line) => {
        if (!line.startsWith('# new generation')) return void lines.push(line);
        const told = lines;
        lines = [];
        if (!line.endsWith(`(${name})`)) onChange(told);
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
