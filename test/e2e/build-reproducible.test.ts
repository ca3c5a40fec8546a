/** Equal input and SOURCE_DATE_EPOCH give equal images, byte by byte: on whatever engine, cached or not, whatever times files have. */
import { createHash } from 'node:crypto';
import { cp, mkdir, readFile, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { busyboxImage, writeLayout } from '../fixtures/images.ts';
import { berth, type EngineProgram, run, startEngine, succeed } from '../fixtures/programs.ts';
import { tarOf } from '../fixtures/tar.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';

/** What people do, of everything that leaves a time or a name behind. */
const DOCKERFILE = `# syntax=docker/dockerfile:1
FROM base:1 AS tools
RUN mkdir -p /tools/deep && date > /dev/null && echo tool > /tools/deep/tool && touch -d '2001-01-01' /tools/old
RUN for i in 3 1 2; do echo $i > /tools/$i; done && ln /tools/1 /tools/hard && ln -s 1 /tools/link && mkfifo /tools/pipe
FROM base:1
ARG SOURCE_DATE_EPOCH
LABEL epoch=$SOURCE_DATE_EPOCH
WORKDIR /app/src
COPY . .
ADD archive.tar /unpacked/
COPY <<END /etc/app.conf
epoch=$SOURCE_DATE_EPOCH
END
COPY --from=tools --chown=33:33 /tools /tools
COPY --link sub /linked/
RUN rm -r /tools/deep /home && mkdir /home && hostname > /name && cat /etc/hostname >> /name && umask > /umask && date > /tmp/now && rm /tmp/now
RUN --mount=type=cache,target=/cache echo $RANDOM > /cache/x && echo "$SOURCE_DATE_EPOCH" > /epoch
USER 33
CMD ["sh"]
`;
const EPOCH = 1_700_000_000;

const undo = new AsyncDisposableStack();
let host: TestHost;
let engines: { readonly first: EngineProgram; readonly second: EngineProgram };
let context: string;

beforeAll(async () => {
  host = undo.use(await testHost());
  const first = undo.use(await startEngine(host, { name: 'first' }));
  const before = process.umask(0o077);
  const second = undo.use(await startEngine(host, { name: 'second' }).finally(() => process.umask(before)));
  engines = { first, second };
  const layout = join(host.root, 'layout');
  await writeLayout(await busyboxImage(), layout);
  const archive = join(host.root, 'base.tar');
  const copy = ['--insecure-policy', 'copy', '-q', `oci:${layout}:latest`, `docker-archive:${archive}:base:1`];
  await succeed('skopeo', copy, { env: host.env });
  for (const { url } of [first, second]) await succeed('docker', ['-H', url, 'load', '-i', archive], { env: host.env });
  context = join(host.root, 'context');
  await mkdir(join(context, 'sub'), { recursive: true });
  await writeFile(join(context, 'Dockerfile'), DOCKERFILE);
  await writeFile(join(context, 'sub', 'file'), 'file');
  const entries = [
    { name: 'in/x', content: 'x', mtime: 1 },
    { name: 'in/y', type: 'link', linkname: 'in/x' },
  ] as const;
  await writeFile(join(context, 'archive.tar'), tarOf(entries));
}, 120_000);
afterAll(() => undo.disposeAsync());

/** What the image is called by everybody: digests of its manifest and of its config. */
async function built(engine: EngineProgram, args: readonly string[]): Promise<{ manifest: string; config: string }> {
  const metadata = join(host.root, 'metadata.json');
  const layout = join(host.root, 'out.tar');
  const place = { ...host, env: { ...host.env, SOURCE_DATE_EPOCH: String(EPOCH) } };
  const output = ['--metadata-file', metadata, '-o', `type=oci,dest=${layout}`, '--load', '-t', 'made:1'];
  const { code, stderr } = await berth(place, engine, ['build', ...output, ...args]);
  expect(code, stderr).toBe(0);
  const told = JSON.parse(await readFile(metadata, 'utf8'));
  const layoutDigest = createHash('sha256')
    .update(await readFile(layout))
    .digest('hex');
  return { manifest: told['containerimage.digest'], config: told['containerimage.config.digest'], ...{ layoutDigest } };
}

it('makes the same image of the same input with SOURCE_DATE_EPOCH', { timeout: 120_000 }, async () => {
  const { first, second } = engines;
  const image = await built(first, [context]);
  expect(await built(first, [context])).toEqual(image);

  // Elsewhere, with other times: before and after the epoch.
  const touched = join(host.root, 'touched');
  await cp(context, touched, { recursive: true });
  await utimes(join(touched, 'sub', 'file'), 1000, 1000);
  await utimes(join(touched, 'sub'), EPOCH + 1000, EPOCH + 1000);
  expect(await built(first, ['--no-cache', touched])).toEqual(image);

  // An engine of its own, with another umask, and the classic way.
  expect(await built(second, [touched])).toEqual(image);
  const classic = ['build', '-q', '--no-cache', '--build-arg', `SOURCE_DATE_EPOCH=${EPOCH}`, context];
  const env = { ...host.env, DOCKER_BUILDKIT: '0' };
  const { stdout, stderr } = await run('docker', ['-H', second.url, ...classic], { env });
  expect(stdout.trim(), stderr).toBe(image.config);
});
