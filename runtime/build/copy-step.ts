/** COPY and ADD: what their key is made of, and the layer of what they put into the stage. */
import { Readable } from 'node:stream';
import { parseDigest } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import type { Stage } from '../dockerfile/dockerfile.ts';
import type { AddInstruction, CopyInstruction } from '../dockerfile/instructions.ts';
import type { ImageLayer } from '../images/images.ts';
import type { LayerId } from '../layers/layer-store.ts';
import { unpackArchives } from './archives.ts';
import type { StepResult } from './cache.ts';
import { type CopyRequest, type CopySource, copyLayer, type InlineFile } from './copy.ts';
import type { FileTree } from './file-tree.ts';
import { parseGitReference } from './git-reference.ts';
import { digestSelection, type Selection, selectFiles } from './selection.ts';
import { type BuildWork, isFresh, type Performing, treeFrom, treeOfState, type Where } from './stage-work.ts';
import { stepKey } from './step-key.ts';

/** @throws AppError 'not-found' in Docker's words for what is not there, 'invalid' for what cannot be put there */
export async function copyStep(
  work: BuildWork,
  { state, stage, instruction }: Performing<CopyInstruction | AddInstruction>,
): Promise<StepResult & { readonly isCached: boolean }> {
  const { ports, signal } = work;
  const { layers, config } = state;
  const { kind, destination, chown, chmod, link } = instruction;
  const workingDirectory = config.WorkingDir || '/';
  const sources = await sourcesOf(work, instruction, { stage, state });
  const key = stepKey('copy', [
    // A layer of its own stands on anything.
    link ? null : layers.map((layer) => layer.diffId),
    sources.map(({ digest }) => digest),
    [destination, workingDirectory, chown, chmod],
    work.request.sourceDateEpoch,
  ]);
  const make = async (): Promise<StepResult> => {
    using _ = await ports.slots.acquire('steps', signal);
    const createdAt = ports.now();
    await using opened = await openSources(work, sources);
    const request: CopyRequest = {
      instruction: kind,
      sources: opened.sources,
      destination,
      workingDirectory,
      below: link ? undefined : await treeOfState(work, state),
      chown,
      chmod,
      createdAt,
      sourceDateEpoch: work.request.sourceDateEpoch,
    };
    return { layer: await putCopy(work, request, link ? [] : layers), createdAt };
  };
  return await work.steps.obtain({ key, isFresh: isFresh(work, stage), lower: layers, make }, instruction.text, work);
}

async function putCopy(work: BuildWork, request: CopyRequest, lower: readonly ImageLayer[]): Promise<ImageLayer> {
  const { ports, lease, signal } = work;
  const tar = await copyLayer(request);
  const stream = Readable.from(tar, { objectMode: false, highWaterMark: 1 << 20 });
  return await ports.images.putLayer(stream, { lower, lease, signal });
}

/** All files of a tree as the first layer of a stage: FROM a directory. They are root's. */
export async function copyWhole(
  work: BuildWork,
  { stage, tree, text }: { readonly stage: Stage; readonly tree: FileTree; readonly text: string },
): Promise<StepResult> {
  const { sourceDateEpoch } = work.request;
  const selection = await selectFiles({ tree, sources: ['/'], owners: 'root' });
  const key = stepKey('copy', [null, await digestSelection(selection, work.ports.digests), '/', sourceDateEpoch]);
  const make = async (): Promise<StepResult> => {
    const createdAt = work.ports.now();
    const request: CopyRequest = {
      instruction: 'FROM',
      sources: [{ kind: 'selection', selection }],
      destination: '/',
      workingDirectory: '/',
      below: undefined,
      createdAt,
      sourceDateEpoch,
    };
    return { layer: await putCopy(work, request, []), createdAt };
  };
  return await work.steps.obtain({ key, isFresh: isFresh(work, stage), lower: [], make }, text, work);
}

/** A source with what names it in the step's key: what would be copied, whatever its times are. */
type KeyedSource =
  | { readonly kind: 'inline'; readonly file: InlineFile; readonly digest: string }
  | {
      readonly kind: 'selection';
      readonly selection: Selection;
      /** Archives in it are unpacked. */
      readonly unpack: boolean;
      readonly digest: string;
    };

