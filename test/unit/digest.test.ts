import { describe, expect, it } from 'vitest';
import { chainIdOf, digestOf, isDigest, parseDigest } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';

describe('digest', () => {
  it('takes sha256 and sha512 in lower-case hex only', () => {
    expect(parseDigest(`sha256:${'a'.repeat(64)}`)).toBe(`sha256:${'a'.repeat(64)}`);
    for (const bad of ['', 'sha256:', `sha256:${'A'.repeat(64)}`, `md5:${'a'.repeat(32)}`, 'sha256:../../etc/passwd'])
      expect(() => parseDigest(bad)).toThrow(AppError);
    expect(isDigest(`sha512:${'0'.repeat(128)}`)).toBe(true);
  });

  it('folds diffIDs into chainIDs as the image specification says', () => {
    const [a, b] = [digestOf('a'), digestOf('b')];
    expect(chainIdOf([])).toBeUndefined();
    expect(chainIdOf([a])).toBe(a);
    expect(chainIdOf([a, b])).toBe(digestOf(`${a} ${b}`));
  });
});
