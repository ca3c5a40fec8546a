/**
 * Services as people bring them up: the images of tutorials from a mirror of docker.io, Debian's docker-compose, and
 * Testcontainers. Its reaper (Ryuk) is off: its image comes from Docker Hub alone, and the tests end what they start.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { GenericContainer, Network, Wait } from 'testcontainers';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { tutorialImages, writeLayout } from '../fixtures/images.ts';
import { succeed } from '../fixtures/programs.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
beforeAll(async () => {
  place = await openEnginePlace((registry) => [
    '--registry-mirrors',
    JSON.stringify({ 'docker.io': [`http://${registry.address}`] }),
  ]);
  for (const [name, image] of Object.entries(await tutorialImages())) {
    const layout = join(place.host.root, 'tutorial', name);
    await writeLayout(image, layout);
    const to = `docker://${place.registry.address}/library/${name}:latest`;
    await succeed('skopeo', ['copy', '-q', '--dest-tls-verify=false', `oci:${layout}:latest`, to], {
      env: place.host.env,
    });
  }
  vi.stubEnv('DOCKER_HOST', place.engine.url);
  vi.stubEnv('HOME', place.host.root);
  vi.stubEnv('TESTCONTAINERS_RYUK_DISABLED', 'true');
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await place?.[Symbol.asyncDispose]();
});
afterEach(async () => {
  await place.removeContainers();
  await place.docker(['network', 'prune', '-f']);
  await place.docker(['volume', 'prune', '-af']);
});

const ok = (...args: readonly string[]) => place.dockerOk(args);

/** The body of an answer; undefined when nobody answers. */
function get(host: string, port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const asked = request({ host, port, timeout: 2000 }, (response) => resolve(text(response)));
    asked.on('error', () => resolve(undefined)).on('timeout', () => asked.destroy());
    asked.end();
  });
}

describe('the images of tutorials', () => {
  it('come from a mirror of docker.io by their short names', async () => {
    expect(await ok('run', '--rm', 'centos', 'cat', '/etc/centos-release')).toContain('CentOS');
    await ok('run', '-d', '--name', 'web', '-P', 'httpd');
    const port = Number((await ok('port', 'web', '80/tcp')).split('\n')[0]?.split(':').at(-1));
    expect(await get('127.0.0.1', port)).toContain('It works!');
    expect(await ok('images', '--format', '{{.Repository}}:{{.Tag}}')).toBe('centos:latest\nhttpd:latest');
    expect(await ok('logs', 'web')).toContain('resuming normal operations');
  });
});

describe('docker-compose', () => {
  const FILE = `
version: "3"
services:
  web:
    image: httpd
    ports: ["127.0.0.1:0:80"]
    volumes: ["site:/usr/local/apache2/htdocs"]
    networks: [front]
  writer:
    image: centos
    command: ["bash", "-c", "echo written > /site/page; while ! wget -qO- http://web/page; do sleep 0.1; done; exec sleep 1000"]
    volumes: ["site:/site"]
    networks: { front: { aliases: [author] } }
    depends_on: [web]
networks: { front: {} }
volumes: { site: {} }
`;

  it('brings up and down two services with a network, a volume and a published port', async () => {
    const directory = join(place.host.root, 'shop');
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, 'docker-compose.yml'), FILE);
    const env = { ...place.host.env, DOCKER_HOST: place.engine.url };
    const compose = (...args: readonly string[]) => succeed('docker-compose', args, { cwd: directory, env });
    await compose('up', '-d');
    const published = await compose('port', 'web', '80');
    expect(published).toMatch(/^127\.0\.0\.1:\d+$/m);
    const port = Number(published.trim().split(':').at(-1));
    expect(await get('127.0.0.1', port)).toContain('It works!');
    await expect.poll(() => compose('logs', '--no-color', 'writer')).toContain('written');
    expect(await compose('exec', '-T', 'web', 'nslookup', 'author')).toMatch(/Address: 10\./);
    // What has not changed stays as it is.
    const before = await ok('ps', '-q', '--no-trunc');
    await compose('up', '-d', '--scale', 'writer=2');
    expect((await ok('ps', '-q', '--no-trunc')).split('\n')).toEqual(expect.arrayContaining(before.split('\n')));
    await compose('down', '-t', '0', '-v');
    expect(await ok('ps', '-aq')).toBe('');
    expect(await ok('network', 'ls', '-q', '--filter', 'type=custom')).toBe('');
    expect(await ok('volume', 'ls', '-q')).toBe('');
  }, 120_000);
});

describe('Testcontainers', () => {
  it('starts a service, waits for it, talks to it and stops it', async () => {
    const network = await new Network().start();
    const web = await new GenericContainer('httpd')
      .withExposedPorts(80)
      .withNetwork(network)
      .withNetworkAliases('web')
      .withCopyContentToContainer([{ content: 'copied in', target: '/usr/local/apache2/htdocs/copied' }])
      .withWaitStrategy(Wait.forAll([Wait.forHttp('/', 80), Wait.forLogMessage('resuming normal operations')]))
      .start();
    expect(await get(web.getHost(), web.getMappedPort(80))).toContain('It works!');
    // Waits for what the container says itself: that its health check succeeds, and for its ports from inside.
    const client = await new GenericContainer('centos')
      .withCommand(['httpd', '-f', '-p', '7000'])
      .withExposedPorts(7000)
      .withNetwork(network)
      .withHealthCheck({ test: ['CMD-SHELL', 'wget -qO- http://web/copied'], interval: 200, retries: 50 })
      .withWaitStrategy(Wait.forAll([Wait.forHealthCheck(), Wait.forListeningPorts()]))
      .start();
    expect(await client.exec(['wget', '-qO-', 'http://web/copied'])).toMatchObject({
      exitCode: 0,
      output: 'copied in',
    });
    expect((await client.exec(['sh', '-c', 'exit 7'])).exitCode).toBe(7);
    await client.stop();
    await web.restart();
    expect(await get(web.getHost(), web.getMappedPort(80))).toContain('It works!');
    await web.stop();
    await network.stop();
    expect(await ok('ps', '-aq')).toBe('');
    expect(await ok('network', 'ls', '-q', '--filter', 'type=custom')).toBe('');
  });
});