async function sourcesOf(
  work: BuildWork,
  instruction: CopyInstruction | AddInstruction,
  where: Where,
): Promise<readonly KeyedSource[]> {
  const inline = instruction.files.map(
    ({ name, content }): KeyedSource => ({
      kind: 'inline',
      file: { name, content: Buffer.from(content) },
      digest: JSON.stringify([name, content]),
    }),
  );
  const selections =
    instruction.kind === 'COPY'
      ? await copySelections(work, instruction, where)
      : await addSelections(work, instruction);
  const keyed = selections.map(async ({ selection, unpack }): Promise<KeyedSource> => {
    const digest = await digestSelection(selection, work.ports.digests);
    return { kind: 'selection', selection, unpack, digest: unpack ? `${digest} unpacked` : digest };
  });
  return [...inline, ...(await Promise.all(keyed))];
}

interface Chosen {
  readonly selection: Selection;
  readonly unpack: boolean;
}

interface OpenedSources extends AsyncDisposable {
  readonly sources: readonly CopySource[];
}

/** Archives become layers of their own, which go when the copy is done. */
async function openSources({ ports, signal }: BuildWork, keyed: readonly KeyedSource[]): Promise<OpenedSources> {
  const unpacked = new Set<LayerId>();
  await using undo = new AsyncDisposableStack();
  // After the lease has ended.
  undo.defer(() => ports.images.discard({ layers: unpacked, blobs: new Set() }).then(() => {}));
  const lease = undo.use(ports.images.lease());
  const sources: CopySource[] = [];
  for (const source of keyed) {
    if (source.kind === 'inline') {
      sources.push({ kind: 'inline', file: source.file });
      continue;
    }
    const { selection, unpack } = source;
    const onUnpacked = (id: LayerId) => unpacked.add(id);
    const selections = unpack
      ? await unpackArchives(selection, { layers: ports.layers, lease, signal, onUnpacked })
      : [selection];
    for (const one of selections) sources.push({ kind: 'selection', selection: one });
  }
  const owned = undo.move();
  return { sources, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

async function copySelections(work: BuildWork, instruction: CopyInstruction, where: Where): Promise<readonly Chosen[]> {
  const { sources, exclude: excludes, parents, from } = instruction;
  if (sources.length === 0) return [];
  const { tree } = await treeFrom(work, from, where);
  const owners = from === undefined || work.contexts.has(from) ? 'root' : 'kept';
  const ignored = from === undefined ? work.ignored : undefined;
  return [{ selection: await selectFiles({ tree, sources, excludes, parents, owners, ignored }), unpack: false }];
}

/** Runs of paths are selected together, so that a wildcard among them may name nothing. */
async function addSelections(work: BuildWork, instruction: AddInstruction): Promise<readonly Chosen[]> {
  const { ports, lease, signal } = work;
  const { checksum, unpack, exclude: excludes, keepGitDir } = instruction;
  const found: Chosen[] = [];
  let paths: string[] = [];
  const takePaths = async () => {
    if (paths.length === 0) return;
    if (checksum !== undefined)
      throw new AppError(
        'invalid',
        "checksum can't be specified for sources that are neither a URL nor a git repository",
      );
    const { tree } = await work.context();
    const selection = await selectFiles({ tree, sources: paths, excludes, owners: 'root', ignored: work.ignored });
    found.push({ selection, unpack: unpack !== false });
    paths = [];
  };
  for (const source of instruction.sources) {
    const repository = parseGitReference(source);
    const isUrl = /^https?:\/\//i.test(source);
    if (repository === undefined && !isUrl) {
      paths.push(source);
      continue;
    }
    await takePaths();
    if (repository !== undefined) {
      const sshAgent = work.request.ssh?.get('default');
      const { chain } = await ports.git.fetch(repository, { lease, checksum, keepGitDir, sshAgent, signal });
      const tree = await work.tree(chain);
      found.push({ selection: await selectFiles({ tree, sources: ['/'], excludes, owners: 'root' }), unpack: false });
      continue;
    }
    const expected = checksum === undefined ? undefined : parseDigest(checksum);
    const { name, chain } = await ports.remote.fetch(source, { lease, checksum: expected, signal });
    const selection = await selectFiles({ tree: await work.tree(chain), sources: [`/${name}`], owners: 'root' });
    found.push({ selection, unpack: unpack === true });
  }
  await takePaths();
  return found;
}
