import { describe, expect, it } from 'vitest';
import { createClassicWords, failureDetail, successMessages } from '../../runtime/api/build-words.ts';
import type { ProgressMessage } from '../../runtime/api/progress.ts';
import type { BuildEvent, BuildStep } from '../../runtime/engine.ts';
import { AppError } from '../../shared/errors.ts';

function step(
  id: number,
  stage: string | undefined,
  [index, total]: readonly [number, number],
  text: string,
): BuildStep {
  return { id, text, stage, position: { index, total }, platform: undefined, line: id };
}
const ended = (of: BuildStep, outcome: 'done' | 'cached' | 'failed', result?: string): BuildEvent => ({
  ...{ kind: 'ended', step: of, outcome, durationMs: 1, message: undefined, result },
});
const output = (of: BuildStep, stream: 'stdout' | 'stderr', text: string | Buffer): BuildEvent => ({
  ...{ kind: 'output', step: of, stream, bytes: Buffer.from(text) },
});
const joined = (messages: readonly ProgressMessage[]) => messages.map(({ stream = '' }) => stream).join('');

describe('the words of the classic builder', () => {
  it('are what dockerd says for the same build', () => {
    const words = createClassicWords();
    const from = step(1, 'main', [1, 3], 'FROM busybox');
    const run = step(2, 'main', [2, 3], 'RUN echo hi');
    const copy = step(3, 'main', [3, 3], 'COPY a /a');
    const events: readonly BuildEvent[] = [
      { kind: 'planned', platform: undefined, stages: [{ name: 'main', steps: 3 }] },
      { kind: 'started', step: { ...from, id: 0, stage: undefined, position: undefined, text: '[internal] load' } },
      { kind: 'started', step: from },
      ended(from, 'cached', `sha256:${'9'.repeat(64)}`),
      { kind: 'started', step: run },
      { kind: 'running', step: run, containerId: '7ad53aff1787aaaa' },
      output(run, 'stdout', 'hi\n'),
      output(run, 'stderr', 'oh\n'),
      ended(run, 'done', 'a'.repeat(64)),
      { kind: 'started', step: copy },
      ended(copy, 'cached', 'b'.repeat(64)),
    ];
    expect(events.flatMap((event) => words.take(event)).map(({ stream }) => stream)).toEqual([
      ...['Step 1/3 : FROM busybox', '\n', ' ---> 999999999999\n'],
      ...['Step 2/3 : RUN echo hi', '\n', ' ---> Running in 7ad53aff1787\n', 'hi\n', '\u001b[91moh\n\u001b[0m'],
      ...[' ---> Removed intermediate container 7ad53aff1787\n', ' ---> aaaaaaaaaaaa\n'],
      ...['Step 3/3 : COPY a /a', '\n', ' ---> Using cache\n', ' ---> bbbbbbbbbbbb\n'],
    ]);
    expect(words.rest()).toEqual([]);
    const id = `sha256:${'c'.repeat(64)}`;
    expect(successMessages(id, { tags: ['local/built', 'docker.io/library/x:2'], warnings: [] })).toEqual([
      { aux: { ID: id } },
      { stream: 'Successfully built cccccccccccc\n' },
      { stream: 'Successfully tagged local/built:latest\n' },
      { stream: 'Successfully tagged x:2\n' },
    ]);
  });

  it('tell steps that run side by side one after the other, each whole', () => {
    const words = createClassicWords();
    const [a, b] = [step(1, 'a', [1, 2], 'RUN a'), step(2, 'b', [1, 2], 'RUN b')];
    const told = (event: BuildEvent) => joined(words.take(event));
    told({
      kind: 'planned',
      platform: undefined,
      stages: [
        { name: 'a', steps: 2 },
        { name: 'b', steps: 2 },
      ],
    });
    expect(told({ kind: 'started', step: b })).toBe('Step 3/4 : RUN b\n');
    expect(told({ kind: 'started', step: a })).toBe('');
    expect(told(output(a, 'stdout', 'from a\n'))).toBe('');
    expect(told(output(b, 'stdout', 'from b\n'))).toBe('from b\n');
    expect(told(ended(b, 'done'))).toBe('Step 1/4 : RUN a\nfrom a\n');
    expect(told(output(a, 'stdout', Buffer.from([0xc3])))).toBe('');
    expect(told(output(a, 'stdout', Buffer.from([0xa4])))).toBe('ä');
  });

  it('hold back a bounded amount', () => {
    const words = createClassicWords();
    const [a, b] = [step(1, 'a', [1, 2], 'RUN a'), step(2, 'a', [2, 2], 'RUN b')];
    words.take({ kind: 'started', step: a });
    words.take({ kind: 'started', step: b });
    let told = '';
    for (let i = 0; i < 6; i++) told += joined(words.take(output(b, 'stdout', 'x'.repeat(1 << 20))));
    expect(told.length).toBeGreaterThan(4 << 20);
    expect(told).toContain('RUN b');
  });

  it('end a failed build with the code of its command, and nothing else with one', () => {
    const detail = { step: 'RUN exit 9', file: 'Dockerfile', line: 4, exitCode: 9 };
    expect(failureDetail(new AppError('conflict', 'cannot build', { detail }))).toEqual({
      code: 9,
      message: "The command '/bin/sh -c exit 9' returned a non-zero code: 9",
    });
    const command = '/bin/bash -c exit 9';
    expect(failureDetail(new AppError('conflict', 'x', { detail: { ...detail, command } }))?.message).toContain(
      command,
    );
    expect(failureDetail(new AppError('not-found', 'no such file'))).toEqual({ message: 'no such file' });
    expect(failureDetail(new Error('bug'))).toBeUndefined();
  });
});
