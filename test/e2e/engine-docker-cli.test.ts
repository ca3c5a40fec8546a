import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, succeed } from '../fixtures/programs.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
let image: string;
beforeAll(async () => {
  place = await openEnginePlace();
  image = place.image;
});
afterAll(() => place?.[Symbol.asyncDispose]());

const docker = (args: readonly string[], input?: string) => place.docker(args, input);
const dockerOk = (args: readonly string[], input?: string) => place.dockerOk(args, input);

describe('the engine', () => {
  it('tells its version and its host', async () => {
    expect(await dockerOk(['version', '--format', '{{.Server.Platform.Name}} {{.Server.Os}}'])).toBe('Berth linux');
    const info = JSON.parse(await dockerOk(['info', '--format', '{{json .}}']));
    expect(info).toMatchObject({ OSType: 'linux', Driver: 'overlayfs', LiveRestoreEnabled: true });
    expect(info.Warnings.join('\n')).not.toContain('default network is none');
  });
});

describe('images', () => {
  it('are pulled, listed, inspected, tagged and removed', async () => {
    expect(await dockerOk(['pull', image])).toContain(`Status: Downloaded newer image for ${image}`);
    expect(await dockerOk(['pull', image])).toContain(`Status: Image is up to date for ${image}`);
    const [inspected] = JSON.parse(await dockerOk(['image', 'inspect', image]));
    expect(inspected).toMatchObject({ RepoTags: [image], Os: 'linux', Config: { Cmd: ['sh'] } });
    expect(await dockerOk(['history', '--format', '{{.CreatedBy}}', image])).toBe('berth test');
    await dockerOk(['tag', image, 'other/name:v1']);
    expect(await dockerOk(['images', '--format', '{{.Repository}}:{{.Tag}}', 'other/name'])).toBe('other/name:v1');
    expect(await dockerOk(['rmi', 'other/name:v1'])).toBe('Untagged: other/name:v1');
  });

  it('are pushed back', async () => {
    const target = `${place.registry.address}/pushed/here:v2`;
    await dockerOk(['tag', image, target]);
    expect(await dockerOk(['push', target])).toMatch(/v2: digest: sha256:[0-9a-f]{64} size: \d+/);
    await dockerOk(['rmi', target]);
    expect(await dockerOk(['pull', target])).toContain('Digest: sha256:');
    await dockerOk(['rmi', target]);
  });

  it('go out and come in by skopeo, which asks in API 1.22', async () => {
    const { engine, host } = place;
    const copy = (...args: readonly string[]) => succeed('skopeo', ['--insecure-policy', 'copy', '-q', ...args], host);
    const directory = join(host.root, 'by-skopeo');
    await copy('--src-daemon-host', engine.url, `docker-daemon:${image}`, `dir:${directory}`);
    await copy('--dest-daemon-host', engine.url, `dir:${directory}`, 'docker-daemon:by/skopeo:1');
    expect(await dockerOk(['run', '--rm', 'by/skopeo:1', 'echo', 'runs'])).toBe('runs');
    await dockerOk(['rmi', 'by/skopeo:1']);
  });

  it('that nobody has are told by name', async () => {
    const missing = `${place.registry.address}/nosuch:1`;
    const pulled = await docker(['pull', missing]);
    expect(pulled.code).toBe(1);
    expect(pulled.stderr).toContain('nosuch');
    expect((await docker(['image', 'inspect', 'nosuch:1'])).stderr).toContain('No such image: nosuch:1');
  });
});

