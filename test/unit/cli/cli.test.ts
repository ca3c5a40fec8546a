import { readFileSync } from 'node:fs';
import { PassThrough, Writable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { describe, expect, it } from 'vitest';
import { target } from '../../../runtime/cli/client.ts';
import { containerRows } from '../../../runtime/cli/container-rows.ts';
import { parseDetachKeys, watchDetachKeys } from '../../../runtime/cli/detach-keys.ts';
import { filterQuery } from '../../../runtime/cli/filters.ts';
import { engineHost } from '../../../runtime/cli/host.ts';
import { imageRows } from '../../../runtime/cli/image-rows.ts';
import { imageTree } from '../../../runtime/cli/image-tree.ts';
import { formatRows } from '../../../runtime/cli/output.ts';
import { copyOutput, openInput } from '../../../runtime/cli/streams.ts';
import { CLIENT_VERSION } from '../../../runtime/cli/version.ts';

describe('the engine to talk to', () => {
  const own = { socketPath: '/run/x.sock', claim: undefined, isOwn: true };
  it('is BERTH_HOST, then DOCKER_HOST, then the default socket', () => {
    const env = { BERTH_HOST: 'unix:///a', DOCKER_HOST: 'unix:///b' };
    expect(engineHost({ env, default: own })).toEqual({ kind: 'unix', path: '/a', isStartable: false });
    expect(engineHost({ env: { DOCKER_HOST: 'tcp://[::1]:2375' }, default: own })).toEqual({
      kind: 'tcp',
      host: '::1',
      port: 2375,
    });
    expect(engineHost({ env: {}, default: own })).toEqual({ kind: 'unix', path: '/run/x.sock', isStartable: true });
    expect(engineHost({ env: { DOCKER_HOST: 'unix:///run/x.sock' }, default: own })).toMatchObject({
      isStartable: true,
    });
    expect(engineHost({ env: {}, default: { ...own, isOwn: false } })).toMatchObject({ isStartable: false });
  });
  it.each(['ssh://host', 'unix://relative', 'nonsense'])('refuses %s', (flag) => {
    expect(() => engineHost({ flag, env: {}, default: own })).toThrow(/cannot use host/);
  });
});

it('sends a name as a name, whatever is in it', () => {
  expect(target('/containers/x?force=1#y/json', { all: true })).toBe('/v1.52/containers/x%3Fforce%3D1%23y/json?all=1');
  expect(target('/images/host:5000/a/b@sha256:c/json', undefined)).toBe('/v1.52/images/host:5000/a/b@sha256:c/json');
});

it('says what is wrong with a file before it sends any of it', async () => {
  await expect(openInput('/no/such')).rejects.toThrow('cannot read "/no/such": there is no such file');
  await expect(openInput('/')).rejects.toThrow('cannot read "/": it is a directory');
  expect(await text(await openInput(import.meta.filename))).toContain('says what is wrong');
});

describe('detach keys', () => {
  it('reads the sequence', () => {
    expect(parseDetachKeys('ctrl-p,ctrl-q')).toEqual([16, 17]);
    expect(parseDetachKeys('a,ctrl-@')).toEqual([97, 0]);
    expect(() => parseDetachKeys('ctrl-1')).toThrow(/unknown key/);
  });
  it('finds it over any division', () => {
    const seen = watchDetachKeys([16, 17]);
    expect([Buffer.from([1, 16]), Buffer.from([16]), Buffer.from([17])].map(seen)).toEqual([false, false, true]);
    expect(watchDetachKeys([])(Buffer.from([1]))).toBe(false);
  });
});

describe('lists', () => {
  const images = [
    {
      Id: `sha256:${'a'.repeat(64)}`,
      RepoTags: ['localhost:5000/a:1', 'a:2'],
      RepoDigests: ['a@sha256:d'],
      Created: 1000,
      Size: 1234,
      SharedSize: 234,
      Containers: 0,
    },
  ];
  it('gives an image a row per name', () => {
    expect(imageRows(images, { now: 1000_000 + 7_200_000 })).toMatchObject([
      { Repository: 'localhost:5000/a', Tag: '1', ID: 'aaaaaaaaaaaa', CreatedSince: '2 hours ago', UniqueSize: '1kB' },
      { Repository: 'a', Tag: '2', Digest: 'sha256:d' },
    ]);
    expect(imageRows([{ Id: 'sha256:b', RepoTags: [], Created: 0 }])).toMatchObject([
      { Repository: '<none>', Tag: '<none>' },
    ]);
  });
  it('hangs images on the layers that they share', () => {
    const layer = (digit: string) => `sha256:${digit.repeat(64)}`;
    expect(
      imageTree([
        { label: 'base', layers: [layer('a')] },
        { label: 'left', layers: [layer('a'), layer('b'), layer('c')] },
        { label: 'right', layers: [layer('a'), layer('d')] },
        { label: 'other', layers: [layer('e')] },
        { label: 'scratch', layers: [] },
      ]),
    ).toEqual([
      'scratch',
      'aaaaaaaaaaaa  base',
      '├─bbbbbbbbbbbb',
      '│ cccccccccccc  left',
      '└─dddddddddddd  right',
      'eeeeeeeeeeee  other',
    ]);
  });
  it('prints tables, templates and JSON', () => {
    const rows = imageRows(images);
    const columns = [
      ['Repository', 'REPOSITORY'],
      ['Tag', 'TAG'],
    ] as const;
    expect(formatRows(rows, columns)).toBe('REPOSITORY         TAG\nlocalhost:5000/a   1\na                  2');
    expect(formatRows(rows, columns, { format: '{{.Repository}}:{{.Tag}}' })).toBe('localhost:5000/a:1\na:2');
    expect(formatRows(rows, columns, { format: 'table {{.Tag}}\\t{{.ID}}' })).toBe(
      'TAG   ID\n1     aaaaaaaaaaaa\n2     aaaaaaaaaaaa',
    );
    expect(JSON.parse(formatRows(rows, columns, { format: 'json' }).split('\n')[0] ?? '')).toMatchObject({ Tag: '1' });
    expect(formatRows(rows, columns, { quiet: 'ID' })).toBe('aaaaaaaaaaaa\naaaaaaaaaaaa');
  });
  it('shows containers as docker does', () => {
    const [row] = containerRows(
      [
        {
          Id: 'c'.repeat(64),
          Image: 'a',
          Command: 'sleep a very long time indeed',
          Created: 0,
          Status: 'Up 2 hours',
          State: 'running',
          Names: ['/x'],
          Ports: [{ IP: '0.0.0.0', PrivatePort: 80, PublicPort: 8080, Type: 'tcp' }],
        },
      ],
      { now: 60_000 },
    );
    expect(row).toMatchObject({
      ID: 'cccccccccccc',
      Command: '"sleep a very long t…"',
      Ports: '0.0.0.0:8080->80/tcp',
      Names: 'x',
      RunningFor: 'About a minute ago',
    });
  });
  it('sends filters as JSON', () => {
    expect(filterQuery(['status=a', 'status=b', 'label=k=v'])).toBe('{"status":["a","b"],"label":["k=v"]}');
    expect(() => filterQuery(['x'])).toThrow(/want KEY=VALUE/);
  });
});

describe('output of a container', () => {
  const frame = (stream: number, text: string) => {
    const header = Buffer.alloc(8);
    header[0] = stream;
    header.writeUInt32BE(Buffer.byteLength(text), 4);
    return Buffer.concat([header, Buffer.from(text)]);
  };
  const sink = () => {
    const chunks: Buffer[] = [];
    const stream = new Writable({
      write(chunk: Buffer, _encoding, done) {
        chunks.push(chunk);
        done();
      },
    });
    return { stream, text: () => Buffer.concat(chunks).toString() };
  };
  it('is split by stream, whatever the division into chunks', async () => {
    const bytes = Buffer.concat([frame(1, 'out\n'), frame(2, 'err\n'), frame(1, ''), frame(1, 'x'.repeat(1000))]);
    for (const size of [1, 3, 8, 9, 4096]) {
      const source = new PassThrough();
      for (let at = 0; at < bytes.length; at += size) source.write(bytes.subarray(at, at + size));
      source.end();
      const [out, err] = [sink(), sink()];
      await copyOutput(source, { stdout: out.stream, stderr: err.stream }, { multiplexed: true });
      expect(out.text()).toBe(`out\n${'x'.repeat(1000)}`);
      expect(err.text()).toBe('err\n');
    }
  });
});

it('has the version of the package', () => {
  expect(CLIENT_VERSION).toBe(
    JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')).version,
  );
});
