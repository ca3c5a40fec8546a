/** The jobs of deploy/ci as an ordinary user in containers: build, push, publish; then pulled and run elsewhere. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hash } from 'bcrypt';
import { expect, it } from 'vitest';
import { parse } from 'yaml';
import { buildImage, busyboxLayer, writeLayout } from '../fixtures/images.ts';
import { run, startRegistry, succeed } from '../fixtures/programs.ts';
import { CI_USER, openCiContainers } from './ci-place.ts';
import { openRig } from './rig.ts';

const USER = { name: 'robot', password: 'secret of the robot' };
const PUBLISH_BASE =
  'berth pull --platform "linux/$ARCH" "$BASE"; berth tag "$BASE" "$IMAGE:$TAG-$ARCH"; berth push "$IMAGE:$TAG-$ARCH"';
const PLATFORMS = ['amd64', 'arm64'];

it('jobs without privilege publish what another host runs', { timeout: 180_000 }, async () => {
  await using rig = await openRig();
  const { host } = rig;
  const passwords = join(host.root, 'passwords');
  await writeFile(passwords, `${USER.name}:${await hash(USER.password, 4)}\n`);
  await using guarded = await startRegistry(host, { name: 'guarded', args: ['--password-file', passwords] });
  await rig.expectBerth(['login', '-u', USER.name, '--password-stdin', guarded.address], `${USER.password}\n`);
  const base = `${guarded.address}/team/base`;
  const layers = [await busyboxLayer()];
  for (const architecture of PLATFORMS) {
    const layout = join(host.root, architecture);
    await writeLayout(buildImage({ layers, architecture }), layout);
    const creds = `${USER.name}:${USER.password}`;
    const args = ['copy', '-q', '--dest-tls-verify=false', '--dest-creds', creds, `oci:${layout}:latest`];
    await succeed('skopeo', [...args, `docker://${base}:${architecture}`], { env: host.env });
  }
  await rig.expectBerth(['manifest', 'create', base, ...PLATFORMS.map((tag) => `${base}:${tag}`)]);
  await rig.expectBerth(['manifest', 'push', base]);

  const jobs = parse(await readFile(new URL('../../deploy/ci/gitlab-ci.yml', import.meta.url), 'utf8'));
  const ci = await openCiContainers(rig);
  /** Each job is a new container, as CI makes them. */
  const job = async (name: 'build' | 'publish', ARCH = '') => {
    const env = {
      REGISTRY: guarded.address,
      REGISTRY_USER: USER.name,
      REGISTRY_PASSWORD: USER.password,
      IMAGE: `${guarded.address}/team/app`,
      TAG: '1',
      ARCH,
      BASE: base,
    };
    const lines = jobs[name].script.map((line: string) => (line.startsWith('berth build ') ? PUBLISH_BASE : line));
    const script = ['set -eu', ...lines].join('\n');
    const args = await ci.runArgs(CI_USER, env);
    const outcome = await rig.berth(['run', '--rm', ...args, ci.image, 'sh', '-c', script]);
    expect(outcome, name).toMatchObject({ code: 0 });
    expect(outcome.stdout + outcome.stderr).not.toContain(USER.password);
    return outcome.stdout;
  };
  await Promise.all(PLATFORMS.map((arch) => job('build', arch)));
  expect(await job('publish')).toMatch(/^sha256:[0-9a-f]{64}$/m);

  // Elsewhere: by an engine with privilege, and by another client.
  const app = `${guarded.address}/team/app:1`;
  expect(await rig.expectBerth(['run', '--rm', app, 'echo', 'hello from CI'])).toContain('hello from CI\n');
  const inspect = ['inspect', '--raw', '--tls-verify=false', '--creds', `${USER.name}:${USER.password}`];
  const index = JSON.parse((await run('skopeo', [...inspect, `docker://${app}`], { env: host.env })).stdout);
  expect(index.manifests.map(({ platform }: { platform: unknown }) => platform)).toEqual(
    PLATFORMS.map((architecture) => ({ os: 'linux', architecture })),
  );
});
