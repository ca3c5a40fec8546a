import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { request as httpRequest, type IncomingMessage, type Server } from 'node:http';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createApiServer } from '../../runtime/api/server.ts';
import type { Attachment, Containers, Engine, ExecDetails, Images } from '../../runtime/engine.ts';
import { createEventLog } from '../../runtime/events.ts';
import { AppError } from '../../shared/errors.ts';
import { createSilentLog } from '../../shared/log.ts';

/** An engine of which a test says what it needs; anything else that is asked of it fails the request. */
function partly<T extends object>(methods: Partial<T>): T {
  return new Proxy(methods, {
    get(target, key) {
      if (Reflect.has(target, key)) return Reflect.get(target, key);
      return () => Promise.reject(new Error(`nobody expected ${String(key)} here`));
    },
  }) as T;
}

const AT = new Date('2026-01-02T03:04:05.006Z');
const events = createEventLog({ now: () => AT });
const containers: Partial<Containers> = {};
const images: Partial<Images> = {};
const engine = partly<Engine>({
  now: () => AT,
  events,
  containers: partly<Containers>(containers),
  images: partly<Images>(images),
});

let directory = '';
let socketPath = '';
let server: Server;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'berth-api-'));
  socketPath = join(directory, 's');
  ({ server } = createApiServer(engine, { log: createSilentLog(), version: '1.2.3' }));
  server.listen(socketPath);
  await once(server, 'listening');
});
afterAll(async () => {
  server.close();
  server.closeAllConnections();
  await rm(directory, { recursive: true });
});

interface Sent {
  readonly body?: string;
  readonly headers?: Record<string, string>;
}
interface Got {
  readonly status: number;
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
}

function open(method: string, path: string, sent: Sent = {}): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ socketPath, method, path, headers: sent.headers ?? {} }, resolve);
    request.on('error', reject);
    request.end(sent.body);
  });
}

async function call(method: string, path: string, sent: Sent = {}): Promise<Got> {
  const answer = await open(method, path, sent);
  const chunks: Buffer[] = [];
  for await (const chunk of answer) chunks.push(chunk);
  return { status: answer.statusCode ?? 0, headers: answer.headers, body: Buffer.concat(chunks).toString() };
}

const JSON_TYPE = { 'Content-Type': 'application/json' };
const NOT_A_MANAGER =
  'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.';

