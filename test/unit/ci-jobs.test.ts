/** The jobs in docs/ci.md are the files in deploy/ci, and both do the same. */
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { parse } from 'yaml';

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');

it.each(['gitlab-ci.yml', 'github-actions.yml'])('docs/ci.md shows %s as it is', (name) => {
  const blocks = [...read('docs/ci.md').matchAll(/^```yaml\n([\s\S]*?)^```$/gm)].map(([, block]) => block);
  expect(blocks).toContain(read(`deploy/ci/${name}`));
});

it.each([
  ['build', 'build and push'],
  ['publish', 'publish the index'],
])('the job %s is the same for both', (job, step) => {
  const gitlab = parse(read('deploy/ci/gitlab-ci.yml'))[job].script as readonly string[];
  const { steps } = parse(read('deploy/ci/github-actions.yml')).jobs[job] as {
    steps: readonly Record<string, string>[];
  };
  expect(steps.find(({ name }) => name === step)?.run).toBe(`${gitlab.join('\n')}\n`);
});
