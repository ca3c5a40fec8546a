/**
 * Platforms: which manifest of an index is the one for this host, or for the `--platform` that was asked for.
 * Normalisation and the order of preference follow containerd, so that both choose the same manifest.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/image-index.md#image-index-property-descriptions
 * Pure: no I/O.
 */
import { AppError } from '../../shared/errors.ts';
import type { Descriptor } from '../../shared/oci.ts';

export interface ImagePlatform {
  readonly os: string;
  readonly architecture: string;
  /** Normalised: undefined is the architecture's ordinary one (amd64 v1, arm64 v8). */
  readonly variant: string | undefined;
}

export interface WantedPlatform extends ImagePlatform {
  /** Asked for by name: then only this architecture will do. The host's own also runs its older relatives. */
  readonly explicit: boolean;
}

const ARCHITECTURES: Readonly<Record<string, string>> = {
  x86_64: 'amd64',
  'x86-64': 'amd64',
  x64: 'amd64',
  aarch64: 'arm64',
  i386: '386',
  i686: '386',
  ia32: '386',
  armhf: 'arm',
  armel: 'arm',
  ppc64el: 'ppc64le',
};
/** What a platform of one word may be; in longer ones anything goes. */
const KNOWN_SYSTEMS = ['linux', 'windows', 'darwin', 'freebsd'];
const KNOWN_ARCHITECTURES = [
  ...['386', 'amd64', 'arm', 'arm64', 'loong64', 'mips', 'mips64', 'mips64le', 'mipsle'],
  ...['ppc', 'ppc64', 'ppc64le', 'riscv', 'riscv64', 's390', 's390x', 'sparc', 'sparc64', 'wasm'],
];
const COMPONENT = /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/;

export function normalizePlatform(platform: {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string | null | undefined;
}): ImagePlatform {
  const os = platform.os.toLowerCase() === 'macos' ? 'darwin' : platform.os.toLowerCase();
  const written = platform.architecture.toLowerCase();
  const architecture = ARCHITECTURES[written] ?? written;
  let variant = platform.variant?.toLowerCase() || undefined;
  if (written === 'armel') variant = 'v6';
  if (variant !== undefined && /^\d/.test(variant)) variant = `v${variant}`;
  if (architecture === 'arm') variant ??= 'v7';
  else if (architecture === 'arm64' && variant === 'v8') variant = undefined;
  else if (architecture === 'amd64' && variant === 'v1') variant = undefined;
  return { os, architecture, variant };
}

/** The platform of images that run here. `architecture` as node:os.arch() spells it. */
export function hostPlatform(architecture: string): WantedPlatform {
  return { ...normalizePlatform({ os: 'linux', architecture }), explicit: false };
}

/** Parses `os`, `architecture`, `os/architecture` or `os/architecture/variant`. @throws AppError 'invalid' */
export function parsePlatform(text: string, host: WantedPlatform): WantedPlatform {
  const fail = (why: string): never => {
    throw new AppError('invalid', `cannot parse platform ${JSON.stringify(text.slice(0, 100))}: ${why}`);
  };
  const parts = text.split('/');
  const [first = '', second, third] = parts;
  if (parts.length > 3) fail('want os/architecture or os/architecture/variant');
  const wrong = parts.findIndex((part) => !COMPONENT.test(part));
  if (wrong !== -1)
    fail(`${JSON.stringify(parts[wrong]?.slice(0, 100))} is an invalid ${wrong === 0 ? 'OS ' : ''}component`);
  if (second !== undefined)
    return { ...normalizePlatform({ os: first, architecture: second, variant: third }), explicit: true };
  const { os } = normalizePlatform({ os: first, architecture: '' });
  if (KNOWN_SYSTEMS.includes(os)) return { ...host, os, explicit: true };
  const platform = normalizePlatform({ os: host.os, architecture: first });
  if (KNOWN_ARCHITECTURES.includes(platform.architecture)) return { ...platform, explicit: true };
  return fail('unknown operating system or architecture');
}

export function platformText(platform: ImagePlatform): string {
  const { os, architecture, variant } = platform;
  return variant === undefined ? `${os}/${architecture}` : `${os}/${architecture}/${variant}`;
}

/** What can run where `wanted` is, best first. */
function candidates(wanted: WantedPlatform): readonly ImagePlatform[] {
  const { os, architecture, explicit } = wanted;
  const upTo = (family: string, from: number, to: number): ImagePlatform[] => {
    const found: ImagePlatform[] = [];
    for (let version = from; version >= to; version--)
      found.push(normalizePlatform({ os, architecture: family, variant: `v${version}` }));
    return found;
  };
  const version = Number(/^v(\d+)/.exec(wanted.variant ?? '')?.[1] ?? Number.NaN);
  switch (architecture) {
    case 'amd64': {
      const own = upTo('amd64', Number.isNaN(version) ? 1 : Math.min(version, 9), 1);
      return explicit ? own : [...own, { os, architecture: '386', variant: undefined }];
    }
    case 'arm64': {
      const own = upTo('arm64', Number.isNaN(version) ? 8 : Math.min(version, 9), 8);
      return explicit ? own : [...own, ...upTo('arm', 8, 5)];
    }
    case 'arm':
      return upTo('arm', Number.isNaN(version) ? 7 : Math.min(version, 8), 5);
    default:
      return [{ os, architecture, variant: wanted.variant }];
  }
}

const same = (a: ImagePlatform, b: ImagePlatform): boolean =>
  a.os === b.os && a.architecture === b.architecture && a.variant === b.variant;

/** Whether an image of this platform is what was wanted. */
export function matchesPlatform(
  actual: { readonly os: string; readonly architecture: string; readonly variant?: string | null | undefined },
  wanted: WantedPlatform,
): boolean {
  const normalized = normalizePlatform(actual);
  return candidates(wanted).some((candidate) => same(candidate, normalized));
}

/**
 * The manifests of an index that may be the wanted one, best first; the index's own order decides between equals.
 * Those that do not say their platform come last: only their config can tell. Attestations (`unknown/unknown`) and other
 * platforms are left out.
 */
export function selectManifests(manifests: readonly Descriptor[], wanted: WantedPlatform): readonly Descriptor[] {
  const chosen: Descriptor[] = [];
  for (const candidate of candidates(wanted))
    for (const manifest of manifests)
      if (manifest.platform !== undefined && same(normalizePlatform(manifest.platform), candidate))
        chosen.push(manifest);
  const silent = manifests.filter((manifest) => manifest.platform === undefined);
  return [...chosen, ...silent];
}
