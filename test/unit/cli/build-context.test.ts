import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { extract } from 'tar-stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type ListedFile, packContext, readOwnFile, walkContext } from '../../../runtime/cli/build-context.ts';
import { openSources } from '../../../runtime/cli/build-sources.ts';
import { createIgnore } from '../../../shared/dockerignore.ts';

let root = '';
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'berth-context-'));
  const write = (path: string, content: string, mode = 0o644) => {
    mkdirSync(join(root, path, '..'), { recursive: true });
    writeFileSync(join(root, path), content);
    chmodSync(join(root, path), mode);
    utimesSync(join(root, path), 1_700_000_000.5, 1_700_000_000.5);
  };
  write('Dockerfile', 'FROM scratch\n');
  write('a/run.sh', 'echo\n', 0o755);
  write('a/ä', 'x'.repeat(3_000_000));
  write('node_modules/deep/x', 'no');
  write('out/keep/this', 'yes');
  write('out/not/this', 'no');
  write('empty', '');
  mkdirSync(join(root, 'nothing'));
  symlinkSync('/etc/passwd', join(root, 'link'));
  execFileSync('mkfifo', [join(root, 'pipe')]);
});
afterAll(() => rmSync(root, { recursive: true }));

const IGNORED = ['node_modules', 'out', '!out/keep'];
function walk(patterns: readonly string[] = IGNORED): {
  readonly files: readonly ListedFile[];
  readonly leftOut: string[];
} {
  const leftOut: string[] = [];
  const onLeftOut = (path: string, what: string) => void leftOut.push(`${path}: ${what}`);
  return { files: [...walkContext({ root, ignore: createIgnore(patterns), onLeftOut })].flat(), leftOut };
}

async function unpack(files: readonly ListedFile[]): Promise<Record<string, unknown>> {
  const reader = extract();
  const found: Record<string, unknown> = {};
  const packed = pipeline(Readable.from(packContext(root, files), { objectMode: false }), reader);
  for await (const entry of reader) {
    const { name, type, mode, uid, gid, mtime, linkname } = entry.header;
    let bytes = 0;
    for await (const chunk of entry) bytes += (chunk as Buffer).length;
    found[name] = { type, mode, uid, gid, bytes, mtime: mtime?.getTime(), linkname };
  }
  await packed;
  return found;
}

describe('a directory as a context', () => {
  it('is listed without what .dockerignore leaves out', () => {
    const { files, leftOut } = walk();
    expect(files.map(([kind, path]) => `${kind} ${path}`)).toEqual([
      ...['f Dockerfile', 'd a', 'f a/run.sh', 'f a/ä', 'f empty', 'l link', 'd nothing'],
      ...['d out', 'd out/keep', 'f out/keep/this'],
    ]);
    expect(files[2]).toEqual(['f', 'a/run.sh', 0o755, 5, '1700000000500000000']);
    expect(files[5]?.[5]).toBe('/etc/passwd');
    expect(leftOut).toEqual(['pipe: a pipe']);
    expect(walk(['**']).files).toEqual([]);
  });

  it('is sent as a tar that is root’s, and follows no link', async () => {
    expect(await unpack(walk().files)).toMatchObject({
      'a/': { type: 'directory', uid: 0, gid: 0 },
      'a/run.sh': { type: 'file', mode: 0o755, bytes: 5, mtime: 1_700_000_000_000 },
      'a/ä': { type: 'file', bytes: 3_000_000 },
      empty: { bytes: 0 },
      link: { type: 'symlink', linkname: '/etc/passwd' },
      'out/keep/this': { bytes: 3 },
    });
  });

  it('may change between list and tar: longer is sent longer, gone and replaced are told', async () => {
    const { files } = walk();
    const some = (path: string) => files.filter(([, found]) => found === path);
    writeFileSync(join(root, 'empty'), 'grown');
    expect(await unpack(some('empty'))).toMatchObject({ empty: { bytes: 5 } });
    rmSync(join(root, 'empty'));
    expect(() => [...packContext(root, some('empty'))]).toThrow(/"empty": it was removed/);
    symlinkSync('/etc/passwd', join(root, 'empty'));
    expect(() => [...packContext(root, some('empty'))]).toThrow(/"empty": it was replaced/);
    rmSync(join(root, 'empty'));
    execFileSync('mkfifo', [join(root, 'empty')]);
    expect(() => [...packContext(root, some('empty'))]).toThrow(/"empty": it was replaced/);
    rmSync(join(root, 'empty'));
    const packing = packContext(root, some('a/ä'));
    packing.next();
    truncateSync(join(root, 'a/ä'), 0);
    expect(() => [...packing]).toThrow(/it became shorter/);
  });

  it('CVE-2022-4122 CVE-2022-4123: reads no ignore file and no Dockerfile through a link out of it', async () => {
    for (const [target, allowed] of [
      ['/etc/passwd', false],
      ['../../etc/passwd', false],
      ['Dockerfile', true],
    ] as const) {
      symlinkSync(target, join(root, '.dockerignore'));
      const read = () => readOwnFile(root, '.dockerignore', 1000);
      if (allowed) expect(read()).toBe('FROM scratch\n');
      else expect(read).toThrow(/leads out of the context|no such file/);
      const opened = openSources(root, { file: undefined, onLeftOut: () => undefined });
      if (target === '/etc/passwd') await expect(opened).rejects.toMatchObject({ kind: 'denied' });
      else await opened.catch(() => undefined);
      rmSync(join(root, '.dockerignore'));
    }
    symlinkSync('/etc/passwd', join(root, 'Dockerfile.evil'));
    await expect(
      openSources(root, { file: join(root, 'Dockerfile.evil'), onLeftOut: () => undefined }),
    ).rejects.toMatchObject({ kind: 'denied' });
    rmSync(join(root, 'Dockerfile.evil'));
  });

  it('has the Dockerfile that is meant', async () => {
    const open = (context: string, file?: string) => openSources(context, { file, onLeftOut: () => undefined });
    expect((await open(root)).dockerfile).toEqual({ name: 'Dockerfile', text: 'FROM scratch\n' });
    writeFileSync(join(root, 'a/Other'), 'FROM other\n');
    expect((await open(root, join(root, 'a/Other'))).dockerfile).toEqual({ name: 'a/Other', text: 'FROM other\n' });
    expect((await open(join(root, 'nothing'), join(root, 'a/Other'))).dockerfile.name).toBe('Other');
    await expect(open(join(root, 'nothing'))).rejects.toMatchObject({ kind: 'not-found' });
    await expect(open(join(root, 'absent'))).rejects.toMatchObject({ kind: 'not-found' });
    await expect(open(join(root, 'Dockerfile'))).rejects.toMatchObject({ kind: 'invalid' });
    expect(await open('https://example.com/x.git#main:sub')).toEqual({
      context: { kind: 'remote', url: 'https://example.com/x.git#main:sub' },
      dockerfile: { name: 'Dockerfile', text: undefined },
    });
    expect(readFileSync(join(root, 'a/Other'), 'utf8')).toContain('other');
  });
});
