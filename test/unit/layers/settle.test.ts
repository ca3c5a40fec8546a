import { describe, expect, it } from 'vitest';
import { type Change, entryName, entryPath, type Settled, settle } from '../../../runtime/layers/settle.ts';
import {
  type Attributes,
  type DirectoryNode,
  type FileNode,
  type LayerNode,
  mergeTrees,
  nameFromUtf8,
  nameToUtf8,
  walk,
} from '../../../runtime/layers/tree.ts';
import { isKind } from '../../../shared/errors.ts';

const ATTRIBUTES: Attributes = {
  mode: 0o644,
  uid: 0,
  gid: 0,
  mtimeSeconds: 1,
  mtimeNanoseconds: 0,
  xattrs: undefined,
};

function changesOf(texts: readonly string[]): Change[] {
  return texts.map(changeOf).filter((change) => change !== undefined);
}

/** One entry as the tar would have it: `d/` directory, `d/ 1777` with a mode, `l -> t` symlink, `h = t` hard link. */
function changeOf(text: string): Change | undefined {
  const [, raw = '', arrow, target = ''] = /^(.*?)(?: (->|=) (.*))?$/.exec(text) ?? [];
  const [, name = '', mode] = /^(.*?)(?: (\d+))?$/.exec(raw) ?? [];
  const { means, path } = entryName(entryPath(nameFromUtf8(name)));
  if (means === 'ignored') return undefined;
  if (means === 'whiteout' || means === 'opaque') return { kind: means, path };
  const attributes = { ...ATTRIBUTES, mode: Number.parseInt(mode ?? '644', 8) };
  if (arrow === '->') return { kind: 'node', path, node: { kind: 'symlink', ...attributes, target } };
  if (arrow === '=') return { kind: 'link', path, target: entryPath(target) };
  if (name.endsWith('/')) return { kind: 'directory', path, attributes };
  return { kind: means === 'hidden' ? 'hidden' : 'node', path, node: file(attributes) };
}

function file(attributes: Attributes): FileNode {
  return { kind: 'file', ...attributes, sizeBytes: 0, dataOffset: 0, tailOffset: undefined };
}

/** Settles the last layer above the others. `copied` are the layers that files were copied from. */
function stack(layers: readonly (readonly string[])[]): { settled: Settled; trees: Settled[]; copied: number[] } {
  const trees: Settled[] = [];
  let copied: number[] = [];
  for (const entries of layers) {
    copied = [];
    const from = copied;
    const settled = settle(changesOf(entries), {
      lower: mergeTrees(trees),
      maxEntries: 10_000,
      copyFile(original, layer) {
        from.push(layer);
        return { ...original };
      },
    });
    trees.push(settled);
  }
  const settled = trees.at(-1);
  if (settled === undefined) throw new Error('want at least one layer');
  return { settled, trees, copied };
}

function listing(tree: { readonly root: DirectoryNode; readonly rootIsImplied: boolean }): string[] {
  const first = new Map<LayerNode, string>();
  return [...walk(tree)].slice(1).map(({ path, node }) => {
    const shown = nameToUtf8(path);
    const earlier = first.get(node);
    if (node.kind === 'whiteout') return `${shown} hidden`;
    if (earlier !== undefined) return `${shown} = ${earlier}`;
    first.set(node, shown);
    if (node.kind === 'directory') return `${shown}/ ${node.mode.toString(8)}${node.opaque ? ' opaque' : ''}`;
    if (node.kind === 'symlink') return `${shown} -> ${node.target}`;
    return shown;
  });
}

const settledListing = (...layers: readonly (readonly string[])[]) => listing(stack(layers).settled);