describe('docker run', () => {
  it('prints what the command prints, apart', async () => {
    expect(await docker(['run', '--rm', image, 'sh', '-c', 'echo out; echo err >&2'])).toMatchObject({
      code: 0,
      stdout: 'out\n',
      stderr: 'err\n',
    });
  });

  it.each([
    [['true'], 0],
    [['sh', '-c', 'exit 7'], 7],
    [['sh', '-c', 'sh -c "kill -9 \\$\\$"; exit $?'], 137],
    [['/etc/passwd'], 126],
    [['/no/such'], 127],
    [['nosuchcommand'], 127],
  ])('%j exits with %i', async (command, code) => {
    expect((await docker(['run', '--rm', image, ...command])).code).toBe(code);
  });

  it('exits with 125 when the engine refuses', async () => {
    const refused = await docker(['run', '--rm', '--storage-opt', 'size=1g', image, 'true']);
    expect(refused.code).toBe(125);
    expect(refused.stderr).toContain('--storage-opt');
    expect((await docker(['run', '--rm', `${place.registry.address}/nosuch:1`])).code).toBe(125);
  });

  it('carries stdin to its end, byte by byte', async () => {
    const text = 'x'.repeat(100_000);
    expect(await docker(['run', '--rm', '-i', image, 'cat'], text)).toMatchObject({ code: 0, stdout: text });
    expect(await docker(['run', '--rm', '-i', image, 'md5sum'], 'hi\n')).toMatchObject({
      stdout: '764efa883dda1e11db47671c4a3bbd9e  -\n',
    });
  });

  it('gives a terminal of the size of the client’s', async () => {
    const command = `stty rows 33 cols 99; docker -H ${place.engine.url} run --rm -it ${image} stty size`;
    const { stdout } = await run('script', ['-qfec', command, '/dev/null'], { env: place.host.env, input: '' });
    expect(stdout).toContain('33 99');
  });

  it('takes the options of the command line', async () => {
    const bound = join(place.host.root, 'bound');
    await writeFile(bound, 'from the host\n');
    const options = ['-e', 'A=1', '-w', '/tmp', '-u', '33:33', '--hostname', 'h1', '-v', `${bound}:/h:ro`];
    const script = 'echo $A $PWD $(id -u):$(id -g) $(hostname); cat /h; touch /h || echo read-only';
    const printed = await docker(['run', '--rm', ...options, image, 'sh', '-c', script]);
    expect(printed.stdout).toBe('1 /tmp 33:33 h1\nfrom the host\nread-only\n');
  });

  it('forwards signals', async () => {
    const name = 'signalled';
    const script = 'trap "exit 42" TERM; echo ready; while :; do sleep 0.1; done';
    await dockerOk(['run', '-d', '--name', name, image, 'sh', '-c', script]);
    await dockerOk(['exec', name, 'true']);
    await dockerOk(['kill', '-s', 'TERM', name]);
    expect(await dockerOk(['wait', name])).toBe('42');
    await dockerOk(['rm', name]);
  });
});

