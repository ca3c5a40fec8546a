/**
 * `berth build`: asks the engine for a build, sends what it does not have of the context, shows what happens and takes the
 * results. The first request's connection is the build's life: when this program ends, however, the engine stops.
 */
import { createWriteStream, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { Credentials } from '../../shared/credentials.ts';
import { AppError, type ErrorKind, hasCode } from '../../shared/errors.ts';
import { familiarReference, parseReference } from '../../shared/reference.ts';
import type { ListedFile } from './build-context.ts';
import { type BuildFlags, type BuildOutput, type BuildPlan, planBuild, type SecretSource } from './build-request.ts';
import { type Directory, openNamed, openSources, type Source } from './build-sources.ts';
import { type BuildView, createBuildView } from './build-view.ts';
import { jsonLines } from './client.ts';
import { print, say } from './output.ts';
import { configuredProxies } from './proxies.ts';
import type { Session } from './session.ts';
import { type Json, list, number, object, text } from './values.ts';

const SECRET_MAX_BYTES = 500 * 1024;
const BUILDS = '/berth/v1/builds';

export async function build(session: Session, context: string, flags: BuildFlags): Promise<void> {
  const plan = planBuild(flags, session.env);
  refuseTerminal(plan.outputs);
  const view = createBuildView({ output: process.stderr, kind: plan.progress, clock: () => performance.now() });
  const sources = await openSources(context, { file: flags.file, onLeftOut: view.note });
  const named = new Map([...plan.contexts].map(([name, value]) => [name, openNamed(value, view.note)]));
  const body = {
    ...plan.body,
    buildArgs: {
      ...(await configuredProxies(session.configDirectory, session.engine.host)),
      ...object(plan.body.buildArgs),
    },
    context: sourceJson(sources.context),
    contexts: Object.fromEntries([...named].map(([name, source]) => [name, sourceJson(source)])),
    dockerfile: sources.dockerfile,
    secrets: Object.fromEntries(plan.secrets.map((secret) => [secret.id, readSecret(secret, session.env)])),
    credentials: await allCredentials(session),
  };
  const stream = await session.engine.stream('POST', BUILDS, { json: body });
  const uploads = new Map([['', sources.context], ...named]);
  try {
    const result = await follow(stream, { view, onBegin: (id) => sendFiles(session, id, uploads) });
    if (plan.body.call === 'check') return printCheck(session, result.warnings);
    await deliver(session, { ...result, plan, view, flags });
  } finally {
    view.end();
    stream.destroy();
  }
  if (plan.progress !== 'rawjson' && plan.progress !== 'quiet')
    for (const tag of plan.tags) say(`named ${familiarReference(parseReference(tag))}`);
}

interface Built {
  readonly id: string;
  readonly images: readonly Json[];
  readonly warnings: readonly Json[];
}

interface Following {
  readonly view: BuildView;
  /** Sends the files of the build with this id. */
  readonly onBegin: (id: string) => Promise<void>;
}

/** Reads what the engine says until it has a result. @throws what the engine says went wrong */
async function follow(stream: Readable, { view, onBegin }: Following): Promise<Built> {
  const send = (id: string) =>
    onBegin(id).catch((error) => {
      // Why the engine took no files is what it says on this connection, not what it told the sender.
      if (!(error instanceof AppError) || error.detail?.status === undefined) stream.destroy(error);
    });
  let id = '';
  // Not `for await`: it would close the connection, and with it the build, when the loop is left.
  for (const lines = jsonLines(stream); ; ) {
    const { value, done } = await lines.next();
    if (done === true)
      throw new AppError('unavailable', 'cannot finish the build: the engine has closed the connection');
    const line = object(value);
    if (line.id !== undefined) {
      id = text(line.id);
      void send(id);
    }
    if (line.event !== undefined) view.show(object(line.event));
    if (line.error !== undefined) throw errorOf(object(line.error));
    if (line.result === undefined) continue;
    const { images, warnings } = object(line.result);
    return { id, images: list(images).map(object), warnings: list(warnings).map(object) };
  }
}

function errorOf(body: Json): AppError {
  return new AppError((text(body.kind) || 'conflict') as ErrorKind, text(body.message), {
    detail: object(body.detail),
  });
}

function sourceJson(source: Source): Json {
  switch (source.kind) {
    case 'files':
      return { kind: 'files', name: source.directory.name };
    case 'archive':
      return { kind: 'files' };
    case 'remote':
    case 'image':
    case 'empty':
      return source;
    default:
      throw source satisfies never;
  }
}

async function sendFiles(session: Session, id: string, sources: ReadonlyMap<string, Source>): Promise<void> {
  for (const [name, source] of sources) {
    const query = { context: name };
    if (source.kind === 'archive')
      await session.engine.call('PUT', `${BUILDS}/${id}/context`, { query, body: source.tar });
    if (source.kind === 'files') await sendDirectory(session, { id, query, directory: source.directory });
  }
}

interface SentDirectory {
  readonly id: string;
  readonly query: { readonly context: string };
  readonly directory: Directory;
}

/** First all names, then what the engine does not have of them. */
async function sendDirectory(session: Session, { id, query, directory }: SentDirectory): Promise<void> {
  const files: ListedFile[] = [];
  function* lines() {
    for (const batch of directory.list()) {
      for (const file of batch) files.push(file);
      yield Buffer.from(`${JSON.stringify(batch)}\n`);
    }
  }
  const answer = await session.engine.call('POST', `${BUILDS}/${id}/files`, {
    query,
    body: Readable.from(lines(), { objectMode: false }),
    headers: { 'content-type': 'application/jsonl' },
  });
  const missing = list(object(answer).missing)
    .map((index) => files[number(index)])
    .filter((file) => file !== undefined);
  if (missing.length === 0) return;
  await session.engine.call('PUT', `${BUILDS}/${id}/context`, { query, body: directory.pack(missing) });
}

/** Base64 of its bytes. @throws AppError 'not-found', 'too-large' */
function readSecret(secret: SecretSource, env: Session['env']): string {
  const fail = (why: string): never => {
    throw new AppError('not-found', `cannot use --secret id=${secret.id}: ${why}`);
  };
  const name = 'env' in secret ? secret.env : 'guess' in secret && env[secret.id] !== undefined ? secret.id : undefined;
  if (name !== undefined) {
    const value = env[name] ?? fail(`there is no environment variable ${name}`);
    return Buffer.from(value).toString('base64');
  }
  const file = 'file' in secret ? secret.file : secret.id;
  try {
    const bytes = readFileSync(file);
    if (bytes.length > SECRET_MAX_BYTES)
      throw new AppError(
        'too-large',
        `cannot use --secret id=${secret.id}: it is larger than ${SECRET_MAX_BYTES} bytes`,
      );
    return bytes.toString('base64');
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return fail(`there is no file ${JSON.stringify(file)}`);
    throw error;
  }
}

/** Which registries a build asks is known when it asks; like Docker's client, this one sends what it has. */
async function allCredentials(session: Session): Promise<Record<string, Json>> {
  const store = await session.credentials();
  const found = await Promise.all((await store.hosts()).map(async (host) => [host, await store.get(host)] as const));
  return Object.fromEntries(
    found.flatMap(([host, credentials]) => (credentials ? [[host, credentialsJson(credentials)]] : [])),
  );
}

function credentialsJson(credentials: Credentials): Json {
  switch (credentials.kind) {
    case 'password':
      return { username: credentials.username, password: credentials.password };
    case 'identity-token':
      return { identitytoken: credentials.token };
    case 'registry-token':
      return { registrytoken: credentials.token };
    default:
      throw credentials satisfies never;
  }
}

interface Delivery extends Built {
  readonly plan: BuildPlan;
  readonly view: BuildView;
  readonly flags: BuildFlags;
}

async function deliver(session: Session, delivery: Delivery): Promise<void> {
  const { plan, flags, images } = delivery;
  const ids = images.map((image) => text(image.id));
  let descriptor: Json | undefined;
  for (const output of plan.outputs) {
    if (output.kind === 'push') descriptor = await push(session, delivery);
    else await write(session, output, delivery);
  }
  if (flags.iidfile !== undefined) {
    const [id = ''] = ids;
    if (ids.length > 1)
      throw new AppError('unsupported', 'cannot use --iidfile with several platforms: each has its own id');
    writeFileSync(flags.iidfile, id);
  }
  if (flags.metadataFile !== undefined)
    writeFileSync(flags.metadataFile, `${JSON.stringify(metadata(delivery, descriptor), null, 2)}\n`);
  if (plan.progress === 'quiet') print(ids.join('\n'));
}

async function push(session: Session, { id, plan, view }: Delivery): Promise<Json> {
  const { registryAuth } = await import('./image-commands.ts');
  let descriptor: Json = {};
  for (const tag of plan.tags) {
    const reference = parseReference(tag);
    const stream = await session.engine.stream('POST', `${BUILDS}/${id}/push`, {
      json: { reference: tag, provenance: plan.provenance },
      headers: await registryAuth(session, reference),
    });
    for await (const value of jsonLines(stream)) {
      const line = object(value);
      if (line.event !== undefined) view.show(object(line.event));
      if (line.error !== undefined) throw errorOf(object(line.error));
      if (line.descriptor !== undefined) descriptor = object(line.descriptor);
    }
    view.note(`pushed ${familiarReference(reference)} ${text(descriptor.digest)}`);
  }
  return descriptor;
}

async function write(
  session: Session,
  output: Exclude<BuildOutput, { kind: 'push' }>,
  { id, images, plan }: Delivery,
): Promise<void> {
  const get = (path: string, query = {}) => session.engine.stream('GET', path, { query });
  switch (output.kind) {
    case 'store':
      return;
    case 'docker':
      // An image that has no name is saved by its id.
      return save(
        await get('/images/get', { names: plan.tags.length > 0 ? plan.tags : images.map((image) => text(image.id)) }),
        output.file,
      );
    case 'oci':
      return save(await get(`${BUILDS}/${id}/layout`), output.file);
    case 'tar':
      if (images.length > 1)
        throw new AppError('unsupported', 'cannot write several platforms as one tar: use type=local, or type=oci');
      return save(await get(`${BUILDS}/${id}/files`), output.file);
    case 'local': {
      const { unpack } = await import('./copy-command.ts');
      for (const image of images) {
        // With several platforms each has its directory, as with buildx.
        const { os, architecture, variant } = object(image.platform);
        const name = [os, architecture, variant]
          .map(text)
          .filter((part) => part !== '')
          .join('_');
        const directory = images.length > 1 ? join(output.directory, name) : output.directory;
        mkdirSync(directory, { recursive: true });
        await unpack(await get(`${BUILDS}/${id}/files`, { image: text(image.id) }), directory, {});
      }
      return;
    }
    default:
      throw output satisfies never;
  }
}

async function save(tar: Readable, file: string): Promise<void> {
  await pipeline(tar, file === '-' ? process.stdout : createWriteStream(file));
}

function refuseTerminal(outputs: readonly BuildOutput[]): void {
  if (process.stdout.isTTY && outputs.some((output) => 'file' in output && output.file === '-'))
    throw new AppError('invalid', 'cowardly refusing to write an archive to a terminal: use dest=FILE or a pipe');
}

/** buildx's names. */
function metadata({ images, plan }: Delivery, pushed: Json | undefined): Json {
  const [image] = images;
  const descriptor = pushed ?? object(image?.manifest);
  return {
    ...(images.length === 1 && { 'containerimage.config.digest': text(image?.id) }),
    'containerimage.descriptor': descriptor,
    'containerimage.digest': text(descriptor.digest),
    ...(plan.tags.length > 0 && { 'image.name': plan.tags.join(',') }),
  };
}

/** Findings are data: they go to stdout, and a finding is not a success. */
function printCheck(session: Session, warnings: readonly Json[]): void {
  for (const warning of warnings) {
    const line = warning.line === undefined ? '' : ` (line ${number(warning.line)})`;
    print(`${text(warning.rule)}${line}: ${text(warning.message)}`);
    if (warning.source !== undefined) print(`  ${text(warning.source)}`);
    if (warning.url !== undefined) print(`  ${text(warning.url)}`);
  }
  if (warnings.length === 0) print('Check complete, no warnings found.');
  else session.exitCode = 1;
}
