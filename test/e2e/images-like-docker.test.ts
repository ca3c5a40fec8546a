/**
 * The same script of docker's client against dockerd and against our engine. What is printed must be the same, but for
 * sizes (ours count compressed blobs too), ids of what each makes itself, the order of progress, and errors that dockerd
 * itself words differently from version to version (those of a registry).
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { startDockerd } from '../bench/peers.ts';
import { buildImage, buildLayer, busyboxLayer, writeLayout } from '../fixtures/images.ts';
import { run, startEngine, startNetworkNamespace, startRegistry, succeed } from '../fixtures/programs.ts';
import { tarOf } from '../fixtures/tar.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';

const undo = new AsyncDisposableStack();
let host: TestHost;
let registry: string;
/** Of app:1's manifest. */
let digest: string;
let engines: { readonly dockerd: string; readonly berthd: string };

/** Everything listens in a network namespace of its own: dockerd changes the firewall of the one that it is in. */
beforeAll(async () => {
  host = undo.use(await testHost());
  const { path: namespace } = undo.use(await startNetworkNamespace(host));
  const inside = [`--net=${namespace}`, '--'];
  registry = undo.use(await startRegistry(host, { namespace })).address;
  const [dockerd, berthd] = await Promise.all([
    startDockerd(host, { through: ['nsenter', ...inside], args: ['--bridge', 'none', '--iptables=false'] }),
    startEngine(host, { namespace }),
  ]);
  undo.use(dockerd);
  undo.use(berthd);
  engines = { dockerd: `unix://${dockerd.socketPath}`, berthd: berthd.url };
  const layers = [await busyboxLayer(), buildLayer([{ name: 'etc/app', content: 'app' }])];
  const config = { Env: ['PATH=/bin'], Cmd: ['sh'], Labels: { a: 'b' }, ExposedPorts: { '80/tcp': {} }, User: 'root' };
  for (const [tag, image] of [
    ['1', buildImage({ layers, config })],
    ['2', buildImage({ layers: [...layers, buildLayer([{ name: 'etc/more', content: 'more' }])], config })],
  ] as const) {
    const layout = join(host.root, `layout-${tag}`);
    if (tag === '1') digest = image.manifestDescriptor.digest;
    await writeLayout(image, layout);
    const copy = ['--insecure-policy', 'copy', '-q', '--dest-tls-verify=false', `oci:${layout}:latest`];
    await succeed('nsenter', [...inside, 'skopeo', ...copy, `docker://${registry}/app:${tag}`], { env: host.env });
  }
  await writeFile(join(host.root, 'fs.tar'), tarOf([{ name: 'bin/sh', content: 'sh' }]));
});
afterAll(() => undo.disposeAsync());

const INSPECTED =
  '{{.Id}} {{.RepoTags}} {{.RepoDigests}} {{.Os}}/{{.Architecture}} {{json .Config.Env}} {{json .Config.Cmd}}';
const MORE_INSPECTED = '{{json .Config.Labels}} {{json .Config.ExposedPorts}} {{.Config.User}} {{json .RootFS}}';
const LISTED = '{{.Repository}}|{{.Tag}}|{{.Digest}}|{{.ID}}|{{.CreatedSince}}|{{.Containers}}|{{.SharedSize}}';

/** A line is split at spaces, but for what stands in quotes. REG is the registry, ROOT a directory of the engine's own. */
const SCRIPT: readonly string[] = [
  'pull REG/app:1',
  'pull REG/app:1',
  'pull REG/app:2',
  'pull -q REG/app:2',
  'pull REG/nosuch:1',
  'pull REG/app@DIGEST',
  'pull REG/App:1',
  'pull -a -q REG/app',
  // Lists.
  'images',
  'images -a',
  'images --digests',
  'images --no-trunc',
  'images -q',
  'images -q --no-trunc REG/app',
  'images REG/app:1',
  'images nosuch',
  `images --no-trunc --digests --format '${LISTED}'`,
  "images --format 'table {{.ID}}\t{{.Repository}}'",
  "images --format '{{json .Tag}} {{.CreatedAt}}'",
  "images --format '{{.Nosuch}}'",
  // Looks.
  `image inspect --format '${INSPECTED}' REG/app:1`,
  `image inspect --format '${MORE_INSPECTED}' REG/app:2`,
  'image inspect nosuch:1',
  "inspect --type image --format '{{.Id}}' REG/app:1 nosuch",
  "history --no-trunc --format '{{.ID}}|{{.CreatedBy}}|{{.Comment}}|{{.CreatedSince}}' REG/app:2",
  'history REG/app:2',
  'history -q --no-trunc REG/app:2',
  'history nosuch',
  // Names.
  'tag REG/app:1 REG/other:3',
  'tag REG/app:1 Upper',
  'tag nosuch other',
  'tag REG/app:1 REG/app@DIGEST',
  "images --format '{{.Repository}}:{{.Tag}}' --filter reference=*/other",
  "images --format '{{.Repository}}:{{.Tag}}' --filter reference=*/o*:3 --filter reference=*/app:2",
  "images --format '{{.Repository}}:{{.Tag}}' --filter label=a=b --filter before=REG/app:2",
  "images --format '{{.Repository}}:{{.Tag}}' --filter label=a --filter since=REG/app:1",
  'images -q --filter label=nosuch',
  'images -q --filter dangling=true',
  'images -q --filter dangling=maybe',
  'images -q --filter before=nosuch',
  'images -q --filter nosuch=1',
  'push REG/other:3',
  'push -q REG/other:3',
  'push REG/nosuch:3',
  'push -a REG/other',
  'rmi REG/other:3',
  'rmi REG/other:3',
  'rmi nosuch REG/nosuch:2',
  // Archives.
  'save -o ROOT/saved.tar REG/app:1 REG/app:2',
  'save -o ROOT/none.tar nosuch:latest',
  'rmi REG/app:1 REG/app:2',
  'load -i ROOT/saved.tar',
  'load -q -i ROOT/saved.tar',
  "images --no-trunc --format '{{.Repository}}:{{.Tag}}|{{.ID}}'",
  "import -m message -c 'CMD [\"sh\"]' -c 'ENV A=1' TAR made:1",
  "image inspect --format '{{json .Config.Cmd}}{{json .Config.Env}}{{.Comment}}' made:1",
  'import -c RUN TAR made:2',
  'import TAR Made:2',
  // Containers.
  'create --name user REG/app:1',
  "commit -a me -m said -c 'LABEL x=y' -c 'USER nobody' user committed:1",
  "image inspect --format '{{.Author}} {{.Comment}} {{json .Config.Labels}} {{.Config.User}} {{json .Config.Cmd}}' committed:1",
  "history --format '{{.CreatedBy}}|{{.Comment}}' committed:1",
  'commit nosuch committed:2',
  'commit user Committed:2',
  'rmi REG/app:1',
  "images --format '{{.Repository}}:{{.Tag}}|{{.Containers}}' --filter reference=*/app:1",
  "system df --format '{{.Type}}|{{.TotalCount}}|{{.Active}}'",
  'system df',
  'system df -v',
  'rmi committed:1',
  'image prune -f',
  'image prune -a -f --filter label=nosuch',
  'image prune -a -f',
  "images --format '{{.Repository}}:{{.Tag}}'",
  'rmi -f REG/app:1',
  'rm user',
  'image prune -a -f --filter until=1s',
  'images -q',
];