describe('wire rules', () => {
  it('puts the version and the system on every answer', async () => {
    for (const path of ['/_ping', '/nosuch', '/v1.24/_ping'])
      expect((await call('GET', path)).headers).toMatchObject({
        'api-version': '1.52',
        ostype: 'linux',
        'docker-experimental': 'false',
        server: 'Berth/1.2.3 (linux)',
      });
  });

  it('has no plugins', async () => {
    expect(await call('GET', '/plugins?filters=%7B%22enabled%22%3A%5B%22true%22%5D%7D')).toMatchObject({
      status: 200,
      body: '[]\n',
    });
  });

  it('answers the ping that clients negotiate with', async () => {
    const { status, headers, body } = await call('GET', '/_ping');
    expect({ status, body }).toEqual({ status: 200, body: 'OK' });
    expect(headers).toMatchObject({
      'content-type': 'text/plain; charset=utf-8',
      'builder-version': '1',
      'cache-control': 'no-cache, no-store, must-revalidate',
      pragma: 'no-cache',
      swarm: 'inactive',
    });
    expect(await call('HEAD', '/_ping')).toMatchObject({ status: 200, body: '' });
  });

  it.each([
    ['GET', '/nosuch', 404, 'page not found'],
    ['PUT', '/_ping', 404, 'page not found'],
    [
      'GET',
      '/v1.21/_ping',
      400,
      'client version 1.21 is too old. Minimum supported API version is 1.22, please upgrade your client to a newer version',
    ],
    ['GET', '/v1.53/_ping', 400, 'client version 1.53 is too new. Maximum supported API version is 1.52'],
    ['GET', '/v2.0/_ping', 400, 'client version 2.0 is too new. Maximum supported API version is 1.52'],
    ['GET', '/v1..5/_ping', 400, 'invalid API version "1..5"'],
    ['GET', '/images/json?filters=%7B%22nosuch%22%3A%5B%22x%22%5D%7D', 400, "invalid filter 'nosuch'"],
    [
      'GET',
      '/images/json?filters=%7B%22dangling%22%3A%5B%22perhaps%22%5D%7D',
      400,
      "invalid filter 'dangling=perhaps'",
    ],
    ['GET', '/images/json?filters=%7B', 400, 'invalid filter: want JSON such as {"label":["a=b"]}'],
    ['POST', '/containers/x/wait?condition=bad', 400, 'invalid condition: "bad"'],
    ['POST', '/containers/x/resize?h=a&w=1', 400, 'invalid resize height "a": invalid syntax'],
    ['POST', '/containers/x/resize?w=1', 400, 'invalid resize height "": invalid syntax'],
    ['POST', '/exec/x/resize?h=1&w=-1', 400, 'invalid resize width "-1": value out of range'],
    ['POST', '/exec/x/resize?h=4294967296&w=1', 400, 'invalid resize height "4294967296": value out of range'],
    [
      'GET',
      '/events?since=yesterday',
      400,
      'invalid value for since: "yesterday" is not seconds[.nanoseconds] since 1970',
    ],
    ['GET', '/system/df?type=nosuch', 400, 'unknown object type: nosuch'],
    // Resources that there are none of.
    ['POST', '/swarm/init', 501, 'swarm mode is not supported by this engine'],
    ['POST', '/swarm/leave', 503, 'This node is not part of a swarm'],
    ['GET', '/swarm', 503, NOT_A_MANAGER],
    ['POST', '/services/create', 503, NOT_A_MANAGER],
    ['GET', '/secrets/x', 503, NOT_A_MANAGER],
    ['GET', '/plugins/a/b:1/json', 404, 'plugin "a/b:1" not found'],
    ['POST', '/plugins/pull', 501, 'plugins are not supported by this engine'],
  ])('%s %s is %i %s', async (method, path, status, message) => {
    const answer = await call(method, path);
    expect(answer.status).toBe(status);
    expect(JSON.parse(answer.body)).toMatchObject({ message });
    expect(answer.body.endsWith('}\n')).toBe(true);
    expect(answer.headers['content-type']).toBe('application/json');
  });

  it.each([
    ['{', JSON_TYPE, 'invalid JSON: unexpected EOF'],
    ['{invalid', JSON_TYPE, "invalid JSON: invalid character 'i' looking for beginning of object key string"],
    ['{"a" 1}', JSON_TYPE, "invalid JSON: invalid character '1' after object key"],
    ['[1 2]', JSON_TYPE, "invalid JSON: invalid character '2' after array element"],
    ['{"a":x}', JSON_TYPE, "invalid JSON: invalid character 'x' looking for beginning of value"],
    ['{}{}', JSON_TYPE, 'unexpected content after JSON'],
    [' ', JSON_TYPE, 'invalid JSON: got EOF while reading request body'],
    ['{}', {}, 'malformed Content-Type header (): mime: no media type'],
    [
      '{}',
      { 'Content-Type': 'text/plain' },
      "unsupported Content-Type header (text/plain): must be 'application/json'",
    ],
  ])('refuses the body %j', async (body, headers, message) => {
    const answer = await call('POST', '/containers/create', { body, headers: headers as Record<string, string> });
    expect(answer.status).toBe(400);
    expect(JSON.parse(answer.body).message).toBe(message);
  });

  it('reads filters in both of their forms', async () => {
    const seen: unknown[] = [];
    images.list = async (filter) => {
      seen.push(filter);
      return [];
    };
    for (const filters of ['{"label":["a=b"],"dangling":["true"]}', '{"label":{"a=b":true},"dangling":{"true":true}}'])
      expect(await call('GET', `/images/json?filters=${encodeURIComponent(filters)}`)).toMatchObject({ body: '[]\n' });
    expect(seen[0]).toMatchObject({ labels: ['a=b'], dangling: true });
    expect(seen[1]).toEqual(seen[0]);
  });

  it.each(['', '0', 'no', 'false', 'none', 'None', 'FALSE'])('takes the boolean %j for false', async (text) => {
    images.list = async (filter) => {
      expect(filter?.all).toBe(false);
      return [];
    };
    expect((await call('GET', `/images/json?all=${text}`)).status).toBe(200);
  });

  it('keeps what went wrong inside when nobody expected it', async () => {
    images.history = () => Promise.reject(new TypeError('secret path /root/x'));
    const answer = await call('GET', '/images/a/history');
    expect(answer.status).toBe(500);
    expect(answer.body).not.toContain('secret');
  });

  it('takes names with slashes, written or escaped', async () => {
    const names: string[] = [];
    images.history = async (name) => {
      names.push(name);
      return [];
    };
    await call('GET', '/v1.40/images/host:5000/a/b:1/history');
    await call('GET', '/images/host%3A5000%2Fa/b%3A1/history');
    expect(names).toEqual(['host:5000/a/b:1', 'host:5000/a/b:1']);
  });

  it('answers 201 without a body where Docker has none', async () => {
    images.tag = async (name, target) => expect([name, target]).toEqual(['a', 'b:1']);
    const answer = await call('POST', '/images/a/tag?repo=b&tag=1');
    expect(answer).toMatchObject({ status: 201, body: '' });
    expect(answer.headers['content-type']).toBeUndefined();
  });

  it('answers 304 without a body when there was nothing to do', async () => {
    containers.start = async () => false;
    expect(await call('POST', '/containers/a/start')).toMatchObject({ status: 304, body: '' });
    containers.start = async () => true;
    expect(await call('POST', '/containers/a/start')).toMatchObject({ status: 204, body: '' });
  });
});

