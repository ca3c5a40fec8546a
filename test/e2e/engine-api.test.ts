/** Parts of the Engine API that the docker CLI and dockerode do not reach. */
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import Docker from 'dockerode';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { WebSocket } from 'ws';
import { type Program, startProgram, succeed } from '../fixtures/programs.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';
import { ask } from './http.ts';

let place: EnginePlace;
let docker: Docker;
beforeAll(async () => {
  place = await openEnginePlace();
  docker = new Docker({ socketPath: place.engine.socketPath });
  await place.dockerOk(['pull', '-q', place.image]);
});
afterAll(() => place?.[Symbol.asyncDispose]());

const get = (path: string) => ask(place.engine.socketPath, { method: 'GET', path });

describe('attaching over a websocket', () => {
  const open = (id: string) =>
    new WebSocket(
      `ws+unix://${place.engine.socketPath}:/v1.52/containers/${id}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1`,
    );

  it('carries what is typed and what is printed', async () => {
    const container = await docker.createContainer({
      Image: place.image,
      Cmd: ['sh', '-c', 'read line; echo "got $line"; echo problem >&2'],
      OpenStdin: true,
      StdinOnce: true,
    });
    const socket = open(container.id);
    const text: string[] = [];
    socket.on('message', (data) => text.push(String(data)));
    await once(socket, 'open');
    const closed = once(socket, 'close');
    await container.start();
    socket.send(Buffer.from('hello\n'));
    await closed;
    expect(text.join('').split('\n').filter(Boolean).sort()).toEqual(['got hello', 'problem']);
    await container.remove();
  });

  it('answers an error to whoever asks for an unknown container', async () => {
    const [, response] = await once(
      open('nosuch').on('error', () => {}),
      'unexpected-response',
    );
    expect(response.statusCode).toBe(404);
  });

  it('refuses a plain request', async () => {
    const container = await docker.createContainer({ Image: place.image });
    expect(await get(`/containers/${container.id}/attach/ws`)).toMatchObject({ status: 400 });
    await container.remove();
  });
});

describe('images', () => {
  it('tells what a registry has under a name', async () => {
    const { status, json } = await get(`/distribution/${place.image}/json`);
    expect({ status, json }).toMatchObject({
      status: 200,
      json: {
        Descriptor: { mediaType: expect.any(String), digest: expect.stringMatching(/^sha256:/) },
        Platforms: [{ architecture: 'amd64', os: 'linux' }],
      },
    });
    expect(await get(`/distribution/${place.registry.address}/nosuch/json`)).toMatchObject({ status: 404 });
  });

  it('is saved, pushed and removed for the platform that it has, and for no other', async () => {
    const { image, host } = place;
    const archive = join(host.root, 'platform.tar');
    await place.dockerOk(['tag', image, `${image}-amd64`]);
    await place.dockerOk(['save', '--platform', 'linux/amd64', '-o', archive, `${image}-amd64`]);
    await place.dockerOk(['push', '-q', '--platform', 'linux/amd64', `${image}-amd64`]);
    const other = encodeURIComponent(JSON.stringify({ os: 'linux', architecture: 'arm64' }));
    const refused = {
      status: 404,
      json: { message: expect.stringContaining('does not provide the specified platform') },
    };
    expect(await get(`/v1.48/images/get?names=${image}-amd64&platform=${other}`)).toMatchObject(refused);
    const path = `/v1.50/images/${image}-amd64?platforms=${other}`;
    expect(await ask(place.engine.socketPath, { method: 'DELETE', path })).toMatchObject(refused);
    await place.dockerOk(['rmi', '--platform', 'linux/amd64', `${image}-amd64`]);
    await place.dockerOk(['load', '--platform', 'linux/amd64', '-i', archive]);
    await place.dockerOk(['rmi', `${image}-amd64`]);
  });

  it('lists the manifest of an image, and a container names it', async () => {
    const container = await docker.createContainer({ Image: place.image });
    const [image] = (await get('/v1.52/images/json?manifests=1')).json;
    expect(image.Manifests).toEqual([
      {
        ID: image.Descriptor.digest,
        Descriptor: { ...image.Descriptor, platform: { architecture: 'amd64', os: 'linux' } },
        Available: true,
        Kind: 'image',
        Size: { Content: expect.any(Number), Total: image.Size },
        ImageData: {
          Platform: { architecture: 'amd64', os: 'linux' },
          Containers: [container.id],
          Size: { Unpacked: expect.any(Number) },
        },
      },
    ]);
    const [{ Size, ImageData }] = image.Manifests;
    expect(Size.Content + ImageData.Size.Unpacked).toBe(image.Size);
    const { json } = await get(`/v1.52/containers/${container.id}/json`);
    expect(json.ImageManifestDescriptor).toEqual(image.Manifests[0].Descriptor);
    expect(json.HostConfig.MaskedPaths).toContain('/proc/kcore');
    await container.remove();
  });
});

describe('logging in', () => {
  let registry: Program & { readonly address: string };
  beforeAll(async () => {
    const { root, env } = place.host;
    const users = join(root, 'htpasswd');
    await writeFile(users, await succeed('htpasswd', ['-nbB', 'mary', 'secret'], { env }));
    const config = join(root, 'docker-registry.json');
    await writeFile(
      config,
      JSON.stringify({
        version: 0.1,
        storage: { filesystem: { rootdirectory: join(root, 'docker-registry') } },
        http: { addr: '127.0.0.1:0' },
        auth: { htpasswd: { realm: 'test', path: users } },
      }),
    );
    registry = await startProgram(place.host, {
      name: 'docker-registry',
      command: 'docker-registry',
      args: ['serve', config],
      ready(program) {
        const address = /listening on (127\.0\.0\.1:\d+)/.exec(program.output())?.[1];
        return address === undefined ? undefined : { ...program, address };
      },
    });
  });
  afterAll(() => registry?.[Symbol.asyncDispose]());

  const login = (password: string) =>
    ask(place.engine.socketPath, {
      method: 'POST',
      path: '/auth',
      json: { username: 'mary', password, serveraddress: registry.address },
    });

  it('asks the registry', async () => {
    expect(await login('secret')).toMatchObject({
      status: 200,
      json: { IdentityToken: '', Status: 'Login Succeeded' },
    });
    expect(await login('guess')).toMatchObject({ status: 401 });
  });

  it('pushes and pulls with the credentials of the request', async () => {
    const target = `${registry.address}/private:1`;
    await place.dockerOk(['tag', place.image, target]);
    const { code } = await place.docker(['push', '-q', target]);
    expect(code).toBe(1);
    await place.dockerOk(['login', '-u', 'mary', '--password-stdin', registry.address], 'secret');
    await place.dockerOk(['push', '-q', target]);
    await place.dockerOk(['rmi', target]);
    await place.dockerOk(['pull', '-q', target]);
    await place.dockerOk(['logout', registry.address]);
  });
});

it('ends promptly on SIGTERM, though registries keep their connections open', async () => {
  await place.dockerOk(['pull', '-q', place.image]);
  const startedAt = performance.now();
  await place.restart('SIGTERM', () => {
    expect(performance.now() - startedAt).toBeLessThan(4000);
  });
});
