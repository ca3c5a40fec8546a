/**
 * TLS: certificate and key from files, read again when they change. New connections get the new certificate, those that
 * are open go on. With a client CA, only holders of its certificates can connect at all.
 */
import { readFile } from 'node:fs/promises';
import { createSecureContext, type SecureContextOptions, type Server } from 'node:tls';
import { AppError, messageOf } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { type LiveFile, openLiveFile } from './live-file.ts';

export interface TlsFiles {
  /** PEM, with its intermediates. */
  readonly certificateFile: string;
  readonly keyFile: string;
  readonly clientCaFile: string | undefined;
}

export interface Tls extends Disposable {
  readonly context: SecureContextOptions;
  readonly wantsClientCertificate: boolean;
  /** Keeps this server's certificate current from now on. */
  follow(server: Server): void;
}

/** @throws AppError 'invalid' when a file is missing or they do not fit together */
export async function openTls(files: TlsFiles, options: { readonly log: Log }): Promise<Tls> {
  const { certificateFile, keyFile, clientCaFile } = files;
  const servers = new Set<Server>();
  const live: LiveFile<SecureContextOptions> = await openLiveFile({
    paths: [certificateFile, keyFile, ...(clientCaFile === undefined ? [] : [clientCaFile])],
    load: () => readContext(files),
    log: options.log,
    onChange: (context) => {
      for (const server of servers) server.setSecureContext(context);
    },
  });
  return {
    context: live.current(),
    wantsClientCertificate: clientCaFile !== undefined,
    follow: (server) => void servers.add(server),
    [Symbol.dispose]: () => live[Symbol.dispose](),
  };
}

async function readContext({ certificateFile, keyFile, clientCaFile }: TlsFiles): Promise<SecureContextOptions> {
  try {
    const context: SecureContextOptions = {
      cert: await readFile(certificateFile),
      key: await readFile(keyFile),
      ...(clientCaFile === undefined ? {} : { ca: await readFile(clientCaFile) }),
    };
    // A certificate and a key of which only one has been replaced yet fail here, and the old pair stays.
    createSecureContext(context);
    return context;
  } catch (cause) {
    throw new AppError('invalid', `cannot use certificate ${JSON.stringify(certificateFile)}: ${messageOf(cause)}`, {
      cause,
    });
  }
}
