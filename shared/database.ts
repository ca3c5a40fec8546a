/**
 * Database: one SQLite file with typed queries (kysely) and migrations.
 *
 * One connection writes, one transaction at a time; reads go to other connections (WAL) and never wait for it. What
 * write() has answered is durable: SQLite commits without a sync (synchronous=NORMAL), and the log is synced after that,
 * off the event loop and once for all commits that wait. Queries run synchronously, so keep them small: work in batches
 * of at most 20 ms, and wait for nothing but the database inside write().
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { randomUUID } from 'node:crypto';
import { rmSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { Kysely, type Transaction } from 'kysely';
import { syncDirectory } from './atomic-file.ts';
import { AppError, isKind, messageOf } from './errors.ts';
import { coalesced, createQueue } from './slots.ts';
import { createSqliteDialect, SqliteConnection, toAppError } from './sqlite-dialect.ts';

/** One step of the schema. `name` is unique for ever and never changes its statements: add another step instead. */
export interface Migration {
  readonly name: string;
  readonly statements: readonly string[];
}

export interface DatabaseOptions {
  /** A file, or ':memory:' for a private one that is gone after close(). */
  readonly path: string;
  /** In order. Each module appends to its own list; the program joins the lists of its modules. */
  readonly migrations: readonly Migration[];
  /** How long to wait for a lock that another process holds. */
  readonly busyTimeoutMs?: number;
}

export interface Database<T> extends AsyncDisposable {
  readonly path: string;
  /** For reading; every statement sees what is committed. Writing through it fails. */
  readonly kysely: Kysely<T>;
  /** Several reads of one and the same state. */
  read<R>(work: (snapshot: Transaction<T>) => Promise<R>): Promise<R>;
  /**
   * One transaction: durable when this resolves, undone when work throws. Readers may see it a moment before it is
   * durable; when only that fails, it is not undone, and later ones are refused until a restart. Calls queue; a call inside
   * work would wait for itself and is refused with 'conflict': pass the transaction on instead.
   * @throws AppError 'already-exists' (unique), 'conflict' (other constraints), 'unavailable' (disk full, locked by another process)
   */
  write<R>(work: (transaction: Transaction<T>) => Promise<R>): Promise<R>;
  /** Waits for the running writes. Idempotent. */
  close(): Promise<void>;
}

const BUSY_TIMEOUT_MS = 10_000;
/** Nothing else runs before the database is open, so there the lock may be waited for synchronously. */
const OPEN_TIMEOUT_MS = 5_000;
/** Read connections that stay open while idle; a stream or a snapshot takes one for itself. */
const IDLE_READERS_MAX = 4;

/**
 * Opens or creates the database and brings it to the newest schema, in one transaction.
 * @throws AppError 'unsupported' when a newer program has written it, 'integrity' when it is not a database
 */
