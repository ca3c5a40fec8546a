/** `POST /berth/v1/builds`: the body, parsed once. Unknown fields are refused by name. Pure. */
import { z } from 'zod';
import type { BuildRequest, CacheSource, CacheTarget, RunOptions } from '../engine.ts';
import { credentialsOf } from './build-request.ts';

const stringMap = z.record(z.string(), z.string());
const strings = z.array(z.string());
const whole = z.number().int();

/** `files` are sent by the client in requests of their own; `name` makes what was sent last time count. */
const source = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('files'), name: z.string().max(4096).optional() }),
  z.strictObject({ kind: z.literal('remote'), url: z.string() }),
  z.strictObject({ kind: z.literal('empty') }),
]);
const namedSource = z.discriminatedUnion('kind', [
  ...source.options,
  z.strictObject({ kind: z.literal('image'), reference: z.string() }),
]);
export type ContextSource = z.infer<typeof source>;
export type NamedSource = z.infer<typeof namedSource>;

const mode = z.enum(['min', 'max']);
const cacheSource = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('registry'), reference: z.string() }),
  z.strictObject({ kind: z.literal('local'), directory: z.string() }),
]) satisfies z.ZodType<CacheSource>;
const cacheTarget = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('registry'), reference: z.string(), mode }),
  z.strictObject({ kind: z.literal('local'), directory: z.string(), mode }),
  z.strictObject({ kind: z.literal('inline') }),
]) satisfies z.ZodType<CacheTarget>;

const runOptions = z.strictObject({
  networkMode: z.string().optional(),
  extraHosts: strings.optional(),
  shmBytes: whole.optional(),
  ulimits: z.array(z.strictObject({ Name: z.string(), Soft: whole, Hard: whole })).optional(),
  memoryBytes: whole.optional(),
  memorySwapBytes: whole.optional(),
  cpuShares: whole.optional(),
  cpuPeriod: whole.optional(),
  cpuQuota: whole.optional(),
  cpusetCpus: z.string().optional(),
  cpusetMems: z.string().optional(),
  cgroupParent: z.string().optional(),
  securityOptions: strings.optional(),
  allow: strings.optional(),
}) satisfies z.ZodType<RunOptions>;

const credentials = z.record(
  z.string(),
  z.strictObject({
    username: z.string().optional(),
    password: z.string().optional(),
    identitytoken: z.string().optional(),
    registrytoken: z.string().optional(),
  }),
);

export const berthBuildSchema = z.strictObject({
  /** `check` answers what the build checks say, and builds nothing. */
  call: z.enum(['build', 'check']).default('build'),
  /** The result stays until the client hangs up, so that its outputs can be fetched. */
  keep: z.boolean().default(false),
  context: source,
  contexts: z.record(z.string(), namedSource).default({}),
  dockerfile: z.strictObject({ name: z.string(), text: z.string().optional(), ignore: z.string().optional() }),
  target: z.string().optional(),
  buildArgs: stringMap.optional(),
  labels: stringMap.optional(),
  annotations: stringMap.optional(),
  platforms: strings.optional(),
  tags: strings.optional(),
  noCache: z.union([z.boolean(), strings]).optional(),
  pull: z.boolean().optional(),
  cacheFrom: z.array(cacheSource).optional(),
  cacheTo: z.array(cacheTarget).optional(),
  run: runOptions.optional(),
  /** Base64 by id. */
  secrets: z.record(z.string(), z.base64()).default({}),
  /** Paths of sockets on the engine's host by id. */
  ssh: stringMap.default({}),
  sourceDateEpoch: whole.optional(),
  credentials: credentials.default({}),
});
export type BerthBuild = z.infer<typeof berthBuildSchema>;

/** The part of a request that needs no files. */
export function requestOf(body: BerthBuild): Omit<BuildRequest, 'context' | 'namedContexts'> {
  const { call: _call, keep: _keep, context: _context, contexts: _contexts, secrets, ssh, ...rest } = body;
  return {
    ...rest,
    secrets: new Map(Object.entries(secrets).map(([id, value]) => [id, Buffer.from(value, 'base64')])),
    ssh: new Map(Object.entries(ssh)),
    credentials: credentialsOf(body.credentials),
  };
}
