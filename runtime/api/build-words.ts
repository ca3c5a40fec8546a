/**
 * A build in the words of Docker's classic builder, which people read and clients parse: `Step 2/5 : RUN …`,
 * ` ---> Using cache`, `Successfully built …`. Stages run side by side here; their steps are told one after the other,
 * each with its whole output. Pure.
 */
import { StringDecoder } from 'node:string_decoder';
import { AppError } from '../../shared/errors.ts';
import { familiarReference, parseReference } from '../../shared/reference.ts';
import type { BuildEvent, BuildFailure, BuildStep, BuildWarning } from '../engine.ts';
import type { ProgressMessage } from './progress.ts';

export interface ClassicWords {
  /** What to send now. */
  take(event: BuildEvent): readonly ProgressMessage[];
  /** What was held back; for the end of the build, whatever it was. */
  rest(): readonly ProgressMessage[];
}

/** Characters of steps that wait for their turn; beyond them they are told at once, in between. */
const HELD_MAX = 4 << 20;
const SHORT_ID = 12;

/** What is known of one line of the Dockerfile while it has not been told to its end. */
interface Told {
  readonly messages: ProgressMessage[];
  readonly decoders: { readonly stdout: StringDecoder; readonly stderr: StringDecoder };
  readonly number: number;
  containerId: string | undefined;
  ended: boolean;
}

export function createClassicWords(): ClassicWords {
  const active = new Map<number, Told>();
  /** How many steps come before those of a stage, and how many there are. */
  let offsets = new Map<string, number>();
  let total = 0;
  let current: Told | undefined;

  const numberOf = (step: BuildStep) => (offsets.get(step.stage ?? '') ?? 0) + (step.position?.index ?? 0);

  /** The step that is shown sends at once; when it has ended the lowest one that waits is shown. */
  const release = (): ProgressMessage[] => {
    const out: ProgressMessage[] = [];
    for (;;) {
      current ??= [...active.values()].sort((a, b) => a.number - b.number)[0];
      if (current === undefined) break;
      out.push(...current.messages.splice(0));
      if (!current.ended) break;
      forget(current);
      current = undefined;
    }
    const held = [...active.values()].reduce((sum, told) => sum + sizeOf(told.messages), 0);
    return held > HELD_MAX ? [...out, ...flush()] : out;
  };
  const forget = (told: Told) => {
    for (const [id, other] of active) if (other === told) active.delete(id);
  };
  const flush = (): ProgressMessage[] => {
    const waiting = [...active.values()].sort((a, b) => a.number - b.number);
    return waiting.flatMap((told) => told.messages.splice(0));
  };
  const start = (step: BuildStep): Told => {
    const number = numberOf(step);
    const told: Told = {
      messages: [{ stream: `Step ${number}/${Math.max(total, number)} : ${step.text}` }, { stream: '\n' }],
      decoders: { stdout: new StringDecoder('utf8'), stderr: new StringDecoder('utf8') },
      number,
      containerId: undefined,
      ended: false,
    };
    active.set(step.id, told);
    return told;
  };

  return {
    take(event) {
      switch (event.kind) {
        case 'planned':
          offsets = new Map();
          total = 0;
          for (const { name, steps } of event.stages) {
            offsets.set(name, total);
            total += steps;
          }
          return [];
        case 'warning':
          return [];
        case 'progress':
          return [
            {
              status: 'Downloading',
              progressDetail: { current: event.current, ...(event.total !== undefined && { total: event.total }) },
              id: event.name,
            },
          ];
      }
      // Work that no line of the Dockerfile asked for is not told here.
      if (event.step.stage === undefined) return [];
      const told = active.get(event.step.id) ?? start(event.step);
      switch (event.kind) {
        case 'started':
          break;
        case 'running':
          told.containerId = event.containerId;
          told.messages.push({ stream: ` ---> Running in ${event.containerId.slice(0, SHORT_ID)}\n` });
          break;
        case 'output': {
          const text = told.decoders[event.stream].write(event.bytes);
          if (text !== '') told.messages.push({ stream: coloured(text, event.stream) });
          break;
        }
        case 'ended':
          told.messages.push(...endOf(event, told));
          told.ended = true;
          break;
        default:
          throw event satisfies never;
      }
      return release();
    },
    rest: flush,
  };
}

function endOf(event: Extract<BuildEvent, { kind: 'ended' }>, told: Told): readonly ProgressMessage[] {
  const messages: ProgressMessage[] = [];
  for (const stream of ['stdout', 'stderr'] as const) {
    const text = told.decoders[stream].end();
    if (text !== '') messages.push({ stream: coloured(text, stream) });
  }
  if (event.outcome === 'failed' || event.outcome === 'canceled') return messages;
  if (event.outcome === 'cached' && event.step.position?.index !== 1) messages.push({ stream: ' ---> Using cache\n' });
  if (told.containerId !== undefined)
    messages.push({ stream: ` ---> Removed intermediate container ${told.containerId.slice(0, SHORT_ID)}\n` });
  if (event.result !== undefined)
    messages.push({ stream: ` ---> ${event.result.replace(/^sha256:/, '').slice(0, SHORT_ID)}\n` });
  return messages;
}

/** Docker's colour for stderr, which terminals show in red. */
function coloured(text: string, stream: 'stdout' | 'stderr'): string {
  return stream === 'stderr' ? `\u001b[91m${text}\u001b[0m` : text;
}

function sizeOf(messages: readonly ProgressMessage[]): number {
  return messages.reduce((sum, { stream = '' }) => sum + stream.length, 0);
}

/** What ends a build that went well. @throws AppError 'invalid' for tags that are none */
export function successMessages(
  id: string,
  { tags, warnings }: { readonly tags: readonly string[]; readonly warnings: readonly BuildWarning[] },
): readonly ProgressMessage[] {
  return [
    ...warnings.map(({ message }) => ({ stream: `[Warning] ${message}\n` })),
    { aux: { ID: id } },
    { stream: `Successfully built ${id.replace(/^sha256:/, '').slice(0, SHORT_ID)}\n` },
    ...tags.map((tag) => ({ stream: `Successfully tagged ${familiarReference(parseReference(tag))}\n` })),
  ];
}

/** Docker's answer for a failed build: the code is the command's, and the docker CLI ends with it. */
export function failureDetail(error: unknown): { readonly code?: number; readonly message: string } | undefined {
  if (!(error instanceof AppError)) return undefined;
  const { exitCode, command, step } = (error.detail ?? {}) as Partial<BuildFailure>;
  if (typeof exitCode !== 'number' || typeof step !== 'string') return { message: error.message };
  const words = command ?? `/bin/sh -c ${step.replace(/^RUN\s+/i, '')}`;
  return { code: exitCode, message: `The command '${words}' returned a non-zero code: ${exitCode}` };
}
