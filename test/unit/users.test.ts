import { describe, expect, it } from 'vitest';
import { resolveUser } from '../../runtime/containers/users.ts';

const files = {
  passwd:
    'root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken\nweb:x:33:34:w:/var/www:/bin/sh\n1000:x:7:7::/seven:\nbig:x:99999999999:1::/:\n',
  group: 'root:x:0:\nadm:x:4:root,web\nweb:x:34:\nwww:x:80:web\n500:x:5:\n',
};
const resolve = (spec: string, groupAdd: readonly string[] = []) => resolveUser(spec, groupAdd, files);

describe('USER', () => {
  it.each([
    ['', 0, 0, [4], '/root'],
    ['root', 0, 0, [4], '/root'],
    ['web', 33, 34, [4, 80], '/var/www'],
    ['33', 33, 34, [4, 80], '/var/www'],
    ['web:adm', 33, 4, [], '/var/www'],
    ['web:12', 33, 12, [], '/var/www'],
    ['12:13', 12, 13, [], '/'],
    ['12', 12, 0, [], '/'],
    [':adm', 0, 4, [], '/root'],
    ['web:', 33, 34, [4, 80], '/var/www'],
  ])('%j', (spec, uid, gid, additionalGids, home) => {
    expect(resolve(spec)).toEqual({ uid, gid, additionalGids, home });
  });

  it('CVE-2026-46680: a number is an id, even where a user or group has it for a name', () => {
    expect(resolve('1000')).toMatchObject({ uid: 1000, gid: 0, home: '/' });
    expect(resolve('0:500')).toMatchObject({ gid: 500 });
    expect(resolve('', ['500'])).toMatchObject({ additionalGids: [4, 500] });
  });

  it('adds groups by name and number, once', () => {
    expect(resolve('web', ['www', '80', '7']).additionalGids).toEqual([4, 80, 7]);
  });

  it.each([
    ['nobody', 'unable to find user nobody: no matching entries in passwd file'],
    ['web:nogroup', 'unable to find group nogroup: no matching entries in group file'],
    ['big', 'unable to find user big: no matching entries in passwd file'],
    ['2147483648', 'uids and gids must be in range 0-2147483647'],
    ['-1', 'uids and gids must be in range 0-2147483647'],
  ])('refuses %j', (spec, message) => {
    expect(() => resolve(spec)).toThrow(message);
  });

  it('does without the files where numbers suffice', () => {
    const none = { passwd: undefined, group: undefined };
    expect(resolveUser('', [], none)).toEqual({ uid: 0, gid: 0, additionalGids: [], home: '/' });
    expect(() => resolveUser('web', [], none)).toThrow('unable to find user web');
  });

  it('CVE-2026-47262: a long group file costs time in proportion, and no copy per line', () => {
    const group = `${'\n'.repeat(4_000_000)}last:x:9:web`;
    expect(resolveUser('web', ['last'], { ...files, group }).additionalGids).toEqual([9]);
  });
});
