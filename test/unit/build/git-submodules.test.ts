import { expect, it } from 'vitest';
import { submodulesOf } from '../../../runtime/build/git-submodules.ts';

const COMMIT = '0'.repeat(40);

function remoteOf(url: string, remote = 'https://host/team/app.git'): string | undefined {
  const config = `submodule.../../evil.path\nvendor/x\0submodule.../../evil.url\n${url}\0core.bare\ntrue\0`;
  const [found] = submodulesOf({ remote, links: new Map([['vendor/x', COMMIT]]), config });
  expect(found).toMatchObject({ path: 'vendor/x', commit: COMMIT });
  return found?.remote;
}

it.each([
  ['https://other/x', undefined, 'https://other/x'],
  ['git@other:x.git', undefined, 'git@other:x.git'],
  ['../lib.git', undefined, 'https://host/team/lib.git'],
  ['./lib.git', undefined, 'https://host/team/app.git/lib.git'],
  ['../../other/lib.git', undefined, 'https://host/other/lib.git'],
  ['./../lib', 'git@host:team/app.git', 'git@host:team/lib'],
  ['../../lib', 'git@host:team/app.git', 'git@host:lib'],
])('a submodule at %s of %s is fetched from %s', (url, remote, expected) => {
  expect(remoteOf(url, remote)).toBe(expected);
});

// CVE-2018-17456: an address that is taken for an option; others lead to this host.
it.each([
  '--upload-pack=touch /tmp/x',
  'ssh://-oProxyCommand=x/repo.git',
  'file:///etc',
  '/etc',
  '../../../../x',
  'ext::sh -c x',
  '',
])('refuses a submodule at %j', (url) => {
  expect(() => remoteOf(url)).toThrow(expect.objectContaining({ kind: 'invalid' }));
});

it('refuses one that .gitmodules does not know', () => {
  const words = { remote: 'https://host/a.git', links: new Map([['x', COMMIT]]), config: '' };
  expect(() => submodulesOf(words)).toThrow('there is no url for it');
});
