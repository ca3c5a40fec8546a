/** The flags of `berth build` as what the engine is asked for. Flags that it does not have fail by name. Pure. */
import { resolve } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import { parseReference } from '../../shared/reference.ts';
import { parseBytes } from '../../shared/units.ts';

export interface BuildFlags {
  readonly file?: string;
  readonly tag?: readonly string[];
  readonly buildArg?: readonly string[];
  readonly buildContext?: readonly string[];
  readonly cacheFrom?: readonly string[];
  readonly cacheTo?: readonly string[];
  readonly call?: string;
  readonly check?: boolean;
  readonly target?: string;
  readonly platform?: readonly string[];
  readonly cache?: boolean;
  /** true when it was not given: commander's rule for flags that begin with --no-. */
  readonly cacheFilter?: readonly string[] | true;
  readonly pull?: boolean;
  readonly push?: boolean;
  readonly load?: boolean;
  readonly output?: readonly string[];
  readonly iidfile?: string;
  readonly metadataFile?: string;
  readonly label?: readonly string[];
  readonly annotation?: readonly string[];
  readonly provenance?: string;
  readonly attest?: readonly string[];
  readonly sbom?: string;
  readonly secret?: readonly string[];
  readonly ssh?: readonly string[];
  readonly network?: string;
  readonly addHost?: readonly string[];
  readonly allow?: readonly string[];
  readonly shmSize?: string;
  readonly ulimit?: readonly string[];
  readonly memory?: string;
  readonly memorySwap?: string;
  readonly cpuShares?: string;
  readonly cpuPeriod?: string;
  readonly cpuQuota?: string;
  readonly cpusetCpus?: string;
  readonly cpusetMems?: string;
  readonly cgroupParent?: string;
  readonly securityOpt?: readonly string[];
  readonly quiet?: boolean;
  readonly progress?: string;
  readonly builder?: string;
  readonly compress?: boolean;
  readonly forceRm?: boolean;
  readonly isolation?: string;
  readonly rm?: boolean;
  readonly squash?: boolean;
}

export type Environment = Readonly<Record<string, string | undefined>>;

/** Where a result goes. `-` as a file is stdout. */
export type BuildOutput =
  | { readonly kind: 'store' }
  | { readonly kind: 'push' }
  | { readonly kind: 'local'; readonly directory: string }
  | { readonly kind: 'tar' | 'oci' | 'docker'; readonly file: string };

export type SecretSource = { readonly id: string } & (
  | { readonly file: string }
  | { readonly env: string }
  /** By the id: an environment variable if there is one, else a file. */
  | { readonly guess: true }
);

export type ProgressKind = 'auto' | 'plain' | 'tty' | 'rawjson' | 'quiet';

export interface BuildPlan {
  /** Of the body of `POST /berth/v1/builds`, what flags alone decide. */
  readonly body: Readonly<Record<string, unknown>>;
  readonly outputs: readonly BuildOutput[];
  readonly tags: readonly string[];
  readonly provenance: boolean;
  readonly secrets: readonly SecretSource[];
  /** Name and what it is: a path, a URL, `docker-image://…`. */
  readonly contexts: ReadonlyMap<string, string>;
  readonly progress: ProgressKind;
}

/** @throws AppError 'invalid', and 'unsupported' by name */
export function planBuild(flags: BuildFlags, env: Environment): BuildPlan {
  refuseUnsupported(flags);
  const { outputs, names } = parseOutputs(flags);
  const tags = [...(flags.tag ?? []), ...names];
  for (const tag of tags)
    if (parseReference(tag).digest !== undefined) throw refusal('--tag', tag, 'a name without a digest');
  const isStored = outputs.some(({ kind }) => kind === 'store' || kind === 'push' || kind === 'docker');
  if (outputs.some(({ kind }) => kind === 'push') && tags.length === 0)
    throw new AppError('invalid', 'cannot push: the image has no name; use --tag');
  const provenance = parseProvenance(flags);
  if (provenance && !outputs.some(({ kind }) => kind === 'push'))
    throw new AppError(
      'unsupported',
      'cannot use --provenance without --push: it is kept beside the image in a registry',
    );
  const isCheck = flags.check === true || flags.call === 'check';
  if (isCheck && (flags.output !== undefined || flags.push === true || flags.load === true))
    throw new AppError('invalid', 'cannot use --check with --output, --push or --load: it builds nothing');
  const epoch = env.SOURCE_DATE_EPOCH;
  return {
    body: withoutAbsent({
      call: isCheck ? 'check' : 'build',
      keep: outputs.some(({ kind }) => kind !== 'store'),
      target: flags.target,
      buildArgs: pairs('--build-arg', flags.buildArg, env),
      labels: pairs('--label', flags.label),
      annotations: annotations(flags.annotation),
      platforms: flags.platform?.flatMap((text) => text.split(',')),
      tags: isStored ? tags : undefined,
      noCache: flags.cache === false ? true : Array.isArray(flags.cacheFilter) ? list(flags.cacheFilter) : undefined,
      pull: flags.pull,
      cacheFrom: flags.cacheFrom?.flatMap((text) => parseCache('--cache-from', text)),
      cacheTo: flags.cacheTo?.map((text) => parseCacheTarget(text)),
      run: runOptions(flags),
      ssh: Object.fromEntries((flags.ssh ?? []).map((text) => parseSsh(text, env))),
      sourceDateEpoch: epoch === undefined || epoch === '' ? undefined : whole('SOURCE_DATE_EPOCH', epoch),
    }),
    outputs,
    tags,
    provenance,
    secrets: (flags.secret ?? []).map(parseSecret),
    contexts: new Map((flags.buildContext ?? []).map((text) => pair('--build-context', text))),
    progress: parseProgress(flags, env),
  };
}

