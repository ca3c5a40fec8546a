import { describe, expect, it } from 'vitest';
import type { ProgressKind } from '../../../runtime/cli/build-request.ts';
import { type BuildView, createBuildView } from '../../../runtime/cli/build-view.ts';

function shown(kind: ProgressKind, work: (view: BuildView) => void, terminal = false): string {
  const written: string[] = [];
  const write = (text: string) => written.push(text);
  const output = { isTTY: terminal, columns: 60, rows: 10, write };
  let now = 0;
  const view = createBuildView({ output: output as unknown as NodeJS.WriteStream, kind, clock: () => (now += 100) });
  work(view);
  view.end();
  return written.join('');
}

const started = (id: number, text: string, index: number) => ({
  ...{ kind: 'started', step: { id, text, stage: 'build', position: { index, total: 3 } } },
});
const output = (step: number, text: string) => ({ kind: 'output', step, stream: 'stdout', text });
const ended = (step: number, outcome: string, message?: string) => ({
  ...{ kind: 'ended', step, outcome, durationMs: 2100, message },
});

function story(view: BuildView): void {
  for (const event of [
    started(1, 'FROM a', 1),
    ended(1, 'cached'),
    started(2, 'RUN npm ci', 2),
    started(3, 'COPY x /', 3),
    output(2, 'one\ntw'),
    ended(3, 'done'),
    output(2, 'o\r\n'),
    output(2, 'last'),
    ended(2, 'failed', 'it ended with code 1'),
  ])
    view.show(event);
}

describe('progress of a build', () => {
  it('is plain lines in a pipe, each of its step', () => {
    expect(shown('auto', story).replaceAll(/ \d\.\d{3} /g, ' T ')).toBe(
      [
        '#1 [build 1/3] FROM a',
        '#1 CACHED',
        '',
        '#2 [build 2/3] RUN npm ci',
        '#2 T one',
        '',
        '#3 [build 3/3] COPY x /',
        '#3 DONE 2.1s',
        '',
        '#2 [build 2/3] RUN npm ci',
        '#2 T two',
        '#2 T last',
        '#2 ERROR: it ended with code 1',
        '',
      ].join('\n'),
    );
  });

  it('folds finished steps on a terminal, and shows the whole output of the one that failed', () => {
    const text = shown('auto', story, true);
    expect(text).toContain('✔ [build 1/3] FROM a');
    expect(text).toContain('CACHED\n');
    expect(text).toMatch(/✖ \[build 2\/3\] RUN npm ci +2\.1s\n {4}one\n {4}two\n {4}last\n/);
    expect(text).not.toContain('COPY x /\n');
  });

  it('can be the engine’s events, or only what failed', () => {
    expect(JSON.parse(shown('rawjson', (view) => view.show(started(1, 'FROM a', 1))))).toMatchObject({
      kind: 'started',
    });
    expect(shown('quiet', story)).toBe('[build 2/3] RUN npm ci\n    one\n    two\n    last\n');
  });
});
