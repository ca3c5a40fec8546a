/** Commands in running containers over the Engine API: `/containers/{id}/exec` and `/exec/{id}/…`. */
import { z } from 'zod';
import { isKind, messageOf } from '../../shared/errors.ts';
import { type Engine, parseExecRequest } from '../engine.ts';
import { execDetailsJson } from './container-json.ts';
import { terminalSize } from './containers.ts';
import {
  type ApiContext,
  type ApiRouter,
  disconnectSignal,
  pathPart,
  readBody,
  readJson,
  sendJson,
  sendNothing,
} from './context.ts';
import { finish, frame, hijack, serveAttachment } from './hijack.ts';

const startSchema = z.object({
  Detach: z.boolean().nullish(),
  Tty: z.boolean().nullish(),
  ConsoleSize: z.tuple([z.number().int().nonnegative(), z.number().int().nonnegative()]).nullish(),
});

export function addExecRoutes(router: ApiRouter, engine: Engine): void {
  const { containers } = engine;

  router.post('/containers/*name/exec', async (ctx) => {
    const id = await containers.createExec(pathPart(ctx, 'name'), parseExecRequest(await readJson(ctx)));
    sendJson(ctx, { Id: id }, 201);
  });

  router.post('/exec/:id/start', (ctx) => startExec(ctx, engine));

  router.get('/exec/:id/json', async (ctx) => {
    sendJson(ctx, execDetailsJson(await containers.inspectExec(pathPart(ctx, 'id'))));
  });

  router.post('/exec/:id/resize', async (ctx) => {
    await containers.resizeExec(pathPart(ctx, 'id'), terminalSize(ctx));
    sendNothing(ctx, 200);
  });
}

async function startExec(ctx: ApiContext, engine: Engine): Promise<void> {
  const id = pathPart(ctx, 'id');
  const body = await readBody(ctx, startSchema);
  const { request } = await engine.containers.inspectExec(id);
  // What the client says now is what it reads: raw bytes or frames, whatever the command was made with.
  const isRaw = body.Tty === true;
  const size = isRaw && body.ConsoleSize ? { rows: body.ConsoleSize[0], columns: body.ConsoleSize[1] } : undefined;
  if (body.Detach === true) {
    await engine.containers.startExec(id, { detach: true, terminal: request.Tty, size });
    sendNothing(ctx, 200);
    return;
  }
  const signal = disconnectSignal(ctx);
  // The head goes out before the process starts: some clients lose bytes that arrive together with it.
  const connection = hijack(ctx, { terminal: isRaw });
  const { socket } = connection;
  try {
    const attachment = await engine.containers.startExec(id, { terminal: request.Tty, size, signal });
    if (attachment === undefined) finish(socket);
    else await serveAttachment(connection, attachment, { framed: !isRaw });
  } catch (error) {
    const bytes = Buffer.from(`${messageOf(error)}\r\n`);
    if (!isRaw) socket.write(frame({ stream: 'stderr', bytes }));
    socket.write(bytes);
    finish(socket);
    if (!isKind(error, 'conflict', 'invalid', 'not-found')) throw error;
  }
}
