/**
 * Kysely's dialect over node:sqlite, as database.ts needs it: connections come from the lease function it is given, so
 * that the same driver serves the one writer and the many readers.
 *
 * node:sqlite is synchronous. A query therefore blocks the event loop for as long as it runs, but never for a lock:
 * SQLITE_BUSY is answered at once and tried again later with jitter.
 */
import { randomInt } from 'node:crypto';
import type { DatabaseSync, SQLInputValue, StatementSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type CompiledQuery,
  type DatabaseConnection,
  type Dialect,
  type Driver,
  type QueryResult,
  SqliteAdapter,
  SqliteIntrospector,
  SqliteQueryCompiler,
} from 'kysely';
import { AppError, messageOf } from './errors.ts';

/** Beyond this, statements are prepared again; a program has some hundred different ones. */
const STATEMENT_CACHE_MAX = 500;
const RETRY_STEP_MS = 5;
const RETRY_STEP_MAX_MS = 100;

export interface SqliteDialectOptions {
  /** A connection that nobody else uses until it is given back. */
  acquire(): Promise<SqliteConnection>;
  release(connection: SqliteConnection): void;
  close(): Promise<void>;
  /** `begin immediate` takes the write lock before the first read, so that a transaction never fails half-way with BUSY_SNAPSHOT. */
  readonly begin: 'begin' | 'begin immediate';
}

export function createSqliteDialect(options: SqliteDialectOptions): Dialect {
  return {
    createAdapter: () => new SqliteAdapter(),
    createIntrospector: (db) => new SqliteIntrospector(db),
    createQueryCompiler: () => new SqliteQueryCompiler(),
    createDriver: () => createDriver(options),
  };
}

function createDriver(options: SqliteDialectOptions): Driver {
  const own = (connection: DatabaseConnection): SqliteConnection => {
    if (connection instanceof SqliteConnection) return connection;
    throw new AppError('conflict', 'cannot use a connection of another database driver');
  };
  return {
    init: async () => {},
    acquireConnection: () => options.acquire(),
    beginTransaction: (connection) => own(connection).run(options.begin),
    commitTransaction: (connection) => own(connection).run('commit'),
    rollbackTransaction: async (connection) => own(connection).rollback(),
    releaseConnection: async (connection) => options.release(own(connection)),
    destroy: () => options.close(),
  };
}

interface Prepared {
  readonly statement: StatementSync;
  /** Whether it answers rows; otherwise it answers counts. */
  readonly answersRows: boolean;
}

export interface SqliteConnectionOptions {
  /** How long a lock held by another process is waited for. */
  readonly busyTimeoutMs: number;
  /** Refuses everything that writes. */
  readonly readOnly: boolean;
}

export class SqliteConnection implements DatabaseConnection {
  readonly #database: DatabaseSync;
  readonly #options: SqliteConnectionOptions;
  readonly #statements = new Map<string, Prepared>();
  /** When the lock was first and last found taken: what comes behind one that waited does not wait as long again. */
  #busy: { readonly since: number; readonly last: number } | undefined;

  constructor(database: DatabaseSync, options: SqliteConnectionOptions) {
    this.#database = database;
    this.#options = options;
  }

