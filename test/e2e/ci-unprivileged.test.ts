/** The jobs of deploy/ci as an ordinary user in containers: build, push, publish; then pulled and run elsewhere. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hash } from 'bcrypt';
import { expect, it } from 'vitest';
import { parse } from 'yaml';
import { buildImage, busyboxLayer, writeLayout } from '../fixtures/images.ts';
import { run, startRegistry, succeed } from '../fixtures/programs.ts';
import { CI_USER, openCiContainers } from './ci-place.ts';
import { openRig } from './rig.ts';

const USER = { name: 'robot', password: 'secret of the robot' };
/** Everything that changes files without running anything. */
const dockerfile = (base: string) => `FROM scratch AS parts
COPY greeting /parts/greeting
FROM ${base}
WORKDIR /srv
COPY --from=parts --chown=100 /parts/ ./
USER 100
CMD ["sh", "-c", "cat greeting; echo $(stat -c %u greeting) $PWD"]
`;
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

  const checkout = join(host.root, 'checkout');
  await mkdir(checkout);
  await writeFile(join(checkout, 'greeting'), 'hello from CI\n');
  await writeFile(join(checkout, 'Dockerfile'), dockerfile(base));
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
    };
    const script = ['set -eu', ...jobs[name].script].join('\n');
    const args = await ci.runArgs(CI_USER, env);
    const source = ['-v', `${checkout}:/builds:ro`, '-w', '/builds'];
    const outcome = await rig.berth(['run', '--rm', ...args, ...source, ci.image, 'sh', '-c', script]);
    expect(outcome, name).toMatchObject({ code: 0 });
    expect(outcome.stdout + outcome.stderr).not.toContain(USER.password);
    return outcome.stdout;
  };
  await Promise.all(PLATFORMS.map((arch) => job('build', arch)));
  expect(await job('publish')).toMatch(/^sha256:[0-9a-f]{64}$/m);

  // Elsewhere: by an engine with privilege, and by another client.
  const app = `${guarded.address}/team/app:1`;
  expect(await rig.expectBerth(['run', '--rm', app])).toBe('hello from CI\n100 /srv\n');
  const inspect = ['inspect', '--raw', '--tls-verify=false', '--creds', `${USER.name}:${USER.password}`];
  const index = JSON.parse((await run('skopeo', [...inspect, `docker://${app}`], { env: host.env })).stdout);
  expect(index.manifests.map(({ platform }: { platform: unknown }) => platform)).toEqual(
    PLATFORMS.map((architecture) => ({ os: 'linux', architecture })),
  );
});
