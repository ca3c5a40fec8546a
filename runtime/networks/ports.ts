/**
 * Published ports, as the engine holds them: each is a listening socket on the host. It reserves the port for as long as
 * the container runs, and it is a proxy for what the firewall cannot redirect: `::1`, and IPv6 to a container that has
 * IPv4 alone. Everything else never gets here: the firewall has redirected it before.
 */
import { createSocket, type RemoteInfo, type Socket as UdpSocket } from 'node:dgram';
import { once } from 'node:events';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { connect as connectTcp, createServer, isIPv6, type Server } from 'node:net';
import { pipeline } from 'node:stream/promises';
import { AppError, hasCode, messageOf } from '../../shared/errors.ts';
import type { PortWish, PublishedPort } from './networks.ts';

/** A reserved port. Disposing frees it. */
export interface HeldPort extends AsyncDisposable {
  readonly port: PublishedPort;
  /** Where connections that reach the socket go; until it is said, they are closed. */
  target: string | undefined;
}

/** Flows of UDP have no end: one that is silent for this long is forgotten. */
const UDP_IDLE_MS = 90_000;
const UDP_FLOWS_MAX = 1024;
const RANDOM_TRIES = 16;

/**
 * Reserves a port for each family that the wish is about: one socket, or two of the same number.
 * @throws AppError 'conflict' with Docker's words and who holds it; 'invalid' when the host has no such address
 */
export async function holdPort(wish: PortWish, options: { readonly ipv6: boolean }): Promise<readonly HeldPort[]> {
  const addresses = wish.hostAddress !== '' ? [wish.hostAddress] : options.ipv6 ? ['0.0.0.0', '::'] : ['0.0.0.0'];
  const { first, last } = wish.hostPorts ?? { first: 0, last: 0 };
  let failure: unknown;
  for (let number = first; number <= last; number += 1) {
    for (let tries = number === 0 ? RANDOM_TRIES : 1; tries > 0; tries -= 1) {
      try {
        return await holdOn(addresses, wish, number);
      } catch (error) {
        if (!hasCode(error, 'EADDRINUSE')) throw await explained(error, wish, { address: addresses[0] ?? '', number });
        failure = error;
      }
    }
  }
  throw await explained(failure, wish, { address: addresses[0] ?? '', number: last });
}

async function holdOn(addresses: readonly string[], wish: PortWish, wanted: number): Promise<readonly HeldPort[]> {
  await using undo = new AsyncDisposableStack();
  const held: HeldPort[] = [];
  let number = wanted;
  for (const address of addresses) {
    const each = undo.use(await hold(address, wish, number));
    number = each.port.hostPort;
    held.push(each);
  }
  undo.move();
  return held;
}

function hold(hostAddress: string, wish: PortWish, number: number): Promise<HeldPort> {
  switch (wish.protocol) {
    case 'tcp':
      return holdTcp(hostAddress, wish, number);
    case 'udp':
      return holdUdp(hostAddress, wish, number);
    case 'sctp':
      return holdNothing(hostAddress, wish, number);
    default:
      throw wish.protocol satisfies never;
  }
}

async function holdTcp(hostAddress: string, { protocol, containerPort }: PortWish, number: number): Promise<HeldPort> {
  const server: Server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (client) => {
    const { target } = held;
    if (target === undefined) return client.destroy();
    const remote = connectTcp({ host: target, port: containerPort, allowHalfOpen: true });
    // Whichever side breaks, both are closed; nobody is left to be told.
    Promise.all([pipeline(client, remote), pipeline(remote, client)]).catch(() => {
      client.destroy();
      remote.destroy();
    });
  });
  server.listen({ host: hostAddress, port: number, ipv6Only: isIPv6(hostAddress), exclusive: true });
  await once(server, 'listening');
  server.unref();
  const address = server.address();
  const hostPort = typeof address === 'object' && address !== null ? address.port : number;
  const held: HeldPort = {
    port: { protocol, containerPort, hostAddress, hostPort },
    target: undefined,
    async [Symbol.asyncDispose]() {
      // Connections that pass through end with the container that they lead to.
      server.close();
    },
  };
  return held;
}

