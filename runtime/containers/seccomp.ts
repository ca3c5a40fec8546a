/**
 * Seccomp profiles in Docker's form, resolved to the OCI form that runtimes read: the conditions on capabilities,
 * architecture and kernel are decided here, since runtimes know none. Pure.
 * https://docs.docker.com/engine/security/seccomp/
 * https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config-linux.md#seccomp
 */
import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import { isAtLeast } from '../kernel/versions.ts';

export interface SeccompCondition {
  /** All of them (includes), any of them (excludes). */
  readonly caps?: readonly string[] | null | undefined;
  /** Any of them, in Go's names: amd64, arm64. */
  readonly arches?: readonly string[] | null | undefined;
  readonly minKernel?: string | undefined;
}

export interface SeccompArgument {
  readonly index: number;
  readonly value: number;
  readonly valueTwo?: number | undefined;
  readonly op: string;
}

export interface SeccompRule {
  readonly names: readonly string[];
  readonly action: string;
  readonly errnoRet?: number | undefined;
  readonly args?: readonly SeccompArgument[] | null | undefined;
  readonly includes?: SeccompCondition | null | undefined;
  readonly excludes?: SeccompCondition | null | undefined;
}

export interface SeccompProfile {
  readonly defaultAction: string;
  readonly defaultErrnoRet?: number | undefined;
  readonly architectures?: readonly string[] | null | undefined;
  readonly archMap?:
    | readonly { readonly architecture: string; readonly subArchitectures?: readonly string[] | null | undefined }[]
    | null
    | undefined;
  readonly flags?: readonly string[] | null | undefined;
  readonly syscalls?: readonly SeccompRule[] | null | undefined;
}

/** linux.seccomp of config.json. */
export interface OciSeccomp {
  readonly defaultAction: string;
  readonly defaultErrnoRet?: number;
  readonly architectures?: readonly string[];
  readonly flags?: readonly string[];
  readonly syscalls: readonly {
    readonly names: readonly string[];
    readonly action: string;
    readonly errnoRet?: number;
    readonly args?: readonly SeccompArgument[];
  }[];
}

export interface SeccompTarget {
  /** Those of the process's bounding set. */
  readonly capabilities: readonly string[];
  readonly architecture: NodeJS.Architecture;
  /** uname -r */
  readonly kernel: string;
}

interface ArchitectureNames {
  readonly go: string;
  readonly seccomp: string;
}
const ARCHITECTURES: Readonly<Partial<Record<NodeJS.Architecture, ArchitectureNames>>> = {
  x64: { go: 'amd64', seccomp: 'SCMP_ARCH_X86_64' },
  arm64: { go: 'arm64', seccomp: 'SCMP_ARCH_AARCH64' },
  arm: { go: 'arm', seccomp: 'SCMP_ARCH_ARM' },
  ia32: { go: 'x86', seccomp: 'SCMP_ARCH_X86' },
  ppc64: { go: 'ppc64le', seccomp: 'SCMP_ARCH_PPC64LE' },
  s390x: { go: 's390x', seccomp: 'SCMP_ARCH_S390X' },
  riscv64: { go: 'riscv64', seccomp: 'SCMP_ARCH_RISCV64' },
  loong64: { go: 'loong64', seccomp: 'SCMP_ARCH_LOONGARCH64' },
};

const condition = z
  .strictObject({
    caps: z.array(z.string()).nullish(),
    arches: z.array(z.string()).nullish(),
    minKernel: z.string().optional(),
  })
  .nullish();
