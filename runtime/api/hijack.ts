/**
 * Hijacked connections: attach and exec turn an HTTP request into a raw two-way stream.
 *
 * With an `Upgrade` header the answer is exactly 101, without it 200 and then bytes until the connection closes; it is
 * never chunked, because clients read the socket below their HTTP library. The client's half close is EOF for stdin and
 * output goes on after it. The HTTP server is told not to treat upgrades itself, so bodies of both kinds of requests
 * are parsed by Node, and then the socket is taken from its parser.
 */
import type { Socket } from 'node:net';
import { PassThrough, type Readable, type Writable } from 'node:stream';
import { createWebSocketStream, type WebSocket, WebSocketServer } from 'ws';
import type { Attachment, OutputChunk } from '../engine.ts';
import type { ApiContext } from './context.ts';

export const RAW_STREAM = 'application/vnd.docker.raw-stream';
export const MULTIPLEXED_STREAM = 'application/vnd.docker.multiplexed-stream';

/** API version that began to name multiplexed streams by their own media type. */
const MULTIPLEXED_SINCE = 42;
/** What a client types or pipes in one message. */
const MESSAGE_MAX_BYTES = 1 << 20;
/** How long a client may take to close its side after we have closed ours. */
const LINGER_MS = 10_000;

export function streamType(ctx: ApiContext, terminal: boolean): string {
  return !terminal && ctx.state.apiMinor >= MULTIPLEXED_SINCE ? MULTIPLEXED_STREAM : RAW_STREAM;
}

/** A connection that is ours now. */
export interface Hijacked {
  /** For writing, and for ending with `finish`. */
  readonly socket: Socket;
  /** What the client sends, from the first byte after its request; it ends with the client's half close. */
  readonly input: Readable;
}

/** Takes the connection and sends the head. Errors after this can only be told inside the stream. */
export function hijack(ctx: ApiContext, options: { readonly terminal: boolean }): Hijacked {
  const { res } = ctx;
  const socket = takeSocket(ctx);
  // At once: the HTTP server may still set the socket flowing, and bytes without a listener are lost.
  const input = socket.pipe(new PassThrough());

  const upgrade = ctx.get('upgrade') !== '';
  const head = upgrade
    ? [
        'HTTP/1.1 101 UPGRADED',
        `Content-Type: ${streamType(ctx, options.terminal)}`,
        'Connection: Upgrade',
        'Upgrade: tcp',
      ]
    : ['HTTP/1.1 200 OK', `Content-Type: ${RAW_STREAM}`];
  for (const [name, value] of Object.entries(res.getHeaders()))
    if (!/^(?:content-|connection|upgrade|transfer-)/.test(name)) head.push(`${name}: ${String(value)}`);
  socket.write(`${head.join('\r\n')}\r\n\r\n`);
  return { socket, input };
}

/** The connection without the HTTP server's hands on it. Errors after this cannot be answered any more. */
function takeSocket(ctx: ApiContext): Socket {
  ctx.respond = false;
  const { socket } = ctx.req;
  // 'close' stays: it is how the server forgets the connection.
  for (const event of ['data', 'end', 'drain', 'error', 'timeout']) socket.removeAllListeners(event);
  // A reset is an end like any other; the streams around the socket see its 'close'.
  socket.on('error', () => {});
  // The request body may never end (a client that streams stdin); Node reports that when the connection closes.
  ctx.req.on('error', () => {});
  socket.setTimeout(0);
  socket.setNoDelay(true);
  return socket;
}

/**
 * Carries an attachment over a websocket until the output ends: binary messages both ways, both output streams in one.
 * A request that is no websocket handshake is refused.
 */
