import { describe, expect, it } from 'vitest';
import {
  encodeMessage,
  type ForwardPlan,
  journalFieldName,
  planForwarding,
  tagOf,
} from '../../runtime/containers/log-forwarding.ts';
import { planLog } from '../../runtime/containers/log-options.ts';

const LINE = {
  stream: 'stderr',
  at: new Date('2026-03-04T05:06:07.089Z'),
  text: Buffer.from('hello'),
  isPartial: false,
} as const;
const SOURCE = { hostname: 'host', pid: 7, tag: 'abc', fields: {} };
const planOf = (options: Record<string, string>): ForwardPlan => {
  const plan = planForwarding('syslog', options);
  if (plan === undefined) throw new Error('no plan');
  return plan;
};

describe('options of syslog', () => {
  it.each<[Record<string, string>, object]>([
    [
      {},
      {
        facility: 3,
        format: 'local',
        address: { kind: 'unix', paths: ['/dev/log', '/var/run/syslog', '/var/run/log'] },
      },
    ],
    [{ 'syslog-address': 'unix:///dev/log' }, { address: { kind: 'unix', paths: ['/dev/log'] } }],
    [{ 'syslog-address': 'udp://10.0.0.1:1514' }, { address: { kind: 'udp', host: '10.0.0.1', port: 1514 } }],
    [{ 'syslog-address': 'tcp://[fd00::1]' }, { address: { kind: 'tcp', host: 'fd00::1', port: 514 } }],
    [
      { 'syslog-address': 'tcp+tls://logs:6514', 'syslog-tls-ca-cert': '/ca', 'syslog-tls-skip-verify': 'true' },
      { address: { kind: 'tls', host: 'logs', port: 6514, tls: { ca: '/ca', isUnverified: true } } },
    ],
    [{ 'syslog-facility': 'local7' }, { facility: 23 }],
    [{ 'syslog-facility': '16' }, { facility: 16 }],
  ])('%j', (options, plan) => {
    expect(planOf(options)).toMatchObject(plan);
  });

  it.each([
    [{ 'syslog-address': 'logs:514' }, 'syslog-address should be in form proto://address'],
    [{ 'syslog-address': 'unix://' }, 'syslog-address should be in form'],
    [{ 'syslog-address': 'http://logs' }, 'syslog-address should be in form proto://address'],
    [{ 'syslog-facility': 'local8' }, 'invalid syslog facility'],
    [{ 'syslog-facility': '-' }, 'invalid syslog facility'],
    [{ 'syslog-format': 'rfc1' }, 'Invalid syslog format'],
    [{ tag: '{{.Command}}' }, 'invalid log tag'],
  ])('%j is refused', (options, message) => {
    expect(() => planOf(options as unknown as Record<string, string>)).toThrow(message);
  });

  it('of other drivers, and modes that there are not, are refused by name', () => {
    const plan = (Type: string, Config: Record<string, string>) => () => planLog({ Type, Config });
    expect(plan('syslog', { 'max-size': '1m' })).toThrow("unknown log opt 'max-size' for syslog log driver");
    expect(plan('journald', { 'syslog-format': '' })).toThrow(
      "unknown log opt 'syslog-format' for journald log driver",
    );
    expect(plan('json-file', { mode: 'blocking' })).toThrow('logging mode "blocking" is not supported');
    expect(plan('syslog', { 'cache-max-file': '1', mode: 'non-blocking' })()).toMatchObject({
      maxFiles: 2,
      isReadable: true,
    });
    expect(plan('syslog', { 'cache-disabled': 'true' })()).toMatchObject({ isKept: true, isReadable: false });
  });
});

describe('messages', () => {
  it.each<[string, string]>([
    ['', '<27>Mar  4 05:06:07 abc[7]: hello'],
    ['rfc3164', '<27>Mar  4 05:06:07 host abc[7]: hello'],
    ['rfc5424', '<27>1 2026-03-04T05:06:07Z host abc 7 abc - hello'],
    ['rfc5424micro', '<27>1 2026-03-04T05:06:07.089000Z host abc 7 abc - hello'],
  ])('in the format %j', (format, text) => {
    expect(encodeMessage(planOf({ 'syslog-format': format }), LINE, SOURCE).toString()).toBe(text);
  });

  it('of the journal carry their length, so that no value is taken for a field', () => {
    const fields = { LABEL: 'x\nPRIORITY=0' };
    const entry = encodeMessage({ driver: 'journald', tag: '' }, LINE, { ...SOURCE, fields }).toString('latin1');
    expect(entry).toContain('LABEL\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\n');
    expect(entry).toContain('PRIORITY\n\x01\0\0\0\0\0\0\x003\n');
    expect(entry.endsWith('MESSAGE\n\x05\0\0\0\0\0\0\0hello\n')).toBe(true);
  });

  it('are tagged', () => {
    const container = { id: 'f'.repeat(64), name: 'web', imageId: `sha256:${'a'.repeat(64)}`, imageName: 'nginx' };
    expect(tagOf(planOf({}), container)).toBe('ffffffffffff');
    expect(tagOf(planOf({ tag: '{{.ImageName}}/{{ .Name }}/{{.ImageID}}' }), container)).toBe('nginx/web/aaaaaaaaaaaa');
  });

  it.each([
    ['com.example.role', 'COM_EXAMPLE_ROLE'],
    ['_PID', 'PID'],
    ['9lives', 'LIVES'],
  ])('a label %j is the field %j', (label, name) => {
    expect(journalFieldName(label)).toBe(name);
  });
});
