/** BlobStore in memory: for tests and throw-away registries. Keeps every promise of blob-store.ts except durability. */
import { addAbortSignal, Readable } from 'node:stream';
import {
  type AppendOptions,
  type BlobInfo,
  type BlobStore,
  checkIngestId,
  type Ingest,
  resolveRange,
} from './blob-store.ts';
import { algorithmOf, type Digest, digestOf } from './digest.ts';
import { AppError } from './errors.ts';

export interface MemoryBlobStoreOptions {
  readonly now?: () => Date;
}

interface Blob {
  readonly bytes: Buffer;
  readonly modifiedAt: Date;
}
interface Staging {
  bytes: Buffer[];
  offset: number;
  modifiedAt: Date;
  isOpen: boolean;
}

export function createMemoryBlobStore(options: MemoryBlobStoreOptions = {}): BlobStore {
  const { now = () => new Date() } = options;
  const blobs = new Map<Digest, Blob>();
  const stagings = new Map<string, Staging>();
  const infoOf = (digest: Digest, { bytes, modifiedAt }: Blob): BlobInfo => ({
    digest,
    sizeBytes: bytes.length,
    modifiedAt,
  });
  const stagingInfo = (id: string, { offset, modifiedAt }: Staging) => ({ id, offset, diskBytes: offset, modifiedAt });

  return {
    async stat(digest) {
      const blob = blobs.get(digest);
      return blob === undefined ? undefined : infoOf(digest, blob);
    },

    async open(digest, range) {
      const blob = blobs.get(digest);
      if (blob === undefined) throw new AppError('not-found', `cannot open blob ${digest}: it is not in this store`);
      if (range === undefined) return Readable.from([blob.bytes], { objectMode: false });
      const { start, end } = resolveRange(digest, blob.bytes.length, range);
      return Readable.from([blob.bytes.subarray(start, end + 1)], { objectMode: false });
    },

    async ingest(id) {
      checkIngestId(id);
      const known = stagings.get(id);
      if (known?.isOpen === true)
        throw new AppError('conflict', `cannot open ingest ${JSON.stringify(id)}: it is in use`);
      const staging = known ?? { bytes: [], offset: 0, modifiedAt: now(), isOpen: true };
      staging.isOpen = true;
      stagings.set(id, staging);
      return ingestOf(id, staging);
    },

    remove: async (digest) => blobs.delete(digest),

    async *list() {
      for (const [digest, blob] of [...blobs]) yield infoOf(digest, blob);
    },

    async *ingests() {
      for (const [id, staging] of [...stagings]) yield stagingInfo(id, staging);
    },

    async ingestInfo(id) {
      checkIngestId(id);
      const staging = stagings.get(id);
      return staging === undefined ? undefined : stagingInfo(id, staging);
    },
  };

  function ingestOf(id: string, staging: Staging): Ingest {
    let state: 'open' | 'appending' | 'closed' = 'open';
    let appending: { readonly bytes: Readable; readonly ended: Promise<unknown> } | undefined;
    const endAppend = async () => {
      if (state !== 'appending') return;
      appending?.bytes.destroy(
        new AppError('conflict', `cannot append to ingest ${JSON.stringify(id)}: it was closed`),
      );
      await appending?.ended.catch(() => {});
    };
    const assertOpen = (action: string) => {
      if (state === 'open') return;
      const why = state === 'closed' ? 'it is closed' : 'an append is running';
      throw new AppError('conflict', `cannot ${action} ingest ${JSON.stringify(id)}: ${why}`);
    };
    const close = (keep: boolean) => {
      state = 'closed';
      staging.isOpen = false;
      if (!keep) stagings.delete(id);
    };
    const appendAll = async (bytes: Readable, { signal, onAdvance }: AppendOptions): Promise<number> => {
      try {
        signal?.throwIfAborted();
        if (signal !== undefined) addAbortSignal(signal, bytes);
        for await (const chunk of bytes) {
          const buffer = Buffer.from(chunk);
          staging.bytes.push(buffer);
          staging.offset += buffer.length;
          staging.modifiedAt = now();
          onAdvance?.(staging.offset);
        }
        return staging.offset;
      } catch (error) {
        bytes.destroy();
        throw error;
      } finally {
        state = 'open';
      }
    };
    return {
      get offset() {
        return staging.offset;
      },

      async append(bytes, appendOptions = {}) {
        assertOpen('append to');
        state = 'appending';
        const ended = appendAll(bytes, appendOptions);
        appending = { bytes, ended };
        return await ended;
      },

      async commit({ digest, sizeBytes }) {
        assertOpen('commit');
        const bytes = Buffer.concat(staging.bytes);
        const got = digestOf(bytes, algorithmOf(digest));
        if (got !== digest || (sizeBytes !== undefined && sizeBytes !== bytes.length))
          throw new AppError(
            'integrity',
            `cannot commit ingest ${JSON.stringify(id)}: got ${got} (${bytes.length} bytes), want ${digest} (${sizeBytes ?? 'any'} bytes)`,
          );
        const blob = { bytes, modifiedAt: now() };
        blobs.set(digest, blob);
        close(false);
        return infoOf(digest, blob);
      },

      async abort() {
        await endAppend();
        if (state === 'closed') return;
        close(false);
      },

      async [Symbol.asyncDispose]() {
        await endAppend();
        if (state === 'closed') return;
        close(true);
      },
    };
  }
}
