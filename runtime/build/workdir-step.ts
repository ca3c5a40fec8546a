/** WORKDIR: the directory is there from here on. One that is there already is left as it is, and no layer is made. */
import { Readable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import type { TarEntry } from '../../shared/tar-writer.ts';
import { TAR_END, tarHeader } from '../../shared/tar-writer.ts';
import type { WorkdirInstruction } from '../dockerfile/instructions.ts';
import { nameToUtf8 } from '../layers/tree.ts';
import type { StepResult } from './cache.ts';
import { lookUp } from './file-tree.ts';
import { resolveOwner } from './ownership.ts';
import { madeAt } from './source-date.ts';
import { type BuildWork, isFresh, type Performing, treeOfState } from './stage-work.ts';
import { stepKey } from './step-key.ts';

const DIRECTORY_MODE = 0o755;

/** `state` is after the instruction. @throws AppError 'invalid' when something else is there */
export async function workdirStep(
  work: BuildWork,
  { state, stage, instruction }: Performing<WorkdirInstruction>,
): Promise<StepResult & { readonly isCached: boolean }> {
  const { ports, lease, signal, request } = work;
  const { layers, config } = state;
  const path = config.WorkingDir || '/';
  const user = config.User ?? '';
  const key = stepKey('workdir', [layers.map((layer) => layer.diffId), path, user, request.sourceDateEpoch]);
  const make = async (): Promise<StepResult> => {
    const tree = await treeOfState(work, state);
    const createdAt = ports.now();
    const place = lookUp(tree, path);
    if (place.found?.directory !== undefined || place.path === '') return { layer: undefined, createdAt };
    if (place.found !== undefined)
      throw new AppError('invalid', `cannot make the working directory ${JSON.stringify(path)}: a file is there`);
    const { uid, gid } = user === '' ? { uid: 0, gid: 0 } : await resolveOwner(user, tree);
    const names = place.path.split('/');
    const missing = names
      .map((_, index) => names.slice(0, index + 1).join('/'))
      .filter((directory) => lookUp(tree, nameToUtf8(directory)).found === undefined);
    const mtimeSeconds = Math.floor(madeAt(createdAt, request.sourceDateEpoch).getTime() / 1000);
    const headers = missing.map((directory) => tarHeader({ ...ENTRY, path: directory, uid, gid, mtimeSeconds }));
    const tar = Readable.from([Buffer.concat([...headers, TAR_END])], { objectMode: false });
    const layer = await ports.images.putLayer(tar, { lower: layers, lease, signal });
    return { layer, createdAt };
  };
  return await work.steps.obtain({ key, isFresh: isFresh(work, stage), lower: layers, make }, instruction.text, work);
}

const ENTRY: TarEntry = {
  type: 'directory',
  path: '',
  linkPath: '',
  mode: DIRECTORY_MODE,
  uid: 0,
  gid: 0,
  mtimeSeconds: 0,
  mtimeNanoseconds: 0,
  sizeBytes: 0,
  major: 0,
  minor: 0,
  xattrs: undefined,
};