it('prints what dockerd prints', { timeout: 120_000 }, async () => {
  const [docker, ours] = await Promise.all([transcript(engines.dockerd), transcript(engines.berthd)]);
  expect(ours).toEqual(docker);
});

async function transcript(url: string): Promise<readonly string[]> {
  const lines: string[] = [];
  const own = join(host.root, url.endsWith('docker.sock') ? 'of-dockerd' : 'of-berthd');
  await mkdir(own);
  for (const line of SCRIPT) {
    const words = (line.match(/'[^']*'|\S+/g) ?? []).map((word) =>
      word
        .replace(/^'(.*)'$/, '$1')
        .replace('REG', registry)
        .replace('ROOT', own)
        .replace('DIGEST', digest)
        .replace(/^TAR$/, join(host.root, 'fs.tar')),
    );
    const { code, stdout, stderr } = await run('docker', ['-H', url, ...words], { env: host.env });
    lines.push(`$ ${line} -> ${code}`, ...normalized(stdout), ...normalized(stderr).map((said) => `! ${said}`));
  }
  return lines;
}

function normalized(text: string): readonly string[] {
  return [
    ...new Set(
      text
        .split('\n')
        .filter((line) => line !== '')
        // Steps of progress come and go; what stays is where each layer ended.
        .filter((line) => !/: (?:Pulling fs layer|Waiting|Verifying Checksum|Download complete|Preparing)$/.test(line))
        .map((line) =>
          line
            .replaceAll(registry, 'REG')
            // Older dockerds say it twice.
            .replace(/no such image: \S+: (?=No such image)/, '')
            .replace(/container [0-9a-f]{12}/, 'container ID')
            .replace(
              /(?:manifest for|failed to resolve reference) \S+ not found.*|failed to resolve .* not found$/,
              'NOT FOUND',
            )
            // Newer words.
            .replace('reference does not exist', 'No such image: nosuch:latest')
            .replace(
              /unable to remove repository reference "(\S+)" \(must force\)/,
              'unable to delete $1 (must be forced)',
            )
            .replace(/Invalid (filter '[^'=]+=?)\[?([^'\]]*)\]?'/, "invalid $1$2'")
            // Of a manifest that was pushed: dockerd writes a new one.
            .replace(/^(Untagged: \S+@)sha256:[0-9a-f]{64}$/, '$1ID')
            .replace(/^([Dd]eleted): sha256:[0-9a-f]{64}$/, '$1: ID')
            .replace(/^sha256:[0-9a-f]{64}$/, 'ID')
            .replace(/digest: sha256:[0-9a-f]{64} size: \d+/, 'digest: ID size: SIZE')
            .replace(/^[0-9a-f]{64}$/, 'ID')
            .replace(/^[0-9a-f]{12}: (?:Pushed|Layer already exists|Mounted from .*)$/, 'LAYER: there')
            .replace(/\b\d+(?:\.\d+)?[kMG]?B(?: \(\d+%\)|\b)/g, 'SIZE')
            // Columns are as wide as what stands in them.
            .replace(/(?:Less than a|\d+) seconds? ago/g, 'NOW')
            .replace(/^(\S+ .*)/, (row) => row.replace(/ {2,}/g, '  '))
            .replace(/^[0-9a-f]{12}( {2}\S+ {2}"sh")/, 'ID$1')
            .replace(/^((?:made|committed) {2}.*)\b[0-9a-f]{12}\b/, '$1ID')
            .trimEnd(),
        ),
    ),
  ].sort();
}
