/**
 * Listings at scale: 100,000 tags in one repository and 50,000 repositories, every page timed over HTTP.
 * `node test/bench/registry-scale.ts` prints how long pages take; the budget is 20 ms for any of them.
 */
import { randomUUID } from 'node:crypto';
import { mkdtempDisposable } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PROGRAM } from '../../registry/config.ts';
import { METADATA_MIGRATIONS, type MetadataTables } from '../../registry/metadata/schema.ts';
import { startRegistry } from '../../registry/registry.ts';
import { loadConfig } from '../../shared/config.ts';
import { openDatabase } from '../../shared/database.ts';
import { digestOf } from '../../shared/digest.ts';
import { createSilentLog } from '../../shared/log.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';

const TAGS = 100_000;
const REPOSITORIES = 50_000;
const ROWS = 1000;

async function fill(root: string): Promise<void> {
  await using database = openDatabase<MetadataTables>({
    path: join(root, 'registry.db'),
    migrations: METADATA_MIGRATIONS,
  });
  const bytes = Buffer.from('{"schemaVersion":2}');
  const digest = digestOf(bytes);
  const at = 0;
  for (let start = 0; start < REPOSITORIES; start += ROWS)
    await database.write(async (transaction) => {
      const ids = Array.from({ length: ROWS }, (_, i) => start + i + 1);
      const name = (id: number) => `team-${id % 97}/project-${id}`;
      await transaction
        .insertInto('repository')
        .values(ids.map((id) => ({ id, name: id === 1 ? 'many' : name(id), createdAt: at })))
        .execute();
      const manifest = { digest, mediaType: MEDIA_TYPES.ociManifest, sizeBytes: bytes.length, bytes };
      const empty = { subject: null, artifactType: null, annotations: null, pulledAt: null };
      await transaction
        .insertInto('manifest')
        .values(ids.map((repositoryId) => ({ repositoryId, ...manifest, ...empty, pushedAt: at, touchedAt: at })))
        .execute();
    });
  for (let start = 0; start < TAGS; start += ROWS)
    await database.write(async (transaction) => {
      const names = Array.from({ length: ROWS }, (_, i) => `build-${(start + i) * 7919}`);
      await transaction
        .insertInto('tag')
        .values(names.map((name) => ({ repositoryId: 1, name, manifest: digest, createdAt: at, updatedAt: at })))
        .execute();
    });
}

/** Walks all pages by their Link headers; answers what each took, in milliseconds. */
async function walk(url: string, path: string, key: string): Promise<{ entries: number; times: readonly number[] }> {
  const times: number[] = [];
  let entries = 0;
  for (let next: string | undefined = path; next !== undefined; ) {
    const startedAt = performance.now();
    const response = await fetch(new URL(next, url));
    const page: Record<string, readonly string[]> = JSON.parse(await response.text());
    times.push(performance.now() - startedAt);
    entries += page[key]?.length ?? 0;
    next = /^<([^>]+)>/.exec(response.headers.get('link') ?? '')?.[1];
  }
  return { entries, times: times.toSorted((a, b) => a - b) };
}

await using directory = await mkdtempDisposable(join(tmpdir(), 'berth-scale-'));
await fill(directory.path);
const { config } = loadConfig(PROGRAM, { argv: ['--root', directory.path, '--listen', '127.0.0.1:0'], env: {} });
const log = createSilentLog();
await using registry = await startRegistry({ config, log, now: () => new Date(), randomId: randomUUID });
await fetch(registry.url);
for (const [path, key, wanted] of [
  ['/v2/many/tags/list?n=100', 'tags', TAGS],
  ['/v2/_catalog?n=100', 'repositories', REPOSITORIES],
] as const) {
  const { entries, times } = await walk(registry.url, path, key);
  const at = (share: number) => (times[Math.ceil(times.length * share) - 1] ?? 0).toFixed(2);
  console.log(`${path}: ${entries} of ${wanted} in ${times.length} pages`);
  console.log(`  median ${at(0.5)} ms, 99 % within ${at(0.99)} ms, slowest ${at(1)} ms`);
  if (entries !== wanted) process.exitCode = 1;
}
