/** Images as a tree of the layers that they share, base first. Pure. */
import { shortId } from '../../shared/digest.ts';

export interface TreeImage {
  /** What stands for it: its names, or its id. */
  readonly label: string;
  /** diffIDs, base first. */
  readonly layers: readonly string[];
}

interface Branch {
  readonly labels: string[];
  readonly above: Map<string, Branch>;
}

const newBranch = (): Branch => ({ labels: [], above: new Map() });

/**
 * A line per layer, with the images that end there; layers over the same ones below hang on the same branch, and those
 * that only ever come together stand below each other.
 */
export function imageTree(images: readonly TreeImage[]): readonly string[] {
  const root = newBranch();
  for (const { label, layers } of images) {
    let at = root;
    for (const layer of layers) {
      const next = at.above.get(layer) ?? newBranch();
      at.above.set(layer, next);
      at = next;
    }
    at.labels.push(label);
  }
  // Of an image without layers there is nothing to hang it on.
  return [...root.labels, ...linesAbove(root, '', true)];
}

function* linesAbove({ labels, above }: Branch, indent: string, isRoot = false): Generator<string, void, undefined> {
  const isStraight = isRoot || (labels.length === 0 && above.size === 1);
  let left = above.size;
  for (const [layer, branch] of above) {
    left -= 1;
    const [mark, below] = isStraight ? ['', ''] : left > 0 ? ['├─', '│ '] : ['└─', '  '];
    const names = branch.labels.length === 0 ? '' : `  ${branch.labels.join(', ')}`;
    yield `${indent}${mark}${shortId(layer)}${names}`;
    yield* linesAbove(branch, `${indent}${below}`);
  }
}