export function openDatabase<T>(options: DatabaseOptions): Database<T> {
  const isPrivate = options.path === ':memory:';
  // A real file even then: an in-memory database has no WAL, so readers and the writer would meet other rules.
  const file = isPrivate ? join(tmpdir(), `berth-${randomUUID()}.db`) : options.path;
  const busyTimeoutMs = options.busyTimeoutMs ?? BUSY_TIMEOUT_MS;

  const connect = (readOnly: boolean): SqliteConnection => {
    const database = new DatabaseSync(file, { timeout: 0 });
    database.exec(`pragma synchronous=${isPrivate ? 'off' : 'normal'}; pragma query_only=${readOnly ? 'on' : 'off'}`);
    return new SqliteConnection(database, { busyTimeoutMs, readOnly });
  };
  let writer: SqliteConnection;
  try {
    migrate(file, options);
    writer = connect(false);
    if (!isPrivate) reserve(file);
  } catch (error) {
    throw toAppError(error);
  }

  const turns = createQueue(1);
  let turn: Disposable | undefined;
  const writing = new Kysely<T>({
    dialect: createSqliteDialect({
      begin: 'begin immediate',
      acquire: async () => {
        turn = await turns.acquire();
        return writer;
      },
      release: () => turn?.[Symbol.dispose](),
      close: async () => {
        // Not given back: nobody writes any more.
        await turns.acquire();
        writer.close();
      },
    }),
  });

  const idle: SqliteConnection[] = [];
  const reading = new Kysely<T>({
    dialect: createSqliteDialect({
      begin: 'begin',
      acquire: async () => idle.pop() ?? connect(true),
      release: (connection) => {
        if (idle.length < IDLE_READERS_MAX) idle.push(connection);
        else connection.close();
      },
      close: async () => {
        for (const connection of idle.splice(0)) connection.close();
      },
    }),
  });

  const log = isPrivate ? undefined : createLogSync(file);
  const inside = new AsyncLocalStorage<{ open: boolean }>();
  let closed: Promise<void> | undefined;
  const close = () => {
    closed ??= (async () => {
      await reading.destroy();
      await writing.destroy();
      await log?.close();
      if (isPrivate) for (const suffix of ['', '-wal', '-shm']) rmSync(`${file}${suffix}`, { force: true });
    })();
    return closed;
  };

  return {
    path: options.path,
    kysely: reading,
    read: (work) => reading.transaction().execute(work),
    async write(work) {
      if (inside.getStore()?.open === true)
        throw new AppError('conflict', 'cannot begin a write inside a write: pass the transaction on');
      log?.check();
      const scope = { open: true };
      try {
        const result = await inside.run(scope, () => writing.transaction().execute(work));
        await log?.sync();
        return result;
      } finally {
        scope.open = false;
      }
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}

interface LogSync {
  /** @throws AppError 'unavailable' once a sync has failed */
  check(): void;
  /** What is committed by now is durable when this resolves. @throws AppError 'unavailable' */
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** The write-ahead log, which lives for as long as a connection does. */
function createLogSync(file: string): LogSync {
  let handle: FileHandle | undefined;
  let failure: AppError | undefined;
  const failed = (why: string, cause: unknown) =>
    new AppError('unavailable', `cannot write to the database: ${why}: ${messageOf(cause)}`, { cause });
  const openLog = async (): Promise<FileHandle> => {
    try {
      const opened = await open(`${file}-wal`, 'r');
      handle = opened;
      // It may be new: its name must survive, too.
      await syncDirectory(dirname(file));
      return opened;
    } catch (cause) {
      await handle?.close();
      handle = undefined;
      throw failed('its log cannot be opened', cause);
    }
  };
  const check = () => {
    if (failure !== undefined) throw failure;
  };
  const sync = coalesced(async () => {
    check();
    const log = handle ?? (await openLog());
    try {
      await log.datasync();
    } catch (cause) {
      // The kernel tells it once, and may have dropped what it could not write: a later sync would promise too much.
      failure = failed('the disk failed; restart when it is in order', cause);
      throw failure;
    }
  });
  let last: Promise<void> = Promise.resolve();
  return {
    check,
    sync() {
      last = sync();
      return last;
    },
    async close() {
      await last.catch(() => {});
      await handle?.close();
    },
  };
}

function migrate(file: string, { path, migrations }: DatabaseOptions): void {
  const names = new Set(migrations.map(({ name }) => name));
  if (names.size !== migrations.length) throw new AppError('conflict', 'cannot use migrations: two have the same name');
  using database = new DatabaseSync(file, { timeout: OPEN_TIMEOUT_MS });
  database.exec('pragma journal_mode=wal');
  database.exec('begin immediate');
  try {
    database.exec(`create table if not exists migration (
      name text primary key,
      appliedAt text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    ) strict`);
    const applied = new Set(
      database
        .prepare('select name from migration')
        .all()
        .map(({ name }) => String(name)),
    );
    for (const name of applied)
      if (!names.has(name))
        throw new AppError(
          'unsupported',
          `cannot open database ${JSON.stringify(path)}: a newer version has written it (migration "${name}" is unknown here): start that version or a later one`,
        );
    const record = database.prepare('insert into migration (name) values (?)');
    for (const { name, statements } of migrations) {
      if (applied.has(name)) continue;
      for (const statement of statements) database.exec(statement);
      record.run(name);
    }
    database.exec('commit');
  } catch (error) {
    if (database.isTransaction) database.exec('rollback');
    throw error;
  }
}

/**
 * Pages of the file, and of its log, that are written once and then free: when the disk is full, rows can still be changed
 * and deleted, so that bytes can be. SQLite begins its log anew after a thousand pages, so this is what it ever needs.
 */
const RESERVE_BYTES = 1100 * 4096;

/** While another connection is open: the last one that is closed takes the log with it. */
function reserve(file: string): void {
  using database = new DatabaseSync(file, { timeout: OPEN_TIMEOUT_MS });
  try {
    // Two transactions: pages that are freed at once would not be written. Another process may do the same between them.
    database.exec(`
      begin immediate;
      drop table if exists reserve;
      create table reserve (bytes blob) strict;
      insert into reserve (bytes) values (zeroblob(${RESERVE_BYTES}));
      commit;
      drop table if exists reserve
    `);
  } catch (error) {
    // Too late for it: what is there must open all the same.
    if (!isKind(toAppError(error), 'unavailable')) throw error;
  }
}
