/**
 * `POST /build` as Docker's classic builder takes it: query, headers and the zero values that clients send for what they
 * did not mean. What this engine does not have is refused by name. Pure but for reading the request.
 * https://docs.docker.com/reference/api/engine/version/v1.51/#tag/Image/operation/ImageBuild
 */
import { z } from 'zod';
import type { Credentials } from '../../shared/credentials.ts';
import { AppError } from '../../shared/errors.ts';
import { parseReference } from '../../shared/reference.ts';
import type { BuildRequest, RunOptions } from '../engine.ts';
import { registryHost } from './auth.ts';
import { type ApiContext, credentialsFrom, queryFlag, queryInteger, queryText, queryTexts } from './context.ts';

/** A request without its context: that is the body, or what `remote` names. */
export interface ClassicBuild {
  readonly request: Omit<BuildRequest, 'context'>;
  /** A URL of a repository, an archive or a Dockerfile, instead of the body. */
  readonly remote: string | undefined;
  readonly isQuiet: boolean;
  /** By which `/build/cancel` knows it. */
  readonly buildId: string | undefined;
}

const stringMap = z.record(z.string(), z.string());
const optionalStringMap = z.record(z.string(), z.string().nullable());
const strings = z.array(z.string());
const ulimits = z.array(z.object({ Name: z.string(), Soft: z.number(), Hard: z.number() }));

/** @throws AppError 'invalid', and 'unsupported' by name */
export function parseClassicBuild(ctx: ApiContext): ClassicBuild {
  refuseUnsupported(ctx);
  const tags = queryTexts(ctx, 't').filter((tag) => tag !== '');
  for (const tag of tags)
    if (parseReference(tag).digest !== undefined)
      throw new AppError('invalid', `invalid tag ${JSON.stringify(tag)}: a digest cannot be given to an image`);
  const buildArgs = queryJson(ctx, 'buildargs', optionalStringMap);
  const dockerfile = queryText(ctx, 'dockerfile') || 'Dockerfile';
  if (dockerfile.split('/').includes('..'))
    throw new AppError('invalid', `forbidden path outside the build context: ${dockerfile.slice(0, 200)}`);
  const platform = queryText(ctx, 'platform') || undefined;
  return {
    request: {
      dockerfile: { name: dockerfile.replace(/^(?:\.?\/)+/, '') },
      tags,
      target: queryText(ctx, 'target') || undefined,
      // An argument without a value is one that is not given: its default counts.
      buildArgs: Object.fromEntries(
        Object.entries(buildArgs ?? {}).flatMap(([name, value]) => (value === null ? [] : [[name, value]])),
      ),
      labels: queryJson(ctx, 'labels', stringMap),
      platforms: platform === undefined ? undefined : [platform],
      noCache: queryFlag(ctx, 'nocache'),
      pull: queryFlag(ctx, 'pull'),
      cacheFrom: (queryJson(ctx, 'cachefrom', strings) ?? []).map((reference) => ({ kind: 'registry', reference })),
      run: runOptions(ctx),
      credentials: credentialsByHost(ctx),
    },
    remote: queryText(ctx, 'remote') || undefined,
    isQuiet: queryFlag(ctx, 'q'),
    buildId: queryText(ctx, 'buildid') || undefined,
  };
}

function refuseUnsupported(ctx: ApiContext): void {
  const version = queryText(ctx, 'version') ?? '';
  if (version === '2')
    throw new AppError(
      'unsupported',
      'building with BuildKit (version=2) is not supported by this engine: set DOCKER_BUILDKIT=0, or use berth build',
    );
  if (version !== '' && version !== '1')
    throw new AppError('invalid', `invalid builder version ${JSON.stringify(version.slice(0, 20))}: want 1`);
  if (queryFlag(ctx, 'squash'))
    throw new AppError('unsupported', 'cannot build with squash: layers of a build stay as they are');
  if ((queryText(ctx, 'remote') ?? '') === 'client-session')
    throw new AppError('unsupported', 'cannot build from remote=client-session: this engine has no sessions');
  if (!['', 'default'].includes(queryText(ctx, 'isolation') ?? ''))
    throw new AppError('unsupported', 'cannot build with isolation: it is a setting of Windows');
  for (const key of ['cpurtperiod', 'cpurtruntime'])
    if ((queryInteger(ctx, key) ?? 0) !== 0) throw new AppError('unsupported', `cannot build with ${key}`);
  const outputs = queryJson(ctx, 'outputs', z.array(z.unknown())) ?? [];
  if (outputs.length > 0)
    throw new AppError('unsupported', 'cannot build with outputs: only BuildKit has them in this API; use berth build');
}

function runOptions(ctx: ApiContext): RunOptions {
  const amount = (key: string) => queryInteger(ctx, key) || undefined;
  const words = (key: string) => queryText(ctx, key) || undefined;
  return {
    networkMode: words('networkmode'),
    extraHosts: extraHosts(ctx),
    shmBytes: amount('shmsize'),
    ulimits: queryJson(ctx, 'ulimits', ulimits),
    memoryBytes: amount('memory'),
    memorySwapBytes: amount('memswap'),
    cpuShares: amount('cpushares'),
    cpuPeriod: amount('cpuperiod'),
    cpuQuota: amount('cpuquota'),
    cpusetCpus: words('cpusetcpus'),
    cpusetMems: words('cpusetmems'),
    cgroupParent: words('cgroupparent'),
    securityOptions: queryTexts(ctx, 'securityopt').filter((option) => option !== ''),
  };
}

/** Once per host, or, as docker-py does, one JSON map. */
function extraHosts(ctx: ApiContext): readonly string[] {
  return queryTexts(ctx, 'extrahosts').flatMap((text) => {
    if (!text.startsWith('{') && !text.startsWith('[')) return text === '' ? [] : [text];
    const parsed = z.union([stringMap, strings]).safeParse(parseJson(text));
    if (!parsed.success) throw new AppError('invalid', 'invalid extrahosts: want NAME:ADDRESS');
    return Array.isArray(parsed.data)
      ? parsed.data
      : Object.entries(parsed.data).map(([name, address]) => `${name}:${address}`);
  });
}

/** JSON in a query value; undefined when it is absent, empty or null. @throws AppError 'invalid' naming the key */
function queryJson<T>(ctx: ApiContext, key: string, schema: z.ZodType<T>): T | undefined {
  const text = queryText(ctx, key);
  if (text === undefined || text === '' || text === 'null') return undefined;
  const parsed = schema.safeParse(parseJson(text));
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new AppError('invalid', `invalid value for ${key}: ${issue?.path.join('.') || 'it'} is not what it should be`);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const authSchema = z.record(
  z.string(),
  z.object({
    username: z.string().optional(),
    password: z.string().optional(),
    identitytoken: z.string().optional(),
    registrytoken: z.string().optional(),
  }),
);
type Auths = z.infer<typeof authSchema>;

/** `X-Registry-Config`: base64url of JSON by registry. What cannot be read is ignored, as Docker does. */
export function credentialsByHost(ctx: ApiContext): ((host: string) => Credentials | undefined) | undefined {
  const header = ctx.get('x-registry-config');
  if (header === '') return undefined;
  const parsed = authSchema.safeParse(parseJson(Buffer.from(header, 'base64url').toString('utf8')));
  return parsed.success ? credentialsOf(parsed.data) : undefined;
}

/** Looks hosts up whatever form their names have. */
export function credentialsOf(auths: Auths): (host: string) => Credentials | undefined {
  const byHost = new Map(Object.entries(auths).map(([name, entry]) => [registryHost(name), credentialsFrom(entry)]));
  return (host) => byHost.get(host);
}
