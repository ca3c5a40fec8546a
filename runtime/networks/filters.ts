/** Which networks a list or a prune means. Pure. */
import { AppError } from '../../shared/errors.ts';
import { parseDurationMs } from '../../shared/units.ts';
import { type NetworkDetails, type NetworkFilters, PREDEFINED } from './networks.ts';

type Matches = (details: NetworkDetails, value: string, now: Date) => boolean;

const FILTERS: Readonly<Record<string, Matches>> = {
  name: ({ record }, value) => record.name.includes(value),
  id: ({ record }, value) => record.id.includes(value),
  driver: ({ record }, value) => record.driver === value,
  scope: (_details, value) => value === 'local',
  type: ({ record }, value) => (isPredefined(record.name) ? value === 'builtin' : value === 'custom'),
  dangling: ({ record, members }, value) => isTrue(value) === (members.size === 0 && !isPredefined(record.name)),
  label: ({ record }, value) => hasLabel(record.labels, value),
  'label!': ({ record }, value) => !hasLabel(record.labels, value),
  until: ({ record }, value, now) => record.createdAt < momentOf(value, now),
};
/** All values of these must match, of the others any. */
const ALL_OF: readonly string[] = ['label', 'label!'];

/** @throws AppError 'invalid' for an unknown filter */
export function matchesNetworkFilters(details: NetworkDetails, filters: NetworkFilters, now: Date): boolean {
  return Object.entries(filters).every(([key, values]) => {
    const matches = FILTERS[key];
    if (matches === undefined) throw new AppError('invalid', `invalid filter '${key}'`);
    const one = (value: string) => matches(details, value, now);
    return ALL_OF.includes(key) ? values.every(one) : values.length === 0 || values.some(one);
  });
}

function isPredefined(name: string): boolean {
  return PREDEFINED.some((predefined) => predefined === name);
}

function isTrue(value: string): boolean {
  return ['1', 'true'].includes(value.toLowerCase());
}

function hasLabel(labels: Readonly<Record<string, string>>, wanted: string): boolean {
  const equals = wanted.indexOf('=');
  const key = equals === -1 ? wanted : wanted.slice(0, equals);
  return Object.hasOwn(labels, key) && (equals === -1 || labels[key] === wanted.slice(equals + 1));
}

function momentOf(value: string, now: Date): Date {
  if (/^\d+(?:\.\d+)?$/.test(value)) return new Date(Number(value) * 1000);
  const at = new Date(value);
  return Number.isNaN(at.getTime()) ? new Date(now.getTime() - parseDurationMs(value)) : at;
}
