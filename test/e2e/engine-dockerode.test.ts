import { once } from 'node:events';
import { PassThrough, type Readable } from 'node:stream';
import Docker from 'dockerode';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
let docker: Docker;
let image: string;
beforeAll(async () => {
  place = await openEnginePlace();
  image = place.image;
  docker = new Docker({ socketPath: place.engine.socketPath });
});
afterAll(() => place?.[Symbol.asyncDispose]());

async function textOf(stream: Readable): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks).toString();
}

/** Takes the frames of a multiplexed stream apart. */
async function demultiplex(stream: NodeJS.ReadableStream): Promise<{ stdout: string; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  docker.modem.demuxStream(stream, stdout, stderr);
  const texts = Promise.all([textOf(stdout), textOf(stderr)]);
  await once(stream, 'end');
  stdout.end();
  stderr.end();
  const [out, err] = await texts;
  return { stdout: out, stderr: err };
}

describe('dockerode', () => {
  it('asks who the engine is', async () => {
    expect(String(await docker.ping())).toBe('OK');
    expect(await docker.version()).toMatchObject({ ApiVersion: '1.52', MinAPIVersion: '1.22', Os: 'linux' });
    expect(await docker.info()).toMatchObject({ OSType: 'linux', Swarm: { LocalNodeState: 'inactive' } });
  });

  it('pulls, and follows the progress', async () => {
    const stream = await docker.pull(image);
    const messages = await new Promise<readonly { status?: string }[]>((resolve, reject) =>
      docker.modem.followProgress(stream, (error, output) => (error ? reject(error) : resolve(output))),
    );
    expect(messages.map(({ status }) => status)).toContain(`Status: Downloaded newer image for ${image}`);
    expect((await docker.listImages()).map(({ RepoTags }) => RepoTags)).toEqual([[image]]);
    expect((await docker.getImage(image).inspect()).Config.Cmd).toEqual(['sh']);
  });

  it('runs a container with its output in a stream', async () => {
    const output = new PassThrough();
    const text = textOf(output);
    const [result, container] = await docker.run(image, ['sh', '-c', 'echo hi; exit 3'], output, { Tty: true });
    expect(result).toEqual({ StatusCode: 3 });
    output.end();
    expect(await text).toBe('hi\r\n');
    await container.remove();
  });

  it('attaches before the start, and talks both ways', async () => {
    const container = await docker.createContainer({
      Image: image,
      Cmd: ['sh', '-c', 'read line; echo "got $line"; echo problem >&2'],
      OpenStdin: true,
      StdinOnce: true,
      AttachStdin: true,
      AttachStdout: true,
      AttachStderr: true,
    });
    const stream = await container.attach({ stream: true, hijack: true, stdin: true, stdout: true, stderr: true });
    const texts = demultiplex(stream);
    const ended = container.wait({ condition: 'next-exit' });
    await container.start();
    stream.end('hello\n');
    expect(await texts).toEqual({ stdout: 'got hello\n', stderr: 'problem\n' });
    expect(await ended).toEqual({ StatusCode: 0 });
    await container.remove();
  });

  it('execs, with and without hijacking', async () => {
    const container = await docker.createContainer({ Image: image, Cmd: ['sleep', '1000'] });
    await container.start();
    const options = { AttachStdin: true, AttachStdout: true, AttachStderr: true };
    const cat = await container.exec({ ...options, Cmd: ['cat'] });
    const hijacked = await cat.start({ hijack: true, stdin: true });
    const echoed = demultiplex(hijacked);
    hijacked.end('through');
    expect((await echoed).stdout).toBe('through');

    const fails = await container.exec({ AttachStdout: true, AttachStderr: true, Cmd: ['sh', '-c', 'echo o; exit 9'] });
    const plain = await fails.start({});
    expect((await demultiplex(plain)).stdout).toBe('o\n');
    expect(await fails.inspect()).toMatchObject({ Running: false, ExitCode: 9, ProcessConfig: { entrypoint: 'sh' } });
    await container.remove({ force: true });
  });

  it('hears of what happens', async () => {
    const events = await docker.getEvents({ filters: { type: ['container'], event: ['create', 'destroy'] } });
    const container = await docker.createContainer({ Image: image, Cmd: ['true'], Labels: { a: 'b' } });
    await container.remove();
    let text = '';
    while (!text.includes('destroy')) text += String((await once(events, 'data'))[0]);
    const actions = text
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line));
    expect(actions.map(({ Action, id }) => [Action, id])).toEqual([
      ['create', container.id],
      ['destroy', container.id],
    ]);
    expect(actions[0].Actor.Attributes).toMatchObject({ a: 'b', image });
    (events as PassThrough).destroy();
  });

  it('reads the logs of a stopped container, and follows those of a running one', async () => {
    const script = 'for i in 1 2 3; do echo line $i; done; read wait';
    const container = await docker.createContainer({ Image: image, Cmd: ['sh', '-c', script], OpenStdin: true });
    await container.start();
    const followed = await container.logs({ follow: true, stdout: true, stderr: true });
    const texts = demultiplex(followed);
    await container.stop({ t: 0 });
    expect((await texts).stdout).toBe('line 1\nline 2\nline 3\n');
    const tail = await container.logs({ stdout: true, tail: 1 });
    expect(tail.subarray(8).toString()).toBe('line 3\n');
    await container.remove();
  });

  it('gets Docker’s answers for mistakes', async () => {
    await expect(docker.getContainer('nosuch').inspect()).rejects.toMatchObject({
      statusCode: 404,
      json: { message: 'No such container: nosuch' },
    });
    await expect(docker.createContainer({ Image: 'nosuch:1' })).rejects.toMatchObject({
      statusCode: 404,
      json: { message: 'No such image: nosuch:1' },
    });
    await expect(docker.createContainer({ Image: image, name: '!bad' })).rejects.toMatchObject({
      statusCode: 400,
      json: { message: 'Invalid container name (!bad), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed' },
    });
  });

  it('tells what is used', async () => {
    const usage = await docker.df();
    expect(usage).toMatchObject({ Volumes: [], BuildCache: [], ImageUsage: { TotalCount: 1 } });
  });
});
