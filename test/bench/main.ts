/**
 * `npm run bench [section…] [--runs N]`: what docs promise about speed and memory, measured beside the peers that Debian
 * packages, as ratios in one run. Nothing is left out silently: a peer that is missing is an error.
 *
 * Everything runs in a network namespace of its own, so that dockerd cannot touch the host's firewall, and in a
 * temporary directory (TMPDIR says where), which needs 8 GiB.
 */
import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { debianImage } from '../fixtures/images.ts';
import type { Place } from '../fixtures/programs.ts';
import { buildRows } from './build.ts';
import { cliRows, containerRows } from './containers.ts';
import { imageRows } from './images.ts';
import { isWithin, type Row, table } from './measure.ts';
import { networkRows } from './networks.ts';
import { registryRows } from './registry.ts';

type Section = (place: Place, runs: number) => Promise<readonly Row[]>;

const SECTIONS: Readonly<Record<string, Section>> = {
  registry: registryRows,
  images: imageRows,
  containers: containerRows,
  networks: networkRows,
  cli: cliRows,
  build: buildRows,
};
const INSIDE = 'BERTH_BENCH_INSIDE';

/** Answers the exit status of the same command inside a fresh network namespace. */
function repeatInside(argv: readonly string[]): number {
  const script = 'ip link set lo up && exec "$@"';
  const command = ['--net', '--', 'sh', '-c', script, 'sh', process.execPath, import.meta.filename, ...argv];
  const { status, error } = spawnSync('unshare', command, {
    stdio: 'inherit',
    env: { ...process.env, [INSIDE]: '1' },
  });
  if (error !== undefined) throw error;
  return status ?? 1;
}

async function bench(sections: readonly string[], runs: number): Promise<void> {
  const root = await mkdtemp(join(tmpdir(), 'berth-bench-'));
  const place = { root, runDir: join(root, 'run'), env: { ...process.env, HOME: root } };
  await mkdir(place.runDir);
  try {
    const rows: Row[] = [];
    for (const name of sections) {
      console.error(`bench: ${name}`);
      rows.push(...((await SECTIONS[name]?.(place, runs)) ?? []));
    }
    console.log(table(rows));
    console.log(
      `\n${rows.filter(isWithin).length} of ${rows.length} rows are within their budget (medians of ${runs})`,
    );
  } finally {
    await rm(root, { recursive: true, force: true });
  }
}

const argv = process.argv.slice(2);
const { values, positionals } = parseArgs({
  args: argv,
  allowPositionals: true,
  options: { runs: { type: 'string', default: '5' } },
});
const unknown = positionals.find((name) => SECTIONS[name] === undefined);
const runs = Number(values.runs);
if (unknown !== undefined || !Number.isInteger(runs) || runs < 1) {
  console.error(`usage: npm run bench -- [${Object.keys(SECTIONS).join(' | ')}]… [--runs N]`);
  process.exitCode = 2;
} else if (process.geteuid?.() !== 0) {
  console.error('bench: it starts dockerd and needs root: sudo npm run bench');
  process.exitCode = 1;
} else if (process.env[INSIDE] !== '1') {
  // Made once and kept; inside there is no network to make it from.
  await debianImage();
  process.exitCode = repeatInside(argv);
} else await bench(positionals.length === 0 ? Object.keys(SECTIONS) : positionals, runs);
