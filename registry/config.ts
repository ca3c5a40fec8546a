/** The options of berth-registry, for flags, environment (BERTH_REGISTRY_…) and file alike. */
import {
  bytesOption,
  type Config,
  choiceOption,
  durationOption,
  flagOption,
  integerOption,
  type Program,
  textOption,
} from '../shared/config.ts';
import { AppError } from '../shared/errors.ts';
import { LOG_LEVELS } from '../shared/log.ts';
import { ACCESS_OPTIONS } from './access/options.ts';
import { LIMIT_OPTIONS } from './limits.ts';
import { retentionOption } from './upkeep/retention.ts';
import { webhooksOption } from './webhooks/options.ts';

const OPTIONS = {
  root: textOption({ description: 'directory of blobs and metadata', default: '/var/lib/berth-registry' }),
  listen: textOption({ description: 'address and port; port 0 takes a free one', default: '127.0.0.1:5000' }),
  workers: integerOption({
    description: 'processes that serve the port: more than 1 helps pulls and slows pushes; rate limits count in each',
    default: 1,
    min: 1,
    max: 64,
  }),
  anonymousWrites: choiceOption({
    description: 'who may push and delete without a name: callers of a registry that listens on loopback only, or all',
    choices: ['loopback', 'always', 'never'],
    default: 'loopback',
  }),
  gcIntervalMs: durationOption({
    description: 'time between garbage collections; 0 = only by command',
    default: 3_600_000,
  }),
  gcUntagged: flagOption({
    description: 'collect manifests without a tag, too; whoever pulls by digest would miss them',
    default: false,
  }),
  scrubIntervalMs: durationOption({
    description: 'time from the beginning of one scrub of all blobs to that of the next; 0 = only by command',
    default: 14 * 24 * 3_600_000,
  }),
  scrubBytesPerSecond: bytesOption({
    description: 'how fast a scrub reads, so that pulls have the disk; 0 = as fast as it can',
    default: 16 << 20,
  }),
  retention: retentionOption,
  retentionIntervalMs: durationOption({
    description: 'time between applications of the retention rules; 0 = only by command',
    default: 3_600_000,
  }),
  readOnly: flagOption({
    description: 'take no pushes and deletes, and do no upkeep: for the time of a move or a backup',
    default: false,
  }),
  logLevel: choiceOption({ description: 'least important lines to log', choices: LOG_LEVELS, default: 'info' }),
  ...ACCESS_OPTIONS,
  webhooks: webhooksOption,
  ...LIMIT_OPTIONS,
} as const;

export type RegistryConfig = Config<typeof OPTIONS>;

export const PROGRAM: Program<typeof OPTIONS> = {
  name: 'berth-registry',
  envPrefix: 'BERTH_REGISTRY_',
  options: OPTIONS,
};

export interface ListenAddress {
  readonly host: string;
  readonly port: number;
  /** Whether only this machine can connect. */
  readonly isLoopback: boolean;
}

/** `127.0.0.1:5000`, `[::1]:5000`, `:5000` (every address). @throws AppError 'invalid' */
export function parseListenAddress(text: string): ListenAddress {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]*)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535)
    throw new AppError(
      'invalid',
      `cannot listen on ${JSON.stringify(text)}: want HOST:PORT, for example 127.0.0.1:5000`,
    );
  const host = match[1] ?? (match[2] || '::');
  return { host, port, isLoopback: host === 'localhost' || host === '::1' || /^127(?:\.\d{1,3}){3}$/.test(host) };
}