const profileSchema = z.strictObject({
  defaultAction: z.string(),
  defaultErrnoRet: z.number().int().optional(),
  architectures: z.array(z.string()).nullish(),
  archMap: z
    .array(z.strictObject({ architecture: z.string(), subArchitectures: z.array(z.string()).nullish() }))
    .nullish(),
  flags: z.array(z.string()).nullish(),
  syscalls: z
    .array(
      z.strictObject({
        /** Older profiles have one rule per call. */
        name: z.string().optional(),
        names: z.array(z.string()).nullish(),
        action: z.string(),
        errnoRet: z.number().int().optional(),
        args: z
          .array(
            z.strictObject({
              index: z.number().int(),
              value: z.number().int().nonnegative(),
              valueTwo: z.number().int().optional(),
              op: z.string(),
            }),
          )
          .nullish(),
        comment: z.string().optional(),
        includes: condition,
        excludes: condition,
      }),
    )
    .nullish(),
});

/** A profile as `--security-opt seccomp=` carries it. Unknown fields are errors. @throws AppError 'invalid' */
export function parseSeccompProfile(json: string): SeccompProfile {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (cause) {
    throw new AppError('invalid', 'cannot use seccomp profile: it is not JSON', { cause });
  }
  const parsed = profileSchema.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new AppError('invalid', `cannot use seccomp profile: ${issue?.path.join('.')}: ${issue?.message}`);
  }
  const { syscalls, ...profile } = parsed.data;
  if (profile.architectures?.length && profile.archMap?.length)
    throw new AppError('invalid', 'cannot use seccomp profile: it has both architectures and archMap');
  return {
    ...profile,
    syscalls: syscalls?.map(({ name, names, comment: _comment, ...rule }) => {
      if (name !== undefined && names?.length)
        throw new AppError('invalid', `cannot use seccomp profile: a rule has both name and names (${name})`);
      return { ...rule, names: name === undefined ? (names ?? []) : [name] };
    }),
  };
}

/** Leaves out what does not apply to target. @throws AppError 'unsupported' for an architecture without a seccomp name */
export function resolveSeccomp(profile: SeccompProfile, target: SeccompTarget): OciSeccomp {
  const names = ARCHITECTURES[target.architecture];
  if (names === undefined)
    throw new AppError(
      'unsupported',
      `cannot confine system calls on ${target.architecture}: its seccomp name is unknown`,
    );
  const rules = (profile.syscalls ?? []).filter(
    ({ includes, excludes }) => isIncluded(includes, target, names.go) && !isExcluded(excludes, target, names.go),
  );
  const architectures = architecturesOf(profile, names.seccomp);
  return {
    defaultAction: profile.defaultAction,
    ...(profile.defaultErrnoRet === undefined ? {} : { defaultErrnoRet: profile.defaultErrnoRet }),
    ...(architectures.length === 0 ? {} : { architectures }),
    ...(profile.flags?.length ? { flags: profile.flags } : {}),
    syscalls: rules.map(({ names: calls, action, errnoRet, args }) => ({
      names: calls,
      action,
      ...(errnoRet === undefined ? {} : { errnoRet }),
      ...(args?.length ? { args } : {}),
    })),
  };
}

function architecturesOf({ architectures, archMap }: SeccompProfile, native: string): readonly string[] {
  if (architectures?.length) return architectures;
  const family = archMap?.find(({ architecture }) => architecture === native);
  return family === undefined ? [] : [family.architecture, ...(family.subArchitectures ?? [])];
}

function isIncluded(wanted: SeccompCondition | null | undefined, target: SeccompTarget, go: string): boolean {
  if (wanted?.arches?.length && !wanted.arches.includes(go)) return false;
  if (wanted?.caps?.some((cap) => !target.capabilities.includes(cap))) return false;
  return wanted?.minKernel === undefined || isAtLeast(target.kernel, wanted.minKernel);
}

function isExcluded(unwanted: SeccompCondition | null | undefined, target: SeccompTarget, go: string): boolean {
  if (unwanted?.arches?.includes(go)) return true;
  if (unwanted?.caps?.some((cap) => target.capabilities.includes(cap))) return true;
  return unwanted?.minKernel !== undefined && isAtLeast(target.kernel, unwanted.minKernel);
}
