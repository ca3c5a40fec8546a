import { chmod, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type CredentialStore, createCredentialStore } from '../../shared/credentials.ts';

const ADA = { kind: 'password', username: 'ada', password: 'p:w' } as const;
const TOKEN = { kind: 'identity-token', token: 'refresh' } as const;

/** A helper that keeps what it is told in files, as docker's do in a keychain. */
const HELPER = `#!/bin/sh
dir=$(dirname "$0")
case $1 in
  store) cat > "$dir/stored" ;;
  get) read -r host; echo "$host" >> "$dir/asked"
    if [ -f "$dir/answer" ]; then cat "$dir/answer"; else echo "credentials not found in native keychain"; exit 1; fi ;;
  erase) read -r host; rm -f "$dir/answer" ;;
esac
`;

describe('credentials', () => {
  let directory: string;
  let store: CredentialStore;
  const path = () => join(directory, '.docker', 'config.json');
  const write = async (file: unknown) => {
    await mkdir(join(directory, '.docker'), { recursive: true });
    await writeFile(path(), JSON.stringify(file));
  };
  const read = async () => JSON.parse(await readFile(path(), 'utf8'));

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'berth-credentials-'));
    await writeFile(join(directory, 'docker-credential-test'), HELPER);
    await chmod(join(directory, 'docker-credential-test'), 0o755);
    store = createCredentialStore({ path: path(), env: { PATH: `${directory}:/usr/bin:/bin` } });
  });
  afterEach(() => rm(directory, { recursive: true }));

  it('are kept as docker keeps them, for their owner alone', async () => {
    expect(await store.get('r.example')).toBeUndefined();
    await write({ HttpHeaders: { a: 'b' } });
    await store.set('r.example', ADA);
    await store.set('docker.io', TOKEN);
    expect(await read()).toEqual({
      HttpHeaders: { a: 'b' },
      auths: {
        'r.example': { auth: Buffer.from('ada:p:w').toString('base64') },
        'https://index.docker.io/v1/': { identitytoken: 'refresh' },
      },
    });
    expect((await stat(path())).mode & 0o777).toBe(0o600);
    expect(await store.get('r.example')).toEqual(ADA);
    expect(await store.get('docker.io')).toEqual(TOKEN);
  });

  it('are for one host, not for others like it', async () => {
    await store.set('r.example', ADA);
    for (const host of ['example', 'r.example:5000', 'x.r.example', 'r.example.evil'])
      expect(await store.get(host)).toBeUndefined();
  });

  it('are found under the keys that old clients wrote', async () => {
    await write({ auths: { 'https://r.example/v1/': { username: 'ada', password: 'p:w' } } });
    expect(await store.get('r.example')).toEqual(ADA);
    expect(await store.remove('r.example')).toBe(true);
    expect(await store.remove('r.example')).toBe(false);
    expect(await store.get('r.example')).toBeUndefined();
  });

  it('come from a helper, by host before the general one', async () => {
    await write({ credsStore: 'absent', credHelpers: { 'r.example': 'test' } });
    expect(await store.get('r.example')).toBeUndefined();
    await writeFile(join(directory, 'answer'), JSON.stringify({ ServerURL: 'x', Username: 'ada', Secret: 'p:w' }));
    expect(await store.get('r.example')).toEqual(ADA);
    await writeFile(join(directory, 'answer'), JSON.stringify({ Username: '<token>', Secret: 'refresh' }));
    expect(await store.get('r.example')).toEqual(TOKEN);
    expect(await readFile(join(directory, 'asked'), 'utf8')).toBe('r.example\n'.repeat(3));
    await expect(store.get('other.example')).rejects.toMatchObject({ kind: 'not-found' });
  });

  it('go to a helper, not into the file', async () => {
    await write({ credsStore: 'test' });
    await store.set('r.example', ADA);
    expect(JSON.parse(await readFile(join(directory, 'stored'), 'utf8'))).toEqual({
      ServerURL: 'r.example',
      Username: 'ada',
      Secret: 'p:w',
    });
    expect(await read()).toEqual({ credsStore: 'test', auths: { 'r.example': {} } });
    expect(await store.remove('r.example')).toBe(true);
  });

  it.each(['../evil', 'a/b', '', '-x', 'x y', 'x;y'])('never run a helper called %j', async (helper) => {
    await write({ credHelpers: { 'r.example': helper } });
    await expect(store.get('r.example')).rejects.toMatchObject({ kind: 'invalid' });
  });

  it.each(['{', '[]', '{"auths":[]}', '{"auths":{"r.example":{"auth":"bm9jb2xvbg=="}}}'])(
    'say so when the file cannot be read: %s',
    async (text) => {
      await mkdir(join(directory, '.docker'));
      await writeFile(path(), text);
      await expect(store.get('r.example')).rejects.toMatchObject({ kind: 'invalid' });
    },
  );
});
