import { describe, expect, it } from 'vitest';
import {
  hostPlatform,
  matchesPlatform,
  parsePlatform,
  platformText,
  selectManifests,
} from '../../runtime/images/platform.ts';
import { digestOf } from '../../shared/digest.ts';
import { isKind } from '../../shared/errors.ts';
import type { Descriptor } from '../../shared/oci.ts';

const amd64 = hostPlatform('x64');

function entry(platform: string | undefined): Descriptor {
  const digest = digestOf(platform ?? 'silent');
  const [os = '', architecture = '', variant] = platform?.split('/') ?? [];
  const said = variant === undefined ? { os, architecture } : { os, architecture, variant };
  const base = { mediaType: 'application/vnd.oci.image.manifest.v1+json', digest, size: 1 };
  return platform === undefined ? base : { ...base, platform: said };
}

describe('parsePlatform', () => {
  it.each([
    ['linux/amd64', 'linux/amd64'],
    ['linux/x86_64', 'linux/amd64'],
    ['linux/amd64/v1', 'linux/amd64'],
    ['linux/arm64/v8', 'linux/arm64'],
    ['linux/arm64/8', 'linux/arm64'],
    ['linux/arm', 'linux/arm/v7'],
    ['linux/armhf', 'linux/arm/v7'],
    ['linux/armel', 'linux/arm/v6'],
    ['aarch64', 'linux/arm64'],
    ['linux', 'linux/amd64'],
    ['windows', 'windows/amd64'],
    ['Linux/RISCV64', 'linux/riscv64'],
  ])('reads %s as %s', (text, expected) => {
    expect(platformText(parsePlatform(text, amd64))).toBe(expected);
  });

  it.each(['', 'linux/', '/amd64', 'linux/amd64/v1/x', 'linux/../..', 'a b', 'nintendo64'])('refuses %j', (text) => {
    expect(() => parsePlatform(text, amd64)).toThrow(/cannot parse platform/);
    try {
      parsePlatform(text, amd64);
    } catch (error) {
      expect(isKind(error, 'invalid')).toBe(true);
    }
  });
});

describe('selectManifests', () => {
  const cases: readonly [string, readonly (string | undefined)[], readonly (string | undefined)[]][] = [
    ['linux/amd64', ['linux/arm64', 'linux/amd64'], ['linux/amd64']],
    ['linux/amd64/v3', ['linux/amd64', 'linux/amd64/v2', 'linux/amd64/v4'], ['linux/amd64/v2', 'linux/amd64']],
    ['linux/arm/v7', ['linux/arm/v5', 'linux/arm/v6', 'linux/arm64'], ['linux/arm/v6', 'linux/arm/v5']],
    ['linux/arm64', ['linux/arm/v7', 'linux/arm64/v8'], ['linux/arm64/v8']],
    ['linux/amd64', ['unknown/unknown', 'windows/amd64'], []],
    ['linux/amd64', [undefined, 'linux/amd64'], ['linux/amd64', undefined]],
    ['linux/s390x', ['linux/amd64', 'linux/s390x'], ['linux/s390x']],
    ['linux/386', ['linux/amd64', 'linux/386'], ['linux/386']],
  ];
  it.each(cases)('for %s among %j takes %j', (wanted, offered, expected) => {
    const chosen = selectManifests(offered.map(entry), parsePlatform(wanted, amd64));
    expect(chosen.map((manifest) => manifest.digest)).toEqual(expected.map((platform) => entry(platform).digest));
  });

  it('lets a host run its older relatives, unless the platform was asked for by name', () => {
    expect(selectManifests([entry('linux/386')], amd64)).toHaveLength(1);
    expect(selectManifests([entry('linux/386')], parsePlatform('linux/amd64', amd64))).toHaveLength(0);
    expect(matchesPlatform({ os: 'linux', architecture: 'arm', variant: 'v6' }, hostPlatform('arm64'))).toBe(true);
  });
});
