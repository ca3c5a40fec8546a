// biome-ignore-all lint/suspicious/noTemplateCurlyInString: they are what is tested
import { describe, expect, it } from 'vitest';
import { parseDockerfile } from '../../../runtime/dockerfile/dockerfile.ts';
import { changeConfig } from '../../../runtime/dockerfile/image-config.ts';
import type { Instruction } from '../../../runtime/dockerfile/instructions.ts';
import { isProxyArg, platformArgs, proxyEnvironment, unusedBuildArgs } from '../../../runtime/dockerfile/predefined.ts';
import { globalScope, resolveInstruction } from '../../../runtime/dockerfile/resolve.ts';
import type { ScopeOptions } from '../../../runtime/dockerfile/scope.ts';
import type { ImageRunConfig } from '../../../shared/oci.ts';

const parse = (text: string) => parseDockerfile(text, { name: 'Dockerfile' });

/** The instructions of the first stage, resolved in their order, on a base with these variables. */
function resolved(text: string, env: readonly string[] = [], options: ScopeOptions = {}) {
  const dockerfile = parse(text);
  const scope = globalScope(dockerfile, options).stage(env);
  const instructions = (dockerfile.stages[0]?.instructions ?? []).map((each) => {
    const { instruction } = resolveInstruction(each as Instruction, scope);
    scope.apply(instruction);
    return instruction;
  });
  return { instructions, scope };
}
const last = (text: string, env: readonly string[] = ['A=x y', 'B=b']) =>
  resolved(`FROM a\n${text}`, env).instructions.at(-1);

describe('variables are expanded', () => {
  it.each<[text: string, instruction: Record<string, unknown>]>([
    ['COPY --chown=$B --chmod=$B $A "$A" /$B', { chown: 'b', chmod: 'b', sources: ['x y', 'x y'], destination: '/b' }],
    ['COPY --from=$B --exclude=$B c d', { from: '$B', exclude: ['$B'] }],
    ['ADD --checksum=$B https://a /$B', { checksum: 'b', destination: '/b' }],
    ['COPY <<E <<"F" /x/\n$B "\\$B"\nE\n$B\nF', { files: [{ content: 'b "$B"\n' }, { content: '$B\n' }] }],
    ['ENV A=1 C=$A $B=2', { pairs: [{ value: '1' }, { value: 'x y' }, { name: 'b', value: '2' }] }],
    ['ENV C $A "q"', { pairs: [{ name: 'C', value: 'x y q' }] }],
    ["LABEL a=$A b='$A'", { pairs: [{ value: 'x y' }, { value: '$A' }] }],
    [
      'ARG C=$B D=$C',
      {
        arguments: [
          { name: 'C', value: 'b' },
          { name: 'D', value: 'b' },
        ],
      },
    ],
    ['WORKDIR /$B', { path: '/b' }],
    ['USER ${C:-root}', { user: 'root' }],
    ['VOLUME $A /$B', { paths: ['x y', '/b'] }],
    ['EXPOSE $A', { ports: ['x', 'y'] }],
    ['STOPSIGNAL $B', { signal: 'b' }],
    [
      'RUN --mount=type=cache,target=/$B,id=$A,sharing=locked,mode=0755,uid=1,gid=2 c',
      {
        mounts: [
          { type: 'cache', target: '/b', id: 'x y', sharing: 'locked', mode: 0o755, uid: 1, gid: 2, isReadOnly: false },
        ],
      },
    ],
  ])('%s', (text, instruction) => {
    expect(last(text)).toMatchObject(instruction);
  });

  it.each<[text: string, instruction: Record<string, unknown>]>([
    ['RUN $A', { command: { form: 'shell', script: '$A' } }],
    ['CMD ["$A"]', { command: { form: 'exec', words: ['$A'] } }],
    ['ENTRYPOINT $A', { command: { form: 'shell', script: '$A' } }],
    ['HEALTHCHECK CMD $A', { healthcheck: { Test: ['CMD-SHELL', '$A'] } }],
    ['ONBUILD ENV C=$A', { expression: 'ENV C=$A' }],
    ['SHELL ["$A"]', { words: ['$A'] }],
    ['MAINTAINER $A', { name: '$A' }],
  ])('but not in %s', (text, instruction) => {
    expect(last(text)).toMatchObject(instruction);
  });

  it('and errors have their place', () => {
    expect(() => last('ENV A=1 \\\n B=${C:?missing}')).toThrow(/C: missing\nDockerfile:2:1\n-+\n/);
    expect(() => last('RUN --mount=type=$B,target=/x c')).toThrow('unsupported mount type "b"');
  });
});

