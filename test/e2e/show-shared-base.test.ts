import { expect, it } from 'vitest';
import { z } from 'zod';
import { sharedBasePair } from '../fixtures/images.ts';
import { succeed } from '../fixtures/programs.ts';
import { openRig, type Rig } from './rig.ts';

const usageSchema = z.looseObject({ Berth: z.looseObject({ LogicalBytes: z.number(), ActualBytes: z.number() }) });

async function usageOf(rig: Rig): Promise<{ readonly logical: number; readonly actual: number }> {
  const said = await rig.expectBerth(['system', 'df', '--format', 'json']);
  const { Berth } = usageSchema.parse(JSON.parse(said));
  return { logical: Berth.LogicalBytes, actual: Berth.ActualBytes };
}

/** Allocated bytes of what holds layers and blobs. */
async function diskBytes(rig: Rig): Promise<number> {
  const { directory } = rig.engine;
  const said = await succeed('du', ['-sx', '--block-size=1', directory], { env: rig.host.env });
  return Number(said.split('\t')[0]);
}

it('downloads and stores what two images share once', async () => {
  await using rig = await openRig();
  const { first, second } = await sharedBasePair();
  const references = [await rig.push(first, 'first:1'), await rig.push(second, 'second:1')] as const;
  const base = first.layers[0]?.descriptor;

  await rig.expectBerth(['pull', references[0]]);
  const alone = await usageOf(rig);
  // What the second image shares is not even asked for: without it in the registry the pull still works.
  await succeed('rm', [`${rig.registry.directory}/blobs/${base?.digest.replace(':', '/')}`], rig.host);
  await rig.expectBerth(['pull', references[1]]);
  const both = await usageOf(rig);

  expect(both.logical).toBeGreaterThan(alone.logical * 1.8);
  expect(both.actual - alone.actual).toBeLessThan(alone.actual * 0.2);
  expect(both.logical).toBeGreaterThan(both.actual);
  const disk = await diskBytes(rig);
  expect(Math.abs(disk - both.actual) / disk).toBeLessThan(0.01);

  for (const reference of references) await rig.expectBerth(['run', '--rm', reference]);
  for (const reference of references) await rig.expectBerth(['rmi', reference]);
  const empty = await usageOf(rig);
  expect(empty.logical).toBe(0);
  // The database stays, with what it keeps in reserve for a full disk.
  expect(empty.actual).toBeLessThan(12 << 20);
}, 120_000);