async function holdUdp(hostAddress: string, { protocol, containerPort }: PortWish, number: number): Promise<HeldPort> {
  const socket = createSocket({ type: isIPv6(hostAddress) ? 'udp6' : 'udp4', ipv6Only: isIPv6(hostAddress) });
  const flows = new Map<string, UdpSocket>();
  socket.on('message', (message: Buffer, from: RemoteInfo) => {
    const { target } = held;
    if (target === undefined) return;
    const key = `${from.address} ${from.port}`;
    const flow = flows.get(key) ?? openFlow(key, from, target);
    flow?.send(message, containerPort, target);
  });
  const openFlow = (key: string, client: RemoteInfo, target: string): UdpSocket | undefined => {
    if (flows.size >= UDP_FLOWS_MAX) return undefined;
    const flow = createSocket(isIPv6(target) ? 'udp6' : 'udp4');
    const forget = () => {
      if (!flows.delete(key)) return;
      clearTimeout(timer);
      flow.close();
    };
    const timer = setTimeout(forget, UDP_IDLE_MS).unref();
    flow.on('message', (answer) => {
      timer.refresh();
      socket.send(answer, client.port, client.address);
    });
    // The container does not listen there: the client would get no answer from it either.
    flow.on('error', forget);
    flow.unref();
    flows.set(key, flow);
    return flow;
  };
  socket.bind({ address: hostAddress, port: number, exclusive: true });
  await once(socket, 'listening');
  socket.unref();
  const held: HeldPort = {
    port: { protocol, containerPort, hostAddress, hostPort: socket.address().port },
    target: undefined,
    async [Symbol.asyncDispose]() {
      socket.close();
      for (const flow of flows.values()) flow.close();
      flows.clear();
    },
  };
  return held;
}

/** Node opens no SCTP sockets: the firewall alone redirects it, and nothing reserves it. */
async function holdNothing(hostAddress: string, wish: PortWish, number: number): Promise<HeldPort> {
  const { protocol, containerPort } = wish;
  if (number === 0) throw new AppError('unsupported', 'cannot publish an sctp port: name the port of the host');
  return {
    port: { protocol, containerPort, hostAddress, hostPort: number },
    target: undefined,
    async [Symbol.asyncDispose]() {},
  };
}

async function explained(
  error: unknown,
  { protocol }: PortWish,
  { address, number }: { readonly address: string; readonly number: number },
): Promise<unknown> {
  const where = isIPv6(address) ? `[${address}]:${number}` : `${address}:${number}`;
  if (hasCode(error, 'EADDRINUSE')) {
    const holder = await holderOf(protocol, number);
    return new AppError(
      'conflict',
      `Bind for ${where} failed: port is already allocated${holder === undefined ? '' : ` (held by ${holder})`}`,
    );
  }
  if (hasCode(error, 'EADDRNOTAVAIL'))
    return new AppError('invalid', `cannot publish on ${where}: the host has no such address`);
  if (error instanceof AppError) return error;
  return new AppError('unavailable', `cannot publish on ${where}: ${messageOf(error)}`, { cause: error });
}

/** `process 12 "nginx"`, by the socket's inode in /proc; undefined when nobody is found. */
async function holderOf(protocol: string, number: number): Promise<string | undefined> {
  const hex = number.toString(16).toUpperCase().padStart(4, '0');
  const inodes = new Set<string>();
  for (const table of [protocol, `${protocol}6`]) {
    const text = await readFile(`/proc/self/net/${table}`, 'utf8').catch(() => '');
    for (const line of text.split('\n').slice(1)) {
      // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
      const fields = line.trim().split(/\s+/);
      const isBound = protocol !== 'tcp' || fields[3] === '0A';
      if (fields[1]?.endsWith(`:${hex}`) === true && isBound && fields[9] !== undefined) inodes.add(fields[9]);
    }
  }
  if (inodes.size === 0) return undefined;
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => [])) {
      const inode = /^socket:\[(\d+)\]$/.exec(await readlink(`/proc/${pid}/fd/${fd}`).catch(() => ''))?.[1];
      if (inode === undefined || !inodes.has(inode)) continue;
      const command = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '');
      return `process ${pid} ${JSON.stringify(command.trim())}`;
    }
  }
  return undefined;
}
