/** COPY and ADD: what their key is made of, and the layer of what they put into the stage. */
import { Readable } from 'node:stream';
import { parseDigest } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import type { Stage } from '../dockerfile/dockerfile.ts';
import type { AddInstruction, CopyInstruction } from '../dockerfile/instructions.ts';
import { unpackArchives } from './archives.ts';
import type { StepResult } from './cache.ts';
import { type CopySource, copyLayer } from './copy.ts';
import type { FileTree } from './file-tree.ts';
import { parseGitReference } from './git.ts';
import { digestSelection, type Selection, selectFiles } from './selection.ts';
import { type BuildWork, isFresh, type Performing, treeFrom, treeOfState, type Where } from './stage-work.ts';
import { stepKey } from './step-key.ts';

/** @throws AppError 'not-found' in Docker's words for what is not there, 'invalid' for what cannot be put there */
export async function copyStep(
  work: BuildWork,
  { state, stage, instruction }: Performing<CopyInstruction | AddInstruction>,
): Promise<StepResult & { readonly isCached: boolean }> {
  const { ports, request, lease, signal } = work;
  const { layers, config } = state;
  const { kind, destination, chown, chmod, link } = instruction;
  const workingDirectory = config.WorkingDir || '/';
  const sources = await sourcesOf(work, instruction, { stage, state });
  const key = stepKey('copy', [
    // A layer of its own stands on anything.
    link ? null : layers.map((layer) => layer.diffId),
    sources.map(({ digest }) => digest),
    [destination, workingDirectory, chown, chmod],
    request.sourceDateEpoch,
  ]);
  const make = async (): Promise<StepResult> => {
    using _ = await ports.slots.acquire('steps', signal);
    const createdAt = ports.now();
    const tar = await copyLayer({
      instruction: kind,
      sources: sources.map(({ source }) => source),
      destination,
      workingDirectory,
      below: link ? undefined : await treeOfState(work, state),
      chown,
      chmod,
      createdAt,
      sourceDateEpoch: request.sourceDateEpoch,
    });
    const stream = Readable.from(tar, { objectMode: false, highWaterMark: 1 << 20 });
    const layer = await ports.images.putLayer(stream, { lower: link ? [] : layers, lease, signal });
    return { layer, createdAt };
  };
  return await work.steps.obtain({ key, isFresh: isFresh(work, stage), lower: layers, make }, instruction.text, work);
}

/** All files of a tree as the first layer of a stage: FROM a directory. They are root's. */
export async function copyWhole(
  work: BuildWork,
  { stage, tree, text }: { readonly stage: Stage; readonly tree: FileTree; readonly text: string },
): Promise<StepResult> {
  const { ports, request, lease, signal } = work;
  const { sourceDateEpoch } = request;
  const selection = await selectFiles({ tree, sources: ['/'], owners: 'root' });
  const key = stepKey('copy', [null, await digestSelection(selection, ports.digests), '/', sourceDateEpoch]);
  const make = async (): Promise<StepResult> => {
    const createdAt = ports.now();
    const tar = await copyLayer({
      instruction: 'FROM',
      sources: [{ kind: 'selection', selection }],
      destination: '/',
      workingDirectory: '/',
      below: undefined,
      createdAt,
      sourceDateEpoch,
    });
    const stream = Readable.from(tar, { objectMode: false, highWaterMark: 1 << 20 });
    return { layer: await ports.images.putLayer(stream, { lower: [], lease, signal }), createdAt };
  };
  return await work.steps.obtain({ key, isFresh: isFresh(work, stage), lower: [], make }, text, work);
}

interface KeyedSource {
  readonly source: CopySource;
  /** Names what would be copied, whatever its times are. */
  readonly digest: string;
}

async function sourcesOf(
  work: BuildWork,
  instruction: CopyInstruction | AddInstruction,
  where: Where,
): Promise<readonly KeyedSource[]> {
  const inline = instruction.files.map(
    ({ name, content }): KeyedSource => ({
      source: { kind: 'inline', file: { name, content: Buffer.from(content) } },
      digest: JSON.stringify([name, content]),
    }),
  );
  const selections =
    instruction.kind === 'COPY'
      ? await copySelections(work, instruction, where)
      : await addSelections(work, instruction);
  const keyed = selections.map(
    async (selection): Promise<KeyedSource> => ({
      source: { kind: 'selection', selection },
      digest: await digestSelection(selection, work.ports.digests),
    }),
  );
  return [...inline, ...(await Promise.all(keyed))];
}

async function copySelections(
  work: BuildWork,
  instruction: CopyInstruction,
  where: Where,
): Promise<readonly Selection[]> {
  const { sources, exclude: excludes, parents, from } = instruction;
  if (sources.length === 0) return [];
  const { tree } = await treeFrom(work, from, where);
  const owners = from === undefined || work.contexts.has(from) ? 'root' : 'kept';
  return [await selectFiles({ tree, sources, excludes, parents, owners })];
}

/** Runs of paths are selected together, so that a wildcard among them may name nothing. */
async function addSelections(work: BuildWork, instruction: AddInstruction): Promise<readonly Selection[]> {
  const { ports, lease, signal } = work;
  const { checksum, unpack, exclude: excludes, keepGitDir } = instruction;
  const unpacking = { layers: ports.layers, lease, signal };
  const found: Selection[] = [];
  let paths: string[] = [];
  const takePaths = async () => {
    if (paths.length === 0) return;
    if (checksum !== undefined)
      throw new AppError(
        'invalid',
        "checksum can't be specified for sources that are neither a URL nor a git repository",
      );
    const { tree } = await work.context();
    const selection = await selectFiles({ tree, sources: paths, excludes, owners: 'root' });
    found.push(...(unpack === false ? [selection] : await unpackArchives(selection, unpacking)));
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
      found.push(await selectFiles({ tree: await work.tree(chain), sources: ['/'], excludes, owners: 'root' }));
      continue;
    }
    const expected = checksum === undefined ? undefined : parseDigest(checksum);
    const { name, chain } = await ports.remote.fetch(source, { lease, checksum: expected, signal });
    const selection = await selectFiles({ tree: await work.tree(chain), sources: [`/${name}`], owners: 'root' });
    found.push(...(unpack === true ? await unpackArchives(selection, unpacking) : [selection]));
  }
  await takePaths();
  return found;
}
