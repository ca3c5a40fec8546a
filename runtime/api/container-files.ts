/** Files of containers over the Engine API: `…/archive`, `…/export` and `/commit`. */
import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createDeflate, createGzip } from 'node:zlib';
import { type Engine, type PathStat, parseCommitRequest } from '../engine.ts';
import {
  type ApiContext,
  type ApiRouter,
  disconnectSignal,
  pathPart,
  queryFlag,
  queryText,
  queryTexts,
  readJson,
  sendJson,
  sendNothing,
} from './context.ts';
import { startChunked } from './progress.ts';

const STAT_HEADER = 'X-Docker-Container-Path-Stat';

export function addContainerFileRoutes(router: ApiRouter, { archives }: Engine): void {
  // Before GET, whose route answers HEAD as well.
  router.head('/containers/*name/archive', async (ctx) => {
    ctx.set(STAT_HEADER, statHeader(await archives.stat(pathPart(ctx, 'name'), queryText(ctx, 'path') ?? '')));
    sendNothing(ctx, 200);
  });

  router.get('/containers/*name/archive', async (ctx) => {
    const { stat, tar } = await archives.read(pathPart(ctx, 'name'), queryText(ctx, 'path') ?? '');
    ctx.set(STAT_HEADER, statHeader(stat));
    await sendTar(ctx, tar);
  });

  router.put('/containers/*name/archive', async (ctx) => {
    await archives.write(pathPart(ctx, 'name'), queryText(ctx, 'path') ?? '', ctx.req, {
      keepDirectories: queryFlag(ctx, 'noOverwriteDirNonDir'),
      ownedByUser: queryFlag(ctx, 'copyUIDGID'),
      signal: disconnectSignal(ctx),
    });
    sendNothing(ctx, 200);
  });

  router.get('/containers/*name/export', async (ctx) => {
    await sendTar(ctx, await archives.export(pathPart(ctx, 'name')));
  });

  router.post('/commit', async (ctx) => {
    const repository = queryText(ctx, 'repo') ?? '';
    const tag = queryText(ctx, 'tag') ?? '';
    const id = await archives.commit(queryText(ctx, 'container') ?? '', {
      name: repository === '' ? undefined : tag === '' ? repository : `${repository}:${tag}`,
      author: queryText(ctx, 'author'),
      comment: queryText(ctx, 'comment'),
      changes: queryTexts(ctx, 'changes'),
      config: parseCommitRequest(await readJson(ctx)),
      pause: queryFlag(ctx, 'pause', true),
      signal: disconnectSignal(ctx),
    });
    sendJson(ctx, { Id: id }, 201);
  });
}

/** As it comes, compressed if the client likes that. Errors before the first byte are answers, later ones cut it off. */
async function sendTar(ctx: ApiContext, tar: Readable): Promise<void> {
  await Promise.race([once(tar, 'readable'), once(tar, 'end')]);
  const encoding = ctx.acceptsEncodings('identity', 'gzip', 'deflate');
  if (encoding === 'gzip' || encoding === 'deflate') ctx.set('Content-Encoding', encoding);
  const client = startChunked(ctx, 'application/x-tar');
  if (encoding === 'gzip') await pipeline(tar, createGzip({ level: 1 }), client);
  else if (encoding === 'deflate') await pipeline(tar, createDeflate({ level: 1 }), client);
  else await pipeline(tar, client);
}

function statHeader(stat: PathStat): string {
  const json = {
    name: stat.name,
    size: stat.sizeBytes,
    mode: goFileMode(stat.mode),
    mtime: goMtime(stat.mtime),
    linkTarget: stat.linkTarget,
  };
  return Buffer.from(JSON.stringify(json)).toString('base64');
}

/** Types of stat(2) and Go's bits for them; https://pkg.go.dev/io/fs#FileMode */
const GO_TYPES: ReadonlyMap<number, number> = new Map([
  [0o040000, 2 ** 31],
  [0o120000, 2 ** 27],
  [0o060000, 2 ** 26],
  [0o010000, 2 ** 25],
  [0o140000, 2 ** 24],
  // A character device is a device, too.
  [0o020000, 2 ** 26 + 2 ** 21],
]);
const GO_FLAGS: readonly (readonly [bit: number, go: number])[] = [
  [0o4000, 2 ** 23],
  [0o2000, 2 ** 22],
  [0o1000, 2 ** 20],
];

/** os.FileMode of a mode of stat(2). Pure. */
export function goFileMode(mode: number): number {
  const flags = GO_FLAGS.reduce((sum, [bit, go]) => ((mode & bit) === 0 ? sum : sum + go), 0);
  return (GO_TYPES.get(mode & 0o170000) ?? 0) + flags + (mode & 0o777);
}

/** `seconds.fraction` as Go prints a time: UTC, and no zeros at the end of the fraction. Pure. */
export function goMtime(mtime: string): string {
  const [seconds = '0', digits = ''] = mtime.split('.');
  const fraction = digits.replace(/0+$/, '');
  const whole = new Date(Number(seconds) * 1000).toISOString().slice(0, -5);
  return `${whole}${fraction === '' ? '' : `.${fraction}`}Z`;
}
