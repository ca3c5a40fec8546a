/**
 * Devices by CDI, the Container Device Interface: what a vendor says a container needs for one of its devices (nodes,
 * mounts, variables, hooks), and `--gpus` in these terms. Specs are the administrator's, and trusted as such; they are
 * read when a container starts, since drivers write them at any time.
 * https://github.com/cncf-tags/container-device-interface/blob/v1.0.0/SPEC.md
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { AppError, hasCode, messageOf } from '../../shared/errors.ts';
import type { DeviceRequest } from './request.ts';
import type { OciMount } from './spec-mounts.ts';

const HOOKS = ['prestart', 'createRuntime', 'createContainer', 'startContainer', 'poststart', 'poststop'] as const;

const words = z.array(z.string()).optional();
/** Strict: a part that we do not apply is refused by name. */
const containerEdits = z.strictObject({
  env: words,
  deviceNodes: z
    .array(
      z.strictObject({
        path: z.string().startsWith('/'),
        hostPath: z.string().startsWith('/').optional(),
        /** What the node is, is seen on the host. */
        type: z.enum(['b', 'c', 'u']).optional(),
        major: z.number().int().optional(),
        minor: z.number().int().optional(),
        fileMode: z.number().int().optional(),
        permissions: z
          .string()
          .regex(/^[rwm]{1,3}$/)
          .optional(),
        uid: z.number().int().nonnegative().optional(),
        gid: z.number().int().nonnegative().optional(),
      }),
    )
    .optional(),
  mounts: z
    .array(
      z.strictObject({
        hostPath: z.string().startsWith('/'),
        containerPath: z.string().startsWith('/'),
        type: z.string().optional(),
        options: words,
      }),
    )
    .optional(),
  hooks: z
    .array(
      z.strictObject({
        hookName: z.enum(HOOKS),
        path: z.string().startsWith('/'),
        args: words,
        env: words,
        timeout: z.number().int().positive().optional(),
      }),
    )
    .optional(),
  additionalGids: z.array(z.number().int().positive()).optional(),
});
type ContainerEdits = z.output<typeof containerEdits>;

const specFile = z.object({
  cdiVersion: z.string(),
  kind: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]*\/[A-Za-z0-9][A-Za-z0-9_.-]*$/),
  containerEdits: z.unknown().optional(),
  devices: z.array(z.object({ name: z.string().min(1), containerEdits: z.unknown() })).min(1),
});

export interface OciHook {
  readonly path: string;
  readonly args?: readonly string[];
  readonly env?: readonly string[];
  readonly timeout?: number;
}

/** Everything that the devices of one container add to it. */
export interface DeviceEdits {
  readonly env: readonly string[];
  readonly nodes: readonly {
    readonly path: string;
    readonly hostPath: string;
    readonly access: string;
    readonly mode: number | undefined;
    readonly uid: number | undefined;
    readonly gid: number | undefined;
  }[];
  readonly mounts: readonly OciMount[];
  readonly hooks: Readonly<Partial<Record<(typeof HOOKS)[number], readonly OciHook[]>>>;
  readonly additionalGids: readonly number[];
}

/** By kind: the spec's own edits, and those of each device. */
interface CdiSpec {
  readonly path: string;
  readonly kind: string;
  readonly common: unknown;
  readonly devices: ReadonlyMap<string, unknown>;
}

/** A spec beyond this is none. */
const SPEC_MAX_BYTES = 4 << 20;
/** Vendors whose GPUs are taken when nobody names one, in this order. */
const GPU_VENDORS = ['nvidia.com', 'amd.com', 'intel.com'];

/**
 * What these requests come to. Later directories win over earlier ones.
 * @throws AppError 'invalid' in Docker's words when no spec has a device; 'unsupported' naming what we do not apply
 */
export async function deviceEditsOf(
  requests: readonly DeviceRequest[],
  directories: readonly string[],
): Promise<DeviceEdits | undefined> {
  if (requests.length === 0) return undefined;
  const specs = await readSpecs(directories);
  const names = [...new Set(requests.flatMap((request) => namesOf(request, specs)))];
  const chosen = names.map((name) => ({ name, ...find(name, specs) }));
  const missing = chosen.filter(({ spec }) => spec === undefined).map(({ name }) => name);
  if (missing.length > 0)
    throw new AppError('invalid', `CDI device injection failed: unresolvable CDI devices ${missing.join(', ')}`);
  // The edits of a spec once, before those of its devices.
  const parts = new Map<unknown, ContainerEdits>();
  for (const { spec, device } of chosen)
    for (const edits of [spec?.common, device])
      if (edits !== undefined && spec !== undefined) parts.set(edits, parseEdits(edits, spec.path));
  return merge([...parts.values()]);
}