describe('settle: one layer', () => {
  const cases: readonly (readonly [string, readonly string[], readonly string[]])[] = [
    [
      'leading slashes, dots and doubled slashes',
      ['./a/ 755', '/a//b', 'a/./c', 'a/x/../d'],
      ['a/ 755', 'a/b', 'a/c', 'a/d'],
    ],
    ['implied parents', ['x/y/z'], ['x/ 755', 'x/y/ 755', 'x/y/z']],
    ['a directory after what it holds', ['t/x', 't/ 1777'], ['t/ 1777', 't/x']],
    [
      'a directory twice: the last attributes, all children',
      ['d/ 700', 'd/a', 'd/ 755', 'd/b'],
      ['d/ 755', 'd/a', 'd/b'],
    ],
    ['a file twice', ['f 600', 'f 644'], ['f']],
    ['a file instead of a directory', ['d/ 755', 'd/x/ 755', 'd/x/y', 'd'], ['d']],
    ['a directory instead of a file hides the lower one', ['d', 'd/ 755', 'd/n'], ['d/ 755 opaque', 'd/n']],
    [
      'hard links, also to links and through dots',
      ['a', 'b = a', 'd/c = ./b', 'e = /a'],
      ['a', 'b = a', 'd/ 755', 'd/c = a', 'e = a'],
    ],
    ['a hard link to a symlink is the symlink', ['s -> nowhere', 'h = s'], ['h -> nowhere', 's = h']],
    [
      'a path through a symlink',
      ['usr/lib/ 755', 'lib -> usr/lib', 'lib/x'],
      ['lib -> usr/lib', 'usr/ 755', 'usr/lib/ 755', 'usr/lib/x'],
    ],
    ['a path through an absolute symlink', ['lib -> /usr', 'lib/x'], ['lib -> /usr', 'usr/ 755', 'usr/x']],
    ['a hard link through a symlink', ['d/ 755', 'd/f', 's -> d', 'h = s/f'], ['d/ 755', 'd/f', 'h = d/f', 's -> d']],
    [
      'CVE-2014-9356: a symlink that leads out stays inside',
      ['e -> ../../../etc', 'e/passwd'],
      ['e -> ../../../etc', 'etc/ 755', 'etc/passwd'],
    ],
    [
      'CVE-2014-6407: a file through a symlink to the root, and a hard link through it, stay inside',
      ['r -> /', 'etc/ 755', 'r/etc/shadow', 'h = r/etc/shadow'],
      ['etc/ 755', 'etc/shadow', 'h = etc/shadow', 'r -> /'],
    ],
    [
      'CVE-2021-32760: the mode of an entry on a symlink or a hard link to one never goes through it',
      ['s -> /etc/passwd', 'h = s', 'h 777'],
      ['h', 's -> /etc/passwd'],
    ],
    [
      'a symlink replaced by another between two entries',
      ['a/ 755', 'b/ 755', 'l -> a', 'l/1', 'l -> b', 'l/2'],
      ['a/ 755', 'a/1', 'b/ 755', 'b/2', 'l -> b'],
    ],
    ['whiteouts of nothing', ['a/ 755', 'a/.wh.x', '.wh.y', 'n/m/.wh.z'], ['a/ 755']],
    ['a whiteout never hides what its own layer has', ['.wh.f', 'f', 'g', '.wh.g'], ['f', 'g']],
    [
      'AUFS names',
      ['.wh..wh.aufs', '.wh..wh.orph/', '.wh..wh.orph/x', 'a', '.wh..wh.plnk/1.2', 'b = .wh..wh.plnk/1.2'],
      ['a', 'b'],
    ],
    ['names that are not ASCII', ['ü/é'], ['ü/ 755', 'ü/é']],
  ];
  it.each(cases)('%s', (_, layer, expected) => {
    expect(settledListing(layer)).toEqual(expected);
  });

  it('takes the attributes of an entry for the root', () => {
    const { settled } = stack([['./ 700', 'a']]);
    expect(settled.root.mode).toBe(0o700);
    expect(settled.rootIsImplied).toBe(false);
    expect(stack([['a']]).settled.rootIsImplied).toBe(true);
  });

  const hostile: readonly (readonly [string, readonly string[]])[] = [
    ['CVE-2014-9356: .. out of the root', ['../etc/passwd']],
    ['.. out of the root after a slash', ['/../etc/passwd']],
    ['.. out of the root in the middle', ['a/../../etc/passwd']],
    ['CVE-2014-9357: a hard link out of the root', ['h = ../../etc/shadow']],
    ['a hard link to nothing', ['h = nothing']],
    ['a hard link to a directory', ['d/ 755', 'h = d']],
    ['a hard link to the root', ['h = .']],
    ['a path through a file', ['f', 'f/x']],
    ['a loop of symlinks', ['a -> b', 'b -> a', 'a/x']],
    ['a symlink to itself', ['a -> a/a', 'a/x']],
    ['a whiteout without a name', ['.wh.']],
    ['a whiteout of .', ['d/.wh..']],
    ['a whiteout of ..', ['d/.wh...']],
    ['a whiteout that is a directory', ['.wh.d/x']],
    ['a file as the root', ['./']],
    ['a name of 256 bytes', ['n'.repeat(256)]],
    ['a path of more than 4096 bytes', [`${'d/'.repeat(2048)}x`]],
    [
      'a path made deeper by symlinks',
      [`${'d/'.repeat(2000)} 755`, `l -> ${'d/'.repeat(2000)}`, `l/${'e/'.repeat(1000)}x`],
    ],
    ['a zero byte', ['a\0b']],
  ];
  it.each(hostile)('refuses %s', (name, layer) => {
    const changes = () => (name === 'a file as the root' ? [rootFile()] : changesOf(layer));
    expect(() => settle(changes(), { lower: undefined, maxEntries: 10_000, copyFile: (f) => f })).toThrow(
      expect.toSatisfy((error: unknown) => isKind(error, 'invalid')),
    );
  });

  it('stops at too many entries, implied ones counted', () => {
    const limited = (layer: readonly string[], maxEntries: number) => () =>
      settle(changesOf(layer), { lower: undefined, maxEntries, copyFile: (f) => f });
    expect(limited(['a/b/c/d'], 4)).not.toThrow();
    expect(limited(['a/b/c/d'], 3)).toThrow(/more than 3 entries/);
    expect(limited(['a/ 755', 'a/b', 'a/c', 'a', 'a/ 755', 'a/b'], 3)).not.toThrow();
  });

  it('counts names', () => {
    expect(stack([['a/b', 'a/c', 'a', 'd', 'e = d']]).settled.entryCount).toBe(3);
  });
});

