import { describe, expect, it } from 'vitest';
import { baseConfig, imageConfigOf, scratchConfig } from '../../../runtime/build/image-config.ts';
import { type KeyPart, stepKey } from '../../../runtime/build/step-key.ts';

describe('the config of a built image', () => {
  const facts = {
    platform: { os: 'linux', architecture: 'arm64', variant: 'v8' },
    config: { Env: ['A=1'], Labels: { a: '1', b: '1' } },
    history: [{ created_by: 'FROM x' }],
    author: undefined,
    createdAt: new Date(0),
    labels: {},
    inlineCache: undefined,
  };

  it('has what is known, and nothing else', () => {
    expect(Object.entries(imageConfigOf(facts))).toEqual([
      ['architecture', 'arm64'],
      ['variant', 'v8'],
      ['os', 'linux'],
      ['created', '1970-01-01T00:00:00.000Z'],
      ['config', facts.config],
      ['history', facts.history],
    ]);
    const { platform, ...rest } = facts;
    const bare = { platform: { os: platform.os, architecture: platform.architecture } };
    const unknown = imageConfigOf({ ...rest, ...bare, createdAt: undefined, author: 'me' });
    expect(Object.keys(unknown)).toEqual(['architecture', 'os', 'author', 'config', 'history']);
  });

  it('has the labels of the build over those of the Dockerfile', () => {
    expect(imageConfigOf({ ...facts, labels: { b: '2', c: '3' } })).toMatchObject({
      config: { Labels: { a: '1', b: '2', c: '3' } },
    });
    expect(facts.config.Labels).toEqual({ a: '1', b: '1' });
  });

  it('begins a stage without the triggers of its base, and with a PATH', () => {
    expect(scratchConfig()).toEqual({ Env: [expect.stringMatching(/^PATH=\/usr\/local\/sbin:/)], WorkingDir: '/' });
    expect(baseConfig({ OnBuild: ['RUN x'], Env: ['PATH=/bin'], User: 'u' })).toEqual({
      Env: ['PATH=/bin'],
      User: 'u',
    });
    expect(baseConfig({ Env: ['A=1'] }).Env).toEqual([expect.stringMatching(/^PATH=/), 'A=1']);
  });
});

describe('the key of a step', () => {
  it('is another for anything else', () => {
    const parts: readonly KeyPart[] = [
      [],
      [[]],
      [null],
      [''],
      ['a', 'b'],
      ['b', 'a'],
      ['a,b'],
      [['a'], 'b'],
      ['a', ['b']],
      [{ a: 'b' }],
      [1],
      ['1'],
      [true],
      [false],
    ];
    const keys = parts.map((part) => stepKey('run', part));
    expect(new Set([...keys, stepKey('copy', []), stepKey('workdir', [])]).size).toBe(parts.length + 2);
    expect(parts.map((part) => stepKey('run', part))).toEqual(keys);
  });
});
