/**
 * Descriptors, manifests, indexes and image configs, parsed once at the edge and trusted after.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md, image-index.md, config.md
 *
 * Parsing checks what we rely on and keeps what it does not know: a document's identity is its bytes, which callers
 * keep beside the parsed form. A document that could be read as both a manifest and an index is refused
 * (CVE-2021-41190). Pure: no I/O.
 */
import { z } from 'zod';
import { type Digest, isDigest } from './digest.ts';
import { AppError } from './errors.ts';
import { isIndexType, isManifestType, MEDIA_TYPES } from './media-types.ts';

/** Larger documents are refused everywhere; the specification asks registries for at least this. */
export const MANIFEST_MAX_BYTES = 4 * 1024 * 1024;
/** Image configs; a real one is a few KiB. */
export const CONFIG_MAX_BYTES = 8 * 1024 * 1024;
const DESCRIPTORS_MAX = 10_000;

const digestSchema = z.string().refine(isDigest, 'is not a sha256 or sha512 digest');
const annotationsSchema = z.record(z.string(), z.string());

const platformSchema = z.looseObject({
  architecture: z.string(),
  os: z.string(),
  variant: z.string().optional(),
  'os.version': z.string().optional(),
  'os.features': z.array(z.string()).optional(),
});
export type Platform = Readonly<z.infer<typeof platformSchema>>;

const descriptorSchema = z.looseObject({
  mediaType: z.string().min(1),
  digest: digestSchema,
  size: z.number().int().nonnegative(),
  urls: z.array(z.string()).optional(),
  annotations: annotationsSchema.optional(),
  data: z.string().optional(),
  artifactType: z.string().optional(),
  platform: platformSchema.optional(),
});
/** Points at exact bytes. `size` is in bytes, as the specification spells it. */
export type Descriptor = Readonly<z.infer<typeof descriptorSchema>> & { readonly digest: Digest };

const manifestSchema = z.looseObject({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  artifactType: z.string().optional(),
  config: descriptorSchema,
  layers: z.array(descriptorSchema).max(DESCRIPTORS_MAX),
  subject: descriptorSchema.optional(),
  annotations: annotationsSchema.optional(),
});
const indexSchema = z.looseObject({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  artifactType: z.string().optional(),
  manifests: z.array(descriptorSchema).max(DESCRIPTORS_MAX),
  subject: descriptorSchema.optional(),
  annotations: annotationsSchema.optional(),
});

export interface Manifest {
  readonly kind: 'manifest';
  readonly mediaType: string;
  readonly artifactType: string | undefined;
  readonly config: Descriptor;
  /** Base first. */
  readonly layers: readonly Descriptor[];
  readonly subject: Descriptor | undefined;
  readonly annotations: Readonly<Record<string, string>> | undefined;
}
export interface Index {
  readonly kind: 'index';
  readonly mediaType: string;
  readonly artifactType: string | undefined;
  readonly manifests: readonly Descriptor[];
  readonly subject: Descriptor | undefined;
  readonly annotations: Readonly<Record<string, string>> | undefined;
}
export type ManifestDocument = Manifest | Index;

/** Everything that a document points at and cannot live without; subject is a weak link and not among them. */
export function referencesOf(document: ManifestDocument): readonly Descriptor[] {
  return document.kind === 'manifest' ? [document.config, ...document.layers] : document.manifests;
}

/**
 * Parses a manifest or an index. `contentType` is what the sender called it; it must agree with the document's own
 * mediaType field. @throws AppError 'invalid', 'too-large', 'unsupported' (a media type that is neither)
 */
export function parseManifest(bytes: Uint8Array, contentType?: string): ManifestDocument {
  if (bytes.length > MANIFEST_MAX_BYTES)
    throw new AppError('too-large', `cannot accept manifest: ${bytes.length} bytes is more than ${MANIFEST_MAX_BYTES}`);
  const json = parseJson(bytes, 'manifest');
  const declared = typeof json.mediaType === 'string' ? json.mediaType : undefined;
  const sent = contentType?.split(';')[0]?.trim() || undefined;
  if (declared !== undefined && sent !== undefined && declared !== sent)
    throw new AppError('invalid', `cannot accept manifest: it was sent as ${sent} but says that it is ${declared}`);
  const mediaType = sent ?? declared ?? ('manifests' in json ? MEDIA_TYPES.ociIndex : MEDIA_TYPES.ociManifest);
  assertPlainNames(json);
  const hasManifestFields = 'config' in json || 'layers' in json;
  if ('manifests' in json && hasManifestFields)
    throw new AppError('invalid', 'cannot accept manifest: it has the fields of a manifest and of an index');
  if (isIndexType(mediaType)) {
    const index = check(indexSchema, json, 'index');
    const { artifactType, subject, annotations } = index;
    return {
      kind: 'index',
      mediaType,
      artifactType,
      manifests: index.manifests as readonly Descriptor[],
      subject: subject as Descriptor | undefined,
      annotations,
    };
  }
  if (isManifestType(mediaType)) {
    const manifest = check(manifestSchema, json, 'manifest');
    const { artifactType, subject, annotations } = manifest;
    return {
      kind: 'manifest',
      mediaType,
      artifactType,
      config: manifest.config as Descriptor,
      layers: manifest.layers as readonly Descriptor[],
      subject: subject as Descriptor | undefined,
      annotations,
    };
  }
  throw new AppError('unsupported', `cannot accept manifest: media type ${JSON.stringify(mediaType)} is unknown`);
}

