/**
 * After a start of the engine: every stored container is brought together with what still runs of it, in the order in
 * which they need one another; then all is swept away that belongs to none of them.
 */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { isAlive } from './container.ts';
import type { ContainerTable } from './container-table.ts';
import { volumeParts } from './container-volumes.ts';
import { LiveContainer, type LivePorts } from './live-container.ts';
import { joinedContainers } from './namespaces.ts';
import { startOrder } from './start-order.ts';

/** More at once only wait for the same two disks and the same kernel locks. */
const ADOPT_CONCURRENCY = 16;

/** Fills an empty table. A container that cannot be adopted is logged, and stays in it as its record tells. */
export async function adoptContainers(ports: LivePorts, table: ContainerTable): Promise<void> {
  for (const record of await ports.store.load()) {
    table.add(new LiveContainer(record, ports));
    ports.volumes.refer(
      record.id,
      volumeParts(record).map(({ name: volume }) => volume),
    );
  }
  for (const wave of startOrder(joinsOf(table))) {
    const waiting = [...wave];
    const adoptNext = async (): Promise<void> => {
      for (let id = waiting.pop(); id !== undefined; id = waiting.pop())
        await table
          .tryFind(id)
          ?.adopt()
          .catch((error) => {
            ports.log.error('a container could not be adopted', { containerId: id, error });
          });
    };
    await Promise.all(Array.from({ length: ADOPT_CONCURRENCY }, adoptNext));
  }
  await sweep(ports, table);
}

/** A container that shares another's namespaces can start again only when that one runs. */
function joinsOf(table: ContainerTable): ReadonlyMap<string, readonly string[]> {
  const joinedBy = ({ record }: LiveContainer) =>
    joinedContainers(record.hostConfig).flatMap((name) => {
      const id = table.tryFind(name)?.id;
      return id === undefined ? [] : [id];
    });
  return new Map([...table].map((container) => [container.id, joinedBy(container)]));
}

/** What a crash has left. */
async function sweep(ports: LivePorts, table: ContainerTable): Promise<void> {
  const alive = [...table].filter(({ record }) => isAlive(record.state) || record.state.status === 'restarting');
  await ports.networks.reconcile(new Set(alive.map(({ id }) => id)));
  const valid = table.ids;
  // Where no container can run there may be no runtime to ask.
  if (ports.obstacle === undefined) await ports.supervisor.sweep(valid);
  await ports.snapshots.sweep(valid);
  await ports.volumes.sweep();
  await ports.sharedMemory.sweep(valid);
  for (const parent of [ports.directory, join(ports.runDirectory, 'logs'), join(ports.runDirectory, 'execs')])
    for (const name of await readdir(parent).catch(() => []))
      if (!valid.has(name)) await rm(join(parent, name), { recursive: true, force: true });
}