describe('mounts', () => {
  it.each<[text: string, mount: Record<string, unknown>]>(
    [
      ['target=/a', { type: 'bind', target: '/a', isReadOnly: true }],
      ['type=bind,from=b,src=/c,dst=/d,rw', { from: 'b', source: '/c', target: '/d', isReadOnly: false }],
      [
        'type=cache,destination=/a,readonly=true',
        { type: 'cache', sharing: 'shared', isReadOnly: true, id: undefined },
      ],
      ['type=tmpfs,target=/a,size=1m', { type: 'tmpfs', sizeBytes: 1 << 20, isReadOnly: false }],
      ['type=secret,id=s', { type: 'secret', id: 's', target: undefined, env: undefined, isRequired: false }],
      ['type=secret,target=/x/key,required', { id: 'key', target: '/x/key', isRequired: true }],
      ['type=secret,id=s,env=S', { id: 's', env: 'S' }],
      ['type=ssh', { type: 'ssh', id: 'default' }],
      ['"target=/a,b"', { target: '/a,b' }],
    ].filter(([text]) => text !== 'type=secret,id=s,env') as [string, Record<string, unknown>][],
  )('%s', (text, mount) => {
    expect(last(`RUN --mount='${text}' x`)).toMatchObject({ mounts: [mount] });
  });

  it.each<[text: string, message: string]>([
    ['type=cach', 'unsupported mount type "cach" (did you mean cache?)'],
    ['type=cache,sharing=lock', 'unsupported sharing value "lock"'],
    ['targt=/x', "unexpected key 'targt' in 'targt=/x' (did you mean target?)"],
    ['target', "invalid field 'target' must be a key=value pair"],
    ['type=bind,mode=1', "unexpected key 'mode' for mount type 'bind'"],
    ['type=secret,from=x', "unexpected key 'from' for mount type 'secret'"],
    ['type=secret', 'invalid secret mount. one of source, target required'],
    ['type=secret,id=a,source=b', "both source and id can't be set"],
    ['type=tmpfs,size=x', 'invalid value for size: x'],
    ['type=cache,mode=9', 'invalid value 9 for mode'],
    ['type=cache,uid=-1', 'invalid value -1 for uid'],
    ['ro=maybe', 'invalid value for ro: maybe'],
    ['"target=/a', 'failed to parse csv mounts'],
  ])('refuses %s', (text, message) => {
    expect(() => last(`RUN --mount='${text}' x`)).toThrow(message);
  });
});

describe('scopes', () => {
  it('of arguments before the stages', () => {
    const dockerfile = parse('ARG A=1 B=$A-$BUILDARCH\nARG C\nFROM --platform=$BUILDPLATFORM i:$B$C');
    const predefined = platformArgs({ os: 'linux', architecture: 'arm64' }, { os: 'linux', architecture: 'amd64' });
    const scope = globalScope(dockerfile, { buildArgs: { A: '2' }, predefined });
    const from = dockerfile.stages[0]?.from;
    const { instruction, used, missing } = resolveInstruction(from as NonNullable<typeof from>, scope);
    expect(instruction).toMatchObject({ image: 'i:2-amd64', platform: 'linux/amd64' });
    expect([[...used].toSorted(), [...missing]]).toEqual([['B', 'BUILDPLATFORM'], ['C']]);
    expect(() => resolveInstruction({ ...instruction, image: '$X' }, scope)).toThrow(
      'base name ($X) should not be blank',
    );
  });

  it('give a stage what it declares, and commands what was declared and set', () => {
    const text = 'ARG G=g\nFROM a\nARG G H=h I\nARG TARGETARCH\nENV H=env\nUSER $G$H$TARGETARCH$I';
    const { instructions, scope } = resolved(text, [], {
      predefined: { TARGETARCH: 'arm64' },
      buildArgs: { H: 'given' },
    });
    expect(instructions.at(-1)).toMatchObject({ user: 'genvarm64' });
    expect([...scope.args()]).toEqual([
      ['G', 'g'],
      ['H', 'env'],
      ['TARGETARCH', 'arm64'],
    ]);
    expect([scope.isDeclared('I'), scope.isDeclared('J')]).toEqual([true, false]);
    expect(scope.child().get('G')).toBe('g');
    expect(resolved('ARG G=g\nFROM a\nUSER x$G').instructions.at(-1)).toMatchObject({ user: 'x' });
  });

  it('bound what doubling variables cost', () => {
    const text = `FROM a\nENV A=xxxxxxxxxxxxxxxx\n${'ENV A=$A$A\n'.repeat(60)}`;
    expect(() => resolved(text)).toThrow(/the value is longer than|too much work/);
  });
});

