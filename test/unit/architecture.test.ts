import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';

const ROOT = resolve(import.meta.dirname, '../..');
const PARTS = ['shared', 'registry', 'runtime'];

/** Who may import what, the first match counts. A folder's own files are always allowed. */
const FLOORS: readonly { readonly from: RegExp; readonly may: RegExp; readonly why: string }[] = [
  { from: /^shared\//, may: /^shared\//, why: 'shared is below everything' },
  { from: /^registry\//, may: /^(?:shared|registry)\//, why: 'the halves do not know each other' },
  { from: /^runtime\/cli\//, may: /^(?:shared|runtime\/cli)\//, why: 'the CLI is a client of the API, nothing else' },
  {
    from: /^runtime\/api\//,
    may: /^(?:shared\/|runtime\/api\/|runtime\/engine\.ts$)/,
    why: 'the API speaks to the engine and to nothing below it',
  },
  {
    from: /^runtime\/kernel\//,
    may: /^(?:shared|runtime\/kernel)\//,
    why: 'the doors to the kernel are at the bottom',
  },
  { from: /^runtime\//, may: /^(?:shared|runtime)\/(?!cli\/|api\/(?!server\.ts))/, why: 'edges are above the engine' },
];

/** Decide, do not act: they must be testable without a disk. */
const PURE = [
  'shared/digest.ts',
  'shared/media-types.ts',
  'shared/oci.ts',
  'shared/reference.ts',
  'shared/units.ts',
  'registry/routes.ts',
  'registry/ranges.ts',
  'runtime/containers/container.ts',
  'runtime/containers/spec.ts',
  'runtime/layers/tree.ts',
];
const INPUT_OUTPUT = /^node:(?:fs|net|http|https|child_process|dgram|dns|sqlite|worker_threads|process)/;

const ENTRY_POINTS = /^(?:registry\/main|runtime\/daemon|runtime\/cli\/main|runtime\/[a-z]+\/[a-z-]*worker)\.ts$/;
/** A default for an injected clock is not a use of it. */
const INJECTED = /\bnow = \(\) => new Date\(\)/;
const AMBIENT = /\bprocess\.(?:env|argv)\b|\bDate\.now\(|\bnew Date\(\)|\bMath\.random\(/;

interface Source {
  readonly path: string;
  readonly text: string;
  /** Paths from the root of the repository, or names of packages. */
  readonly imports: readonly string[];
}

function sources(): readonly Source[] {
  return PARTS.flatMap((part) =>
    readdirSync(join(ROOT, part), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts'))
      .map((name) => read(join(part, name))),
  );
}

function read(path: string): Source {
  const text = readFileSync(join(ROOT, path), 'utf8');
  const specifiers = text.matchAll(
    /(?:^|\n)\s*(?:import|export)\b[^'";]*?from\s*'([^']+)'|\bimport\(\s*'([^']+)'\s*\)/g,
  );
  const imports = [...specifiers].map((match) => {
    const specifier = match[1] ?? match[2] ?? '';
    return specifier.startsWith('.') ? relative(ROOT, resolve(ROOT, dirname(path), specifier)) : specifier;
  });
  return { path, text, imports: [...new Set(imports)] };
}

const ALL = sources();
const isOurs = (path: string) => path.endsWith('.ts');

/** Every cycle once, as the path that closes it. */
function cycles(files: readonly Source[]): readonly string[] {
  const edges = new Map(files.map((file) => [file.path, file.imports.filter(isOurs)]));
  const done = new Set<string>();
  const found: string[] = [];
  const visit = (path: string, trail: readonly string[]): void => {
    const at = trail.indexOf(path);
    if (at !== -1) found.push([...trail.slice(at), path].join(' → '));
    if (at !== -1 || done.has(path)) return;
    for (const next of edges.get(path) ?? []) visit(next, [...trail, path]);
    done.add(path);
  };
  for (const file of files) visit(file.path, []);
  return found;
}

describe('architecture', () => {
  it('imports point down', () => {
    const upward = ALL.flatMap(({ path, imports }) => {
      const floor = FLOORS.find(({ from }) => from.test(path));
      if (floor === undefined) return [`${path} is on no floor`];
      return imports
        .filter((to) => isOurs(to) && !floor.may.test(to))
        .map((to) => `${path} imports ${to}: ${floor.why}`);
    });
    expect(upward).toEqual([]);
  });

  it('has no cycles', () => {
    expect(cycles(ALL)).toEqual([]);
  });

  it('would see a cycle', () => {
    const file = (path: string, ...imports: string[]): Source => ({ path, text: '', imports });
    expect(cycles([file('a.ts', 'b.ts'), file('b.ts', 'c.ts'), file('c.ts', 'b.ts')])).toEqual(['b.ts → c.ts → b.ts']);
  });

  it('keeps input and output out of pure files', () => {
    const impure = ALL.filter(({ path }) => PURE.includes(path)).flatMap(({ path, imports }) =>
      imports.filter((name) => INPUT_OUTPUT.test(name)).map((name) => `${path} imports ${name}`),
    );
    expect(impure).toEqual([]);
  });

  it('takes time, ids and environment from entry points only', () => {
    const ambient = ALL.filter(({ path }) => !ENTRY_POINTS.test(path)).flatMap(({ path, text }) =>
      text
        .split('\n')
        .flatMap((line, i) =>
          AMBIENT.test(line) && !INJECTED.test(line) && !/^\s*(?:\*|\/\/)/.test(line)
            ? [`${path}:${i + 1} ${line.trim()}`]
            : [],
        ),
    );
    expect(ambient).toEqual([]);
  });

  it('has neither barrels nor drawers', () => {
    const drawers = ALL.filter(({ path }) => /\/(?:utils?|helpers?|common|misc)\.ts$/.test(path));
    const barrels = ALL.filter(({ text }) => /^export \* from/m.test(text));
    expect([...drawers, ...barrels].map(({ path }) => path)).toEqual([]);
  });
});
