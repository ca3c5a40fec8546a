import { describe, expect, it } from 'vitest';
import { overlayData, parseMountinfo } from '../../runtime/kernel/mount.ts';

describe('overlay mount data', () => {
  const writable = { upper: '../u', work: '../w' };
  it.each([
    [{ lowers: ['1', '0'], target: '/t', cwd: '/' }, 'lowerdir=1:0,index=off,redirect_dir=nofollow,metacopy=off'],
    [
      { lowers: ['1'], target: '/t', cwd: '/', writable },
      'lowerdir=1,upperdir=../u,workdir=../w,index=off,redirect_dir=nofollow,metacopy=off',
    ],
    [
      { lowers: ['1'], target: '/t', cwd: '/', writable, volatile: true },
      'lowerdir=1,upperdir=../u,workdir=../w,index=off,redirect_dir=nofollow,metacopy=off,volatile',
    ],
    [
      { lowers: ['a:b,c\\d', 'e'], target: '/t', cwd: '/' },
      'lowerdir=a\\:b\\,c\\\\d:e,index=off,redirect_dir=nofollow,metacopy=off',
    ],
  ])('%j', (overlay, expected) => {
    expect(overlayData(overlay)).toBe(expected);
  });
  it.each([
    ['no layer', [], 'invalid'],
    ['one layer and nothing to write to', ['1'], 'invalid'],
    ['501 layers', Array(501).fill('1'), 'too-large'],
    ['more than a page', Array(500).fill('12345678'), 'too-large'],
  ])('refuses %s', (_name, lowers, kind) => {
    expect(() => overlayData({ lowers, target: '/t', cwd: '/' })).toThrow(expect.objectContaining({ kind }));
  });
});

describe('mountinfo', () => {
  it('unescapes names, keeps their bytes, and ignores optional fields', () => {
    const line =
      '43 27 0:40 /sub\\040dir /m\\011nt/\\303\\244\\134x rw,relatime shared:1 master:2 - overlay over\\040lay rw,lowerdir=1\\0542';
    expect(parseMountinfo(Buffer.from(`${line}\nnonsense\n`))).toEqual([
      {
        mountId: 43,
        root: '/sub dir',
        target: '/m\tnt/ä\\x',
        type: 'overlay',
        source: 'over lay',
        options: ['rw', 'relatime'],
        superOptions: ['rw', 'lowerdir=1,2'],
      },
    ]);
  });
  it('keeps names that are UTF-8 already', () => {
    expect(parseMountinfo(Buffer.from('1 0 0:1 / /ä\\040b rw - tmpfs tmpfs rw'))[0]?.target).toBe('/ä b');
  });
});
