import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { z } from 'zod';
import {
  bytesOption,
  type ConfigSources,
  choiceOption,
  describeOptions,
  durationOption,
  flagOption,
  integerOption,
  listOption,
  loadConfig,
  printConfig,
  structureOption,
  textOption,
} from '../../shared/config.ts';

const program = {
  name: 'berth-test',
  envPrefix: 'BERTH_TEST_',
  options: {
    listenAddress: textOption({ default: '127.0.0.1:5000', description: 'where to listen' }),
    certFile: textOption({ default: undefined, description: 'TLS certificate' }),
    manifestMaxBytes: bytesOption({ default: 4_194_304, description: 'largest manifest' }),
    gcGraceMs: durationOption({ default: 3_600_000, description: 'age before collection' }),
    readOnly: flagOption({ default: false, description: 'refuse writes' }),
    workers: integerOption({ default: 1, min: 1, max: 64, description: 'processes' }),
    logLevel: choiceOption({ choices: ['info', 'debug'], default: 'info', description: 'verbosity' }),
    anonymousPull: listOption({ default: [], description: 'globs' }),
    rules: structureOption({
      schema: z.array(z.strictObject({ tag: z.string() })),
      default: [],
      description: 'retention',
    }),
    sessionSecret: textOption({ default: undefined, description: 'key', secret: true }),
  },
};
const directory = mkdtempSync(join(tmpdir(), 'berth-config-'));
afterAll(() => rmSync(directory, { recursive: true }));

function load(sources: Partial<ConfigSources> & { readonly yaml?: string }) {
  const file = join(directory, 'config.yaml');
  if (sources.yaml !== undefined) writeFileSync(file, sources.yaml);
  const argv = [...(sources.yaml === undefined ? [] : ['--config', file]), ...(sources.argv ?? [])];
  return loadConfig(program, { env: {}, ...sources, argv });
}

describe('configuration', () => {
  it('has a default for everything', () => {
    const { config, request, positionals } = load({});
    expect(config).toMatchObject({ listenAddress: '127.0.0.1:5000', certFile: undefined, gcGraceMs: 3_600_000 });
    expect({ request, positionals }).toEqual({ request: 'run', positionals: [] });
  });

  it('prefers flag over environment over file over default', () => {
    const yaml = 'workers: 2\nlistenAddress: ":1"\nlogLevel: debug\n';
    const env = { BERTH_TEST_WORKERS: '3', BERTH_TEST_LISTEN_ADDRESS: ':2', OTHER: 'x' };
    const { config, origins } = load({ yaml, env, argv: ['--workers', '4', 'gc'] });
    expect(config).toMatchObject({ workers: 4, listenAddress: ':2', logLevel: 'debug', readOnly: false });
    expect(origins).toMatchObject({
      workers: 'flag',
      listenAddress: 'environment',
      logLevel: 'file',
      readOnly: 'default',
    });
  });

  it('takes units, lists and structures from every source', () => {
    const argv = ['--manifest-max-bytes=8m', '--anonymous-pull', 'a/*,b', '--anonymous-pull', 'c', '--read-only'];
    const env = { BERTH_TEST_GC_GRACE_MS: '1h30m', BERTH_TEST_RULES: '[{"tag":"v*"}]' };
    expect(load({ argv, env }).config).toMatchObject({
      manifestMaxBytes: 8 * 1024 * 1024,
      anonymousPull: ['a/*', 'b', 'c'],
      readOnly: true,
      gcGraceMs: 5_400_000,
      rules: [{ tag: 'v*' }],
    });
    expect(load({ yaml: 'gcGraceMs: 250\nrules: [{tag: x}]' }).config).toMatchObject({
      gcGraceMs: 250,
      rules: [{ tag: 'x' }],
    });
    expect(load({ argv: ['--no-read-only'], env: { BERTH_TEST_READ_ONLY: 'true' } }).config.readOnly).toBe(false);
  });

  it.each([
    ['an unknown flag', { argv: ['--wrokers', '1'] }, /--wrokers/],
    ['an unknown variable', { env: { BERTH_TEST_WROKERS: '1' } }, /BERTH_TEST_WROKERS: there is no such option/],
    ['an unknown key', { yaml: 'wrokers: 1' }, /wrokers in .*config.yaml: there is no such option/],
    ['an unknown key below', { yaml: 'rules: [{tga: x}]' }, /rules in .*: 0/],
    ['a number out of range', { argv: ['--workers', '65'] }, /--workers: /],
    ['no number', { env: { BERTH_TEST_WORKERS: 'two' } }, /BERTH_TEST_WORKERS: /],
    ['no size', { argv: ['--manifest-max-bytes', '4 apples'] }, /"4 apples"/],
    ['no choice', { yaml: 'logLevel: loud' }, /logLevel in /],
    ['a list as file', { yaml: '- a' }, /want options as keys/],
    ['no YAML', { yaml: 'a: [' }, /cannot read configuration file/],
    ['a missing file', { argv: ['--config', '/nonexistent/x.yaml'] }, /nonexistent/],
  ])('refuses %s and says where it stands', (_what, sources, message) => {
    expect(() => load(sources)).toThrow(message);
  });

  it('is not confused by the variables that Kubernetes makes for a service', () => {
    const env = {
      BERTH_TEST_SERVICE_HOST: '10.0.0.1',
      BERTH_TEST_PORT: 'tcp://10.0.0.1:80',
      BERTH_TEST_PORT_80_TCP_ADDR: '10.0.0.1',
    };
    expect(load({ env }).origins.workers).toBe('default');
  });

  it('is frozen', () => {
    const { config } = load({ yaml: 'rules: [{tag: x}]' });
    expect(Object.isFrozen(config) && Object.isFrozen(config.rules) && Object.isFrozen(config.rules[0])).toBe(true);
  });

  it('prints itself as a file that gives the same configuration, without secrets', () => {
    const loaded = load({ argv: ['--workers=5', '--print-config'], env: { BERTH_TEST_SESSION_SECRET: 'hush' } });
    expect(loaded.request).toBe('print-config');
    const text = printConfig(program, loaded);
    expect(text).not.toContain('hush');
    expect(text).toContain('# processes (flag)\nworkers: 5\n');
    expect(load({ yaml: text, env: { BERTH_TEST_SESSION_SECRET: 'hush' } }).config).toEqual(loaded.config);
  });

  it('describes every option', () => {
    expect(describeOptions(program)).toMatch(/--gc-grace-ms DURATION +age before collection \(default 3600000\)/);
  });
});
