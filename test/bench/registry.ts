/** The registry's rows, beside docker-registry: throughput of one large blob, manifests per second, memory under load. */
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { mkdir, open, readFile, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { type Digest, digestFromHex, digestOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { type Place, startProgram, startRegistry, succeed } from '../fixtures/programs.ts';
import { compete, milliseconds, type Row } from './measure.ts';

const MIB = 1 << 20;
const BLOB_BYTES = 1024 * MIB;
const PUSHES = 16;
const PUSH_BYTES = 256 * MIB;

/** A registry under test, ours or the peer. */
interface Subject extends AsyncDisposable {
  readonly pid: number;
  /** HOST:PORT */
  readonly address: string;
}
type Start = (name: string) => Promise<Subject>;

export async function registryRows(place: Place, runs: number): Promise<readonly Row[]> {
  const ours: Start = (name) => startRegistry(place, { name });
  const peer: Start = (name) => startDockerRegistry(place, name);
  const blob = await makeBlob(join(place.root, 'blob'), BLOB_BYTES);
  const rows = [
    await push(place, { ours, peer, blob, runs }),
    await pull({ ours, peer, blob, runs }),
    await manifests(place, { ours, peer, runs }),
    await memory(place, { ours, peer, runs: 1 }),
  ];
  await rm(blob.path);
  return rows;
}

interface Sides {
  readonly ours: Start;
  readonly peer: Start;
  readonly runs: number;
}
interface WithBlob extends Sides {
  readonly blob: FileBlob;
}

/** Every run pushes into an empty registry, so that nobody can answer "I have it". */
async function push(place: Place, { ours, peer, blob, runs }: WithBlob): Promise<Row> {
  const measure = (start: Start, side: string) => async (run: number) => {
    const name = `${side}-push-${run}`;
    const subject = await start(name);
    const took = await milliseconds(() => pushFile(subject.address, 'bench/blob', blob));
    await subject[Symbol.asyncDispose]();
    await rm(join(place.root, name), { recursive: true, force: true });
    return BLOB_BYTES / (took / 1000);
  };
  return compete({
    what: 'registry: push of one 1 GiB blob',
    unit: 'bytes/s',
    runs,
    budget: { kind: 'ratio-at-least', value: 2.5 },
    ours: measure(ours, 'ours'),
    peer: { name: 'docker-registry', measure: measure(peer, 'peer') },
  });
}

async function pull({ ours, peer, blob, runs }: WithBlob): Promise<Row> {
  await using a = await ours('ours');
  await using b = await peer('peer');
  for (const { address } of [a, b]) await pushFile(address, 'bench/blob', blob);
  const measure = (subject: Subject) => async () => {
    const url = `http://${subject.address}/v2/bench/blob/blobs/${blob.digest}`;
    return BLOB_BYTES / ((await milliseconds(() => succeed('curl', ['-sfo', '/dev/null', url], shell))) / 1000);
  };
  return await compete({
    what: 'registry: pull of one 1 GiB blob',
    unit: 'bytes/s',
    runs,
    budget: { kind: 'ratio-at-least', value: 1 },
    ours: measure(a),
    peer: { name: 'docker-registry', measure: measure(b) },
  });
}

async function manifests(place: Place, { ours, peer, runs }: Sides): Promise<Row> {
  await using a = await ours('ours');
  await using b = await peer('peer');
  for (const { address } of [a, b]) await pushSmallImage(address, place);
  const measure = (subject: Subject) => async () => {
    const url = `http://${subject.address}/v2/bench/small/manifests/latest`;
    const args = ['-t', '2', '-c', '32', '-d', '5s', '-H', `Accept: ${MEDIA_TYPES.ociManifest}`, url];
    const said = await succeed('wrk', args, shell);
    const rate = /Requests\/sec:\s+([\d.]+)/.exec(said)?.[1];
    if (rate === undefined || said.includes('Non-2xx')) throw new Error(`cannot read what wrk says:\n${said}`);
    return Number(rate);
  };
  return await compete({
    what: 'registry: manifest GET by tag, 32 connections',
    unit: '1/s',
    runs,
    budget: { kind: 'ratio-at-least', value: 5 },
    ours: measure(a),
    peer: { name: 'docker-registry', measure: measure(b) },
  });
}

/** Peak resident memory of the server while 16 clients push at once. */
async function memory(place: Place, { ours, peer, runs }: Sides): Promise<Row> {
  const measure = (start: Start, side: string) => async () => {
    const subject = await start(`${side}-memory`);
    const blobs = Array.from({ length: PUSHES }, (_, i) => patternBlob(i));
    await Promise.all(blobs.map((blob, i) => pushBlob(subject.address, `bench/memory-${i}`, blob)));
    const status = await readFile(`/proc/${subject.pid}/status`, 'utf8');
    await subject[Symbol.asyncDispose]();
    await rm(join(place.root, `${side}-memory`), { recursive: true, force: true });
    return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) * 1024;
  };
  return compete({
    what: 'registry: peak memory, 16 concurrent 256 MiB pushes',
    unit: 'bytes',
    runs,
    budget: { kind: 'at-most', value: 200 * MIB },
    ours: measure(ours, 'ours'),
    peer: { name: 'docker-registry', measure: measure(peer, 'peer') },
  });
}

const shell = { env: process.env, timeoutMs: 120_000 };

async function startDockerRegistry(place: Place, name: string): Promise<Subject> {
  const directory = join(place.root, name);
  const configPath = join(place.root, `${name}.yml`);
  await mkdir(directory, { recursive: true });
  const address = '127.0.0.1:0';
  const storage = { filesystem: { rootdirectory: directory }, delete: { enabled: true } };
  const config = { version: 0.1, log: { level: 'info' }, storage, http: { addr: address } };
  await writeFile(configPath, JSON.stringify(config));
  return startProgram(place, {
    name,
    command: 'docker-registry',
    args: ['serve', configPath],
    ready: (program) => {
      const found = /listening on (127\.0\.0\.1:\d+)/.exec(program.output())?.[1];
      return found === undefined ? undefined : { ...program, address: found };
    },
  });
}

interface Blob {
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly open: () => Readable;
}

interface FileBlob {
  readonly path: string;
  readonly digest: Digest;
}

/** Incompressible bytes in a file. */
async function makeBlob(path: string, sizeBytes: number): Promise<FileBlob> {
  const hash = createHash('sha256');
  const source = createReadStream('/dev/urandom', { end: sizeBytes - 1, highWaterMark: MIB });
  source.on('data', (chunk) => hash.update(chunk));
  await pipeline(source, createWriteStream(path));
  // Written back now, so that no run pays for it.
  await using file = await open(path);
  await file.sync();
  return { path, digest: digestFromHex('sha256', hash.digest('hex')) };
}

/** Its number, then a pattern: distinct blobs that need no disk. */
function patternBlob(number: number): Blob {
  const chunks = function* () {
    const chunk = Buffer.alloc(MIB, `blob ${number} `);
    for (let i = 0; i < PUSH_BYTES / MIB; i++) yield chunk;
  };
  const hash = createHash('sha256');
  for (const chunk of chunks()) hash.update(chunk);
  const digest = digestFromHex('sha256', hash.digest('hex'));
  return { digest, sizeBytes: PUSH_BYTES, open: () => Readable.from(chunks(), { objectMode: false }) };
}

/** POST, then one PUT with the whole blob. A C client, so that the client's share of the processor is small. */
async function pushFile(address: string, repository: string, blob: FileBlob): Promise<void> {
  const url = await openUpload(address, repository, blob.digest);
  await succeed('curl', ['-sf', '-H', 'Content-Type: application/octet-stream', '-T', blob.path, url], shell);
}

async function pushBlob(address: string, repository: string, blob: Blob): Promise<void> {
  const url = await openUpload(address, repository, blob.digest);
  const headers = { 'content-type': 'application/octet-stream', 'content-length': String(blob.sizeBytes) };
  await exchange(url, { method: 'PUT', headers, body: blob.open() });
}

/** Answers where to PUT. */
async function openUpload(address: string, repository: string, digest: Digest): Promise<string> {
  const opened = await exchange(`http://${address}/v2/${repository}/blobs/uploads/`, { method: 'POST' });
  const location = new URL(opened.location ?? '', `http://${address}`);
  location.searchParams.set('digest', digest);
  return location.href;
}

async function pushSmallImage(address: string, place: Place): Promise<void> {
  const bytes = (value: unknown) => Buffer.from(JSON.stringify(value));
  const config = bytes({ architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [] } });
  const layers = Array.from({ length: 7 }, (_, i) => Buffer.from(`layer ${i} of ${place.root}`));
  const descriptor = (mediaType: string, content: Buffer) => {
    return { mediaType, digest: digestOf(content), size: content.length };
  };
  for (const content of [config, ...layers]) {
    const blob = { digest: digestOf(content), sizeBytes: content.length, open: () => Readable.from([content]) };
    await pushBlob(address, 'bench/small', blob);
  }
  const manifest = bytes({
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config: descriptor(MEDIA_TYPES.ociConfig, config),
    layers: layers.map((layer) => descriptor(MEDIA_TYPES.ociLayerGzip, layer)),
  });
  const headers = { 'content-type': MEDIA_TYPES.ociManifest, 'content-length': String(manifest.length) };
  const url = `http://${address}/v2/bench/small/manifests/latest`;
  await exchange(url, { method: 'PUT', headers, body: Readable.from([manifest]) });
}

interface Exchange {
  readonly method: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Readable;
}

async function exchange(url: string, { method, headers, body }: Exchange): Promise<{ readonly location?: string }> {
  const asked = request(url, { method, headers: { ...headers }, agent: false });
  const answered = new Promise<{ status: number; location: string | undefined; text: string }>((resolve, reject) => {
    asked.on('error', reject).on('response', (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      response.on('error', reject).on('end', () => {
        resolve({ status: response.statusCode ?? 0, location: response.headers.location, text });
      });
    });
  });
  await Promise.all([body === undefined ? asked.end() : pipeline(body, asked), answered]);
  const { status, location, text } = await answered;
  if (status < 200 || status > 299) throw new Error(`${method} ${url} answered ${status}: ${text.slice(0, 300)}`);
  return location === undefined ? {} : { location };
}