describe('predefined arguments', () => {
  const build = { os: 'linux', architecture: 'amd64' };

  it('name the platforms', () => {
    expect(platformArgs({ os: 'linux', architecture: 'arm', variant: 'v7' }, build, { stage: 'app' })).toEqual({
      BUILDPLATFORM: 'linux/amd64',
      BUILDOS: 'linux',
      BUILDOSVERSION: '',
      BUILDARCH: 'amd64',
      BUILDVARIANT: '',
      TARGETPLATFORM: 'linux/arm/v7',
      TARGETOS: 'linux',
      TARGETOSVERSION: '',
      TARGETARCH: 'arm',
      TARGETVARIANT: 'v7',
      TARGETSTAGE: 'app',
    });
  });

  it('are proxies too, in both cases', () => {
    expect(proxyEnvironment({ http_proxy: 'p', NO_PROXY: 'n', X: 'x' })).toEqual({
      HTTP_PROXY: 'p',
      http_proxy: 'p',
      NO_PROXY: 'n',
      no_proxy: 'n',
    });
    expect([isProxyArg('All_Proxy'), isProxyArg('PROXY')]).toEqual([true, false]);
  });

  it('are not among what nobody uses', () => {
    const given = { A: '', B: '', HTTPS_PROXY: '', SOURCE_DATE_EPOCH: '', TARGETOS: '', BUILDKIT_INLINE_CACHE: '' };
    expect(unusedBuildArgs(parse('ARG A\nFROM a'), given)).toEqual(['B']);
  });
});

describe('changeConfig', () => {
  const change = (text: string, config: ImageRunConfig = {}, keepsCmd = false) =>
    changeConfig(config, last(text, []) as Instruction, { keepsCmd });

  it.each<[text: string, before: ImageRunConfig, after: ImageRunConfig]>([
    ['CMD a', { Shell: ['/b', '-c'] }, { Shell: ['/b', '-c'], Cmd: ['/b', '-c', 'a'] }],
    ['CMD []', { Cmd: ['a'] }, { Cmd: [] }],
    ['ENTRYPOINT ["e"]', { Cmd: ['a'] }, { Cmd: null, Entrypoint: ['e'] }],
    ['ENTRYPOINT []', { Entrypoint: ['a'] }, { Entrypoint: null, Cmd: null }],
    ['ENV B=2 C=3 B=4', { Env: ['A=1', 'B=1'] }, { Env: ['A=1', 'B=4', 'C=3'] }],
    [
      'EXPOSE 80 8000-8001/UDP 1.2.3.4:9:90',
      {},
      {
        ExposedPorts: { '80/tcp': {}, '8000/udp': {}, '8001/udp': {}, '90/tcp': {} },
      },
    ],
    ['WORKDIR ../c/.', { WorkingDir: '/a/b' }, { WorkingDir: '/a/c' }],
    ['SHELL ["a"]', {}, { Shell: ['a'] }],
    ['HEALTHCHECK NONE', { Healthcheck: { Test: ['CMD', 'a'], Interval: 1 } }, { Healthcheck: { Test: ['NONE'] } }],
    ['RUN a', { User: 'a' }, { User: 'a' }],
  ])('%s', (text, before, after) => {
    expect(change(text, before)).toEqual(after);
  });

  it('leaves a CMD of the same stage to its ENTRYPOINT', () => {
    expect(change('ENTRYPOINT ["e"]', { Cmd: ['a'] }, true)).toEqual({ Cmd: ['a'], Entrypoint: ['e'] });
  });

  it.each<[text: string, message: string]>([
    ['STOPSIGNAL FOO', 'invalid signal: FOO'],
    ['EXPOSE 70000', 'invalid containerPort: 70000'],
    ['EXPOSE 9-8', 'invalid containerPort: 9-8'],
    ['EXPOSE 80/icmp', 'invalid proto: icmp'],
  ])('refuses %s with its place', (text, message) => {
    expect(() => change(text)).toThrow(message);
    expect(() => change(text)).toThrow('Dockerfile:2:1');
  });
});