function refusal(flag: string, value: string, want: string): AppError {
  return new AppError('invalid', `cannot use ${flag} ${JSON.stringify(value)}: want ${want}`);
}

function refuseUnsupported(flags: BuildFlags): void {
  const refuse = (flag: string, why: string) => {
    throw new AppError('unsupported', `cannot use ${flag}: ${why}`);
  };
  if (flags.squash === true) refuse('--squash', 'layers of a build stay as they are');
  if (flags.compress === true) refuse('--compress', 'only what changed is sent, over a local socket');
  if (![undefined, '', 'default'].includes(flags.isolation)) refuse('--isolation', 'it is a setting of Windows');
  if (![undefined, '', 'default'].includes(flags.builder)) refuse('--builder', 'the engine is the only one');
  if (![undefined, 'false', '0'].includes(flags.sbom)) refuse('--sbom', 'no bill of materials is made');
  if (![undefined, 'build', 'check'].includes(flags.call)) refuse(`--call ${flags.call}`, 'it can be build or check');
  for (const text of flags.allow ?? [])
    if (!['network.host', 'security.insecure'].includes(text))
      refuse(`--allow ${text}`, 'it can be network.host or security.insecure');
}

/** `type=local,dest=out`: fields by name; a text without `=` alone is `bare`. */
function fieldsOf(flag: string, text: string, bare: string): Map<string, string> {
  if (!text.includes('=')) return new Map([[bare, text]]);
  return new Map(text.split(',').map((field) => pair(flag, field)));
}

function pair(flag: string, text: string): [string, string] {
  const at = text.indexOf('=');
  if (at < 1) throw refusal(flag, text, 'NAME=VALUE');
  return [text.slice(0, at), text.slice(at + 1)];
}

/** @throws AppError 'unsupported' for a field that nobody has taken */
function done(flag: string, fields: Map<string, string>): void {
  const [left] = fields.keys();
  if (left !== undefined) throw new AppError('unsupported', `cannot use ${flag} with ${left}=${fields.get(left)}`);
}

function takeField(fields: Map<string, string>, ...names: readonly string[]): string | undefined {
  for (const name of names) {
    const value = fields.get(name);
    if (fields.delete(name)) return value;
  }
  return undefined;
}

function pairs(
  flag: string,
  texts: readonly string[] | undefined,
  env?: Environment,
): Record<string, string> | undefined {
  if (texts === undefined) return undefined;
  const entries = texts.flatMap((text): [string, string][] => {
    if (text.includes('=')) return [pair(flag, text)];
    // A build argument without a value has the environment's, and is not given when there is none.
    const value = env === undefined ? '' : env[text];
    return value === undefined ? [] : [[text, value]];
  });
  return Object.fromEntries(entries);
}

/** buildx can say where an annotation goes; here it is the manifest. */
function annotations(texts: readonly string[] | undefined): Record<string, string> | undefined {
  return pairs(
    '--annotation',
    texts?.map((text) => {
      const prefix = /^([a-z-]+(?:\[[^\]]*\])?(?:,[a-z-]+)*):(?=[^=]*=)/.exec(text);
      if (prefix === null || !/^(?:manifest|index|manifest-descriptor|index-descriptor)\b/.test(prefix[1] ?? ''))
        return text;
      if (prefix[1] !== 'manifest')
        throw new AppError('unsupported', `cannot use --annotation ${prefix[1]}: annotations are the manifest's`);
      return text.slice(prefix[0].length);
    }),
  );
}

