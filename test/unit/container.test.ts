import { describe, expect, it } from 'vitest';
import {
  type ContainerEvent,
  type ContainerState,
  type ContainerStatus,
  endedOf,
  exitCodeOf,
  STATUSES,
  TRANSITIONS,
  transition,
} from '../../runtime/containers/container.ts';
import { statusText } from '../../runtime/containers/status-text.ts';

const at = new Date('2026-01-02T03:04:05Z');
const ended = { startedAt: at, finishedAt: at, exitCode: 3, oomKilled: false };
const STATES: Readonly<Record<ContainerStatus, ContainerState>> = {
  created: { status: 'created' },
  running: { status: 'running', startedAt: at, pid: 7 },
  paused: { status: 'paused', startedAt: at, pid: 7 },
  restarting: { status: 'restarting', ...ended },
  exited: { status: 'exited', ...ended },
  removing: { status: 'removing', last: { status: 'exited', ...ended } },
  dead: { status: 'dead', last: { status: 'created' }, error: 'busy' },
};
const EVENTS: readonly ContainerEvent[] = [
  { type: 'started', at, pid: 8 },
  { type: 'start-failed', failure: { message: 'no', exitCode: 127 } },
  { type: 'paused' },
  { type: 'unpaused' },
  { type: 'exited', exitCode: 9, oomKilled: true, at },
  { type: 'restarting', exitCode: 9, oomKilled: false, at },
  { type: 'restart-cancelled' },
  { type: 'removing' },
  { type: 'remove-failed', error: 'busy' },
];

describe('transition', () => {
  for (const status of STATUSES)
    for (const event of EVENTS) {
      const row: Partial<Record<ContainerEvent['type'], ContainerStatus>> = TRANSITIONS[status];
      const next = row[event.type];
      it(`${status} by ${event.type} ${next === undefined ? 'is refused' : `is ${next}`}`, () => {
        if (next === undefined) expect(() => transition(STATES[status], event)).toThrow(`the container is ${status}`);
        else expect(transition(STATES[status], event).status).toBe(next);
      });
    }

  it('keeps when a run began, through a pause, to its end', () => {
    const paused = transition(STATES.running, { type: 'paused' });
    expect(transition(paused, { type: 'exited', exitCode: 1, oomKilled: false, at })).toEqual({
      status: 'exited',
      startedAt: at,
      finishedAt: at,
      exitCode: 1,
      oomKilled: false,
    });
  });

  it('forgets a failed start with the next one', () => {
    const failed = transition(STATES.exited, { type: 'start-failed', failure: { message: 'no', exitCode: 126 } });
    expect(exitCodeOf(failed)).toBe(126);
    expect(endedOf(failed)?.exitCode).toBe(3);
    const again = transition(transition(failed, { type: 'started', at, pid: 1 }), {
      type: 'exited',
      exitCode: 0,
      oomKilled: false,
      at,
    });
    expect(exitCodeOf(again)).toBe(0);
  });

  it('comes back from dead by removing it again, knowing what it was', () => {
    expect(transition(STATES.dead, { type: 'removing' })).toEqual({ status: 'removing', last: { status: 'created' } });
  });
});

it.each([
  [STATES.created, 'Created'],
  [STATES.running, 'Up 2 hours'],
  [STATES.paused, 'Up 2 hours (Paused)'],
  [STATES.restarting, 'Restarting (3) 2 hours ago'],
  [STATES.exited, 'Exited (3) 2 hours ago'],
  [STATES.removing, 'Removal In Progress'],
  [STATES.dead, 'Dead'],
])('tells the status as docker ps does: %#', (state, text) => {
  expect(statusText(state, { now: new Date(at.getTime() + 7_200_000) })).toBe(text);
});
