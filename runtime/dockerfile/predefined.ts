/**
 * Arguments that nobody has to declare. Pure.
 * https://docs.docker.com/reference/dockerfile/#predefined-args
 */
import type { Platform } from '../../shared/oci.ts';
import type { Dockerfile } from './dockerfile.ts';

const PROXIES = ['HTTP_PROXY', 'HTTPS_PROXY', 'FTP_PROXY', 'NO_PROXY', 'ALL_PROXY'];

/** What the caller may give without that the Dockerfile says ARG: they steer the build. */
const STEERING = [
  'BUILDKIT_INLINE_CACHE',
  'BUILDKIT_CACHE_MOUNT_NS',
  'BUILDKIT_CONTEXT_KEEP_GIT_DIR',
  'BUILDKIT_SANDBOX_HOSTNAME',
  'SOURCE_DATE_EPOCH',
];

/** Whether the caller has switched something on by an argument. */
export function isSwitchedOn(buildArgs: Readonly<Record<string, string>> | undefined, name: string): boolean {
  return ['1', 't', 'true'].includes(buildArgs?.[name]?.toLowerCase() ?? '');
}

/** Of the platform that is built for, the one that builds, and the stage that is asked for. */
export function platformArgs(
  target: Platform,
  build: Platform,
  { stage = 'default' }: { readonly stage?: string | undefined } = {},
): Readonly<Record<string, string>> {
  return { ...platformOf('BUILD', build), ...platformOf('TARGET', target), TARGETSTAGE: stage };
}

function platformOf(prefix: string, platform: Platform): Record<string, string> {
  const { os, architecture, variant = '' } = platform;
  return {
    [`${prefix}PLATFORM`]: [os, architecture, variant].filter((part) => part !== '').join('/'),
    [`${prefix}OS`]: os,
    [`${prefix}OSVERSION`]: platform['os.version'] ?? '',
    [`${prefix}ARCH`]: architecture,
    [`${prefix}VARIANT`]: variant,
  };
}

export function isProxyArg(name: string): boolean {
  return PROXIES.includes(name.toUpperCase());
}

/** What commands get of the caller's proxies, in both cases, declared or not. It belongs to no key and no history. */
export function proxyEnvironment(buildArgs: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  const env: Record<string, string> = {};
  for (const name of Object.keys(buildArgs).filter(isProxyArg).toSorted()) {
    const value = buildArgs[name] ?? '';
    env[name.toUpperCase()] = value;
    env[name.toLowerCase()] = value;
  }
  return env;
}

/** Names that the caller gave and neither the Dockerfile nor we know: a warning, as with Docker. */
export function unusedBuildArgs(
  dockerfile: Dockerfile,
  buildArgs: Readonly<Record<string, string>>,
): readonly string[] {
  const declared = new Set<string>();
  const instructions = [...dockerfile.globalArgs, ...dockerfile.stages.flatMap((stage) => stage.instructions)];
  for (const instruction of instructions)
    if (instruction.kind === 'ARG') for (const { name } of instruction.arguments) declared.add(name);
  const isKnown = (name: string) =>
    declared.has(name) || isProxyArg(name) || STEERING.includes(name) || isPlatformArg(name);
  return Object.keys(buildArgs).filter((name) => !isKnown(name));
}

function isPlatformArg(name: string): boolean {
  return /^(?:BUILD|TARGET)(?:PLATFORM|OS|OSVERSION|ARCH|VARIANT)$|^TARGETSTAGE$/.test(name);
}
