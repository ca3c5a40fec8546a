import { expect, it } from 'vitest';
import { goArchitecture, parseOsRelease } from '../../runtime/description.ts';

it('reads os-release with and without quotes', () => {
  const text =
    'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n# comment\nVERSION_ID=\'12\'\nbad line\nHOME_URL=\n';
  expect(parseOsRelease(text)).toEqual({
    PRETTY_NAME: 'Debian GNU/Linux 12 (bookworm)',
    ID: 'debian',
    VERSION_ID: '12',
    HOME_URL: '',
  });
});

it.each([
  ['x64', 'amd64'],
  ['arm64', 'arm64'],
  ['ia32', '386'],
] as const)('calls %s as images do: %s', (node, go) => {
  expect(goArchitecture(node)).toBe(go);
});
