/** `berth manifest` against our registry, without any engine; what it pushes is read by skopeo. */
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { digestOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { buildImage, buildLayer, type Image, writeLayout } from '../fixtures/images.ts';
import { CLI, type RegistryProgram, run, startRegistry, succeed } from '../fixtures/programs.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';

const undo = new AsyncDisposableStack();
let host: TestHost;
let registry: RegistryProgram;
let elsewhere: RegistryProgram;

beforeAll(async () => {
  host = undo.use(await testHost());
  registry = undo.use(await startRegistry(host));
  elsewhere = undo.use(await startRegistry(host, { name: 'elsewhere' }));
});
afterAll(() => undo.disposeAsync());

/** No engine answers there: manifests need none. */
const manifest = (...args: readonly string[]) =>
  run(process.execPath, [CLI, 'manifest', ...args], { env: { ...host.env, BERTH_HOST: 'unix:///nowhere' } });
const skopeo = (...args: readonly string[]) => succeed('skopeo', args, { env: host.env });
const raw = (name: string) => skopeo('inspect', '--raw', '--tls-verify=false', `docker://${name}`);

async function push(name: string, architecture: string, ...args: readonly string[]): Promise<Image> {
  const image = buildImage({ layers: [buildLayer([{ name: 'for', content: architecture }])], architecture });
  const layout = join(host.root, 'layouts', name.replaceAll(/[^a-z0-9]/g, '-'));
  await writeLayout(image, layout);
  await skopeo('copy', '-q', '--dest-tls-verify=false', ...args, `oci:${layout}:latest`, `docker://${name}`);
  return image;
}

it('publishes images that were pushed apart as one name, and each platform gets its own', async () => {
  const app = `${registry.address}/team/app`;
  const amd64 = await push(`${app}:1-amd64`, 'amd64');
  const arm = await push(`${app}:1-arm`, 'arm');
  expect(await manifest('create', `${app}:1`, `${app}:1-amd64`, `${app}:1-arm`)).toMatchObject({
    code: 0,
    stdout: `Created manifest list ${app}:1\n`,
  });
  expect(await manifest('create', `${app}:1`, `${app}:1-arm`)).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('refusing to amend an existing manifest list with no --amend flag'),
  });
  const flags = ['--variant', 'v7', '--os-version', '10.0', '--os-features', 'a,b'];
  expect(await manifest('annotate', `${app}:1`, `${app}:1-arm`, ...flags)).toMatchObject({ code: 0 });
  const pushed = await manifest('push', '--purge', `${app}:1`);
  expect(pushed).toMatchObject({ code: 0, stderr: '' });

  const index = await raw(`${app}:1`);
  expect(`${digestOf(index)}\n`).toBe(pushed.stdout);
  expect(JSON.parse(index)).toEqual({
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociIndex,
    manifests: [
      { ...amd64.manifestDescriptor, platform: { os: 'linux', architecture: 'amd64' } },
      {
        ...arm.manifestDescriptor,
        platform: { os: 'linux', architecture: 'arm', variant: 'v7', 'os.version': '10.0', 'os.features': ['a', 'b'] },
      },
    ],
  });
  const copied = join(host.root, 'arm');
  await skopeo(
    '--override-arch',
    'arm',
    'copy',
    '-q',
    '--src-tls-verify=false',
    `docker://${app}:1`,
    `oci:${copied}:x`,
  );
  expect(JSON.parse(await skopeo('inspect', '--config', `oci:${copied}:x`))).toMatchObject({ architecture: 'arm' });
  expect(await manifest('push', `${app}:1`)).toMatchObject({ code: 1, stderr: `error: No such manifest: ${app}:1\n` });
});

it('brings in images of other repositories and registries, and all of an index', async () => {
  const target = `${registry.address}/all/app:1`;
  const own = await push(`${registry.address}/one/app:amd64`, 'amd64');
  const other = await push(`${elsewhere.address}/two/app:arm64`, 'arm64');
  const nested = `${registry.address}/one/app:1`;
  expect(await manifest('create', nested, `${registry.address}/one/app:amd64`)).toMatchObject({ code: 0 });
  expect(await manifest('push', nested)).toMatchObject({ code: 0 });

  expect(await manifest('create', target, nested)).toMatchObject({ code: 0 });
  expect(await manifest('create', '-a', target, `${elsewhere.address}/two/app:arm64`)).toMatchObject({ code: 0 });
  expect(await manifest('push', target)).toMatchObject({
    code: 0,
    stderr: expect.stringMatching(/^(copied .*\n){2}$/),
  });
  expect(JSON.parse(await raw(target))).toMatchObject({
    manifests: expect.arrayContaining([
      expect.objectContaining({ digest: own.manifestDescriptor.digest }),
      expect.objectContaining({ digest: other.manifestDescriptor.digest }),
    ]),
  });
  // All blobs are there.
  await skopeo('copy', '-q', '--all', '--src-tls-verify=false', `docker://${target}`, `dir:${join(host.root, 'dir')}`);

  expect(await manifest('rm', target, nested, `${nested}-absent`)).toMatchObject({
    code: 1,
    stderr: `error: No such manifest: ${nested}-absent\n`,
  });
});

it("keeps Docker's form, shows what it has, and refuses what it cannot use", async () => {
  const app = `${registry.address}/docker/app`;
  const image = await push(`${app}:amd64`, 'amd64', '--format', 'v2s2');
  expect(await manifest('create', `${app}:1`, `${app}:amd64`)).toMatchObject({ code: 0 });
  const shown = await manifest('inspect', `${app}:1`);
  expect(await manifest('push', `${app}:1`)).toMatchObject({ code: 0 });
  expect(`${await raw(`${app}:1`)}\n`).toBe(shown.stdout);
  expect(JSON.parse(shown.stdout)).toMatchObject({ mediaType: MEDIA_TYPES.dockerList });
  const member = JSON.parse((await manifest('inspect', `${app}:1`, `${app}:amd64`)).stdout);
  expect(member).toMatchObject({ Ref: `${app}:amd64`, Descriptor: { platform: { architecture: 'amd64' } } });
  await manifest('rm', `${app}:1`);
  const [verbose] = JSON.parse((await manifest('inspect', '-v', `${app}:1`)).stdout);
  expect(verbose).toMatchObject({ Descriptor: { digest: member.Descriptor.digest }, Manifest: { layers: [{}] } });
  expect(image.layers).toHaveLength(1);

  const absent = await manifest('create', `${app}:2`, `${app}:amd64`, `${app}:absent`);
  expect(absent).toMatchObject({ code: 1, stderr: expect.stringContaining(`berth push ${app}:absent`) });
  expect(await manifest('annotate', `${app}:2`, `${app}:amd64`, '--os', 'x')).toMatchObject({ code: 1 });
  expect(await manifest('create', `${app}@${member.Descriptor.digest}`, `${app}:amd64`)).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('needs a tag'),
  });
});