interface Outputs {
  readonly outputs: readonly BuildOutput[];
  /** Given as an output's name: as good as a tag. */
  readonly names: readonly string[];
}

function parseOutputs(flags: BuildFlags): Outputs {
  const parsed = (flags.output ?? []).map(parseOutput);
  const outputs = parsed.map(({ output }) => output);
  const has = (kind: BuildOutput['kind']) => outputs.some((output) => output.kind === kind);
  if (flags.push === true && !has('push')) outputs.push({ kind: 'push' });
  if ((flags.load === true || outputs.length === 0) && !has('store')) outputs.push({ kind: 'store' });
  const toStdout = outputs.filter((output) => 'file' in output && output.file === '-');
  if (toStdout.length > 1) throw new AppError('invalid', 'cannot write several outputs to stdout');
  return { outputs, names: parsed.flatMap(({ name }) => name?.split(',') ?? []) };
}

function parseOutput(text: string): { readonly output: BuildOutput; readonly name: string | undefined } {
  const flag = '--output';
  if (text === '-') return { output: { kind: 'tar', file: '-' }, name: undefined };
  const fields = fieldsOf(flag, text, 'dest');
  const type = takeField(fields, 'type') ?? 'local';
  const dest = takeField(fields, 'dest');
  const name = takeField(fields, 'name');
  const isPushed = ['true', '1'].includes(takeField(fields, 'push') ?? 'false') || type === 'registry';
  done(flag, fields);
  const file = () => {
    if (dest === undefined) throw refusal(flag, text, 'dest=FILE, or dest=- for stdout');
    return dest;
  };
  switch (type) {
    case 'image':
    case 'registry':
      if (dest !== undefined) throw refusal(flag, text, 'no dest');
      return { output: isPushed ? { kind: 'push' } : { kind: 'store' }, name };
    case 'docker':
      return { output: dest === undefined ? { kind: 'store' } : { kind: 'docker', file: dest }, name };
    case 'oci':
      return { output: { kind: 'oci', file: file() }, name };
    case 'tar':
      return { output: { kind: 'tar', file: file() }, name };
    case 'local':
      return { output: file() === '-' ? { kind: 'tar', file: '-' } : { kind: 'local', directory: file() }, name };
    default:
      throw new AppError(
        'unsupported',
        `cannot use ${flag} type=${type}: it can be image, registry, docker, oci, tar or local`,
      );
  }
}

function parseProvenance({ provenance, attest = [] }: BuildFlags): boolean {
  let isWanted = false;
  const want = (text: string, flag: string) => {
    if (['false', '0'].includes(text)) isWanted = false;
    else if (['true', '1', 'mode=min'].includes(text)) isWanted = true;
    else if (text === 'mode=max')
      throw new AppError(
        'unsupported',
        `cannot use ${flag} ${text}: no values of arguments and no sources are published`,
      );
    else throw refusal(flag, text, 'true, false or mode=min');
  };
  for (const text of attest) {
    const fields = fieldsOf('--attest', text, 'type');
    const type = takeField(fields, 'type');
    if (type !== 'provenance')
      throw new AppError('unsupported', `cannot use --attest type=${type ?? ''}: only provenance is made`);
    if (takeField(fields, 'disabled') === 'true') continue;
    const mode = takeField(fields, 'mode');
    done('--attest', fields);
    want(mode === undefined ? 'true' : `mode=${mode}`, '--attest');
  }
  if (provenance !== undefined) want(provenance, '--provenance');
  return isWanted;
}

const CACHE_TYPES = 'registry, local or inline';

function parseCache(flag: string, text: string): readonly Record<string, string>[] {
  if (!text.includes('=')) return list([text]).map((reference) => ({ kind: 'registry', reference }));
  const fields = fieldsOf(flag, text, 'ref');
  const type = takeField(fields, 'type') ?? 'registry';
  const source = takeField(fields, 'ref', 'src');
  done(flag, fields);
  if (source === undefined) throw refusal(flag, text, type === 'local' ? 'src=DIRECTORY' : 'ref=REFERENCE');
  if (type === 'registry') return [{ kind: 'registry', reference: source }];
  if (type === 'local') return [{ kind: 'local', directory: resolve(source) }];
  throw new AppError('unsupported', `cannot use ${flag} type=${type}: it can be registry or local`);
}