describe('progress', () => {
  it('is an HTTP error until the first line', async () => {
    images.pull = async (_reference, options) => {
      options?.onProgress?.({ kind: 'resolving', reference: 'a:1' });
      throw new AppError('not-found', 'pull access denied for a');
    };
    const answer = await call('POST', '/images/create?fromImage=a&tag=1');
    expect(answer.status).toBe(404);
    expect(JSON.parse(answer.body)).toEqual({ message: 'pull access denied for a', kind: 'not-found' });
  });

  it('is a line of the stream after that', async () => {
    images.pull = async (reference, options) => {
      expect(reference).toBe('host:5000/a:1');
      expect(options?.credentials).toEqual({ kind: 'password', username: 'u', password: 'p' });
      options?.onProgress?.({ kind: 'pulling', repository: 'a', tag: '1' });
      throw new AppError('integrity', 'cannot verify');
    };
    const auth = Buffer.from('{"username":"u","password":"p"}').toString('base64url');
    const answer = await call('POST', '/images/create?fromImage=host:5000/a&tag=1', {
      headers: { 'X-Registry-Auth': auth },
    });
    expect(answer.status).toBe(200);
    expect(answer.headers).toMatchObject({ 'transfer-encoding': 'chunked', 'content-type': 'application/json' });
    expect(answer.body).toBe(
      '{"status":"Pulling from a","id":"1"}\r\n' +
        '{"errorDetail":{"code":500,"message":"cannot verify"},"error":"cannot verify"}\r\n',
    );
  });

  it('stops when the client hangs up', async () => {
    const stopped = Promise.withResolvers<void>();
    images.pull = (_reference, options) =>
      new Promise((_resolve, reject) => {
        options?.onProgress?.({ kind: 'pulling', repository: 'a', tag: '1' });
        options?.signal?.addEventListener('abort', () => {
          stopped.resolve();
          reject(options.signal?.reason);
        });
      });
    (await open('POST', '/images/create?fromImage=a&tag=1')).destroy();
    await stopped.promise;
  });
});

