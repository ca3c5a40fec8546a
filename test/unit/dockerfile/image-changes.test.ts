import { expect, it } from 'vitest';
import { applyChanges } from '../../../runtime/dockerfile/image-config.ts';

it.each([
  [['CMD ["a","b"]'], { Cmd: ['a', 'b'] }],
  [['cmd echo hi'], { Cmd: ['/bin/sh', '-c', 'echo hi'] }],
  [['CMD [not json]'], { Cmd: ['/bin/sh', '-c', '[not json]'] }],
  // A command of this list stays, one that was there before belongs to the program before.
  [['CMD x', 'ENTRYPOINT ["/e"]'], { Entrypoint: ['/e'], Cmd: ['/bin/sh', '-c', 'x'] }],
  [['ENTRYPOINT ["/e"]'], { Entrypoint: ['/e'], Cmd: null }],
  [['ENV A=1 B="x y"', 'ENV A 2'], { Env: ['A=2', 'B=x y'] }],
  [['EXPOSE 80 53/udp 8000-8001'], { ExposedPorts: { '80/tcp': {}, '53/udp': {}, '8000/tcp': {}, '8001/tcp': {} } }],
  [['LABEL a=b "c d"="e f"'], { Labels: { a: 'b', 'c d': 'e f' } }],
  [['ONBUILD RUN x', 'ONBUILD COPY . .'], { OnBuild: ['RUN x', 'COPY . .'] }],
  [['STOPSIGNAL SIGINT'], { StopSignal: 'SIGINT' }],
  [['USER 1:2'], { User: '1:2' }],
  [['VOLUME ["/a b"]', 'VOLUME /c /d'], { Volumes: { '/a b': {}, '/c': {}, '/d': {} } }],
  [['WORKDIR x', 'WORKDIR ../y'], { WorkingDir: '/y' }],
  [[], {}],
])('%j', (changes, config) => {
  expect(applyChanges({}, changes)).toEqual(config);
});

it('keeps what it does not change', () => {
  const config = { Env: ['PATH=/bin', 'A=1'], Cmd: ['sh'], Labels: { a: '1' } };
  expect(applyChanges(config, ['ENV A=2', 'LABEL b=2'])).toEqual({
    Env: ['PATH=/bin', 'A=2'],
    Cmd: ['sh'],
    Labels: { a: '1', b: '2' },
  });
});

it.each([
  ['RUN x', 'run is not a valid change command'],
  ['FROM x', 'from is not a valid change command'],
  ['nonsense', 'nonsense is not a valid change command'],
  ['CMD', 'CMD requires at least one argument'],
  ['EXPOSE eighty', 'invalid containerPort: eighty'],
])('refuses %j', (change, message) => {
  expect(() => applyChanges({}, [change])).toThrow(message);
});