function parseCacheTarget(text: string): Record<string, string> {
  const flag = '--cache-to';
  const fields = fieldsOf(flag, text, 'ref');
  const type = takeField(fields, 'type') ?? (text === 'inline' ? 'inline' : 'registry');
  const target = takeField(fields, 'ref', 'dest');
  const mode = takeField(fields, 'mode') ?? 'min';
  done(flag, fields);
  if (mode !== 'min' && mode !== 'max') throw refusal(flag, text, 'mode=min or mode=max');
  if (type === 'inline') return { kind: 'inline' };
  if (type !== 'registry' && type !== 'local')
    throw new AppError('unsupported', `cannot use ${flag} type=${type}: it can be ${CACHE_TYPES}`);
  if (target === undefined) throw refusal(flag, text, type === 'local' ? 'dest=DIRECTORY' : 'ref=REFERENCE');
  return type === 'local' ? { kind: type, directory: resolve(target), mode } : { kind: type, reference: target, mode };
}

function parseSecret(text: string): SecretSource {
  const flag = '--secret';
  const fields = fieldsOf(flag, text, 'id');
  const id = takeField(fields, 'id');
  const type = takeField(fields, 'type');
  const source = takeField(fields, 'src', 'source', 'target');
  const name = takeField(fields, 'env');
  done(flag, fields);
  if (id === undefined || id === '') throw refusal(flag, text, 'id=ID');
  if (type !== undefined && type !== 'file' && type !== 'env') throw refusal(flag, text, 'type=file or type=env');
  if (name !== undefined || type === 'env') return { id, env: name ?? source ?? id };
  if (source !== undefined) return { id, file: source };
  return type === 'file' ? { id, file: id } : { id, guess: true };
}

function parseSsh(text: string, env: Environment): [string, string] {
  const at = text.indexOf('=');
  const id = at === -1 ? text : text.slice(0, at);
  const path = at === -1 ? env.SSH_AUTH_SOCK : text.slice(at + 1);
  if (id === '') throw refusal('--ssh', text, 'default, or ID=SOCKET');
  if (path === undefined || path === '')
    throw new AppError('invalid', `cannot use --ssh ${id}: SSH_AUTH_SOCK is not set, and no socket is given`);
  return [id, resolve(path)];
}

function runOptions(flags: BuildFlags): Record<string, unknown> {
  const amount = (flag: string, text: string | undefined) => (text === undefined ? undefined : whole(flag, text));
  const bytes = (text: string | undefined) => (text === undefined ? undefined : parseBytes(text));
  return withoutAbsent({
    networkMode: flags.network,
    extraHosts: flags.addHost?.map((text) => text.replace(/^([^:=]+)=/, '$1:')),
    shmBytes: bytes(flags.shmSize),
    ulimits: flags.ulimit?.map(parseUlimit),
    memoryBytes: bytes(flags.memory),
    memorySwapBytes: flags.memorySwap === '-1' ? -1 : bytes(flags.memorySwap),
    cpuShares: amount('--cpu-shares', flags.cpuShares),
    cpuPeriod: amount('--cpu-period', flags.cpuPeriod),
    cpuQuota: amount('--cpu-quota', flags.cpuQuota),
    cpusetCpus: flags.cpusetCpus,
    cpusetMems: flags.cpusetMems,
    cgroupParent: flags.cgroupParent,
    securityOptions: flags.securityOpt,
    allow: flags.allow,
  });
}

function parseUlimit(text: string): Record<string, unknown> {
  const match = /^([a-z]+)=(-?\d+)(?::(-?\d+))?$/.exec(text);
  if (match === null) throw refusal('--ulimit', text, 'NAME=SOFT[:HARD]');
  return { Name: match[1], Soft: Number(match[2]), Hard: Number(match[3] ?? match[2]) };
}

function parseProgress({ quiet, progress }: BuildFlags, env: Environment): ProgressKind {
  if (quiet === true) return 'quiet';
  const text = progress ?? (env.BUILDKIT_PROGRESS || 'auto');
  if (text === 'auto' || text === 'plain' || text === 'tty' || text === 'rawjson' || text === 'quiet') return text;
  throw refusal('--progress', text, 'auto, plain, tty, rawjson or quiet');
}

function whole(flag: string, text: string): number {
  if (!/^-?\d{1,15}$/.test(text)) throw refusal(flag, text, 'a number');
  return Number(text);
}

function list(texts: readonly string[]): readonly string[] {
  return texts.flatMap((text) => text.split(',')).filter((text) => text !== '');
}

function withoutAbsent(fields: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}
