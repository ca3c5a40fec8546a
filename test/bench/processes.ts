/** What processes cost, read from proc(5): CPU time and peak memory of a server with all that it started. */
import { readdir, readFile, writeFile } from 'node:fs/promises';

/** USER_HZ: the unit of the times in proc_pid_stat(5). */
const TICK_MS = 10;

interface Times {
  readonly pid: number;
  readonly parent: number;
  /** Of itself and of the children that it has waited for. */
  readonly cpuMs: number;
}

async function timesOf(pid: number): Promise<Times | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => undefined);
  // The name in parentheses may hold anything; fields are counted from its end.
  const fields = stat?.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (fields === undefined) return undefined;
  const ticks = fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
  return { pid, parent: Number(fields[1]), cpuMs: ticks * TICK_MS };
}

/** A process and its descendants. */
async function familyOf(pid: number): Promise<readonly Times[]> {
  const names = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const all = (await Promise.all(names.map((name) => timesOf(Number(name))))).filter((times) => times !== undefined);
  const family = all.filter((times) => times.pid === pid);
  for (const member of family) family.push(...all.filter(({ parent }) => parent === member.pid));
  return family;
}

/** CPU time that a server, its children and those of this process have used so far. */
export async function cpuMsOf(server: number | undefined): Promise<number> {
  const own = await timesOf(process.pid);
  const family = server === undefined ? [] : await familyOf(server);
  const self = process.cpuUsage();
  const ofChildren = own === undefined ? 0 : own.cpuMs - (self.user + self.system) / 1000;
  return ofChildren + family.reduce((sum, { cpuMs }) => sum + cpuMs, 0);
}

/** From now on peakBytesOf tells what was used since. */
export async function forgetPeak(server: number): Promise<void> {
  for (const { pid } of await familyOf(server)) await writeFile(`/proc/${pid}/clear_refs`, '5').catch(() => {});
}

/** The most memory that each of them has had resident, added up. */
export async function peakBytesOf(server: number): Promise<number> {
  const family = await familyOf(server);
  const peaks = family.map(async ({ pid }) => {
    const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
    return Number(/^VmHWM:\s+(\d+) kB/m.exec(status)?.[1] ?? 0) * 1024;
  });
  return (await Promise.all(peaks)).reduce((sum, bytes) => sum + bytes, 0);
}