describe('settle: above other layers', () => {
  const cases: readonly (readonly [string, readonly (readonly string[])[], readonly string[]])[] = [
    ['implied parents keep the lower mode', [['tmp/ 1777'], ['tmp/x']], ['tmp/ 1777', 'tmp/x']],
    ['the topmost of several lower ones counts', [['d/ 700'], ['d/ 750'], ['d/x']], ['d/ 750', 'd/x']],
    [
      'a path through a lower symlink',
      [['usr/lib/ 711', 'lib -> usr/lib'], ['lib/new.so']],
      ['usr/ 755', 'usr/lib/ 711', 'usr/lib/new.so'],
    ],
    [
      'a path through an absolute lower symlink',
      [['run/ 700', 'var/run -> /run'], ['var/run/x']],
      ['run/ 700', 'run/x', 'var/ 755'],
    ],
    [
      'a directory replaces a lower symlink',
      [
        ['usr/lib/ 755', 'lib -> usr/lib'],
        ['lib/ 755', 'lib/x'],
      ],
      ['lib/ 755', 'lib/x'],
    ],
    [
      'a whiteout',
      [
        ['a', 'b/ 700', 'b/c'],
        ['.wh.a', 'b/.wh.c'],
      ],
      ['a hidden', 'b/ 700', 'b/c hidden'],
    ],
    [
      'a whiteout through a lower symlink',
      [['usr/ 755', 'usr/x', 'u -> usr'], ['u/.wh.x']],
      ['usr/ 755', 'usr/x hidden'],
    ],
    ['a whiteout of what a layer between has hidden', [['a'], ['.wh.a'], ['.wh.a']], []],
    ['a whiteout below a lower file', [['a'], ['a/.wh.b']], []],
    [
      'a whiteout and a directory of the same name',
      [
        ['d/ 700', 'd/x'],
        ['d/ 755', '.wh.d', 'd/y'],
      ],
      ['d/ 755 opaque', 'd/y'],
    ],
    [
      'a whiteout after an implied directory of its name',
      [
        ['d/ 700', 'd/x'],
        ['d/y', '.wh.d'],
      ],
      ['d/ 755 opaque', 'd/y'],
    ],
    [
      'a whiteout of a symlink that a path would follow',
      [
        ['u/ 755', 'l -> u'],
        ['l/x', '.wh.l'],
      ],
      ['l/ 755 opaque', 'l/x'],
    ],
    [
      'an opaque directory, marked first',
      [
        ['d/ 700', 'd/x'],
        ['d/.wh..wh..opq', 'd/y'],
      ],
      ['d/ 700 opaque', 'd/y'],
    ],
    [
      'an opaque directory, marked last',
      [
        ['d/ 700', 'd/e/ 711'],
        ['d/e/y', 'd/.wh..wh..opq'],
      ],
      ['d/ 700 opaque', 'd/e/ 755', 'd/e/y'],
    ],
    [
      'whiteouts inside an opaque directory',
      [
        ['d/ 700', 'd/x'],
        ['d/.wh.x', 'd/.wh..wh..opq'],
      ],
      ['d/ 700 opaque'],
    ],
    ['an opaque mark on nothing', [['a'], ['d/.wh..wh..opq']], []],
    [
      'an opaque root hides name by name',
      [
        ['a', 'd/ 755', 'd/x'],
        ['.wh..wh..opq', 'd/ 755', 'n'],
      ],
      ['a hidden', 'd/ 755 opaque', 'n'],
    ],
    [
      'nothing shines through a directory that was hidden below',
      [['d/ 700', 'd/e/ 711'], ['.wh.d'], ['d/e/x']],
      ['d/ 755', 'd/e/ 755', 'd/e/x'],
    ],
    [
      'a directory that was a file in the same layer',
      [
        ['d/ 700', 'd/e/ 711'],
        ['d', 'd/ 755', 'd/e/x'],
      ],
      ['d/ 755 opaque', 'd/e/ 755', 'd/e/x'],
    ],
    ['a hard link to a lower file, which comes up with it', [['a'], ['b = a']], ['a', 'b = a']],
    ['two hard links to a lower file', [['d/a'], ['b = d/a', 'c = d/a']], ['b', 'c = b', 'd/ 755', 'd/a = b']],
    [
      'a hard link to a lower file through a lower symlink',
      [['d/a', 's -> d'], ['b = s/a']],
      ['b', 'd/ 755', 'd/a = b'],
    ],
    ['a hard link to a lower symlink', [['s -> x'], ['h = s']], ['h -> x', 's = h']],
  ];
  it.each(cases)('%s', (_, layers, expected) => {
    expect(settledListing(...layers)).toEqual(expected);
  });

  it('copies a lower file from the layer that has it', () => {
    expect(stack([['x'], ['a'], ['b = a', 'c = a']]).copied).toEqual([1]);
  });

  const refused: readonly (readonly [string, readonly (readonly string[])[]])[] = [
    ['a path through a lower file', [['f'], ['f/x']]],
    ['a hard link to a lower directory', [['d/ 755'], ['h = d']]],
    ['a hard link to what is hidden', [['a'], ['.wh.a'], ['h = a']]],
    ['a hard link to what this layer hides', [['a'], ['.wh.a', 'h = a']]],
    ['a loop of lower symlinks', [['a -> b', 'b -> a'], ['a/x']]],
  ];
  it.each(refused)('refuses %s', (_, layers) => {
    expect(() => stack(layers)).toThrow(expect.toSatisfy((error: unknown) => isKind(error, 'invalid')));
  });
});

describe('settle: independence', () => {
  const cases: readonly (readonly [string, readonly string[], boolean])[] = [
    ['explicit parents', ['d/ 755', 'd/e/ 755', 'd/e/f', 'g'], true],
    ['own symlinks and hard links', ['d/ 755', 's -> d', 's/f', 'h = d/f'], true],
    ['an opaque directory', ['d/ 755', 'd/.wh..wh..opq', 'd/x'], true],
    ['an implied parent', ['d/f'], false],
    ['a whiteout', ['.wh.a'], false],
    ['an opaque root', ['.wh..wh..opq', 'a'], false],
    ['a parent that comes later', ['d/f', 'd/ 755'], false],
  ];
  it.each(cases)('%s', (_, layer, independent) => {
    expect(stack([layer]).settled.independent).toBe(independent);
  });
});

function rootFile(): Change {
  return { kind: 'node', path: '', node: file(ATTRIBUTES) };
}
