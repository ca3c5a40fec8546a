/** The promises of runtime/build/context.ts, and of what fetches for it, over real layers and real servers. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, readdir, symlink, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { type AddressInfo, createServer as createTcpServer } from 'node:net';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { readContextEntries } from '../../runtime/api/berth-build-json.ts';
import type { BuildContext, ContextEntry } from '../../runtime/build/context.ts';
import type { LocalContexts } from '../../runtime/build/contexts-local.ts';
import { openFileTree, walkDirectory } from '../../runtime/build/file-tree.ts';
import { parseGitReference } from '../../runtime/build/git-reference.ts';
import { packContext, walkContext } from '../../runtime/cli/build-context.ts';
import { digestOf } from '../../shared/digest.ts';
import { createIgnore } from '../../shared/dockerignore.ts';
import { type TarEntry, tarOf } from '../fixtures/tar.ts';
import { type BuildRig, buildRig } from './build-rig.ts';

const run = promisify(execFile);
const file = (name: string, content = name, more: Partial<TarEntry> = {}): TarEntry => ({ name, content, ...more });
const tar = (...entries: readonly TarEntry[]) => Readable.from([tarOf(entries)]);

describe('contexts', () => {
  let rig: BuildRig;
  let contexts: LocalContexts;
  beforeAll(async () => {
    rig = await buildRig();
    contexts = rig.contexts;
  });
  afterAll(() => rig[Symbol.asyncDispose]());

  const paths = async ({ chain }: Pick<BuildContext, 'chain'>) => {
    const { root } = await openFileTree(rig.layers, chain);
    return root === undefined ? [] : [...walkDirectory(root)].map(({ path }) => path);
  };

  describe('received whole', () => {
    // What stays kept is nothing to those that come after.
    afterEach(async () => {
      await contexts.remove(new Set(contexts.records().map(({ id }) => id)));
    });
    const entries = [
      file('./Dockerfile', 'FROM scratch'),
      { name: './d/', type: 'directory' } as const,
      file('/abs'),
      file('d/.wh.x', 'no whiteout'),
      file('d/x'),
      file('.wh..wh..opq'),
    ];
    it.each([
      ['plain', (bytes: Buffer) => bytes],
      ['gzip', gzipSync],
      ['zstd', zstdCompressSync],
      ['bzip2', (bytes: Buffer) => through('bzip2', bytes)],
      ['xz', (bytes: Buffer) => through('xz', bytes)],
    ] as const)('%s', async (_form, pack) => {
      const body = await pack(tarOf(entries));
      const send = () => contexts.receive(Readable.from([body.subarray(0, 700), body.subarray(700)]));
      const before = (await rig.layers.list()).length;
      {
        await using context = await send();
        expect(await paths(context)).toEqual(['.wh..wh..opq', 'Dockerfile', 'abs', 'd', 'd/.wh.x', 'd/x']);
        expect(await context.text('d/.wh.x', 100)).toBe('no whiteout');
        expect(await context.text('nothing', 100)).toBeUndefined();
        await expect(context.text('Dockerfile', 3)).rejects.toMatchObject({ kind: 'too-large' });
      }
      // It is kept for the next time; nothing is made then.
      expect((await rig.layers.list()).length).toBe(before + 1);
      await (await send())[Symbol.asyncDispose]();
      expect((await rig.layers.list()).length).toBe(before + 1);
      expect(contexts.records().map(({ usedCount, isInUse }) => [usedCount, isInUse])).toEqual([[2, false]]);
      await contexts.remove(new Set(contexts.records().map(({ id }) => id)));
      expect((await rig.layers.list()).length).toBe(before);
    });

    it('makes again what is no more, and keeps nothing that is large', async () => {
      const first = await contexts.receive(tar(file('x')));
      await first[Symbol.asyncDispose]();
      const [layer] = first.chain;
      if (layer !== undefined) await rig.layers.remove(layer);
      await using again = await contexts.receive(tar(file('x')));
      expect(await again.text('x', 100)).toBe('x');
      const before = contexts.records().length;
      const layers = (await rig.layers.list()).length;
      const large = await contexts.receive(tar(file('large', randomBytes(5 << 20).toString('latin1'))));
      expect(await paths(large)).toEqual(['large']);
      await large[Symbol.asyncDispose]();
      expect(contexts.records().length).toBe(before);
      expect((await rig.layers.list()).length).toBe(layers);
    });

    it.each([
      ['..', [file('../x')], 'invalid'],
      ['a device', [{ name: 'null', type: 'character-device', major: 1, minor: 3 }], 'unsupported'],
      ['what overlayfs takes for a whiteout', [{ name: 'x', type: 'character-device' }], 'unsupported'],
      ['a hard link out', [{ name: 'x', type: 'link', linkname: '../../etc/passwd' }], 'invalid'],
      ['a bomb', [file('x', '\0'.repeat(40 << 20))], 'too-large'],
    ] as const)('refuses %s', async (_what, hostile, kind) => {
      await expect(contexts.receive(tar(...hostile))).rejects.toMatchObject({ kind });
      await expect(contexts.receive(Readable.from([gzipSync(tarOf(hostile))]))).rejects.toMatchObject({ kind });
    });

    it('refuses what is cut off, empty, no tar, or given up', async () => {
      await expect(contexts.receive(Readable.from([tarOf([file('x')]).subarray(0, 512)]))).rejects.toMatchObject({
        kind: 'integrity',
      });
      await expect(contexts.receive(Readable.from([]))).rejects.toMatchObject({ kind: 'invalid' });
      await expect(contexts.receive(Readable.from([Buffer.alloc(2000, 'x')]))).rejects.toMatchObject({
        kind: 'invalid',
      });
      const endless = new Readable({ read() {} });
      endless.push(tarOf([file('x')]).subarray(0, 512));
      const abort = new AbortController();
      const receiving = contexts.receive(endless, { signal: abort.signal });
      abort.abort();
      await expect(receiving).rejects.toMatchObject({ kind: 'timeout' });
      const broken = new Readable({ read() {} });
      broken.push(tarOf([file('x')]).subarray(0, 512));
      const failing = contexts.receive(broken);
      broken.destroy(new Error('connection lost'));
      await expect(failing).rejects.toThrow('connection lost');
    });

    it('follows links inside the context only (CVE-2022-4122)', async () => {
      await using context = await contexts.receive(
        tar(
          { name: '.dockerignore', type: 'symlink', linkname: '/etc/passwd' },
          { name: 'l', type: 'symlink', linkname: '../../../x' },
          file('x', 'inside'),
        ),
      );
      expect(await context.text('.dockerignore', 1 << 20)).toBeUndefined();
      expect(await context.text('l', 100)).toBe('inside');
    });

    it('leaves files out of another', async () => {
      await using context = await contexts.receive(tar(file('a'), file('d/b'), file('d/c')));
      {
        await using less = await contexts.without(context, ['d/b', 'nothing']);
        expect(await paths(less)).toEqual(['a', 'd', 'd/c']);
      }
      expect(await paths(context)).toEqual(['a', 'd', 'd/b', 'd/c']);
      await using empty = await contexts.empty();
      expect(await paths(empty)).toEqual([]);
    });
  });

  describe('sent by our client', () => {
    it('is asked for nothing twice', async () => {
      // A rig of its own: what is kept here would be counted below.
      await using own = await buildRig();
      const { contexts } = own;
      const directory = join(own.root, 'sent');
      await mkdir(join(directory, 'd'), { recursive: true });
      await writeFile(join(directory, 'd/file'), 'content');
      await symlink('file', join(directory, 'd/link'));
      const files = [...walkContext({ root: directory, ignore: createIgnore([]) })].flat();
      async function* entries() {
        yield* readContextEntries(Readable.from([Buffer.from(JSON.stringify(files))]));
      }
      const missing = async () => {
        await using delta = await contexts.compare('client', entries());
        const wanted = new Set(delta.missing);
        const packed = packContext(
          directory,
          files.filter(([, path]) => wanted.has(path)),
        );
        await using _ = await delta.complete(Readable.from(packed, { objectMode: false }));
        return delta.missing;
      };
      expect(await missing()).toEqual(['d', 'd/file', 'd/link']);
      expect(await missing()).toEqual([]);
    });
  });

  describe('sent by what changed', () => {
    const MTIME = 1_700_000_000_123_456_789n;
    const listed = (path: string, more: Partial<ContextEntry> = {}): ContextEntry => ({
      ...{ path, kind: 'file', mode: 0o644, sizeBytes: path.length, mtimeNs: MTIME },
      ...more,
    });
    const sent = (entry: ContextEntry): TarEntry => ({
      name: entry.path,
      mode: entry.mode,
      type: entry.kind,
      ...(entry.kind === 'file' ? { content: 'x'.repeat(entry.sizeBytes) } : {}),
      ...(entry.target === undefined ? {} : { linkname: entry.target }),
      pax: { mtime: `${entry.mtimeNs / 1_000_000_000n}.${String(entry.mtimeNs % 1_000_000_000n).padStart(9, '0')}` },
    });
    async function* each(entries: readonly ContextEntry[]) {
      yield* entries;
    }
    /** Answers what was asked for and the context. */
    async function send(to: LocalContexts, name: string, entries: readonly ContextEntry[]) {
      await using delta = await to.compare(name, each(entries));
      const wanted = new Set(delta.missing);
      const body = tar(...entries.filter(({ path }) => wanted.has(path)).map(sent));
      return { missing: delta.missing, context: await delta.complete(body) };
    }
    const first = [
      listed('Dockerfile'),
      listed('é/ö'),
      listed('link', { kind: 'symlink', target: 'Dockerfile', mode: 0o777, sizeBytes: 0 }),
      listed('src', { kind: 'directory', mode: 0o750, sizeBytes: 0 }),
      listed('src/a'),
      listed('src/b'),
    ];

    it('asks for what is not there as it is, and keeps the rest', async () => {
      const initial = await send(contexts, 'one', first);
      expect(initial.missing).toEqual(first.map(({ path }) => path));
      await initial.context[Symbol.asyncDispose]();
      const again = await send(
        contexts,
        'one',
        first.map((entry) => (entry.kind === 'directory' ? { ...entry, mtimeNs: 1n } : entry)),
      );
      expect(again.missing).toEqual([]);
      expect(again.context.chain).toEqual(initial.context.chain);
      await again.context[Symbol.asyncDispose]();
      const changed = [
        listed('Dockerfile', { mtimeNs: MTIME + 1n }),
        listed('link', { kind: 'symlink', target: 'elsewhere', mode: 0o777, sizeBytes: 0 }),
        listed('src', { kind: 'directory', mode: 0o700, sizeBytes: 0 }),
        listed('src/a', { mode: 0o755 }),
        listed('src/new/x'),
      ];
      const { missing, context } = await send(contexts, 'one', changed);
      expect(missing).toEqual(['Dockerfile', 'link', 'src', 'src/a', 'src/new/x']);
      expect(await paths(context)).toEqual(['Dockerfile', 'link', 'src', 'src/a', 'src/new', 'src/new/x']);
      expect(context.chain.length).toBe(2);
      await context[Symbol.asyncDispose]();

      const restarted = await rig.reopen();
      expect([...restarted.layersInUse()].sort()).toEqual([...context.chain].sort());
      await using delta = await restarted.compare('one', each(changed));
      expect(delta.missing).toEqual([]);
      await using other = await restarted.compare('two', each(changed));
      expect(other.missing.length).toBe(changed.length);
    });

    it('turns files into directories and back', async () => {
      await (await send(contexts, 'kinds', [listed('x'), listed('y/z'), listed('same')])).context[
        Symbol.asyncDispose
      ]();
      const { context } = await send(contexts, 'kinds', [listed('x/z'), listed('y'), listed('same')]);
      expect(await paths(context)).toEqual(['same', 'x', 'x/z', 'y']);
      const link = listed('x', { kind: 'symlink', target: 'y', mode: 0o777, sizeBytes: 0 });
      const linked = await send(contexts, 'kinds', [link, listed('y'), listed('same')]);
      expect(await paths(linked.context)).toEqual(['same', 'x', 'y']);
      await linked.context[Symbol.asyncDispose]();
      const third = await send(contexts, 'kinds', [listed('x/w'), listed('y'), listed('same')]);
      expect(await paths(third.context)).toEqual(['same', 'x', 'x/w', 'y']);
      await third.context[Symbol.asyncDispose]();
      await context[Symbol.asyncDispose]();
    });

    it('begins again when there are too many layers, or what changed is large', async () => {
      for (let turn = 0; turn <= 8; turn++) {
        const { context } = await send(contexts, 'deltas', [listed('same'), listed('f', { mtimeNs: BigInt(turn) })]);
        expect(context.chain.length).toBe(turn + 1);
        await context[Symbol.asyncDispose]();
      }
      const { context, missing } = await send(contexts, 'deltas', [listed('same'), listed('f', { mtimeNs: 100n })]);
      expect([missing.length, context.chain.length]).toEqual([2, 1]);
      await context[Symbol.asyncDispose]();
      await using delta = await contexts.compare(
        'deltas',
        each([listed('same'), listed('huge', { sizeBytes: 1 << 30 })]),
      );
      expect(delta.missing).toEqual(['same', 'huge']);
    });

    it('refuses lists and archives that do not fit', async () => {
      for (const path of ['', '/abs', '../x', 'a//b', 'a/./b', 'a\0b'])
        await expect(contexts.compare('bad', each([listed(path)]))).rejects.toMatchObject({ kind: 'invalid' });
      const small = await rig.reopen({ entriesMax: 2 });
      await expect(small.compare('bad', each(first))).rejects.toMatchObject({ kind: 'too-large' });
      await using delta = await contexts.compare('lacking', each([listed('x'), listed('y')]));
      await expect(delta.complete(tar(file('x')))).rejects.toThrow('"y" is not in the tar');
      expect(contexts.records().some(({ description }) => description.includes('lacking'))).toBe(false);
    });

    it('keeps a bounded number, none that is in use, and none whose layers have gone', async () => {
      const some = await rig.reopen();
      await some.remove(new Set(some.records().map(({ id }) => id)));
      expect((await rig.layers.list()).length).toBeGreaterThanOrEqual(0);
      const bounded = await rig.reopen({ keptMax: 2 });
      const held = await send(bounded, 'held', [listed('h')]);
      expect(bounded.records()).toMatchObject([{ kind: 'source.local', isInUse: true, usedCount: 1 }]);
      expect(await bounded.remove(new Set(bounded.records().map(({ id }) => id)))).toEqual({ removed: [], bytes: 0 });
      for (const name of ['p', 'q', 'r'])
        await (await send(bounded, name, [listed(name)])).context[Symbol.asyncDispose]();
      expect(bounded.records().map(({ description }) => description.at(-1))).toEqual(['r', 'd']);
      await held.context[Symbol.asyncDispose]();
      expect(await bounded.diskBytes()).toBeGreaterThan(0);
      const [layer] = held.context.chain;
      if (layer !== undefined) await rig.layers.remove(layer);
      const reopened = await rig.reopen();
      expect(reopened.records().map(({ description }) => description.at(-1))).toEqual(['r']);
      await using delta = await bounded.compare('held', each([listed('h')]));
      expect(delta.missing).toEqual(['h']);
    });
  });

  describe('from servers', () => {
    let origin: string;
    const requests: string[] = [];
    const server = createServer((request, response) => {
      requests.push(`${request.url} ${request.headers['if-none-match'] ?? ''}`.trim());
      answer(request, response);
    });
    beforeAll(async () => {
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    });
    afterAll(() => {
      server.closeAllConnections();
      server.close();
    });

    function answer(request: IncomingMessage, response: ServerResponse): void {
      const { pathname } = new URL(request.url ?? '', 'http://x');
      const modified = { 'last-modified': 'Tue, 14 Nov 2023 22:13:20 GMT' };
      if (pathname === '/file.txt' && request.headers['if-none-match'] === '"1"') response.writeHead(304).end();
      else if (pathname === '/file.txt') response.writeHead(200, { etag: '"1"', ...modified }).end('content');
      else if (pathname === '/named')
        response.writeHead(200, { 'content-disposition': 'attachment; filename="../../etc/evil.sh"' }).end('x');
      else if (pathname === '/to') response.writeHead(302, { location: '/file.txt' }).end();
      else if (pathname === '/loop') response.writeHead(302, { location: '/loop' }).end();
      else if (pathname === '/local') response.writeHead(302, { location: 'file:///etc/passwd' }).end();
      else if (pathname === '/large') response.writeHead(200).end(Buffer.alloc(2 << 20));
      else if (pathname === '/context.tar.gz')
        response.writeHead(200).end(gzipSync(tarOf([file('Dockerfile', 'FROM a')])));
      else if (pathname === '/context.tar') response.writeHead(200).end(tarOf([file('Dockerfile', 'FROM b')]));
      else if (pathname === '/Dockerfile') response.writeHead(200).end('FROM c');
      else response.writeHead(404).end();
    }

    it('fetches a file once while it is the same', async () => {
      await using lease = rig.lease();
      const fetched = await rig.remote.fetch(`${origin}/file.txt`, { lease });
      expect(fetched.name).toBe('file.txt');
      const { root } = await openFileTree(rig.layers, fetched.chain);
      expect(root?.get('file.txt')?.node).toMatchObject({
        kind: 'file',
        mode: 0o600,
        mtimeSeconds: 1_700_000_000,
        sizeBytes: 7,
      });
      expect(await rig.remote.fetch(`${origin}/file.txt`, { lease, checksum: digestOf('content') })).toEqual(fetched);
      expect(requests).toEqual(['/file.txt', '/file.txt "1"']);
      expect((await rig.remote.fetch(`${origin}/to`, { lease })).name).toBe('to');
      expect((await rig.remote.fetch(`${origin}/named`, { lease })).name).toBe('evil.sh');
      await expect(
        rig.remote.fetch(`${origin}/file.txt`, { lease, checksum: digestOf('other') }),
      ).rejects.toMatchObject({ kind: 'integrity' });
      expect(await readdir(join(rig.root, 'build', 'fetch'))).toEqual([]);
    });

    it.each([
      ['/loop', 'redirects more than 10 times'],
      ['/local', 'want a URL that begins with http'],
      ['/large', 'larger than'],
      ['/nothing', 'invalid response status 404'],
    ])('%s fails: %s', async (path, message) => {
      await using lease = rig.lease();
      await expect(rig.remote.fetch(`${origin}${path}`, { lease })).rejects.toThrow(message);
    });

    it.each([
      ['/context.tar', 'FROM b'],
      ['/context.tar.gz', 'FROM a'],
      ['/Dockerfile', 'FROM c'],
    ])('is a context: %s', async (path, text) => {
      await using context = await contexts.fetch(`${origin}${path}`);
      expect(await context.text('Dockerfile', 100)).toBe(text);
    });
  });

  describe('from git', () => {
    let daemon: ChildProcess;
    let url: string;
    let commit: string;
    beforeAll(async () => {
      const work = join(rig.root, 'work');
      const bare = join(rig.root, 'git', 'repo.git');
      const env = { PATH: process.env.PATH, HOME: rig.root, GIT_CONFIG_NOSYSTEM: '1' };
      const who = {
        GIT_AUTHOR_NAME: 'a',
        GIT_AUTHOR_EMAIL: 'a@b',
        GIT_COMMITTER_NAME: 'a',
        GIT_COMMITTER_EMAIL: 'a@b',
      };
      const git = async (...args: string[]) =>
        (
          await run('git', ['-C', work, ...args], { env: { ...env, ...who, GIT_COMMITTER_DATE: '1700000000 +0000' } })
        ).stdout.trim();
      await mkdir(join(work, 'sub'), { recursive: true });
      await git('init', '--quiet', '--initial-branch=main');
      await writeFile(join(work, 'Dockerfile'), 'FROM main');
      await writeFile(join(work, 'sub', 'Dockerfile'), 'FROM sub');
      await writeFile(join(work, 'left-out'), 'kept all the same');
      await writeFile(join(work, '.gitattributes'), 'left-out export-ignore\n');
      await run('ln', ['-s', '/etc', join(work, 'out')]);
      await git('add', '--all');
      await git('commit', '--quiet', '--message=one');
      await git('tag', 'v1');
      commit = await git('rev-parse', 'HEAD');
      await writeFile(join(work, 'Dockerfile'), 'FROM later');
      await git('commit', '--quiet', '--all', '--message=two');
      const link = async (path: string, submodule: string, address: string) => {
        await git('config', '--file', join(work, '.gitmodules'), '--add', `submodule.../${path}.path`, path);
        await git('config', '--file', join(work, '.gitmodules'), '--add', `submodule.../${path}.url`, address);
        await git('add', '.gitmodules');
        await git('update-index', '--add', '--cacheinfo', `160000,${submodule},${path}`);
        await git('commit', '--quiet', `--message=${path}`);
        return await git('rev-parse', 'HEAD');
      };
      // Each on a branch of its own, and all of one repository, which is its own neighbour.
      await git('checkout', '--quiet', '-b', 'inner', 'v1');
      const inner = await link('deep/\u00e9', commit, './../repo.git');
      await git('checkout', '--quiet', '-b', 'outer', 'v1');
      await link('sub/vendor', inner, '../repo.git');
      await git('checkout', '--quiet', '-b', 'bad', 'v1');
      await link('x', commit, 'file:///etc');
      await git('checkout', '--quiet', 'main');
      await run('git', ['clone', '--quiet', '--bare', work, bare], { env });
      const port = await freePort();
      daemon = spawn(
        'git',
        [
          'daemon',
          '--export-all',
          '--reuseaddr',
          '--listen=127.0.0.1',
          `--port=${port}`,
          `--base-path=${join(rig.root, 'git')}`,
          '--verbose',
          '--log-destination=stderr',
        ],
        {
          env: { ...env, GIT_CONFIG_COUNT: '1', GIT_CONFIG_KEY_0: 'safe.directory', GIT_CONFIG_VALUE_0: '*' },
          stdio: ['ignore', 'ignore', 'pipe'],
        },
      );
      await new Promise<void>((resolve, reject) => {
        daemon.stderr?.on('data', (text: Buffer) => text.includes('Ready') && resolve());
        daemon.once('exit', () => reject(new Error('git daemon ended')));
      });
      url = `git://127.0.0.1:${port}/repo.git`;
    });
    afterAll(async () => {
      const ended = new Promise((resolve) => daemon.once('exit', resolve));
      daemon.kill();
      await ended;
    });

    it('is a context: branches, tags, commits and subdirectories', async () => {
      for (const [fragment, text] of [
        ['', 'FROM later'],
        ['#main', 'FROM later'],
        ['#v1', 'FROM main'],
        [`#${commit}`, 'FROM main'],
        ['#v1:sub', 'FROM sub'],
        ['#:sub/', 'FROM sub'],
      ]) {
        await using context = await contexts.fetch(`${url}${fragment}`);
        expect(await context.text('Dockerfile', 100), fragment).toBe(text);
      }
      await using whole = await contexts.fetch(`${url}#v1`);
      expect(await paths(whole)).toEqual(['.gitattributes', 'Dockerfile', 'left-out', 'out', 'sub', 'sub/Dockerfile']);
      await using again = await contexts.fetch(`${url}#v1`);
      expect(again.chain).toEqual(whole.chain);
    });

    it('keeps .git when asked, and checks the commit', async () => {
      await using lease = rig.lease();
      const reference = parseGitReference(`${url}#v1`);
      if (reference === undefined) throw new Error('no reference');
      const kept = await rig.git.fetch(reference, { lease, keepGitDir: true, checksum: commit.slice(0, 12) });
      expect(await paths(kept)).toContain('.git/HEAD');
      await expect(rig.git.fetch(reference, { lease, checksum: 'deadbeef' })).rejects.toMatchObject({
        kind: 'integrity',
      });
    });

    it('brings submodules and theirs, and none from where nothing is fetched', async () => {
      for (const [fragment, prefix] of [
        ['#outer', 'sub/'],
        ['#outer:sub', ''],
      ]) {
        await using context = await contexts.fetch(`${url}${fragment}`);
        expect(await context.text(`${prefix}vendor/sub/Dockerfile`, 100), fragment).toBe('FROM sub');
        expect(await context.text(`${prefix}vendor/deep/\u00e9/left-out`, 100), fragment).toBe('kept all the same');
      }
      await expect(contexts.fetch(`${url}#bad`)).rejects.toMatchObject({ kind: 'invalid' });
      expect(await readdir(join(rig.root, 'build', 'fetch'))).toEqual([]);
      const kept = rig.sources.records().filter(({ kind }) => kind === 'source.git');
      expect(kept.map(({ description }) => description)).toContain(`git snapshot of ${url}#${commit}`);
      const { bytes } = await rig.sources.remove(new Set(kept.map(({ id }) => id)));
      expect(bytes).toBeGreaterThan(0);
    });

    it('finds nothing outside of the tree (CVE-2026-33748)', async () => {
      for (const [fragment, kind] of [
        ['#v1:../x', 'invalid'],
        ['#v1:out', 'not-found'],
        ['#v1:nothing', 'not-found'],
        ['#nothing', 'not-found'],
      ] as const)
        await expect(contexts.fetch(`${url}${fragment}`), fragment).rejects.toMatchObject({ kind });
      expect(await readdir(join(rig.root, 'build', 'fetch'))).toEqual([]);
    });

    it.each([
      // CVE-2019-13139: options in the place of a ref, a host or a path.
      ['https://host/repo.git#--upload-pack=touch /tmp/x', 'invalid'],
      ['https://host/repo.git#-x', 'invalid'],
      ['https://host/repo.git#a..b', 'invalid'],
      ['ssh://-oProxyCommand=x/repo.git', 'invalid'],
      ['ssh://-oProxyCommand=x@host/repo.git', 'invalid'],
    ])('refuses %s', (text, kind) => {
      expect(() => parseGitReference(text)).toThrow(expect.objectContaining({ kind }));
    });

    it.each([
      ['https://host/x.git', { remote: 'https://host/x.git', ref: undefined, subdirectory: '' }],
      ['https://host/x.git#v1.0:a/b', { remote: 'https://host/x.git', ref: 'v1.0', subdirectory: 'a/b' }],
      ['git@host:a/b.git#main', { remote: 'git@host:a/b.git', ref: 'main', subdirectory: '' }],
      ['github.com/a/b', { remote: 'https://github.com/a/b', ref: undefined, subdirectory: '' }],
      ['https://host/x.tar.gz', undefined],
      ['file:///etc.git', undefined],
      ['ext::sh -c x', undefined],
      ['-u@host:x', undefined],
    ])('reads %s', (text, expected) => {
      expect(parseGitReference(text)).toEqual(expected);
    });
  });
});

async function through(program: string, bytes: Buffer): Promise<Buffer> {
  const child = spawn(program, ['-c'], { stdio: ['pipe', 'pipe', 'ignore'] });
  child.stdin.end(bytes);
  const chunks: Buffer[] = [];
  for await (const chunk of child.stdout) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function freePort(): Promise<number> {
  const server = createTcpServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
