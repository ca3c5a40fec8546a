/** The registry under clients that others wrote. */
import { mkdtempDisposable, readFile, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { digestOf, hexOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { ask, descriptorOf, indexJson } from '../contract/registry-http.ts';
import { buildImage, buildLayer, type Image, writeLayout } from '../fixtures/images.ts';
import { type RegistryProgram, startRegistry, succeed } from '../fixtures/programs.ts';

const MAIN = join(import.meta.dirname, '../../registry/main.ts');

describe('foreign clients', () => {
  const stack = new AsyncDisposableStack();
  let registry: RegistryProgram;
  let root: string;
  let env: NodeJS.ProcessEnv;
  let image: Image;
  let layout: string;

  beforeAll(async () => {
    const directory = await mkdtempDisposable(join(tmpdir(), 'berth-clients-'));
    stack.defer(() => directory.remove());
    root = directory.path;
    // None of the credentials or settings of whoever runs the tests.
    const authFile = join(root, 'auth.json');
    await writeFile(authFile, '{}');
    env = { PATH: process.env.PATH, HOME: root, XDG_RUNTIME_DIR: join(root, 'run'), REGISTRY_AUTH_FILE: authFile };
    registry = stack.use(await startRegistry({ root, runDir: join(root, 'run'), env }));
    const content = Buffer.alloc(2 << 20, 'berth');
    image = buildImage({
      layers: [buildLayer([{ name: 'large', content }]), buildLayer([{ name: 'small', content: 'x' }])],
    });
    layout = join(root, 'layout');
    await writeLayout(image, layout);
  });
  afterAll(() => stack.disposeAsync());

  const tool = (command: string, ...args: readonly string[]) => succeed(command, args, { env });
  const url = () => `http://${registry.address}`;
  const remote = (name: string) => `docker://${registry.address}/${name}`;
  const skopeoCopy = (from: string, to: string, ...more: readonly string[]) =>
    tool(
      'skopeo',
      '--insecure-policy',
      'copy',
      '-q',
      '--src-tls-verify=false',
      '--dest-tls-verify=false',
      ...more,
      from,
      to,
    );

  it('skopeo pushes, inspects, lists, pulls back the same digest, and deletes', async () => {
    await skopeoCopy(`oci:${layout}:latest`, remote('skopeo/image:v1'));
    await skopeoCopy(`oci:${layout}:latest`, remote('skopeo/image:v2'));
    const inspected = JSON.parse(await tool('skopeo', 'inspect', '--tls-verify=false', remote('skopeo/image:v1')));
    expect(inspected).toMatchObject({ Digest: image.manifestDescriptor.digest, RepoTags: ['v1', 'v2'] });
    const raw = await tool('skopeo', 'inspect', '--raw', '--tls-verify=false', remote('skopeo/image:v1'));
    expect(raw).toBe(image.manifest.toString());
    const tags = JSON.parse(await tool('skopeo', 'list-tags', '--tls-verify=false', remote('skopeo/image')));
    expect(tags.Tags).toEqual(['v1', 'v2']);

    await skopeoCopy(remote('skopeo/image:v1'), `oci:${join(root, 'back')}:v1`);
    const index = JSON.parse(await readFile(join(root, 'back', 'index.json'), 'utf8'));
    expect(index.manifests[0].digest).toBe(image.manifestDescriptor.digest);

    await tool('skopeo', 'delete', '--tls-verify=false', remote('skopeo/image:v1'));
    expect((await ask(url(), 'GET', '/v2/skopeo/image/manifests/v2')).status).toBe(404);
  });

  it('skopeo copies between repositories without sending a layer again', async () => {
    const files = image.layers.map(({ blob }) => join(registry.directory, 'blobs', 'sha256', hexOf(digestOf(blob))));
    // A blob that is sent again replaces its file.
    const inodes = async () => Promise.all(files.map(async (path) => (await stat(path)).ino));
    await skopeoCopy(`oci:${layout}:latest`, remote('mount/from:v1'));
    const before = await inodes();
    await skopeoCopy(remote('mount/from:v1'), remote('mount/to:v1'));
    expect(await inodes()).toEqual(before);
    expect((await ask(url(), 'HEAD', '/v2/mount/to/manifests/v1')).status).toBe(200);
  });

  it('skopeo converts to Docker schema 2 and back', async () => {
    await skopeoCopy(`oci:${layout}:latest`, remote('docker/image:v1'), '--format', 'v2s2');
    const stored = await ask(url(), 'GET', '/v2/docker/image/manifests/v1');
    expect(stored.headers['content-type']).toBe(MEDIA_TYPES.dockerManifest);
    await skopeoCopy(remote('docker/image:v1'), `oci:${join(root, 'converted')}:v1`, '--format', 'oci');
  });

  it('skopeo copies a whole index and syncs a repository', async () => {
    await skopeoCopy(`oci:${layout}:latest`, remote('multi/image:one'));
    const { digest, size, mediaType } = image.manifestDescriptor;
    const platform = { architecture: 'amd64', os: 'linux' };
    const index = indexJson([{ digest, size, mediaType, platform }]);
    const put = await ask(url(), 'PUT', '/v2/multi/image/manifests/list', {
      headers: { 'content-type': MEDIA_TYPES.ociIndex },
      body: index,
    });
    expect(put.status).toBe(201);
    await skopeoCopy(remote('multi/image:list'), remote('multi/copy:list'), '--all');
    const copied = await ask(url(), 'HEAD', '/v2/multi/copy/manifests/list');
    expect(copied.headers['docker-content-digest']).toBe(digestOf(index));

    const target = join(root, 'sync');
    const sync = ['--src', 'docker', '--dest', 'dir', '--src-tls-verify=false'];
    await tool('skopeo', '--insecure-policy', 'sync', ...sync, `${registry.address}/multi/image:one`, target);
    expect(digestOf(await readFile(join(target, 'image:one', 'manifest.json')))).toBe(digest);
  });

  it('skopeo copies a zstd layer', async () => {
    const zstd = buildImage({ layers: [buildLayer([{ name: 'z', content: 'zzz' }], 'zstd')] });
    const directory = join(root, 'zstd');
    await writeLayout(zstd, directory);
    await skopeoCopy(`oci:${directory}:latest`, remote('zstd/image:v1'));
    await skopeoCopy(remote('zstd/image:v1'), `oci:${join(root, 'zstd-back')}:v1`);
  });

  const containersTool = (command: string, ...args: readonly string[]) => {
    const storage = [
      '--root',
      join(root, command),
      '--runroot',
      join(root, `${command}-run`),
      '--storage-driver',
      'vfs',
    ];
    return tool(command, ...storage, ...args);
  };

  it.each(['podman', 'buildah'])('%s pulls, tags, pushes and pulls again', async (command) => {
    await skopeoCopy(`oci:${layout}:latest`, remote(`${command}/image:v1`));
    const name = `${registry.address}/${command}/image`;
    await containersTool(command, 'pull', '-q', '--tls-verify=false', `${name}:v1`);
    await containersTool(command, 'tag', `${name}:v1`, `${name}:v2`);
    await containersTool(command, 'push', '--tls-verify=false', `${name}:v2`);
    const pushed = await ask(url(), 'HEAD', `/v2/${command}/image/manifests/v2`);
    expect(pushed.status).toBe(200);
    await containersTool(command, 'rmi', '-a', '-f');
    await containersTool(command, 'pull', '-q', '--tls-verify=false', `${name}:v2`);
  });

  const registryProgram = (...args: readonly string[]) =>
    tool(process.execPath, MAIN, ...args, '--root', registry.directory);

  it('exports a repository as a layout that skopeo reads, and takes one back with all that it holds', async () => {
    await skopeoCopy(`oci:${layout}:latest`, remote('layouts/from:v1'));
    await skopeoCopy(`oci:${layout}:latest`, remote('layouts/from:v2'));
    const subject = image.manifestDescriptor;
    const referrer = indexJson([], { subject, artifactType: 'text/x' });
    const put = { headers: { 'content-type': MEDIA_TYPES.ociIndex }, body: referrer };
    expect((await ask(url(), 'PUT', `/v2/layouts/from/manifests/${digestOf(referrer)}`, put)).status).toBe(201);

    const exported = join(root, 'exported');
    const said = await registryProgram('export', 'layouts/from', exported);
    expect(said).toMatch(/^exported: 2 tags, 2 manifests, 3 blobs, /);
    await skopeoCopy(`oci:${exported}:v2`, `oci:${join(root, 'of-export')}:v2`);
    expect(await registryProgram('import', exported, 'layouts/to')).toMatch(
      /^imported: 2 tags, 2 manifests, 3 blobs, /,
    );
    expect(await registryProgram('import', exported, 'layouts/to')).toMatch(
      /^imported: 2 tags, 2 manifests, 0 blobs, /,
    );
    await skopeoCopy(remote('layouts/to:v1'), `oci:${join(root, 'of-import')}:v1`);
    const referrers = await ask(url(), 'GET', `/v2/layouts/to/referrers/${subject.digest}`);
    expect(JSON.parse(referrers.body.toString()).manifests).toHaveLength(1);
  });

  it('imports a layout of skopeo, and refuses one whose blob is not what its name says', async () => {
    const copied = join(root, 'skopeo-layout');
    await skopeoCopy(`oci:${layout}:latest`, `oci:${copied}:v3`);
    const layer = image.layers[0];
    if (layer === undefined) throw new Error('the image has no layer');
    await registryProgram('import', copied, 'layouts/skopeo');
    await skopeoCopy(remote('layouts/skopeo:v3'), `oci:${join(root, 'of-skopeo')}:v3`);
    await writeFile(join(copied, 'blobs', 'sha256', hexOf(digestOf(layer.blob))), 'bad');
    const elsewhere = ['import', copied, 'r', '--root', join(root, 'elsewhere')];
    await expect(tool(process.execPath, MAIN, ...elsewhere)).rejects.toThrow('cannot commit ingest');
  });

  it('removes a repository on request, by HTTP and by command', async () => {
    for (const name of ['gone/one:v1', 'gone/two:v1', 'gone/kept:v1'])
      await skopeoCopy(`oci:${layout}:latest`, remote(name));
    expect((await ask(url(), 'DELETE', '/v2/_berth/repositories/gone/one')).status).toBe(202);
    expect((await ask(url(), 'DELETE', '/v2/_berth/repositories/gone/one')).codes).toEqual(['NAME_UNKNOWN']);
    expect(await registryProgram('remove', 'gone/two')).toMatch(/^removed: gone\/two with 1 manifests\n[\s\S]*freed: /);
    for (const name of ['one', 'two'])
      expect((await ask(url(), 'GET', `/v2/gone/${name}/tags/list`)).codes).toEqual(['NAME_UNKNOWN']);
    await skopeoCopy(remote('gone/kept:v1'), `oci:${join(root, 'kept')}:v1`);
  });

  it('curl resumes a download and takes ranges', async () => {
    await skopeoCopy(`oci:${layout}:latest`, remote('curl/image:v1'));
    const layer = image.layers[0];
    if (layer === undefined) throw new Error('the image has no layer');
    const { digest } = descriptorOf(layer.blob, MEDIA_TYPES.ociLayerGzip);
    const blob = `${url()}/v2/curl/image/blobs/${digest}`;
    const file = join(root, 'download');
    await tool('curl', '-sf', '-r', '0-99', '-o', file, blob);
    await tool('curl', '-sf', '-C', '100', '-o', file, blob);
    expect(digestOf(await readFile(file))).toBe(digest);
  });
});
