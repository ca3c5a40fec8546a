import { describe, expect, it } from 'vitest';
import { baseSource, fromSource, planBuild, stageName } from '../../../runtime/build/plan.ts';
import { parseDockerfile } from '../../../runtime/dockerfile/dockerfile.ts';

const parse = (text: string) => parseDockerfile(text, { name: 'Dockerfile' });

function planned(text: string, target?: string, contexts: readonly string[] = []) {
  const { stages } = planBuild(parse(text), {
    target,
    contexts: new Set(contexts),
    baseOf: (stage) => stage.from.image,
  });
  return stages.map(stageName);
}

describe('what the target needs', () => {
  const DIAMOND = [
    'FROM base AS a',
    'FROM a AS left',
    'FROM a AS right',
    'FROM scratch AS unused',
    'COPY --from=left /x /',
    'FROM scratch AS end',
    'COPY --from=left /x /',
    'RUN --mount=type=bind,from=right,target=/r true',
    'FROM other',
  ].join('\n');

  it.each<[title: string, text: string, target: string | undefined, stages: readonly string[]]>([
    ['the last stage', DIAMOND, undefined, ['stage-5']],
    ['an empty target is the last stage, too', DIAMOND, '', ['stage-5']],
    ['COPY --from, RUN --mount and FROM', DIAMOND, 'end', ['a', 'left', 'right', 'end']],
    ['names in any case', DIAMOND, 'END', ['a', 'left', 'right', 'end']],
    ['a number', DIAMOND, '1', ['a', 'left']],
    ['a number in --from', 'FROM a\nFROM b\nCOPY --from=0 /x /', undefined, ['stage-0', 'stage-1']],
    [
      'a cache that is seeded',
      'FROM a AS s\nFROM b\nRUN --mount=type=cache,from=s,target=/c true',
      '1',
      ['s', 'stage-1'],
    ],
    [
      'the last of two stages with a name',
      'FROM a AS s\nFROM b AS s\nFROM c\nCOPY --from=s /x /',
      '2',
      ['s', 'stage-2'],
    ],
    [
      'a stage below, by --from only',
      'FROM a AS first\nCOPY --from=second /x /\nFROM b AS second',
      'first',
      ['first', 'second'],
    ],
  ])('%s', (_, text, target, stages) => {
    expect(planned(text, target)).toEqual(stages);
  });

  it('takes a named context before a stage, and a stage before an image', () => {
    const dockerfile = parse('FROM a AS one\nFROM one AS two\nCOPY --from=one /x /');
    const at = (name: string, ...contexts: readonly string[]) => fromSource(dockerfile, name, new Set(contexts));
    expect([at('one'), at('ONE'), at('one', 'one'), at('1'), at('7'), at('alpine')]).toEqual([
      { kind: 'stage', index: 0 },
      { kind: 'stage', index: 0 },
      { kind: 'context', name: 'one' },
      { kind: 'stage', index: 1 },
      { kind: 'image', reference: '7' },
      { kind: 'image', reference: 'alpine' },
    ]);
    expect(planned('FROM a AS one\nFROM one AS two', undefined, ['one'])).toEqual(['two']);
  });

  it('takes only stages above for FROM, where numbers and scratch are images and a stage may hide an image', () => {
    const dockerfile = parse('FROM alpine AS alpine\nFROM alpine\nFROM 0\nFROM scratch AS later');
    const bases = dockerfile.stages.map((stage) =>
      baseSource(dockerfile, stage, { contexts: new Set(), baseOf: ({ from }) => from.image }),
    );
    expect(bases).toEqual([
      { kind: 'image', reference: 'alpine' },
      { kind: 'stage', index: 0 },
      { kind: 'image', reference: '0' },
      { kind: 'scratch' },
    ]);
  });
});

describe('what cannot be planned', () => {
  it.each<[title: string, text: string, target: string | undefined, message: string]>([
    ['a missing stage', 'FROM a', 'b', 'target stage "b" could not be found'],
    ['a number too high', 'FROM a', '1', 'target stage "1" could not be found'],
    ['a very long number', 'FROM a', '00000000000000000000', 'could not be found'],
    ['itself', 'FROM a AS x\nCOPY --from=x /a /b', undefined, 'circular dependency detected on stage: x'],
    [
      'stages that need each other',
      'FROM a AS x\nCOPY --from=z /a /b\nFROM x AS y\nFROM y AS z',
      'x',
      'circular dependency detected on stage: x',
    ],
    [
      'through a mount',
      'FROM a AS x\nRUN --mount=from=y,target=/y true\nFROM x AS y',
      undefined,
      'circular dependency detected on stage: y',
    ],
  ])('%s', (_, text, target, message) => {
    expect(() => planned(text, target)).toThrow(message);
  });

  it('says nothing of a cycle that the target does not need', () => {
    expect(planned('FROM a AS x\nCOPY --from=x /a /b\nFROM b AS y', 'y')).toEqual(['y']);
  });

  it('gets to the end of the longest Dockerfile that there can be', () => {
    const lines = Array.from({ length: 1001 }, (_, index) => `FROM s${index} AS s${index + 1}`);
    expect(planned(lines.slice(1).join('\n'))).toHaveLength(1000);
    expect(() => planned(lines.join('\n'))).toThrow('a Dockerfile has at most 1000 stages\nDockerfile:1001:1');
  });
});
