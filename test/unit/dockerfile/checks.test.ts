// biome-ignore-all lint/suspicious/noTemplateCurlyInString: they are what is tested
import { expect, it } from 'vitest';
import type { CheckOptions } from '../../../runtime/dockerfile/check-config.ts';
import { checkDockerfile, checkError } from '../../../runtime/dockerfile/checks.ts';
import { parseDockerfile } from '../../../runtime/dockerfile/dockerfile.ts';
import { createIgnore } from '../../../shared/dockerignore.ts';

const parse = (text: string) => parseDockerfile(text, { name: 'Dockerfile' });
const OPTIONS: CheckOptions = {
  predefined: { TARGETPLATFORM: 'linux/amd64', BUILDPLATFORM: 'linux/amd64', TARGETARCH: 'amd64' },
  environmentOf: () => ['PATH=/bin', 'HOME=/root'],
  ignore: createIgnore(['secret', '*.log']),
};
const rules = (text: string, options = OPTIONS) =>
  checkDockerfile(parse(text), options).map(({ rule, line }) => `${rule}:${line}`);

it.each<[text: string, found: string[]]>([
  ['FROM a:1 AS b\nWORKDIR /x\nCOPY . .\nRUN $HOME x\nCMD ["x"]', []],
  ['FROM a AS Build', ['StageNameCasing:1']],
  ['FROM a as b', ['FromAsCasing:1']],
  ['from a as b', []],
  ['FROM a\nRUN a \\\n\n  b', ['NoEmptyContinuation:3']],
  ['FROM a\nRun a\nrun b\nRUN c', ['ConsistentInstructionCasing:2', 'ConsistentInstructionCasing:3']],
  ['FROM a AS b\nFROM a AS b', ['DuplicateStageName:2']],
  ['FROM a AS scratch', ['ReservedStageName:1']],
  ['FROM a\nENTRYPOINT a', ['JSONArgsRecommended:2']],
  ['FROM a\nSHELL ["x"]\nENTRYPOINT a', []],
  ['FROM a\nMAINTAINER b', ['MaintainerDeprecated:2']],
  ['ARG VERSION=1\nFROM a:${VERSON}', ['UndefinedArgInFrom:2', 'InvalidDefaultArgInFrom:2']],
  ['ARG VERSION\nFROM a:$VERSION', ['InvalidDefaultArgInFrom:2']],
  ['FROM a\nUSER $HOME$HOEM', ['UndefinedVar:2']],
  ['FROM a AS b\nENV X=1\nFROM b\nARG Y\nUSER $X$Y$Z', ['UndefinedVar:5']],
  ['FROM scratch\nUSER $HOME$PATH', ['UndefinedVar:2']],
  ['FROM a\nWORKDIR b\nWORKDIR c', ['WorkdirRelativePath:2']],
  ['FROM --platform=linux/arm64 a', ['FromPlatformFlagConstDisallowed:1']],
  ['FROM --platform=linux/arm64 a AS x-arm64', []],
  ['FROM --platform=$TARGETPLATFORM a', ['RedundantTargetPlatform:1']],
  ['FROM --platform=$BUILDPLATFORM a', []],
  [
    'FROM a\nCOPY secret x.log /\nCOPY --from=b secret /\nADD https://x.log /',
    ['CopyIgnoredFile:2', 'CopyIgnoredFile:2'],
  ],
  [
    'FROM a\nARG DB_PASSWORD TOKEN_FILE\nENV API_KEY=1 PUBLIC_KEY=2 MONKEY=3',
    ['SecretsUsedInArgOrEnv:2', 'SecretsUsedInArgOrEnv:3'],
  ],
  ['FROM a\nENV A b\nLABEL c d', ['LegacyKeyValueFormat:2', 'LegacyKeyValueFormat:3']],
  ['FROM a\nCMD ["a"]\nCMD ["b"]\nFROM a\nCMD ["c"]', ['MultipleInstructionsDisallowed:2']],
  ['FROM a\nEXPOSE 80/TCP 1.2.3.4:80:80', ['ExposeInvalidFormat:2', 'ExposeProtoCasing:2']],
  ['# no description\nFROM a AS b', []],
  [
    '# check=experimental=InvalidDefinitionDescription\n\n# no description\nFROM a AS b',
    ['InvalidDefinitionDescription:4'],
  ],
  ['# check=skip=StageNameCasing\nFROM a AS B\nMAINTAINER c', ['MaintainerDeprecated:3']],
  ['# check=skip=all;error=true\nFROM a AS B', []],
  ['FROM a\n# check=skip=MaintainerDeprecated\nMAINTAINER b\nMAINTAINER c', ['MaintainerDeprecated:4']],
])('%j has %j', (text, found) => {
  expect(rules(text)).toEqual(found);
});

it('says nothing of variables where the base is not known', () => {
  expect(rules('FROM a\nUSER $X', { predefined: {} })).toEqual([]);
});

it('looks into the stages that are asked for', () => {
  expect(rules('FROM a\nMAINTAINER b\nFROM a\nMAINTAINER c', { ...OPTIONS, stages: new Set([1]) })).toEqual([
    'MaintainerDeprecated:4',
  ]);
});

it('explains itself', () => {
  const [warning] = checkDockerfile(parse('FROM a\nCMD b $HOEM\nUSER $HOEM'), OPTIONS);
  expect(warning).toEqual({
    rule: 'JSONArgsRecommended',
    message: 'JSON arguments recommended for CMD to prevent unintended behavior related to OS signals',
    url: 'https://docs.docker.com/go/dockerfile/rule/json-args-recommended/',
    line: 2,
    source:
      'Dockerfile:2:1\n--------------------\n   1 |     FROM a\n   2 | >>> CMD b $HOEM\n   3 |     USER $HOEM\n--------------------\n',
  });
  const [, variable] = checkDockerfile(parse('FROM a\nCMD b\nUSER $HOEM'), OPTIONS);
  expect(variable?.message).toBe("Usage of undefined variable '$HOEM' (did you mean $HOME?)");
});

it('makes errors of warnings when asked to', () => {
  const strict = parse('# check=error=true\nFROM a AS B\nMAINTAINER c');
  expect(checkError(strict, checkDockerfile(strict))?.message).toBe(
    'lint violation found for rules: StageNameCasing, MaintainerDeprecated',
  );
  expect(checkError(strict, [])).toBeUndefined();
  const mild = parse('FROM a AS B');
  expect(checkError(mild, checkDockerfile(mild))).toBeUndefined();
  expect(() => checkDockerfile(parse('# check=skp=all\nFROM a'))).toThrow(
    /invalid check option "skp=all"\nDockerfile:1:1/,
  );
});