/** Go's JSON reader, which most clients use, takes these in any case, `K` and `ſ` among the letters. */
const FIELDS: readonly string[] = [
  'schemaVersion',
  'mediaType',
  'artifactType',
  'manifests',
  'config',
  'layers',
  'subject',
];

/** A field that only some readers take for one of ours would make a document mean two things. */
function assertPlainNames(json: Record<string, unknown>): void {
  const folded = (name: string) => name.toUpperCase().toLowerCase();
  for (const name of Object.keys(json)) {
    const field = FIELDS.find((known) => folded(known) === folded(name));
    if (field !== undefined && field !== name)
      throw new AppError(
        'invalid',
        `cannot accept manifest: its field ${JSON.stringify(name)} can be taken for ${field}`,
      );
  }
}

const stringMap = z.record(z.string(), z.string()).nullish();
const emptySet = z.record(z.string(), z.unknown()).nullish();
const strings = z.array(z.string()).nullish();
const healthcheckSchema = z.looseObject({
  Test: strings,
  Interval: z.number().optional(),
  Timeout: z.number().optional(),
  StartPeriod: z.number().optional(),
  StartInterval: z.number().optional(),
  Retries: z.number().optional(),
});
const containerConfigSchema = z.looseObject({
  User: z.string().nullish(),
  ExposedPorts: emptySet,
  Env: strings,
  Entrypoint: strings,
  Cmd: strings,
  Volumes: emptySet,
  WorkingDir: z.string().nullish(),
  Labels: stringMap,
  StopSignal: z.string().nullish(),
  StopTimeout: z.number().nullish(),
  Healthcheck: healthcheckSchema.nullish(),
  OnBuild: strings,
  Shell: strings,
  ArgsEscaped: z.boolean().nullish(),
});
const historySchema = z.looseObject({
  created: z.string().optional(),
  author: z.string().optional(),
  created_by: z.string().optional(),
  comment: z.string().optional(),
  empty_layer: z.boolean().optional(),
});
const imageConfigSchema = z.looseObject({
  created: z.string().nullish(),
  author: z.string().nullish(),
  architecture: z.string(),
  variant: z.string().nullish(),
  os: z.string(),
  'os.version': z.string().nullish(),
  'os.features': strings,
  config: containerConfigSchema.nullish(),
  rootfs: z.looseObject({ type: z.literal('layers'), diff_ids: z.array(digestSchema).max(500).nullish() }),
  history: z.array(historySchema).nullish(),
});
/** The `config` object inside an image config: what a container of this image runs, with Docker's field names. */
export type ImageRunConfig = Readonly<z.infer<typeof containerConfigSchema>>;
export type ImageHistory = Readonly<z.infer<typeof historySchema>>;
export interface ImageConfig {
  readonly created: string | undefined;
  readonly author: string | undefined;
  readonly architecture: string;
  readonly variant: string | undefined;
  readonly os: string;
  readonly osVersion?: string | undefined;
  readonly osFeatures?: readonly string[] | undefined;
  readonly config: ImageRunConfig;
  /** Base first. */
  readonly diffIds: readonly Digest[];
  readonly history: readonly ImageHistory[];
}

/** @throws AppError 'invalid', 'too-large' */
export function parseImageConfig(bytes: Uint8Array): ImageConfig {
  if (bytes.length > CONFIG_MAX_BYTES)
    throw new AppError(
      'too-large',
      `cannot accept image config: ${bytes.length} bytes is more than ${CONFIG_MAX_BYTES}`,
    );
  const raw = check(imageConfigSchema, parseJson(bytes, 'image config'), 'image config');
  return {
    created: raw.created ?? undefined,
    author: raw.author ?? undefined,
    architecture: raw.architecture,
    variant: raw.variant ?? undefined,
    os: raw.os,
    osVersion: raw['os.version'] ?? undefined,
    osFeatures: raw['os.features'] ?? undefined,
    config: raw.config ?? {},
    diffIds: (raw.rootfs.diff_ids ?? []) as Digest[],
    history: raw.history ?? [],
  };
}

function parseJson(bytes: Uint8Array, what: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new AppError('invalid', `cannot parse ${what}: it is not JSON`, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new AppError('invalid', `cannot parse ${what}: it is not a JSON object`);
  return value as Record<string, unknown>;
}

function check<T>(schema: z.ZodType<T>, json: unknown, what: string): T {
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const where = issue === undefined || issue.path.length === 0 ? '' : `${issue.path.join('.')} `;
  throw new AppError('invalid', `cannot parse ${what}: ${where}${issue?.message ?? 'has an unexpected form'}`);
}
