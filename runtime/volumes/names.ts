/** What volumes may be called, and which options the local driver has. Docker's rules and words. Pure. */
import { AppError } from '../../shared/errors.ts';

const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]+$/;
/** The name is one directory. */
const NAME_MAX_BYTES = 255;
const OPTIONS = ['device', 'o', 'type'];
/** Never an option of mount(8). */
const MOUNT_TYPE = /^[A-Za-z0-9][A-Za-z0-9_.-]*$/;

/** @throws AppError 'invalid' */
export function checkVolumeName(name: string): void {
  const cannot = `create ${name.slice(0, NAME_MAX_BYTES)}: `;
  if (name.length === 1)
    throw new AppError(
      'invalid',
      `${cannot}volume name is too short, names should be at least two alphanumeric characters`,
    );
  if (!NAME.test(name))
    throw new AppError(
      'invalid',
      `${cannot}${JSON.stringify(name.slice(0, NAME_MAX_BYTES))} includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`,
    );
  if (name.length > NAME_MAX_BYTES)
    throw new AppError('invalid', `${cannot}volume name is longer than ${NAME_MAX_BYTES} characters`);
}

/** @throws AppError 'not-found' */
export function checkVolumeDriver(name: string, driver: string): void {
  if (driver !== '' && driver !== 'local')
    throw new AppError(
      'not-found',
      `create ${name.slice(0, NAME_MAX_BYTES)}: error looking up volume plugin ${driver}: plugin ${JSON.stringify(driver)} not found`,
    );
}

/** What mount(8) is told for a volume with options. */
export interface VolumeMount {
  readonly type: string;
  readonly device: string;
  readonly options: string;
}

/** undefined = a plain directory. @throws AppError 'invalid' */
export function volumeMount(options: Readonly<Record<string, string>>): VolumeMount | undefined {
  const given = Object.keys(options);
  if (given.length === 0) return undefined;
  for (const option of given)
    if (!OPTIONS.includes(option))
      throw new AppError('invalid', `invalid option: ${JSON.stringify(option.slice(0, 100))}`);
  const { device = '', type = '', o = '' } = options;
  for (const [option, value] of [
    ['device', device],
    ['type', type],
  ] as const)
    if (value === '') throw new AppError('invalid', `missing required option: ${JSON.stringify(option)}`);
  if (!MOUNT_TYPE.test(type)) throw new AppError('invalid', `invalid type: ${JSON.stringify(type.slice(0, 100))}`);
  if (/\0/.test(device + o)) throw new AppError('invalid', 'invalid option: it has a zero byte');
  return { type, device, options: o };
}

/** `key` or `key=value`. */
export function hasLabel(labels: Readonly<Record<string, string>>, wanted: string): boolean {
  const equals = wanted.indexOf('=');
  const key = equals === -1 ? wanted : wanted.slice(0, equals);
  return Object.hasOwn(labels, key) && (equals === -1 || labels[key] === wanted.slice(equals + 1));
}

/** Of a volume: relative, plain and staying inside. @throws AppError 'invalid' */
export function checkSubpath(subpath: string): void {
  if (subpath === '') return;
  if (subpath.startsWith('/') || subpath.includes('\0') || subpath.split('/').includes('..'))
    throw new AppError(
      'invalid',
      `invalid volume subpath ${JSON.stringify(subpath)}: subpath must be a relative path within the volume`,
    );
}
