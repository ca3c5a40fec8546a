import { expect, it } from 'vitest';
import manifest from '../../package.json' with { type: 'json' };
import { VERSION } from '../../runtime/version.ts';

it('the engine says the version of its package', () => {
  expect(VERSION).toBe(manifest.version);
});
