import { execFile } from 'node:child_process';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { type Database, type Migration, openDatabase } from '../../shared/database.ts';

interface Schema {
  pet: { id: number; name: string; isGood: number };
}
const MIGRATIONS: readonly Migration[] = [
  {
    name: 'pet-1',
    statements: [
      'create table pet (id integer primary key, name text not null unique, isGood integer not null) strict',
    ],
  },
];

describe('database', () => {
  let directory: string;
  let database: Database<Schema>;
  const path = () => join(directory, 'test.db');
  const open = (migrations = MIGRATIONS) => openDatabase<Schema>({ path: path(), migrations, busyTimeoutMs: 100 });
  const names = async (db = database) =>
    (await db.kysely.selectFrom('pet').select('name').orderBy('name').execute()).map(({ name }) => name);
  const add = (...pets: string[]) =>
    database.write(async (trx) => {
      for (const name of pets) await trx.insertInto('pet').values({ id: name.length, name, isGood: 1 }).execute();
    });

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'berth-database-'));
    database = open();
  });
  afterEach(async () => {
    await database.close();
    await rm(directory, { recursive: true });
  });

  it('keeps what write() answered, after reopening too', async () => {
    await add('ada', 'bo');
    await database.close();
    database = open();
    expect(await names()).toEqual(['ada', 'bo']);
  });

  it('undoes a write that throws', async () => {
    await expect(add('ada', 'ada')).rejects.toMatchObject({ kind: 'already-exists' });
    expect(await names()).toEqual([]);
    await add('ada');
  });

  it('runs writes one after another, and reads beside them', async () => {
    const seen: number[] = [];
    const grow = () =>
      database.write(async (trx) => {
        const { count } = await trx
          .selectFrom('pet')
          .select(({ fn }) => fn.countAll<number>().as('count'))
          .executeTakeFirstOrThrow();
        seen.push((await names()).length);
        await trx
          .insertInto('pet')
          .values({ id: count, name: `pet ${count}`, isGood: 0 })
          .execute();
        seen.push((await names()).length);
      });
    await Promise.all([grow(), grow(), grow()]);
    expect(seen).toEqual([0, 0, 1, 1, 2, 2]);
  });

  it('refuses a write inside a write instead of waiting for ever', async () => {
    await expect(database.write(() => add('ada'))).rejects.toMatchObject({ kind: 'conflict' });
    await add('ada');
  });

  it('refuses to write through the read connections', async () => {
    await expect(database.kysely.deleteFrom('pet').execute()).rejects.toMatchObject({ kind: 'conflict' });
  });

  it('gives read() one state, whatever is written meanwhile', async () => {
    await add('ada');
    const counts = await database.read(async (snapshot) => {
      const first = (await snapshot.selectFrom('pet').selectAll().execute()).length;
      await add('bo');
      return [first, (await snapshot.selectFrom('pet').selectAll().execute()).length];
    });
    expect(counts).toEqual([1, 1]);
    expect(await names()).toEqual(['ada', 'bo']);
  });

  it('streams while others read and write', async () => {
    await database.write(async (trx) => {
      for (let id = 0; id < 250; id += 1)
        await trx
          .insertInto('pet')
          .values({ id, name: `pet ${id}`, isGood: 0 })
          .execute();
    });
    let count = 0;
    for await (const { id } of database.kysely.selectFrom('pet').selectAll().stream(100)) {
      if (id === 0) await database.write((trx) => trx.deleteFrom('pet').where('id', '=', 1).execute());
      count += 1;
    }
    expect(count).toBe(250);
    expect(await names()).toHaveLength(249);
  });

  it('tells how many rows changed, and answers returning clauses', async () => {
    await add('ada', 'bo');
    const { numDeletedRows } = await database.write((trx) =>
      trx.deleteFrom('pet').where('name', '=', 'bo').executeTakeFirstOrThrow(),
    );
    expect(numDeletedRows).toBe(1n);
    const row = await database.write((trx) =>
      trx.updateTable('pet').set({ isGood: 0 }).returning(['name', 'isGood']).executeTakeFirst(),
    );
    expect(row).toEqual({ name: 'ada', isGood: 0 });
  });

  it('waits for a lock of another process without freezing the loop, then says unavailable', async () => {
    using other = new DatabaseSync(path());
    other.exec('begin immediate');
    const late = add('ada');
    setTimeout(() => other.exec('rollback'), 20);
    await late;
    other.exec('begin immediate');
    await expect(add('bo')).rejects.toMatchObject({ kind: 'unavailable' });
    other.exec('rollback');
    expect(await names()).toEqual(['ada']);
  });

  it('applies new migrations once, all or none', async () => {
    await add('ada');
    await database.close();
    const more = [...MIGRATIONS, { name: 'pet-2', statements: ['update pet set isGood = 7'] }];
    const broken = [...more, { name: 'pet-3', statements: ['create table x (y)', 'no sql'] }];
    expect(() => open(broken)).toThrow(/no/);
    database = open();
    await database.close();
    database = open(more);
    expect(await database.kysely.selectFrom('pet').select('isGood').execute()).toEqual([{ isGood: 7 }]);
  });

  it('refuses a database of a newer program', async () => {
    await database.close();
    await open([...MIGRATIONS, { name: 'future-1', statements: [] }]).close();
    expect(() => open()).toThrow(
      expect.objectContaining({ kind: 'unsupported', message: expect.stringContaining('"future-1"') }),
    );
  });

  it('refuses a file that is no database', async () => {
    const other = join(directory, 'other.db');
    await writeFile(other, 'x'.repeat(5000));
    expect(() => openDatabase({ path: other, migrations: [] })).toThrow(expect.objectContaining({ kind: 'integrity' }));
  });

  it('says that a write is not durable when its log is gone', async () => {
    await rm(`${path()}-wal`);
    await expect(add('ada')).rejects.toMatchObject({ kind: 'unavailable', message: expect.stringContaining('log') });
  });

  it('is opened by several processes at once', async () => {
    const module = new URL('../../shared/database.ts', import.meta.url).href;
    const code = `const { openDatabase } = await import(${JSON.stringify(module)});
      for (let i = 0; i < 5; i++) await openDatabase({ path: process.argv[1], migrations: [] }).close();`;
    const file = join(directory, 'shared.db');
    const args = ['--input-type=module', '--eval', code, file];
    const run = () => promisify(execFile)(process.execPath, args);
    await Promise.all(Array.from({ length: 4 }, run));
    await add('ada');
  });

  it('gives :memory: databases the same rules and leaves nothing behind', async () => {
    vi.stubEnv('TMPDIR', await mkdtemp(join(directory, 'private-')));
    {
      await using memory = openDatabase<Schema>({ path: ':memory:', migrations: MIGRATIONS });
      await memory.write((trx) => trx.insertInto('pet').values({ id: 1, name: 'ada', isGood: 1 }).execute());
      expect(await names(memory)).toEqual(['ada']);
    }
    expect(await readdir(tmpdir())).toEqual([]);
    vi.unstubAllEnvs();
  });

  it('answers all who wait for a lock of another process in the time of one', async () => {
    using other = new DatabaseSync(path());
    other.exec('begin immediate');
    const times: number[] = [];
    const answers: PromiseSettledResult<unknown>[] = [];
    for (const count of [1, 10]) {
      const startedAt = performance.now();
      answers.push(...(await Promise.allSettled(Array.from({ length: count }, (_, i) => add('x'.repeat(i + 1))))));
      times.push(performance.now() - startedAt);
    }
    const [ofOne = 0, ofTen] = times;
    expect(ofTen).toBeLessThan(5 * ofOne);
    expect(answers.map(({ status }) => status)).toEqual(Array(11).fill('rejected'));
    other.exec('rollback');
    await add('ada');
    expect(await names()).toEqual(['ada']);
  });
});