describe('a container', () => {
  it('lives its life', async () => {
    const id = await dockerOk(['run', '-d', '--name', 'life', image, 'sh', '-c', 'echo one; echo two >&2; sleep 1000']);
    expect(id).toMatch(/^[0-9a-f]{64}$/);
    expect(await dockerOk(['ps', '--no-trunc', '--format', '{{.ID}} {{.Names}} {{.State}}'])).toBe(
      `${id} life running`,
    );
    expect((await docker(['create', '--name', 'life', image])).stderr).toContain(
      `Conflict. The container name "/life" is already in use by container "${id}"`,
    );
    expect((await docker(['rm', 'life'])).stderr).toContain('container is running');
    expect(
      await dockerOk(['inspect', '--format', '{{.State.Status}} {{.Config.Image}} {{.HostConfig.NetworkMode}}', id]),
    ).toBe(`running ${image} bridge`);
    expect(await dockerOk(['top', 'life'])).toContain('sleep 1000');
    expect(JSON.parse(await dockerOk(['stats', '--no-stream', '--format', '{{json .}}', 'life']))).toMatchObject({
      Name: 'life',
    });
    await dockerOk(['pause', 'life']);
    expect(await dockerOk(['inspect', '--format', '{{.State.Status}}', id])).toBe('paused');
    await dockerOk(['unpause', 'life']);
    await dockerOk(['rename', 'life', 'after']);
    await dockerOk(['stop', '-t', '1', 'after']);
    expect(await dockerOk(['inspect', '--format', '{{.State.Status}} {{.State.ExitCode}}', id])).toBe('exited 137');
    const logs = await docker(['logs', '--timestamps', 'after']);
    expect(logs.stdout).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z one\n$/);
    expect(logs.stderr).toMatch(/Z two\n$/);
    await dockerOk(['start', 'after']);
    await dockerOk(['rm', '-f', 'after']);
    expect((await docker(['inspect', id])).stderr).toContain(`No such object: ${id}`);
  });

  it('runs further commands', async () => {
    await dockerOk(['run', '-d', '--name', 'execs', image, 'sleep', '1000']);
    expect(await docker(['exec', 'execs', 'sh', '-c', 'echo o; echo e >&2; exit 4'])).toMatchObject({
      code: 4,
      stdout: 'o\n',
      stderr: 'e\n',
    });
    expect((await docker(['exec', '-i', 'execs', 'cat'], 'through')).stdout).toBe('through');
    expect((await docker(['exec', 'execs', '/no/such'])).code).toBe(127);
    await dockerOk(['exec', 'execs', 'sh', '-c', 'echo x > /new; rm /etc/group']);
    expect((await dockerOk(['diff', 'execs'])).split('\n').sort()).toEqual(['A /new', 'C /etc', 'D /etc/group']);
    await dockerOk(['rm', '-f', 'execs']);
  });

  it('says what happened to it', async () => {
    const since = String(Date.now() / 1000);
    await dockerOk(['run', '--rm', '--name', 'told', image, 'true']);
    const until = String(Date.now() / 1000 + 0.001);
    const events = await dockerOk([
      'events',
      '--since',
      since,
      '--until',
      until,
      '--filter',
      'container=told',
      '--format',
      '{{.Action}}',
    ]);
    expect(events.split('\n')).toEqual(['create', 'attach', 'start', 'die', 'destroy']);
  });

  it('lives on when the engine is killed, and is found again', async () => {
    const script = 'i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done';
    const id = await dockerOk(['run', '-d', '--name', 'orphan', image, 'sh', '-c', script]);
    await place.restart('SIGKILL');
    expect(await dockerOk(['ps', '-q', '--no-trunc'])).toBe(id);
    await dockerOk(['kill', 'orphan']);
    expect(await dockerOk(['wait', 'orphan'])).toBe('137');
    const numbers = (await dockerOk(['logs', 'orphan'])).split('\n').map(Number);
    expect(numbers.length).toBeGreaterThan(10);
    expect(numbers).toEqual(numbers.map((_, index) => index));
    await dockerOk(['rm', 'orphan']);
  });
});

describe('layers that no image has any more', () => {
  it('go with the last container, though the engine was never restarted', async () => {
    const layers = async () =>
      (await readdir(join(place.engine.directory, 'layers'))).filter((n) => n.endsWith('.erofs'));
    const before = await layers();
    await dockerOk(['run', '--name', 'source', image, 'sh', '-c', 'echo own >/own']);
    await dockerOk(['commit', 'source', 'gone:1']);
    await dockerOk(['create', '--name', 'last', 'gone:1', 'true']);
    await dockerOk(['rmi', '-f', 'gone:1']);
    expect(await layers()).toHaveLength(before.length + 1);
    await dockerOk(['rm', 'last']);
    await expect.poll(layers).toEqual(before);
    // One that removes itself is put away after its end was told.
    await dockerOk(['commit', 'source', 'gone:2']);
    await dockerOk(['run', '--rm', 'gone:2', 'true']);
    await dockerOk(['rmi', 'gone:2']);
    await expect.poll(layers).toEqual(before);
    await dockerOk(['rm', 'source']);
  });
});

describe('docker system df', () => {
  it('counts images and containers', async () => {
    await dockerOk(['run', '--name', 'sized', image, 'sh', '-c', 'dd if=/dev/zero of=/big bs=1M count=2 2>/dev/null']);
    const rows = (await dockerOk(['system', 'df', '--format', '{{json .}}']))
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(rows.map(({ Type, TotalCount, Active }) => [Type, TotalCount, Active])).toEqual([
      ['Images', '1', '1'],
      ['Containers', '1', '0'],
      ['Local Volumes', '0', '0'],
      ['Build Cache', '0', '0'],
    ]);
    expect(rows[1].Size).toMatch(/^2\.\d+MB$/);
    expect((await docker(['rmi', image])).stderr).toContain('conflict: unable to');
    await dockerOk(['rm', 'sized']);
  });
});
