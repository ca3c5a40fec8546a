/** Bare requests to an engine's socket, for answers that clients would hide. */
import { once } from 'node:events';
import { type IncomingHttpHeaders, type IncomingMessage, request } from 'node:http';

export interface Question {
  readonly method: string;
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly json?: unknown;
  readonly body?: Uint8Array;
}

export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly bytes: Buffer;
  /** The body, when it is one JSON document; undefined otherwise. Tests look into it freely. */
  // biome-ignore lint/suspicious/noExplicitAny: the shape is what is tested
  readonly json: any;
}

export async function ask(socketPath: string, question: Question): Promise<Answer> {
  const { method, path, json } = question;
  const body = json === undefined ? question.body : Buffer.from(JSON.stringify(json));
  const headers = { ...(json !== undefined && { 'content-type': 'application/json' }), ...question.headers };
  const asked = request({ socketPath, method, path, headers: { ...headers, 'content-length': body?.length ?? 0 } });
  asked.end(body);
  const [response]: [IncomingMessage] = await Promise.race([
    once(asked, 'response') as Promise<[IncomingMessage]>,
    once(asked, 'error').then(([error]) => Promise.reject(error)),
  ]);
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  return { status: response.statusCode ?? 0, headers: response.headers, bytes, json: parsed(bytes) };
}

function parsed(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    return undefined;
  }
}
