import { DockerfileParser } from 'dockerfile-ast';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DOCKERFILE_MAX_BYTES, parseDockerfile, parseTrigger } from '../../../runtime/dockerfile/dockerfile.ts';
import type { Instruction } from '../../../runtime/dockerfile/instructions.ts';
import { AppError } from '../../../shared/errors.ts';

const parse = (text: string) => parseDockerfile(text, { name: 'Dockerfile' });
/** The only instruction of a stage, and what it is beside its place. */
function one(text: string): Record<string, unknown> {
  const [instruction, ...more] = parse(`FROM a\n${text}`).stages[0]?.instructions ?? [];
  expect(more).toEqual([]);
  return { ...instruction };
}
const texts = (text: string) =>
  parse(text)
    .stages.flatMap((stage) => [stage.from, ...stage.instructions])
    .map((each) => each.text);

describe('lines', () => {
  it.each<[what: string, text: string, instructions: string[]]>([
    ['CRLF and a byte order mark', '\ufeffFROM a\r\nRUN b \\\r\n c\r\n', ['FROM a', 'RUN b  c']],
    ['any case of keywords', 'from a\nRun b', ['FROM a', 'RUN b']],
    [
      'comments and empty lines in a continuation',
      'FROM a\nRUN b \\\n # c\n\n  d\nRUN e',
      ['FROM a', 'RUN b   d', 'RUN e'],
    ],
    ['blanks behind the escape', 'FROM a\nRUN b \\ \t\n c', ['FROM a', 'RUN b  c']],
    ['an escaped escape continues nothing', 'FROM a\nRUN b\\\\\nRUN c', ['FROM a', 'RUN b\\\\', 'RUN c']],
    ['a keyword in pieces', 'FR\\\nOM a', ['FROM a']],
    ['an escape alone', '\\\nFROM a\n\\\n', ['FROM a']],
    ['another escape', '# escape=`\nFROM a\nRUN b `\n c\\', ['FROM a', 'RUN b  c\\']],
    ['a directive below a comment is a comment', '# x\n# escape=`\nFROM a\nRUN b \\\n c', ['FROM a', 'RUN b  c']],
    ['an open end', 'FROM a\nRUN b \\', ['FROM a', 'RUN b']],
    ['a here-document', 'FROM a\nRUN cat <<E\nFROM x\nE\nRUN c', ['FROM a', 'RUN cat <<E', 'RUN c']],
    [
      'of a descriptor, and with a blank',
      'FROM a\nRUN 3<<E cat\nx\nE\nRUN << F\nF\n',
      ['FROM a', 'RUN 3<<E cat', 'RUN << F ()'],
    ],
    ['two of them, tabs', 'FROM a\nCOPY <<-A <<B /x/\n\ty\n\tA\nz\nB\nRUN c', ['FROM a', 'COPY <<-A <<B /x/', 'RUN c']],
    ['none in quotes', 'FROM a\nRUN echo "<<E"\nRUN c', ['FROM a', 'RUN echo "<<E"', 'RUN c']],
    ['none in JSON', 'FROM a\nRUN ["cat", "<<E"]\nRUN c', ['FROM a', 'RUN ["cat", "<<E"]', 'RUN c']],
    ['none where quotes do not pair', "FROM a\nRUN it's <<E\nRUN c", ['FROM a', "RUN it's <<E", 'RUN c']],
    ['none but for RUN, COPY, ADD', 'FROM a\nCMD cat <<E\nRUN c', ['FROM a', 'CMD cat <<E', 'RUN c']],
    ['of a trigger', 'FROM a\nONBUILD RUN cat <<E\nx\nE\nRUN c', ['FROM a', 'ONBUILD RUN cat <<E', 'RUN c']],
  ])('%s', (_what, text, instructions) => {
    expect(texts(text)).toEqual(instructions);
  });

  it('reads directives', () => {
    const text = '# syntax = docker/dockerfile:1.7-labs\n#check=skip=all\n# Escape=`\nFROM a';
    expect(parse(text)).toMatchObject({ syntax: 'docker/dockerfile:1.7-labs', check: 'skip=all', escape: '`' });
  });

  it('agrees with dockerfile-ast about ordinary files', () => {
    const argument = fc.constantFrom('x', '/y', '--z', '"q w"', '$A', '&&', '\\\n  z', '\\\n# c\n z');
    const line = fc
      .tuple(fc.constantFrom('RUN', 'env', 'Copy', 'LABEL', 'CMD'), fc.array(argument, { minLength: 1, maxLength: 5 }))
      .map(([keyword, words]) => `${keyword} e=f ${words.join(' ')}`);
    const rest = fc.constantFrom('', '# comment', 'RUN cat <<EOF\nFROM no\nEOF');
    fc.assert(
      fc.property(fc.array(fc.oneof(line, rest), { maxLength: 8 }), (lines) => {
        const text = ['FROM a', ...lines].join('\n');
        const theirs = DockerfileParser.parse(text).getInstructions();
        let ours: readonly Instruction[];
        try {
          ours = parse(text).stages.flatMap((stage) => [stage.from, ...stage.instructions]);
        } catch (error) {
          // What a flag or a pair is, is not what is compared.
          expect(String(error)).toMatch(/unknown flag|can't find =|at least two/);
          return;
        }
        expect(ours.map(({ keyword, at }) => [keyword, at.line])).toEqual(
          theirs.map((each) => [each.getInstruction(), each.getRange().start.line + 1]),
        );
      }),
    );
  });
});

describe('stages', () => {
  it('have numbers, names, platforms, and arguments before them', () => {
    const { globalArgs, stages } = parse('ARG A=1 B\nFROM --platform=$BUILDPLATFORM a AS Build\nRUN x\nFROM scratch');
    expect(globalArgs[0]?.arguments).toEqual([
      { name: 'A', value: '1' },
      { name: 'B', value: undefined },
    ]);
    expect(stages.map(({ index, name, from }) => [index, name, from.image, from.platform])).toEqual([
      [0, 'build', 'a', '$BUILDPLATFORM'],
      [1, undefined, 'scratch', undefined],
    ]);
  });
});

describe('instructions', () => {
  it.each<[text: string, instruction: Record<string, unknown>]>([
    ['RUN  a  b ', { command: { form: 'shell', script: 'a  b' }, network: 'default', security: 'sandbox' }],
    ['RUN ["a", "b c"]', { command: { form: 'exec', words: ['a', 'b c'] } }],
    ['RUN [a]', { command: { form: 'shell', script: '[a]' } }],
    ['RUN --network=none --security=insecure a', { network: 'none', security: 'insecure' }],
    ['RUN -- --x', { command: { form: 'shell', script: '--x' } }],
    ['RUN <<E\na\nE', { command: { form: 'shell', script: 'a\n' }, text: 'RUN <<E (a)' }],
    ['RUN <<-E\n\ta\n\tE', { command: { form: 'shell', script: 'a\n' } }],
    ['RUN <<E\n#!/x\na\nE', { command: { form: 'file', name: 'E', content: '#!/x\na\n' }, text: 'RUN <<E (#!/x...)' }],
    ['RUN b <<E c\na\nE', { command: { form: 'shell', script: 'b <<E c\na\nE' } }],
    ['RUN --mount=type=bind,"target=/a b",from=x y', { mountSources: ['x'] }],
    ['COPY a b /c', { sources: ['a', 'b'], destination: '/c', link: false, parents: false, from: undefined }],
    ['COPY ["a b", "c"]', { sources: ['a b'], destination: 'c' }],
    [
      'COPY --from=x --chown=1:2 --chmod=u+x --link --parents=true --exclude=a --exclude=b c d',
      { from: 'x', chown: '1:2', chmod: 'u+x', link: true, parents: true, exclude: ['a', 'b'] },
    ],
    ['COPY <<"E" f /x/\n$A\nE', { sources: ['f'], files: [{ name: 'E', content: '$A\n', expands: false }] }],
    ['COPY <<E /x/\n$A\nE', { files: [{ name: 'E', content: '$A\n', expands: true }] }],
    ['ADD --checksum=sha256:0 https://a/b /', { checksum: 'sha256:0', keepGitDir: undefined, unpack: undefined }],
    ['ADD --keep-git-dir --unpack=false a b', { keepGitDir: true, unpack: false }],
    ['ENV A=1 B="x y" C=a\\ b', { pairs: [pair('A', '1'), pair('B', '"x y"'), pair('C', 'a\\ b')] }],
    ['ENV A x  y', { pairs: [{ name: 'A', value: 'x  y', isLegacy: true }] }],
    ['LABEL a="b \\\nc"', { pairs: [pair('a', '"b c"')] }],
    ['ARG A=1 B C=', { arguments: [{ name: 'A', value: '1' }, { name: 'B' }, { name: 'C', value: '' }] }],
    ['WORKDIR a b', { path: 'a b' }],
    ['VOLUME /a /b', { paths: ['/a', '/b'] }],
    ['VOLUME ["/a b"]', { paths: ['/a b'] }],
    ['EXPOSE 90 80/udp', { ports: ['80/udp', '90'] }],
    ['CMD []', { command: { form: 'exec', words: [] } }],
    ['STOPSIGNAL 9', { signal: '9' }],
    ['MAINTAINER a <b@c>', { name: 'a <b@c>' }],
    ['SHELL ["a"]', { words: ['a'] }],
    ['HEALTHCHECK none', { healthcheck: { Test: ['NONE'] } }],
    [
      'HEALTHCHECK --interval=1m30s --timeout=5s --start-period=1s --start-interval=500ms --retries=3 cmd a b',
      {
        healthcheck: {
          Test: ['CMD-SHELL', 'a b'],
          Interval: 90e9,
          Timeout: 5e9,
          StartPeriod: 1e9,
          StartInterval: 0.5e9,
          Retries: 3,
        },
      },
    ],
    ['HEALTHCHECK CMD ["a"]', { healthcheck: { Test: ['CMD', 'a'] } }],
    ['ONBUILD run a', { expression: 'run a' }],
    ['ONBUILD COPY <<E /x\na\nE', { expression: 'COPY <<E /x\na\nE' }],
  ])('%s', (text, instruction) => {
    expect(one(text)).toMatchObject(instruction);
  });

  it('gives a trigger back as it was', () => {
    const at = parse('FROM a').stages[0]?.from.at;
    if (at === undefined) throw new Error('no stage');
    expect(parseTrigger('COPY <<E /x\na\nE', at)).toMatchObject({ kind: 'COPY', files: [{ content: 'a\n' }], at });
    expect(() => parseTrigger('RUN a\nRUN b', at)).toThrow('onbuild trigger should be a single expression');
    expect(() => parseTrigger('FROM a', at)).toThrow("FROM isn't allowed as an ONBUILD trigger");
  });
});

function pair(name: string, value: string) {
  return { name, value, isLegacy: false };
}

describe('mistakes', () => {
  it.each<[text: string, message: string, place: string]>([
    ['RUN x', 'no build stage in current context', '1:1'],
    ['ARG A', 'dockerfile contains no stages to build', '1:1'],
    ['# x\n', 'file with no instructions', '2:1'],
    ['FROM a\nFOO b', 'unknown instruction: FOO', '2:1'],
    ['FROM a\nCOPYY b c', 'unknown instruction: COPYY (did you mean COPY?)', '2:1'],
    ['fron a', 'unknown instruction: fron (did you mean from?)', '1:1'],
    ['FROM a b', 'FROM requires either one or three arguments', '1:1'],
    ['FROM a AS 1x', 'invalid name for build stage: "1x", name can\'t start with a number', '1:11'],
    ['FROM a\nRUN \\\n --foo x', 'unknown flag: --foo', '3:2'],
    ['FROM a\nCOPY --form=x a b', 'unknown flag: --form (did you mean from?)', '2:6'],
    ['FROM a\nCOPY --from a b', 'missing a value on flag: --from', '2:6'],
    ['FROM a\nCOPY --from=a --from=b c d', 'duplicate flag specified: --from', '2:6'],
    ['FROM a\nCOPY --link=x c d', 'expecting boolean value for flag --link, not: x', '2:6'],
    ['FROM a\nRUN --device=x y', 'RUN --device is not supported', '2:5'],
    ['FROM a\nRUN --network=x y', 'invalid network mode "x"', '2:5'],
    ['FROM a\nRUN --security=x y', 'security "x" is not valid', '2:5'],
    ['FROM a\nRUN --mount=from=$A,target=/x y', "'from' doesn't support variable expansion", '2:1'],
    ['FROM a\nENV --x A=1', 'unknown flag: --x', '2:5'],
    ['FROM a\nRUN', 'RUN requires at least one argument', '2:1'],
    ['FROM a\nRUN <<E\nx', 'unterminated heredoc', '2:1'],
    ['FROM a\nCOPY a', 'COPY requires at least two arguments, but only one was provided', '2:1'],
    ['FROM a\nCOPY a <<E\nE', 'COPY cannot accept a heredoc as a destination', '2:8'],
    ['FROM a\nCOPY <<../E /x\n../E', 'heredoc name "../E" is no file name', '2:6'],
    ['FROM a\nCMD [1]', 'arrays must be comprised of strings only', '2:5'],
    ['FROM a\nENV A', 'ENV must have two arguments', '2:5'],
    ['FROM a\nENV A=1 B', 'can\'t find = in "B"', '2:9'],
    ['FROM a\nENV =1', 'ENV names can not be blank', '2:5'],
    ['FROM a\nARG', 'ARG requires at least one argument', '2:1'],
    ['FROM a\nSHELL a', 'SHELL requires the arguments to be in JSON form', '2:7'],
    ['FROM a\nVOLUME [""]', 'VOLUME specified can not be an empty string', '2:1'],
    ['FROM a\nHEALTHCHECK FOO', 'Unknown type "FOO" in HEALTHCHECK (try CMD)', '2:13'],
    ['FROM a\nHEALTHCHECK CMD', 'Missing command after HEALTHCHECK CMD', '2:1'],
    ['FROM a\nHEALTHCHECK NONE x', 'HEALTHCHECK NONE takes no arguments', '2:18'],
    ['FROM a\nHEALTHCHECK --interval=1us CMD x', 'Interval "interval" cannot be less than 1ms', '2:13'],
    ['FROM a\nHEALTHCHECK --retries=-1 CMD x', '--retries must be a number', '2:13'],
    ['FROM a\nONBUILD ONBUILD RUN x', "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed", '2:1'],
    ['FROM a\nONBUILD FROM x', "FROM isn't allowed as an ONBUILD trigger", '2:9'],
    ['FROM a\nONBUILD FOO x', 'unknown instruction: FOO', '2:9'],
    ['# escape=x\nFROM a', 'invalid escape token', '1:1'],
    ['# escape=`\n# escape=`\nFROM a', 'only one escape parser directive can be used', '2:1'],
    ['FROM a\nRUN a\\\u001b[31m --x\nFOO\u001b[31m', 'unknown instruction: FOO\ufffd[31m', '3:1'],
  ])('%j: %s', (text, message, place) => {
    const error = failure(() => parse(text));
    expect(error).toMatchObject({ kind: 'invalid' });
    expect(error.message).toContain(message);
    expect(error.message).toContain(`\nDockerfile:${place}\n`);
    expect(error.message).not.toContain('\u001b');
  });

  it('shows the lines', () => {
    expect(failure(() => parse('FROM a\nRUN a\nRUN b \\\n  c --x\nRUN d\n# e\nFOO f\nRUN g\n')).message).toBe(
      [
        'dockerfile parse error on line 7: unknown instruction: FOO (did you mean FROM?)',
        'Dockerfile:7:1',
        '--------------------',
        '   5 |     RUN d',
        '   6 |     # e',
        '   7 | >>> FOO f',
        '   8 |     RUN g',
        '   9 |     ',
        '--------------------',
      ].join('\n'),
    );
  });

  it('says what is empty, too large or another language', () => {
    expect(() => parse('')).toThrow('the Dockerfile (Dockerfile) cannot be empty');
    expect(() => parse(`FROM a\n${'#\n'.repeat(DOCKERFILE_MAX_BYTES / 2)}`)).toThrow('larger than 1048576 bytes');
    expect(() => parse(`FROM a\nRUN ${'x'.repeat(70_000)}`)).toThrow('line greater than max allowed size of 65535');
    expect(() => parse(`FROM a\n${'RUN a\n'.repeat(10_001)}`)).toThrow('at most 10000 instructions');
    expect(failure(() => parse('# syntax=example/llama:1\nFROM a'))).toMatchObject({ kind: 'unsupported' });
  });
});

function failure(act: () => unknown): AppError {
  try {
    act();
  } catch (error) {
    if (error instanceof AppError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('hostile text', () => {
  const bit = fc.constantFrom(
    'FROM a\n',
    'RUN ',
    'COPY ',
    'ENV ',
    'ONBUILD ',
    'HEALTHCHECK ',
    '--mount=',
    '<<E',
    '<<-"E"',
    '\nE\n',
    '\\\n',
    '\\',
    '`',
    '"',
    "'",
    '$',
    '${',
    '}',
    '#',
    '[',
    ']',
    '=',
    ',',
    ' ',
    '\t',
    '\r\n',
    '\n',
    'x',
    '\u0000',
    '\ud800',
    '# escape=`\n',
  );

  it('never makes the parser throw anything but its own errors', () => {
    fc.assert(
      fc.property(fc.array(bit, { maxLength: 40 }), (bits) => {
        for (const text of [bits.join(''), `FROM a\n${bits.join('')}`]) {
          try {
            parse(text);
          } catch (error) {
            expect(error).toBeInstanceOf(AppError);
          }
        }
      }),
      { numRuns: 1000 },
    );
  });

  // Each is near the limit of a file, and took minutes where work grew with the square of its length.
  it.each<[what: string, text: string]>([
    ['escapes', `FROM a\nRUN ${'\\ '.repeat(30_000)}`],
    ['carriage returns', `FROM a\nRUN ${'\r'.repeat(60_000)}x\n`],
    ['continued lines', `FROM a\nRUN ${'a \\\n'.repeat(250_000)}`],
    ['comments in a continuation', `FROM a\nRUN a \\\n${'#\n'.repeat(500_000)}b`],
    ['here-documents', `FROM a\nRUN ${'<<E \\\n'.repeat(50_000)}x\n${'E\n'.repeat(50_000)}`],
    ['open here-documents', `FROM a\nRUN ${'<<E \\\n'.repeat(50_000)}x\n${'y\n'.repeat(50_000)}`],
    ['quotes', `FROM a\nENV ${'a="b" \\\n'.repeat(50_000)}`],
    ['open quotes', `FROM a\nENV ${`a='"\\\n`.repeat(100_000)}`],
    ['flags', `FROM a\nRUN ${'--mount=x \\\n'.repeat(40_000)}`],
    ['mounts', `FROM a\nRUN --mount=${'"a""b",'.repeat(9000)} x`],
    ['open JSON', `FROM a\nCMD ${'[\\\n'.repeat(100_000)}`],
    ['triggers', `FROM a\nONBUILD ${'ONBUILD \\\n'.repeat(90_000)}`],
  ])(
    '%s are read in time',
    (_what, text) => {
      const started = performance.now();
      try {
        parse(text);
      } catch (error) {
        expect(error).toBeInstanceOf(AppError);
        expect(String(error).length).toBeLessThan(10_000);
      }
      expect(performance.now() - started).toBeLessThan(30_000);
    },
    60_000,
  );
});
