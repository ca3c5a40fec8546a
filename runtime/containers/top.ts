/** `docker top`: ps(1) of the host, reduced to a container's processes. */
import { AppError } from '../../shared/errors.ts';
import { runCommand } from '../kernel/command.ts';
import type { ProcessList } from './containers.ts';

/** What could make ps write, or read something else than processes. The rest only chooses columns. */
const ARGUMENT = /^[A-Za-z0-9,_=%:.@+-]+$/;

/** @throws AppError 'invalid' for arguments that ps refuses */
export async function processesOf(pids: readonly number[], psArguments: string): Promise<ProcessList> {
  const args = psArguments.split(/\s+/).filter(Boolean);
  for (const argument of args)
    if (!ARGUMENT.test(argument)) throw new AppError('invalid', `invalid ps argument: ${JSON.stringify(argument)}`);
  // Without a list ps chooses by terminal, which is ours and not the container's; where -e or a chooses all, it refuses one.
  const listed = await runCommand('ps', [...args, `-q${pids.join(',')}`]);
  const { exitCode, stdout, stderr } = listed.exitCode === 0 ? listed : await runCommand('ps', args);
  if (exitCode !== 0) throw new AppError('invalid', `ps: ${stderr.trim()}`);
  return parsePs(stdout, new Set(pids));
}

/** The last column may hold blanks. @throws AppError 'invalid' when there is no PID column */
export function parsePs(text: string, pids: ReadonlySet<number>): ProcessList {
  const lines = text.split('\n').filter(Boolean);
  const titles = lines[0]?.trim().split(/\s+/) ?? [];
  const pidColumn = titles.indexOf('PID');
  if (pidColumn === -1) throw new AppError('invalid', "couldn't find PID field in ps output");
  const processes = lines
    .slice(1)
    .map((line) => splitColumns(line, titles.length))
    .filter((columns) => pids.has(Number(columns[pidColumn])));
  return { titles, processes };
}

function splitColumns(line: string, count: number): readonly string[] {
  const words = line.trim().split(/\s+/);
  if (words.length <= count) return words;
  return [...words.slice(0, count - 1), words.slice(count - 1).join(' ')];
}
