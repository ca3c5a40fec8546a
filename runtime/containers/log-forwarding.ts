/**
 * The log drivers that hand output on, `syslog` and `journald`: their options, and a line of output as the message that
 * the other side wants. Pure; log-sinks.ts sends, log-forwarder.ts follows the log.
 *
 * https://docs.docker.com/engine/logging/drivers/syslog/, https://docs.docker.com/engine/logging/drivers/journald/,
 * RFC 3164, RFC 5424, https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
 */
import { AppError } from '../../shared/errors.ts';
import type { OutputStream } from './containers.ts';

export type SyslogFormat = 'local' | 'rfc3164' | 'rfc5424' | 'rfc5424micro';

export interface TlsFiles {
  readonly ca: string | undefined;
  readonly cert: string | undefined;
  readonly key: string | undefined;
  readonly isUnverified: boolean;
}

export type SyslogAddress =
  /** A local socket, of datagrams or, if it is none, a stream; the first of these that is there. */
  | { readonly kind: 'unix'; readonly paths: readonly string[] }
  | { readonly kind: 'udp'; readonly host: string; readonly port: number }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'tls'; readonly host: string; readonly port: number; readonly tls: TlsFiles };

export type ForwardPlan = { readonly tag: string } & (
  | {
      readonly driver: 'syslog';
      readonly address: SyslogAddress;
      readonly facility: number;
      readonly format: SyslogFormat;
    }
  | { readonly driver: 'journald' }
);

/** A line of output; a very long one is several, of which all but the last are partial. */
export interface LogLine {
  readonly stream: OutputStream;
  readonly at: Date;
  readonly text: Buffer;
  readonly isPartial: boolean;
}

export interface MessageSource {
  readonly hostname: string;
  /** The engine's process id: who sends. */
  readonly pid: number;
  /** See tagOf. */
  readonly tag: string;
  /** Further fields of a journal entry. */
  readonly fields: Readonly<Record<string, string>>;
}

export const JOURNAL_SOCKET = '/run/systemd/journal/socket';
const LOCAL_SOCKETS = ['/dev/log', '/var/run/syslog', '/var/run/log'];
const DEFAULT_TAG = '{{.ID}}';
const SYSLOG_OPTIONS = [
  'syslog-address',
  'syslog-facility',
  'syslog-format',
  'syslog-tls-ca-cert',
  'syslog-tls-cert',
  'syslog-tls-key',
  'syslog-tls-skip-verify',
];
/** The index is the number. */
const FACILITIES =
  'kern user mail daemon auth syslog lpr news uucp cron authpriv ftp - - - - local0 local1 local2 local3 local4 local5 local6 local7'.split(
    ' ',
  );
const FORMATS: Readonly<Record<string, SyslogFormat>> = {
  '': 'local',
  rfc3164: 'rfc3164',
  rfc5424: 'rfc5424',
  rfc5424micro: 'rfc5424micro',
};
const SYSLOG_PORT = 514;
const TAG_FIELDS = ['ID', 'FullID', 'Name', 'ImageID', 'ImageFullID', 'ImageName', 'DaemonName'] as const;
const SEVERITY = { stdout: 6, stderr: 3 } as const satisfies Record<OutputStream, number>;
const MONTHS = 'Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec'.split(' ');

export function forwardOptionsOf(driver: string): readonly string[] {
  return driver === 'syslog' ? ['tag', ...SYSLOG_OPTIONS] : ['tag'];
}

/** undefined = a driver that keeps its log here. @throws AppError 'invalid', in Docker's words */
export function planForwarding(driver: string, options: Readonly<Record<string, string>>): ForwardPlan | undefined {
  if (driver !== 'syslog' && driver !== 'journald') return undefined;
  const tag = options.tag || DEFAULT_TAG;
  for (const [, field = ''] of tag.matchAll(/\{\{(.*?)\}\}/g))
    if (!TAG_FIELDS.some((known) => field.trim() === `.${known}`))
      throw new AppError(
        'invalid',
        `invalid log tag ${JSON.stringify(tag)}: {{${field}}} is not one of ${TAG_FIELDS.join(', ')}`,
      );
  if (driver === 'journald') return { driver, tag };
  const format = FORMATS[options['syslog-format'] ?? ''];
  if (format === undefined) throw new AppError('invalid', 'Invalid syslog format');
  return {
    driver,
    tag,
    format,
    facility: facilityOf(options['syslog-facility'] ?? ''),
    address: addressOf(options['syslog-address'] ?? '', options),
  };
}

function facilityOf(text: string): number {
  if (text === '') return FACILITIES.indexOf('daemon');
  const number = /^\d+$/.test(text) ? Number(text) : FACILITIES.indexOf(text);
  if (text === '-' || number < 0 || number > 23) throw new AppError('invalid', 'invalid syslog facility');
  return number;
}

