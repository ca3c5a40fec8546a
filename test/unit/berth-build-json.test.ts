import { Readable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { eventJson, readContextEntries } from '../../runtime/api/berth-build-json.ts';
import { berthBuildSchema, requestOf } from '../../runtime/api/berth-build-request.ts';
import type { BuildStep, ContextEntry } from '../../runtime/engine.ts';

async function read(...lines: readonly string[]): Promise<readonly ContextEntry[]> {
  const entries: ContextEntry[] = [];
  for await (const entry of readContextEntries(Readable.from(lines.map((line) => Buffer.from(line)))))
    entries.push(entry);
  return entries;
}

describe('a list of files', () => {
  it('is read in pieces of any size', async () => {
    const text = '[["d","a",493,0,"1700000000000000001"],["f","a/ä",420,5,"-1"]]\n[["l","b",511,0,"0","../x"]]';
    const bytes = [...Buffer.from(text)].map((byte) => Buffer.from([byte]));
    for (const body of [Readable.from([Buffer.from(text)]), Readable.from(bytes)]) {
      const entries: ContextEntry[] = [];
      for await (const entry of readContextEntries(body)) entries.push(entry);
      expect(entries).toEqual([
        { kind: 'directory', path: 'a', mode: 493, sizeBytes: 0, mtimeNs: 1_700_000_000_000_000_001n },
        { kind: 'file', path: 'a/ä', mode: 420, sizeBytes: 5, mtimeNs: -1n },
        { kind: 'symlink', path: 'b', mode: 511, sizeBytes: 0, mtimeNs: 0n, target: '../x' },
      ]);
    }
  });

  it.each([
    '{}',
    '[1]',
    '[["x","a",1,1,"1"]]',
    '[["f","",1,1,"1"]]',
    '[["f","a\\u0000",1,1,"1"]]',
    '[["f","a",1.5,1,"1"]]',
    '[["f","a",1,1,1]]',
    '[["f","a",1,1,"1","t"]]',
    '[["l","a",1,1,"1"]]',
    '[["f","a",1,1e300,"1"]]',
    'nonsense',
  ])('is refused as %s', async (line) => {
    await expect(read(`${line}\n`)).rejects.toMatchObject({ kind: 'invalid' });
  });

  it('has lines of bounded length', async () => {
    await expect(read('['.repeat(17 << 20))).rejects.toMatchObject({ kind: 'too-large' });
  });
});

describe('events as JSON', () => {
  const step: BuildStep = {
    ...{ id: 3, text: 'RUN x', stage: 'a', position: { index: 1, total: 2 }, platform: undefined, line: 7 },
  };
  it('tell a step once, then its number; output is text unless a character is cut', () => {
    expect(eventJson({ kind: 'started', step })).toEqual({ kind: 'started', step });
    const output = { kind: 'output', step, stream: 'stdout' } as const;
    expect(eventJson({ ...output, bytes: Buffer.from('ä') })).toEqual({ ...output, step: 3, text: 'ä' });
    expect(eventJson({ ...output, bytes: Buffer.from([0xc3]) })).toEqual({ ...output, step: 3, base64: 'ww==' });
  });
});

describe('the body of a build', () => {
  it('is parsed into what a build is asked', () => {
    const body = berthBuildSchema.parse({
      context: { kind: 'files', name: 'here' },
      dockerfile: { name: 'Dockerfile' },
      secrets: { token: Buffer.from('s3cret').toString('base64') },
      credentials: { 'https://index.docker.io/v1/': { username: 'u', password: 'p' } },
    });
    const request = requestOf(body);
    expect(request.secrets?.get('token')?.toString()).toBe('s3cret');
    expect(request.credentials?.('docker.io')).toEqual({ kind: 'password', username: 'u', password: 'p' });
    expect(Object.keys(request)).not.toContain('keep');
  });
  it('names what it does not know', () => {
    const refused = berthBuildSchema.safeParse({ context: { kind: 'empty' }, dockerfile: { name: 'x' }, squash: true });
    expect(JSON.stringify(refused.error)).toContain('squash');
  });
});