describe('streams', () => {
  it('sends the headers of wait before the container ends', async () => {
    const ended = Promise.withResolvers<{ exitCode: number; error: string | undefined }>();
    containers.wait = async () => ({ result: ended.promise });
    const answer = await open('POST', '/containers/a/wait');
    expect(answer.statusCode).toBe(200);
    ended.resolve({ exitCode: 3, error: undefined });
    const [chunk] = await once(answer, 'data');
    expect(String(chunk)).toBe('{"StatusCode":3}\n');
  });

  it('replays events and goes on, with the fields of old clients', async () => {
    const body = { type: 'container', action: 'start', id: 'abc', attributes: { image: 'i', name: 'n' } } as const;
    events.publish(body);
    const answer = await open('GET', '/v1.51/events?since=1');
    expect(answer.headers['content-type']).toBe('application/json');
    events.publish({ ...body, action: 'die' });
    let text = '';
    while (!text.includes('die')) text += String((await once(answer, 'data'))[0]);
    answer.destroy();
    expect(text.split('\n')[0]).toBe(
      '{"status":"start","id":"abc","from":"i","Type":"container","Action":"start",' +
        '"Actor":{"ID":"abc","Attributes":{"image":"i","name":"n"}},"scope":"local","time":1767323045,"timeNano":1767323045006000000}',
    );
    expect((await call('GET', '/events?since=1&until=2')).headers['content-type']).toBe('application/jsonl');
  });

  it('takes what older clients do not say as they mean it', async () => {
    const modes: string[] = [];
    containers.create = async ({ hostConfig }) => {
      modes.push(hostConfig.IpcMode);
      return { id: 'c', warnings: [] };
    };
    const sent = { headers: JSON_TYPE, body: '{"Image":"i"}' };
    for (const version of ['1.39', '1.40']) await call('POST', `/v${version}/containers/create`, sent);
    expect(modes).toEqual(['shareable', '']);
    const two = { ...sent, body: '{"Image":"i","NetworkingConfig":{"EndpointsConfig":{"a":{},"b":{}}}}' };
    expect((await call('POST', '/v1.43/containers/create', two)).body).toContain(
      'Container cannot be created with multiple network endpoints: a, b',
    );
  });

  it('connects a container that asks for nothing special', async () => {
    let asked: readonly unknown[] = [];
    containers.connect = async (...args) => {
      asked = args;
    };
    const sent = { headers: JSON_TYPE, body: '{"Container":"c"}' };
    expect(await call('POST', '/networks/n/connect', sent)).toMatchObject({ status: 200 });
    expect(asked).toMatchObject(['c', 'n', { Aliases: [], MacAddress: '' }]);
  });

  it('frames logs, unless the container has a terminal', async () => {
    const chunks = async function* () {
      yield { stream: 'stdout', bytes: Buffer.from('out\nmo') } as const;
      yield { stream: 'stderr', bytes: Buffer.from('err\n') } as const;
    };
    containers.logs = async () => ({ terminal: false, chunks: chunks() });
    const framed = await call('GET', '/containers/a/logs?stdout=1&stderr=1');
    expect(framed.headers['content-type']).toBe('application/vnd.docker.multiplexed-stream');
    expect(framed.body).toBe('\x01\0\0\0\0\0\0\x04out\n\x01\0\0\0\0\0\0\x02mo\x02\0\0\0\0\0\0\x04err\n');
    containers.logs = async () => ({ terminal: true, chunks: chunks() });
    const raw = await call('GET', '/containers/a/logs?stdout=1');
    expect(raw.headers['content-type']).toBe('application/vnd.docker.raw-stream');
    expect(raw.body).toBe('out\nmoerr\n');
  });
});

