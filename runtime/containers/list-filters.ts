/** docker ps's filters. Pure. */
import { AppError } from '../../shared/errors.ts';
import { parseDurationMs } from '../../shared/units.ts';
import type { SandboxState } from '../networks/networks.ts';
import { type ContainerRecord, endedOf, isAlive, STATUSES } from './container.ts';
import type { Filters, Health } from './containers.ts';

export interface Listed {
  readonly record: ContainerRecord;
  readonly sandbox?: SandboxState | undefined;
  readonly health: Health | undefined;
}

export interface FilterContext {
  /** Resolves `before` and `since`. @throws AppError 'not-found' */
  readonly find: (name: string) => ContainerRecord;
  /** Whether this image, or one it was made from, goes by that name. */
  readonly isImage: (record: ContainerRecord, name: string) => boolean;
  /** Whether its name matches this expression. */
  readonly isNamed: (record: ContainerRecord, pattern: string) => boolean;
}

type Test = (listed: Listed, value: string, context: FilterContext) => boolean;

/** Within one key any value may match, all keys must. */
const TESTS: Readonly<Record<string, Test>> = {
  ancestor: ({ record }, value, { isImage }) => isImage(record, value),
  before: ({ record }, value, { find }) => record.createdAt < find(value).createdAt,
  since: ({ record }, value, { find }) => record.createdAt > find(value).createdAt,
  exited: ({ record }, value) => {
    const ended = endedOf(record.state);
    return record.state.status === 'exited' && ended !== undefined && ended.exitCode === Number(value);
  },
  expose: ({ record }, value) => record.config.ExposedPorts.some((port) => matchesPort(port, value)),
  publish: ({ sandbox }, value) =>
    sandbox?.ports.some(({ hostPort, protocol }) => matchesPort(`${hostPort}/${protocol}`, value)) === true,
  health: ({ health }, value) => (health?.status ?? 'none') === value,
  id: ({ record }, value) => record.id.startsWith(value),
  'is-task': (_listed, value) => ['false', '0'].includes(value.toLowerCase()),
  label: ({ record }, value) => matchesLabel(record, value),
  name: ({ record }, value, { isNamed }) => isNamed(record, value),
  network: ({ record, sandbox }, value) =>
    record.hostConfig.NetworkMode === value ||
    Object.hasOwn(record.endpoints, value) ||
    sandbox?.endpoints.some(({ networkId }) => networkId.startsWith(value)) === true,
  status: ({ record }, value) => record.state.status === value,
  volume: ({ record }, value) =>
    record.mounts.some(
      ({ source, destination, volume }) => volume?.name === value || source === value || destination === value,
    ),
};

const PRUNE_KEYS = ['until', 'label', 'label!'];

/** @throws AppError 'invalid' with Docker's words */
export function checkFilters(filters: Filters): void {
  for (const [key, values] of Object.entries(filters)) {
    if (!Object.hasOwn(TESTS, key)) throw new AppError('invalid', `invalid filter '${key}'`);
    for (const value of values) {
      if (key === 'status' && !STATUSES.some((status) => status === value))
        throw new AppError('invalid', `invalid filter 'status=${value}'`);
      if (key === 'health' && !['starting', 'healthy', 'unhealthy', 'none'].includes(value))
        throw new AppError('invalid', `invalid filter 'health=${value}'`);
      if (key === 'exited' && !/^\d+$/.test(value)) throw new AppError('invalid', `invalid filter 'exited=${value}'`);
    }
  }
}

/** Containers that do not run are listed only when somebody asks for them, by `all` or by what only they have. */
export function isListed(listed: Listed, filters: Filters, options: { readonly all: boolean }): boolean {
  if (options.all || 'status' in filters || 'exited' in filters || 'before' in filters || 'since' in filters)
    return true;
  return isAlive(listed.record.state) || listed.record.state.status === 'restarting';
}

export function matchesFilters(listed: Listed, filters: Filters, context: FilterContext): boolean {
  return Object.entries(filters).every(
    // Every label must be there; of everything else one is enough.
    ([key, values]) =>
      key === 'label'
        ? values.every((value) => TESTS[key]?.(listed, value, context))
        : values.length === 0 || values.some((value) => TESTS[key]?.(listed, value, context)),
  );
}

/** What prune may take. @throws AppError 'invalid' */
export function isPrunable(record: ContainerRecord, filters: Filters, now: Date): boolean {
  for (const key of Object.keys(filters))
    if (!PRUNE_KEYS.includes(key)) throw new AppError('invalid', `invalid filter '${key}'`);
  const { until = [], label = [], 'label!': without = [] } = filters;
  if (until.length > 1) throw new AppError('invalid', 'more than one until filter specified');
  const limit = until[0] === undefined ? undefined : parseUntil(until[0], now);
  return (
    (record.state.status === 'created' || record.state.status === 'exited' || record.state.status === 'dead') &&
    (limit === undefined || record.createdAt < limit) &&
    label.every((value) => matchesLabel(record, value)) &&
    !without.some((value) => matchesLabel(record, value))
  );
}

function matchesLabel({ config }: ContainerRecord, text: string): boolean {
  const at = text.indexOf('=');
  if (at === -1) return Object.hasOwn(config.Labels, text);
  return config.Labels[text.slice(0, at)] === text.slice(at + 1);
}

/** `80`, `80/tcp`, `80-90/udp`. */
function matchesPort(port: string, wanted: string): boolean {
  const parse = (text: string) => /^(\d+)(?:-(\d+))?(?:\/(\w+))?$/.exec(text);
  const have = parse(port);
  const want = parse(wanted);
  if (have === null || want === null || (have[3] ?? 'tcp') !== (want[3] ?? 'tcp')) return false;
  const number = Number(have[1]);
  return number >= Number(want[1]) && number <= Number(want[2] ?? want[1]);
}

/** A duration before now, seconds since the epoch, or a date. */
function parseUntil(text: string, now: Date): Date {
  if (/^\d+(?:\.\d+)?$/.test(text)) return new Date(Number(text) * 1000);
  const date = new Date(text);
  if (!Number.isNaN(date.getTime())) return date;
  return new Date(now.getTime() - parseDurationMs(text));
}
