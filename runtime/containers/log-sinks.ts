/**
 * Where forwarded output goes: a syslog server or the journal, over a socket that is opened when it is needed and again
 * after a failure. Node has no sockets for datagrams in the filesystem; perl (Essential on Debian and Ubuntu) sends them.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { readFile, stat } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { connect as connectTls } from 'node:tls';
import { AppError, messageOf } from '../../shared/errors.ts';
import { PROGRAM_PATH } from '../kernel/command.ts';
import { type ForwardPlan, JOURNAL_SOCKET, type SyslogAddress } from './log-forwarding.ts';

export interface LogSink {
  /** Resolves when the other side, or the kernel for datagrams, has taken them all. Throws what may pass: try again. */
  send(messages: readonly Buffer[]): Promise<void>;
  close(): void;
}

const CONNECT_MS = 10_000;
const UDP_MAX_BYTES = 65_000;

/** Opens nothing yet. */
export function createSink(plan: ForwardPlan): LogSink {
  if (plan.driver === 'journald') return datagramSink([JOURNAL_SOCKET]);
  const { address, format } = plan;
  // RFC 5425 counts octets; without TLS a newline ends a message, as most servers expect.
  const isCounted = address.kind === 'tls' && format.startsWith('rfc5424');
  const frame = (message: Buffer) =>
    isCounted
      ? Buffer.concat([Buffer.from(`${message.length} `), message])
      : Buffer.concat([message, Buffer.from('\n')]);
  switch (address.kind) {
    case 'udp':
      return udpSink(address.host, address.port);
    case 'tcp':
    case 'tls':
      return streamSink(() => openStream(address), frame);
    case 'unix':
      return unixSink(address.paths, frame);
    default:
      throw address satisfies never;
  }
}

function udpSink(host: string, port: number): LogSink {
  const socket = createSocket(host.includes(':') ? 'udp6' : 'udp4');
  socket.unref();
  // What the last packet met is not what the next one will.
  socket.on('error', () => {});
  return {
    async send(messages) {
      for (const message of messages)
        await new Promise<void>((resolve, reject) => {
          socket.send(message.subarray(0, UDP_MAX_BYTES), port, host, (error) => (error ? reject(error) : resolve()));
        });
    },
    close: () => socket.close(),
  };
}

async function openStream(address: Extract<SyslogAddress, { readonly kind: 'tcp' | 'tls' }>): Promise<Socket> {
  const { host, port } = address;
  if (address.kind === 'tcp') return opened(connect({ host, port }), 'connect');
  const { ca, cert, key, isUnverified } = address.tls;
  const text = (path: string | undefined) => (path === undefined ? undefined : readFile(path));
  const [authority, certificate, secret] = await Promise.all([text(ca), text(cert), text(key)]);
  return opened(
    connectTls({
      host,
      port,
      servername: host,
      ca: authority,
      cert: certificate,
      key: secret,
      rejectUnauthorized: !isUnverified,
    }),
    'secureConnect',
  );
}

async function opened(socket: Socket, event: 'connect' | 'secureConnect'): Promise<Socket> {
  try {
    await once(socket, event, { signal: AbortSignal.timeout(CONNECT_MS) });
  } catch (error) {
    socket.destroy();
    throw error;
  }
  // Nothing is said to us; a server that ends the connection is noticed when it is next written to.
  socket.on('error', () => socket.destroy()).resume();
  socket.unref();
  return socket;
}

function streamSink(open: () => Promise<Socket>, frame: (message: Buffer) => Buffer): LogSink {
  let socket: Socket | undefined;
  return {
    async send(messages) {
      if (socket === undefined || socket.destroyed || socket.readableEnded) {
        socket?.destroy();
        socket = await open();
      }
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const onClose = () => reject(new AppError('unavailable', 'cannot send log messages: the connection was closed'));
      socket.once('close', onClose);
      socket.write(Buffer.concat(messages.map(frame)), (error) => (error ? reject(error) : resolve()));
      await promise.finally(() => socket?.off('close', onClose));
    },
    close: () => socket?.destroy(),
  };
}

/** Of datagrams, as almost all are; where nobody answers to these, a stream. */
function unixSink(paths: readonly string[], frame: (message: Buffer) => Buffer): LogSink {
  const datagrams = datagramSink(paths);
  const stream = streamSink(async () => opened(connect({ path: await firstSocket(paths) }), 'connect'), frame);
  let isStream = false;
  return {
    async send(messages) {
      if (isStream) return stream.send(messages);
      try {
        await datagrams.send(messages);
      } catch (error) {
        // EPROTOTYPE: there is a socket, and it is no datagram one.
        if (!messageOf(error).includes('rotocol wrong type')) throw error;
        isStream = true;
        await stream.send(messages);
      }
    },
    close() {
      datagrams.close();
      stream.close();
    },
  };
}

async function firstSocket(paths: readonly string[]): Promise<string> {
  for (const path of paths) if ((await stat(path).catch(() => undefined))?.isSocket() === true) return path;
  throw new AppError('unavailable', `cannot send log messages: there is no socket at ${paths.join(', ')}`);
}

// Reads datagrams, each after its length in four bytes; the length 0 asks for an answer: an empty line, or what went wrong.
const SEND_DATAGRAMS = `
use Socket; $| = 1; my $to = sockaddr_un($ARGV[0]); my $failure = "";
socket(my $out, AF_UNIX, SOCK_DGRAM, 0) or die "$!";
setsockopt($out, SOL_SOCKET, SO_SNDBUF, pack("i", 8 << 20));
sub take { my ($n) = @_; my $got = "";
  while (length $got < $n) { my $r = sysread(STDIN, $got, $n - length $got, length $got); exit 0 unless $r; } return $got; }
while (1) {
  my $size = unpack("N", take(4));
  if ($size == 0) { print "$failure\\n"; $failure = ""; next; }
  my $message = take($size);
  defined send($out, $message, 0, $to) or $failure = "$!";
}`;

function datagramSink(paths: readonly string[]): LogSink {
  let sender: { readonly child: ChildProcess; readonly answers: AsyncIterator<string> } | undefined;
  const start = async () => {
    const child = spawn('perl', ['-e', SEND_DATAGRAMS, await firstSocket(paths)], {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: { PATH: PROGRAM_PATH, LC_ALL: 'C' },
    });
    await once(child, 'spawn');
    child.unref();
    child.stdin.on('error', () => {});
    return { child, answers: createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
  };
  return {
    async send(messages) {
      sender ??= await start();
      const lengthOf = (size: number) => {
        const head = Buffer.alloc(4);
        head.writeUInt32BE(size);
        return head;
      };
      const framed = messages
        .filter(({ length }) => length > 0)
        .flatMap((message) => [lengthOf(message.length), message]);
      sender.child.stdin?.write(Buffer.concat([...framed, lengthOf(0)]));
      const { done, value } = await sender.answers.next();
      if (done !== true && value === '') return;
      sender.child.kill('SIGKILL');
      sender = undefined;
      throw new AppError(
        'unavailable',
        `cannot send log messages to ${paths.join(', ')}: ${done === true ? 'perl ended' : value}`,
      );
    },
    close: () => void sender?.child.kill('SIGKILL'),
  };
}