export async function serveWebSocket(ctx: ApiContext, attachment: Attachment): Promise<void> {
  const server = new WebSocketServer({ noServer: true, maxPayload: MESSAGE_MAX_BYTES });
  const socket = takeSocket(ctx);
  const connected = Promise.withResolvers<WebSocket>();
  server.once('wsClientError', (error) => connected.reject(error));
  socket.once('close', () => connected.reject(new Error('the connection was closed')));
  server.handleUpgrade(ctx.req, socket, Buffer.alloc(0), connected.resolve);
  try {
    const stream = createWebSocketStream(await connected.promise, { readableHighWaterMark: MESSAGE_MAX_BYTES });
    // A client that leaves without a goodbye is an end like any other.
    stream.on('error', () => {});
    if (attachment.input === undefined) stream.resume();
    else feed(stream, attachment.input);
    await copyOutput(attachment.output, stream, { framed: false });
    stream.end();
  } finally {
    await attachment[Symbol.asyncDispose]();
  }
}

/** Ends our side, and does not wait for ever for the client's. */
export function finish(socket: Socket): void {
  socket.end();
  socket.unpipe();
  socket.resume();
  const timer = setTimeout(() => socket.destroy(), LINGER_MS);
  timer.unref();
  socket.once('close', () => clearTimeout(timer));
}

const HEADER_BYTES = 8;
const STREAM_NUMBER = { stdout: 1, stderr: 2 } as const;

/** Header of one multiplexed frame: stream number, three zero bytes, length as 32 bits big endian. */
export function frame(chunk: OutputChunk): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header[0] = STREAM_NUMBER[chunk.stream];
  header.writeUInt32BE(chunk.bytes.byteLength, 4);
  return header;
}

const NEWLINE = 0x0a;

/** A frame for each line, and for what follows the last one. Pure. */
export function lineFrames({ stream, bytes }: OutputChunk): Buffer {
  const endOf = (from: number) => bytes.indexOf(NEWLINE, from) + 1 || bytes.length;
  let lines = 0;
  for (let from = 0; from < bytes.length; from = endOf(from)) lines += 1;
  const frames = Buffer.alloc(bytes.length + lines * HEADER_BYTES);
  let at = 0;
  for (let from = 0, end = 0; from < bytes.length; from = end) {
    end = endOf(from);
    frames[at] = STREAM_NUMBER[stream];
    frames.writeUInt32BE(end - from, at + 4);
    at += HEADER_BYTES + bytes.copy(frames, at + HEADER_BYTES, from, end);
  }
  return frames;
}

export interface CopyOptions {
  /** false = a terminal: one stream, no frames. `lines` = a frame for each line, however many come at once. */
  readonly framed: boolean | 'lines';
}

/**
 * Copies output to a client until it ends or the client is gone. Asks for more only when the kernel has taken the last
 * bytes: their memory is the source's, and a slow client slows the source. Does not end `out`.
 */
export async function copyOutput(
  chunks: AsyncIterable<OutputChunk>,
  out: Writable,
  options: CopyOptions,
): Promise<void> {
  let isGone = out.destroyed;
  let release = () => {};
  const onClose = () => {
    isGone = true;
    release();
  };
  out.once('close', onClose);
  try {
    for await (const chunk of chunks) {
      if (isGone) return;
      const written = Promise.withResolvers<void>();
      release = written.resolve;
      out.cork();
      if (options.framed === true) out.write(frame(chunk));
      out.write(options.framed === 'lines' ? lineFrames(chunk) : chunk.bytes, () => written.resolve());
      out.uncork();
      await written.promise;
    }
  } catch (error) {
    if (!isGone) throw error;
  } finally {
    out.off('close', onClose);
  }
}

/** Carries both directions between a hijacked connection and an attachment until the output ends; then gives both back. */
export async function serveAttachment(
  { socket, input }: Hijacked,
  attachment: Attachment,
  { framed }: CopyOptions = { framed: !attachment.terminal },
): Promise<void> {
  try {
    if (attachment.input === undefined) input.resume();
    else feed(input, attachment.input);
    await copyOutput(attachment.output, socket, { framed });
  } finally {
    finish(socket);
    await attachment[Symbol.asyncDispose]();
  }
}

/** stdin: waits for the container, and a container that has closed its stdin does not end the connection. */
function feed(input: Readable, stdin: Writable): void {
  const drop = () => {
    input.unpipe(stdin);
    input.resume();
  };
  stdin.once('error', drop);
  stdin.once('close', drop);
  input.pipe(stdin);
}
