import { describe, expect, it } from 'vitest';
import { commandOf, mergeImageConfig } from '../../runtime/containers/image-defaults.ts';
import { parseCreateRequest } from '../../runtime/containers/request.ts';

const image = {
  User: 'web',
  Env: ['PATH=/bin', 'A=image'],
  Entrypoint: ['/entry'],
  Cmd: ['serve'],
  WorkingDir: '/srv',
  Labels: { a: 'image', b: 'image' },
  ExposedPorts: { '80/tcp': {} },
  StopSignal: 'SIGQUIT',
  Healthcheck: { Test: ['CMD', 'check'], Interval: 5 },
};
const merge = (body: Record<string, unknown>) => mergeImageConfig(image, parseCreateRequest(body).config);

describe('an image’s config under a request', () => {
  it.each<[Record<string, unknown>, readonly string[]]>([
    [{}, ['/entry', 'serve']],
    [{ Cmd: ['x'] }, ['/entry', 'x']],
    [{ Entrypoint: ['/own'] }, ['/own']],
    [{ Entrypoint: ['/own'], Cmd: ['x'] }, ['/own', 'x']],
    [{ Entrypoint: [''], Cmd: ['sh'] }, ['sh']],
    [{ Entrypoint: [] }, ['serve']],
    [{ Entrypoint: null, Cmd: [] }, ['/entry', 'serve']],
  ])('%j runs %j', (body, command) => {
    expect(commandOf(merge(body))).toEqual(command);
  });

  it('keeps what the request says, and takes the rest from the image', () => {
    expect(
      merge({
        Env: ['A=own', 'B=1'],
        Labels: { b: 'own' },
        ExposedPorts: { '81/tcp': {} },
        Healthcheck: { Retries: 2 },
      }),
    ).toMatchObject({
      User: 'web',
      Env: ['A=own', 'B=1', 'PATH=/bin'],
      WorkingDir: '/srv',
      Labels: { a: 'image', b: 'own' },
      ExposedPorts: ['81/tcp', '80/tcp'],
      StopSignal: 'SIGQUIT',
      Healthcheck: { Test: ['CMD', 'check'], Interval: 5, Retries: 2 },
    });
    expect(merge({ User: 'root', WorkingDir: '/', StopSignal: 'TERM' })).toMatchObject({
      User: 'root',
      WorkingDir: '/',
      StopSignal: 'TERM',
    });
  });

  it('says so when nobody names a command', () => {
    expect(() => mergeImageConfig({}, parseCreateRequest({}).config)).toThrow('no command specified');
    expect(() => merge({ Entrypoint: [''] })).toThrow('no command specified');
  });
});