function addressOf(text: string, options: Readonly<Record<string, string>>): SyslogAddress {
  if (text === '') return { kind: 'unix', paths: LOCAL_SOCKETS };
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const scheme = url?.protocol.slice(0, -1) ?? '';
  if (url !== undefined && (scheme === 'unix' || scheme === 'unixgram')) {
    if (url.pathname === '' || url.pathname === '/')
      throw new AppError('invalid', `syslog-address should be in form unix:///path, got ${text}`);
    return { kind: 'unix', paths: [decodeURIComponent(url.pathname)] };
  }
  if (url === undefined || url.hostname === '' || !['udp', 'tcp', 'tcp+tls'].includes(scheme))
    throw new AppError('invalid', `syslog-address should be in form proto://address, got ${text}`);
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  const port = url.port === '' ? SYSLOG_PORT : Number(url.port);
  if (scheme !== 'tcp+tls') return scheme === 'udp' ? { kind: 'udp', host, port } : { kind: 'tcp', host, port };
  const tls = {
    ca: options['syslog-tls-ca-cert'],
    cert: options['syslog-tls-cert'],
    key: options['syslog-tls-key'],
    isUnverified: options['syslog-tls-skip-verify'] !== undefined,
  };
  return { kind: 'tls', host, port, tls };
}

/** The tag with its fields filled in. */
export function tagOf(
  plan: ForwardPlan,
  container: { readonly id: string; readonly name: string; readonly imageId: string; readonly imageName: string },
): string {
  const image = container.imageId.replace(/^[^:]*:/, '');
  const values: Readonly<Record<(typeof TAG_FIELDS)[number], string>> = {
    ID: container.id.slice(0, 12),
    FullID: container.id,
    Name: container.name,
    ImageID: image.slice(0, 12),
    ImageFullID: image,
    ImageName: container.imageName,
    DaemonName: 'berthd',
  };
  return plan.tag.replaceAll(/\{\{\s*\.(\w+)\s*\}\}/g, (_whole, field: keyof typeof values) => values[field]);
}

/** One message for the sink, without the frame that a stream needs. */
export function encodeMessage(plan: ForwardPlan, line: LogLine, source: MessageSource): Buffer {
  return plan.driver === 'journald' ? journalEntry(line, source) : syslogMessage(plan, line, source);
}

function syslogMessage(
  { facility, format }: { readonly facility: number; readonly format: SyslogFormat },
  { stream, at, text }: LogLine,
  { hostname, pid, tag }: MessageSource,
): Buffer {
  const priority = `<${facility * 8 + SEVERITY[stream]}>`;
  const time = at.toISOString();
  switch (format) {
    case 'local':
      return join(`${priority}${stamp(at)} ${tag}[${pid}]: `, text);
    case 'rfc3164':
      return join(`${priority}${stamp(at)} ${hostname} ${tag}[${pid}]: `, text);
    case 'rfc5424':
      return join(`${priority}1 ${time.slice(0, 19)}Z ${hostname} ${tag} ${pid} ${tag} - `, text);
    case 'rfc5424micro':
      return join(`${priority}1 ${time.slice(0, 23)}000Z ${hostname} ${tag} ${pid} ${tag} - `, text);
    default:
      throw format satisfies never;
  }
}

function join(head: string, text: Buffer): Buffer {
  return Buffer.concat([Buffer.from(head), text]);
}

/** `Jan  2 15:04:05`, in UTC as all times of ours. */
function stamp(at: Date): string {
  const day = String(at.getUTCDate()).padStart(2, ' ');
  return `${MONTHS[at.getUTCMonth()]} ${day} ${at.toISOString().slice(11, 19)}`;
}

function journalEntry({ stream, at, text, isPartial }: LogLine, { tag, fields }: MessageSource): Buffer {
  const all: Record<string, string> = {
    ...fields,
    PRIORITY: String(SEVERITY[stream]),
    SYSLOG_IDENTIFIER: tag,
    SYSLOG_TIMESTAMP: at.toISOString(),
    CONTAINER_TAG: tag,
    ...(isPartial && { CONTAINER_PARTIAL_MESSAGE: 'true' }),
  };
  return Buffer.concat([
    ...Object.entries(all).map(([name, value]) => journalField(name, Buffer.from(value))),
    journalField('MESSAGE', text),
  ]);
}

/** Always in the form with a length: a value with a newline could else be taken for further fields. */
function journalField(name: string, value: Buffer): Buffer {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(value.length));
  return Buffer.concat([Buffer.from(`${name}\n`), length, value, Buffer.from('\n')]);
}

/** A label or a variable as the name of a field: capitals, digits and `_`, none of the journal's own. Empty = it cannot be one. */
export function journalFieldName(name: string): string {
  return name
    .toUpperCase()
    .replaceAll(/[^A-Z0-9_]/g, '_')
    .replace(/^[_0-9]+/, '')
    .slice(0, 64);
}
