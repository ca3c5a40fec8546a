/**
 * Names of containers, answered by aardvark-dns on each network's gateway. It reads one file per network:
 *
 *   <directory>/open/<network>      gateways, then a line for each container; aardvark.pid beside them
 *   <directory>/internal/<network>  the same for internal networks
 *   <directory>/resolv.conf         empty
 *
 * and reads them again at SIGHUP. The two directories have a process each: that of internal networks sees an empty
 * resolv.conf in a mount namespace of its own, so that it has nobody to ask (CVE-2024-29018). Both outlive the engine,
 * which finds them again by their pid files, and end with their last network.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError, hasCode } from '../../shared/errors.ts';
import { PROGRAM_PATH } from '../kernel/command.ts';
import { formatAddress, parseAddress } from './addresses.ts';

export interface DnsNetwork {
  readonly id: string;
  readonly internal: boolean;
  readonly gateways: readonly string[];
  readonly entries: readonly DnsEntry[];
}

export interface DnsEntry {
  readonly containerId: string;
  readonly ipv4: string | undefined;
  readonly ipv6: string | undefined;
  readonly names: readonly string[];
  /** Who is asked for other names; empty = the host's resolvers. */
  readonly resolvers: readonly string[];
}

export interface Dns {
  /** Makes the servers know exactly these. Calls must not overlap. */
  write(networks: readonly DnsNetwork[]): Promise<void>;
}

export interface DnsOptions {
  /** Path of aardvark-dns. */
  readonly program: string;
  /** Emptied by a reboot. */
  readonly directory: string;
}

const PID_FILE = 'aardvark.pid';
const LISTENING_MS = 2000;
const POLL_MS = 5;

export function createDns({ program, directory }: DnsOptions): Dns {
  const emptyFile = join(directory, 'resolv.conf');
  const servers = {
    open: createServer(join(directory, 'open'), (config) => [program, ['--config', config, '-p', '53', 'run']]),
    internal: createServer(join(directory, 'internal'), (config) => [
      'unshare',
      [
        '--mount',
        'sh',
        '-c',
        'mount --bind "$1" "$(readlink -f /etc/resolv.conf)" && exec "$0" --config "$2" -p 53 run',
        program,
        emptyFile,
        config,
      ],
    ]),
  };
  return {
    async write(networks) {
      await mkdir(directory, { recursive: true });
      await writeFile(emptyFile, '');
      await servers.open.write(networks.filter(({ internal }) => !internal));
      await servers.internal.write(networks.filter(({ internal }) => internal));
    },
  };
}

interface Server {
  write(networks: readonly DnsNetwork[]): Promise<void>;
}

function createServer(directory: string, command: (directory: string) => readonly [string, readonly string[]]): Server {
  let written: ReadonlyMap<string, string> | undefined;
  const pidOf = async (): Promise<number | undefined> => {
    const pid = Number(await readFile(join(directory, PID_FILE), 'utf8').catch(() => ''));
    if (!(pid > 1)) return undefined;
    const words = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0');
    return words.includes(directory) ? pid : undefined;
  };
  const start = async (): Promise<void> => {
    const [file, args] = command(directory);
    const child = spawn(file, args, { stdio: 'ignore', detached: true, env: { PATH: PROGRAM_PATH } });
    const [code] = (await once(child, 'exit')) as [number | null];
    if (code !== 0)
      throw new AppError('unavailable', `cannot start aardvark-dns: it ended with code ${code ?? 'of a signal'}`);
  };
  return {
    async write(networks) {
      const wanted = new Map(networks.map((network) => [network.id, fileOf(network)]));
      written ??= await readFiles(directory);
      const isSame = wanted.size === written.size && [...wanted].every(([id, text]) => written?.get(id) === text);
      const pid = await pidOf();
      if (isSame && (wanted.size === 0) === (pid === undefined)) return;
      for (const [id, text] of wanted) if (written.get(id) !== text) await writeWhole(directory, id, text);
      for (const id of written.keys()) if (!wanted.has(id)) await rm(join(directory, id), { force: true });
      written = wanted;
      if (wanted.size === 0) {
        if (pid !== undefined) process.kill(pid, 'SIGTERM');
        await rm(directory, { recursive: true, force: true });
        return;
      }
      if (pid === undefined) await start();
      else process.kill(pid, 'SIGHUP');
      await listening(networks.flatMap(({ gateways }) => gateways));
    },
  };
}

function fileOf({ gateways, entries }: DnsNetwork): string {
  const lines = entries.map(({ containerId, ipv4, ipv6, names, resolvers }) =>
    [containerId, ipv4 ?? '', ipv6 ?? '', names.join(','), ...(resolvers.length > 0 ? [resolvers.join(',')] : [])].join(
      ' ',
    ),
  );
  return [gateways.join(','), ...lines].map((line) => `${line}\n`).join('');
}

async function readFiles(directory: string): Promise<ReadonlyMap<string, string>> {
  try {
    const names = (await readdir(directory)).filter((name) => name !== PID_FILE);
    return new Map(
      await Promise.all(names.map(async (name) => [name, await readFile(join(directory, name), 'utf8')] as const)),
    );
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return new Map();
    throw error;
  }
}

/** Through a file beside the directory: whatever is inside is read as a network. */
async function writeWhole(directory: string, id: string, text: string): Promise<void> {
  await mkdir(directory, { recursive: true });
  await writeFile(`${directory}.next`, text);
  await rename(`${directory}.next`, join(directory, id));
}

/** Waits until somebody listens on these addresses; a server that does not come is found out by whoever asks it. */
async function listening(addresses: readonly string[]): Promise<void> {
  const deadline = performance.now() + LISTENING_MS;
  const wanted = addresses.map(socketAddress);
  for (;;) {
    const tables = await Promise.all(
      ['udp', 'udp6'].map((name) => readFile(`/proc/self/net/${name}`, 'utf8').catch(() => '')),
    );
    const text = tables.join('');
    if (wanted.every((address) => text.includes(address)) || performance.now() > deadline) return;
    await delay(POLL_MS);
  }
}

/** Port 53 of an address as /proc/net/udp writes it: words of 32 bits in the byte order of the machine, here little-endian. */
function socketAddress(text: string): string {
  const { family, value } = parseAddress(formatAddress(parseAddress(text)));
  const hex = value.toString(16).padStart(family === 4 ? 8 : 32, '0');
  const words = hex.match(/.{8}/g) ?? [];
  return `${words.map((word) => (word.match(/../g) ?? []).reverse().join('')).join('')}:0035`.toUpperCase();
}
