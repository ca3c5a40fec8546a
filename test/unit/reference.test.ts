import { describe, expect, it } from 'vitest';
import { AppError } from '../../shared/errors.ts';
import {
  canonicalReference,
  familiarName,
  familiarReference,
  isRepository,
  isTag,
  manifestReference,
  parseReference,
} from '../../shared/reference.ts';

const SHA256 = `sha256:${'f'.repeat(64)}`;
const HEX64 = '1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a';

describe('reference', () => {
  // written, canonical, as people see it: Docker's normalisation.
  it.each([
    ['debian', 'docker.io/library/debian:latest', 'debian:latest'],
    ['library/debian', 'docker.io/library/debian:latest', 'debian:latest'],
    ['docker.io/debian', 'docker.io/library/debian:latest', 'debian:latest'],
    ['docker.io/library/debian', 'docker.io/library/debian:latest', 'debian:latest'],
    ['index.docker.io/debian', 'docker.io/library/debian:latest', 'debian:latest'],
    ['index.docker.io/docker/docker', 'docker.io/docker/docker:latest', 'docker/docker:latest'],
    ['docker/docker', 'docker.io/docker/docker:latest', 'docker/docker:latest'],
    ['library/a/b', 'docker.io/library/a/b:latest', 'library/a/b:latest'],
    ['127.0.0.1:5000/debian', '127.0.0.1:5000/debian:latest', '127.0.0.1:5000/debian:latest'],
    ['127.0.0.1:5000/library/debian', '127.0.0.1:5000/library/debian:latest', '127.0.0.1:5000/library/debian:latest'],
    ['localhost/debian', 'localhost/debian:latest', 'localhost/debian:latest'],
    ['LOCALHOST/debian', 'LOCALHOST/debian:latest', 'LOCALHOST/debian:latest'],
    ['192.168.0.1', 'docker.io/library/192.168.0.1:latest', '192.168.0.1:latest'],
    ['192.168.0.1:80', 'docker.io/library/192.168.0.1:80', '192.168.0.1:80'],
    ['192.168.0.1:8/debian', '192.168.0.1:8/debian:latest', '192.168.0.1:8/debian:latest'],
    ['[fc00::1]:5000/docker', '[fc00::1]:5000/docker:latest', '[fc00::1]:5000/docker:latest'],
    ['lowercase:Uppercase', 'docker.io/library/lowercase:Uppercase', 'lowercase:Uppercase'],
    ['a--b__c/d.e', 'docker.io/a--b__c/d.e:latest', 'a--b__c/d.e:latest'],
    [`docker.io/${HEX64}`, `docker.io/library/${HEX64}:latest`, `${HEX64}:latest`],
    [`debian@${SHA256}`, `docker.io/library/debian@${SHA256}`, `debian@${SHA256}`],
    [`host.example/a/b:v1@${SHA256}`, `host.example/a/b:v1@${SHA256}`, `host.example/a/b:v1@${SHA256}`],
  ])('%s is %s', (written, canonical, familiar) => {
    const reference = parseReference(written);
    expect(canonicalReference(reference)).toBe(canonical);
    expect(familiarReference(reference)).toBe(familiar);
    expect(parseReference(canonical)).toEqual(reference);
    expect(parseReference(familiar)).toEqual(reference);
  });

  it.each([
    '',
    ':latest',
    `@${SHA256}`,
    'https://github.com/docker/docker',
    'docker/Docker',
    'Uppercase:tag',
    'test:5000/Uppercase/lowercase:tag',
    '-docker',
    '-docker/docker',
    '-docker.io/docker/docker',
    'docker///docker',
    'docker.io/docker///docker',
    'docker.io/',
    'docker./',
    '[fc00::1]',
    'a/../b',
    'a/./b',
    'a..b',
    'a___b',
    '_a',
    'a_',
    'aa/asdf$$^/aa',
    'a b',
    'a\n',
    'ä',
    HEX64,
    'repo@sha256:ffffffffffffffffffffffffffffffffff',
    `repo@md5:${'f'.repeat(32)}`,
    `repo@${SHA256}@${SHA256}`,
    'repo:',
    'repo:-tag',
    'repo:.tag',
    `repo:${'a'.repeat(129)}`,
    'a'.repeat(256),
    'a'.repeat(100_000),
  ])('refuses %j', (written) => {
    expect(() => parseReference(written)).toThrow(AppError);
  });

  it('keeps what was written when asked to', () => {
    expect(parseReference('debian', { bare: true }).tag).toBeUndefined();
    expect(parseReference('debian:12', { bare: true }).tag).toBe('12');
  });

  it('asks a registry for the digest before the tag', () => {
    expect(manifestReference(parseReference(`a:b@${SHA256}`))).toBe(SHA256);
    expect(manifestReference(parseReference('a:b'))).toBe('b');
    expect(familiarName(parseReference('debian:12'))).toBe('debian');
  });

  it('limits names to what the specification advises', () => {
    expect(isRepository('a'.repeat(255))).toBe(true);
    expect(isRepository('a'.repeat(256))).toBe(false);
    expect(isTag('a'.repeat(128))).toBe(true);
    expect(isTag('a'.repeat(129))).toBe(false);
    expect(isTag('')).toBe(false);
  });
});