describe('hijacked connections', () => {
  /** An attachment that answers each line of input in upper case, and says `bye` at its end. */
  function echo(): Attachment & { disposed: boolean } {
    const input = new PassThrough();
    return {
      disposed: false,
      terminal: false,
      input,
      output: (async function* () {
        for await (const chunk of input) yield { stream: 'stdout', bytes: Buffer.from(String(chunk).toUpperCase()) };
        yield { stream: 'stderr', bytes: Buffer.from('bye') };
      })(),
      async [Symbol.asyncDispose]() {
        this.disposed = true;
      },
    };
  }

  async function talk(head: string): Promise<{ socket: Socket; read: (until: string) => Promise<string> }> {
    const socket = connect({ path: socketPath, allowHalfOpen: true });
    let text = '';
    socket.setEncoding('latin1').on('data', (chunk) => {
      text += chunk;
    });
    socket.write(head);
    const read = async (until: string) => {
      while (!text.includes(until)) await once(socket, 'data');
      return text;
    };
    return { socket, read };
  }

  it.each([
    [
      'Connection: Upgrade\r\nUpgrade: tcp\r\n',
      'HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n',
    ],
    ['', 'HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n'],
    // A client that streams stdin as an endless body, and takes the socket once it has the head.
    ['Transfer-Encoding: chunked\r\n', 'HTTP/1.1 200 OK\r\n'],
  ])('attach carries both directions (%j)', async (headers, start) => {
    const attachment = echo();
    containers.attach = async () => attachment;
    const { socket, read } = await talk(
      `POST /containers/a/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n${headers}\r\n`,
    );
    const head = await read('\r\n\r\n');
    expect(head.startsWith(start)).toBe(true);
    expect(head).toContain('api-version: 1.52\r\n');
    expect(head.toLowerCase()).not.toContain('transfer-encoding');
    socket.write('hi');
    await read('\x01\0\0\0\0\0\0\x02HI');
    // Half close: end of stdin, while output goes on.
    socket.end();
    expect(await read('bye')).toContain('\x02\0\0\0\0\0\0\x03bye');
    await once(socket, 'close');
    expect(attachment.disposed).toBe(true);
  });

  it('exec reads its body from an upgrade request, and sends the head before it starts', async () => {
    const started = Promise.withResolvers<void>();
    containers.inspectExec = async (id) => ({ id, request: { Tty: false, Cmd: ['x'] } }) as unknown as ExecDetails;
    containers.startExec = async () => {
      await started.promise;
      return echo();
    };
    const { socket, read } = await talk(
      'POST /exec/e/start HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n' +
        'Content-Type: application/json\r\nContent-Length: 16\r\n\r\n{"Detach":false}',
    );
    expect(await read('\r\n\r\n')).toContain('101 UPGRADED');
    // All of stdin is there before the process is.
    socket.end('ok');
    await call('GET', '/_ping');
    started.resolve();
    expect(await read('bye')).toContain('OK');
    await once(socket, 'close');
  });

  it('tells in the stream what goes wrong after the head', async () => {
    containers.inspectExec = async (id) => ({ id, request: { Tty: false, Cmd: ['x'] } }) as unknown as ExecDetails;
    containers.startExec = () => Promise.reject(new AppError('conflict', 'it is running'));
    const { socket, read } = await talk('POST /exec/e/start HTTP/1.1\r\nHost: d\r\n\r\n');
    expect(await read('running')).toContain('\x02\0\0\0\0\0\0\x0fit is running\r\n');
    socket.destroy();
  });

  it('refuses before the head as HTTP', async () => {
    containers.attach = () => Promise.reject(new AppError('not-found', 'No such container: a'));
    const { socket, read } = await talk(
      'POST /containers/a/attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n',
    );
    expect(await read('No such container')).toMatch(/^HTTP\/1.1 404 Not Found/);
    socket.destroy();
  });

  it('waits for a client that does not read', async () => {
    let made = 0;
    containers.attach = async () => ({
      terminal: true,
      input: undefined,
      output: (async function* () {
        for (; made < 4096; made++) yield { stream: 'stdout', bytes: Buffer.alloc(64 * 1024) } as const;
      })(),
      async [Symbol.asyncDispose]() {},
    });
    const socket = connect({ path: socketPath });
    socket.write('POST /containers/a/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\n\r\n');
    await once(socket, 'readable');
    const before = made;
    socket.pause();
    await new Promise((resolve) => setImmediate(resolve));
    expect(before).toBeLessThan(64);
    expect(made).toBeLessThan(128);
    socket.destroy();
  });
});
