import { expect, it } from 'vitest';
import type { Health } from '../../runtime/containers/containers.ts';
import { afterProbe, planHealth } from '../../runtime/containers/health.ts';

const none = { Test: [], Interval: 0, Timeout: 0, StartPeriod: 0, StartInterval: 0, Retries: 0 };

it.each([
  [['CMD', 'a', 'b'], [], ['a', 'b']],
  [['CMD-SHELL', 'a b'], [], ['/bin/sh', '-c', 'a b']],
  [
    ['CMD-SHELL', 'a b'],
    ['/bin/bash', '-c'],
    ['/bin/bash', '-c', 'a b'],
  ],
  [['NONE'], [], undefined],
  [[], [], undefined],
])('runs %j', (Test, shell, command) => {
  expect(planHealth({ ...none, Test }, shell)?.command).toEqual(command);
});

it('has docker’s times', () => {
  expect(planHealth({ ...none, Test: ['CMD', 'a'], Interval: 2e9 }, [])).toMatchObject({
    intervalMs: 2000,
    timeoutMs: 30_000,
    startIntervalMs: 5000,
    retries: 3,
  });
});

const starting: Health = { status: 'starting', failingStreak: 0, log: [] };
const probe = (exitCode: number) => ({ start: new Date(0), end: new Date(0), exitCode, output: '' });
const after = (codes: readonly number[], options = { retries: 2, isStarting: false }) =>
  codes.reduce((health, code) => afterProbe(health, probe(code), options), starting);

it.each([
  [[0], 'healthy', 0],
  [[1], 'starting', 1],
  [[1, 1], 'unhealthy', 2],
  [[0, 1], 'healthy', 1],
  [[0, 1, 1], 'unhealthy', 2],
  [[1, 1, 0], 'healthy', 0],
])('after %j it is %s', (codes, status, failingStreak) => {
  expect(after(codes)).toMatchObject({ status, failingStreak });
});

it('forgives failures while it starts, and keeps five probes', () => {
  const health = after([1, 1, 1, 1, 1, 1, 1], { retries: 2, isStarting: true });
  expect(health).toMatchObject({ status: 'starting', failingStreak: 0 });
  expect(health.log).toHaveLength(5);
});
