import { describe, expect, it } from 'vitest';
import type { BuildRequest } from '../../../runtime/build/builds.ts';
import { clamped, madeAt, withSourceDate } from '../../../runtime/build/source-date.ts';

describe('SOURCE_DATE_EPOCH', () => {
  const held = (given: Pick<BuildRequest, 'sourceDateEpoch' | 'buildArgs'>) => {
    const { sourceDateEpoch, buildArgs } = withSourceDate(given as BuildRequest);
    return [sourceDateEpoch, buildArgs?.SOURCE_DATE_EPOCH];
  };

  it('is a moment and an argument, whichever was given', () => {
    expect(held({})).toEqual([undefined, undefined]);
    expect(held({ buildArgs: { SOURCE_DATE_EPOCH: '' } })).toEqual([undefined, '']);
    expect(held({ buildArgs: { SOURCE_DATE_EPOCH: '17' } })).toEqual([17, '17']);
    expect(held({ sourceDateEpoch: 0 })).toEqual([0, '0']);
    expect(held({ sourceDateEpoch: 1, buildArgs: { SOURCE_DATE_EPOCH: '2' } })).toEqual([1, '2']);
  });

  it.each(['-1', '1.5', '1e3', 'now', '999999999999'])('is not %s', (text) => {
    expect(() => held({ buildArgs: { SOURCE_DATE_EPOCH: text } })).toThrow('want seconds since 1970');
  });

  it('is the time of what a build makes, and bounds what others made', () => {
    const at = (seconds: number) => new Date(seconds * 1000);
    expect([madeAt(at(5), 9), madeAt(at(5), 1), madeAt(at(5), undefined)]).toEqual([at(9), at(1), at(5)]);
    expect([clamped(at(5), 9), clamped(at(5), 1), clamped(at(5), undefined)]).toEqual([at(5), at(1), at(5)]);
  });
});