function namesOf(request: DeviceRequest, specs: readonly CdiSpec[]): readonly string[] {
  const { Driver, Count, DeviceIDs, Capabilities, Options } = request;
  if (Object.keys(Options).length > 0)
    throw new AppError('unsupported', `cannot use options of a device request: ${Object.keys(Options).join(', ')}`);
  if (Driver === 'cdi') return DeviceIDs;
  const isGpu = Capabilities.some((all) => all.includes('gpu'));
  const vendors = Driver === '' ? GPU_VENDORS : [`${Driver}.com`, Driver];
  const kinds = vendors.map((vendor) => `${vendor}/gpu`);
  const kind = isGpu ? kinds.find((each) => specs.some((spec) => spec.kind === each)) : undefined;
  if (kind === undefined)
    throw new AppError(
      'invalid',
      `could not select device driver ${JSON.stringify(Driver)} with capabilities: [${Capabilities.map((all) => `[${all.join(' ')}]`).join(' ')}]: no CDI spec of a GPU in any of the directories that "info" lists`,
    );
  if (DeviceIDs.length > 0) return DeviceIDs.map((id) => `${kind}=${id}`);
  if (Count < 0) return [`${kind}=all`];
  return Array.from({ length: Count === 0 ? 1 : Count }, (_, index) => `${kind}=${index}`);
}

function find(
  name: string,
  specs: readonly CdiSpec[],
): { readonly spec: CdiSpec | undefined; readonly device: unknown } {
  const [kind = '', device = ''] = name.split('=', 2);
  const spec = specs.findLast((each) => each.kind === kind && each.devices.has(device));
  return { spec, device: spec?.devices.get(device) };
}

async function readSpecs(directories: readonly string[]): Promise<readonly CdiSpec[]> {
  const specs: CdiSpec[] = [];
  for (const directory of directories) {
    const names = await readdir(directory).catch((error: unknown) => {
      if (hasCode(error, 'ENOENT', 'ENOTDIR')) return [];
      throw error;
    });
    for (const name of names.sort()) if (/\.(json|yaml)$/.test(name)) specs.push(await readSpec(join(directory, name)));
  }
  return specs;
}

async function readSpec(path: string): Promise<CdiSpec> {
  // Few hosts have any.
  const [bytes, yaml] = await Promise.all([readFile(path), import('yaml')]);
  if (bytes.length > SPEC_MAX_BYTES) throw unreadable(path, 'it is too large');
  try {
    const { kind, containerEdits: common, devices } = specFile.parse(yaml.parse(bytes.toString('utf8')));
    return { path, kind, common, devices: new Map(devices.map((device) => [device.name, device.containerEdits])) };
  } catch (error) {
    throw unreadable(path, reasonOf(error));
  }
}

/** Only of the devices that are used: others' newer features are nobody's concern. */
function parseEdits(edits: unknown, path: string): ContainerEdits {
  const parsed = containerEdits.safeParse(edits);
  if (parsed.success) return parsed.data;
  throw new AppError('unsupported', `cannot apply the CDI spec ${JSON.stringify(path)}: ${reasonOf(parsed.error)}`);
}

function reasonOf(error: unknown): string {
  if (!(error instanceof z.ZodError)) return messageOf(error);
  const [issue] = error.issues;
  return `${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'has an unexpected form'}`;
}

function unreadable(path: string, reason: string): AppError {
  return new AppError('invalid', `cannot read the CDI spec ${JSON.stringify(path)}: ${reason}`);
}

function merge(parts: readonly ContainerEdits[]): DeviceEdits {
  const hooks: Partial<Record<(typeof HOOKS)[number], OciHook[]>> = {};
  for (const { hookName, path, args, env, timeout } of parts.flatMap((part) => part.hooks ?? [])) {
    const hook = { path, ...(args && { args }), ...(env && { env }), ...(timeout && { timeout }) };
    hooks[hookName] = [...(hooks[hookName] ?? []), hook];
  }
  return {
    env: parts.flatMap(({ env }) => env ?? []),
    nodes: parts
      .flatMap(({ deviceNodes }) => deviceNodes ?? [])
      .map(({ path, hostPath, permissions, fileMode, uid, gid }) => ({
        path,
        hostPath: hostPath ?? path,
        access: permissions ?? 'rwm',
        mode: fileMode,
        uid,
        gid,
      })),
    mounts: parts
      .flatMap(({ mounts }) => mounts ?? [])
      .map(({ hostPath, containerPath, type, options = [] }) => ({
        destination: containerPath,
        type: type ?? 'bind',
        source: hostPath,
        options:
          (type ?? 'bind') === 'bind' && !options.some((word) => /^r?bind$/.test(word))
            ? ['rbind', ...options]
            : options,
      })),
    hooks,
    additionalGids: parts.flatMap(({ additionalGids }) => additionalGids ?? []),
  };
}