  async executeQuery<R>(query: CompiledQuery): Promise<QueryResult<R>> {
    this.#assertAllowed(query);
    const parameters = query.parameters.map(toSqlValue);
    return await this.#retryBusy(() => {
      const { statement, answersRows } = this.#prepare(query.sql);
      if (answersRows) return { rows: statement.all(...parameters) as R[] };
      const { changes, lastInsertRowid } = statement.run(...parameters);
      return { rows: [], numAffectedRows: BigInt(changes), insertId: BigInt(lastInsertRowid) };
    });
  }

  async *streamQuery<R>(query: CompiledQuery, chunkSize: number): AsyncIterableIterator<QueryResult<R>> {
    this.#assertAllowed(query);
    // Not from the cache: a statement that is being stepped cannot be run a second time.
    const statement = await this.#retryBusy(() => this.#database.prepare(query.sql));
    let rows: R[] = [];
    for (const row of statement.iterate(...query.parameters.map(toSqlValue))) {
      rows.push(row as R);
      if (rows.length < chunkSize) continue;
      yield { rows };
      rows = [];
    }
    if (rows.length > 0) yield { rows };
  }

  async run(sql: string): Promise<void> {
    await this.#retryBusy(() => this.#database.exec(sql));
  }

  /** SQLite ends a transaction by itself on some errors (disk full, I/O); then there is nothing to roll back. */
  rollback(): void {
    if (this.#database.isTransaction) this.#database.exec('rollback');
  }

  close(): void {
    this.#statements.clear();
    if (this.#database.isOpen) this.#database.close();
  }

  #assertAllowed({ query }: CompiledQuery): void {
    if (!this.#options.readOnly) return;
    if (query.kind === 'SelectQueryNode' || query.kind === 'RawNode') return;
    throw new AppError('conflict', `cannot run ${query.kind} on a read connection: change data inside write()`);
  }

  #prepare(sql: string): Prepared {
    const known = this.#statements.get(sql);
    if (known !== undefined) return known;
    const statement = this.#database.prepare(sql);
    const prepared = { statement, answersRows: statement.columns().length > 0 };
    const oldest = this.#statements.keys().next();
    if (this.#statements.size >= STATEMENT_CACHE_MAX && oldest.done !== true) this.#statements.delete(oldest.value);
    this.#statements.set(sql, prepared);
    return prepared;
  }

  async #retryBusy<R>(work: () => R): Promise<R> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        const result = work();
        this.#busy = undefined;
        return result;
      } catch (error) {
        if (sqliteCode(error) !== SQLITE.busy) throw toAppError(error);
        const at = performance.now();
        const { busyTimeoutMs } = this.#options;
        const since = this.#busy === undefined || at - this.#busy.last > busyTimeoutMs ? at : this.#busy.since;
        this.#busy = { since, last: at };
        if (at - since > busyTimeoutMs) throw toAppError(error);
      }
      // Jitter, or two processes that collided once collide again at every try.
      await sleep(randomInt(1, Math.min(attempt * RETRY_STEP_MS, RETRY_STEP_MAX_MS) + 1));
    }
  }
}

/** https://www.sqlite.org/rescode.html: primary codes are the low byte. */
const SQLITE = {
  busy: 5,
  ioError: 10,
  corrupt: 11,
  full: 13,
  cannotOpen: 14,
  constraint: 19,
  notADatabase: 26,
} as const;
const SQLITE_CONSTRAINT_PRIMARYKEY = 1555;
const SQLITE_CONSTRAINT_UNIQUE = 2067;

function extendedCode(error: unknown): number | undefined {
  return error instanceof Error && 'errcode' in error && typeof error.errcode === 'number' ? error.errcode : undefined;
}

function sqliteCode(error: unknown): number | undefined {
  const code = extendedCode(error);
  return code === undefined ? undefined : code & 0xff;
}

/** SQLite's failures as kinds; what is a mistake of ours (bad SQL, wrong types) passes as it is. */
export function toAppError(error: unknown): unknown {
  const fail = (kind: AppError['kind'], action: string) =>
    new AppError(kind, `cannot ${action} the database: ${messageOf(error)}`, { cause: error });
  switch (sqliteCode(error)) {
    case SQLITE.busy:
    case SQLITE.ioError:
    case SQLITE.full:
      return fail('unavailable', 'use');
    case SQLITE.cannotOpen:
      return fail('unavailable', 'open');
    case SQLITE.corrupt:
    case SQLITE.notADatabase:
      return fail('integrity', 'read');
    case SQLITE.constraint: {
      const code = extendedCode(error);
      const exists = code === SQLITE_CONSTRAINT_PRIMARYKEY || code === SQLITE_CONSTRAINT_UNIQUE;
      return fail(exists ? 'already-exists' : 'conflict', 'write to');
    }
    default:
      return error;
  }
}

/** node:sqlite knows no booleans. Anything else that it does not know is a mistake of the caller, which it reports. */
function toSqlValue(value: unknown): SQLInputValue {
  if (typeof value === 'boolean') return value ? 1 : 0;
  if (value === undefined) throw new AppError('invalid', 'cannot bind undefined to a query: use null');
  return value as SQLInputValue;
}
