import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { claimDirectory, enginePlace } from '../../shared/engine-place.ts';
import { judgePrivilege } from '../../shared/privilege.ts';

const uid = process.geteuid?.() ?? 0;
/** Nobody has this id, so it has no directory below /run/user. */
const STRANGER = 987_654;
let base = '';
beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), 'berth-place-'));
});
afterEach(() => rmSync(base, { recursive: true }));

describe('privilege', () => {
  const whole = '         0          0 4294967295\n';
  it.each([
    ['root of the host', { uid: 0, status: 'CapEff:\t000001ffffffffff\n', uidMap: whole }, 'full'],
    ['root of a kernel without user namespaces', { uid: 0, status: 'CapEff:\t000001ffffffffff\n', uidMap: '' }, 'full'],
    ['an ordinary user', { uid: 1000, status: 'CapEff:\t0000000000000000\n', uidMap: whole }, 'user'],
    ['root of a container', { uid: 0, status: 'CapEff:\t00000000a80425fb\n', uidMap: whole }, 'confined'],
    [
      'root of a rootless container',
      { uid: 0, status: 'CapEff:\t000001ffffffffff\n', uidMap: '0 1000 1\n' },
      'namespace',
    ],
    ['nothing known', { uid: 0, status: '', uidMap: whole }, 'confined'],
  ] as const)('of %s', (_who, facts, expected) => {
    expect(judgePrivilege(facts)).toBe(expected);
  });
});

describe('the place of an engine', () => {
  it('is the system for root of the host, whatever the environment says', () => {
    const env = { HOME: base, XDG_DATA_HOME: base, XDG_RUNTIME_DIR: base };
    expect(enginePlace({ privilege: 'full', uid: 0, env })).toMatchObject({
      root: '/var/lib/berth',
      socketPath: '/run/berth/berth.sock',
      configFile: '/etc/berth/engine.yaml',
      claim: undefined,
    });
  });

  it.each(['user', 'confined', 'namespace'] as const)('is in XDG directories for privilege %s', (privilege) => {
    const env = { HOME: '/nowhere', XDG_DATA_HOME: join(base, 'data'), XDG_RUNTIME_DIR: join(base, 'not-yet') };
    expect(enginePlace({ privilege, uid, env })).toEqual({
      root: join(base, 'data/berth'),
      runDir: join(base, 'not-yet/berth'),
      socketPath: join(base, 'not-yet/berth/berth.sock'),
      configFile: '/nowhere/.config/berth/engine.yaml',
      claim: undefined,
    });
  });

  it('is at home without XDG_DATA_HOME, and below /tmp where there is no runtime directory', () => {
    const env = { HOME: base, XDG_DATA_HOME: 'relative' };
    expect(enginePlace({ privilege: 'user', uid: STRANGER, env })).toMatchObject({
      root: join(base, '.local/share/berth'),
      runDir: `/tmp/berth-${STRANGER}`,
      claim: `/tmp/berth-${STRANGER}`,
    });
  });

  it('is below /tmp altogether for a user who has nothing', () => {
    expect(enginePlace({ privilege: 'user', uid: STRANGER, env: { HOME: '/nonexistent' } })).toMatchObject({
      root: `/tmp/berth-${STRANGER}/data`,
      claim: `/tmp/berth-${STRANGER}`,
    });
  });

  it("never uses another user's runtime directory", () => {
    const env = { HOME: base, XDG_RUNTIME_DIR: base };
    expect(enginePlace({ privilege: 'user', uid: STRANGER, env }).runDir).toBe(`/tmp/berth-${STRANGER}`);
  });
});

describe('claiming a directory that others could have made', () => {
  it('makes it for this user alone, and takes it again', () => {
    const path = join(base, 'mine');
    claimDirectory(path, uid);
    expect(() => claimDirectory(path, uid)).not.toThrow();
  });

  it.each<[string, (path: string) => void, number]>([
    ['somebody else owns', (path) => mkdirSync(path, { mode: 0o700 }), STRANGER],
    [
      'others can enter',
      (path) => {
        mkdirSync(path);
        chmodSync(path, 0o711);
      },
      uid,
    ],
    ['is a link', (path) => symlinkSync(base, path), uid],
  ])('refuses one that %s', (_what, make, who) => {
    const path = join(base, 'squatted');
    make(path);
    expect(() => claimDirectory(path, who)).toThrow(expect.objectContaining({ kind: 'denied' }));
  });
});
