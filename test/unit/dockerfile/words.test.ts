// biome-ignore-all lint/suspicious/noTemplateCurlyInString: they are what is tested
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createMeter, expandWord, expandWords } from '../../../runtime/dockerfile/words.ts';
import { AppError } from '../../../shared/errors.ts';

const SET = new Map(Object.entries({ A: 'foo.bar.baz', E: '', S: ' x  y ', Ü: 'ü', P: '/a/b/c', Q: 'a*b', N: 'x\ny' }));
const variables = { escape: '\\', get: (name: string) => SET.get(name) } as const;
const word = (text: string) => expandWord(text, variables).value;

describe('expandWord', () => {
  it.each<[text: string, value: string]>([
    ['a  b', 'a  b'],
    ['$A', 'foo.bar.baz'],
    ['${A}x$A', 'foo.bar.bazxfoo.bar.baz'],
    ['$U-${U}', '-'],
    ['$Ü', 'ü'],
    ['$', '$'],
    ['$/x', '$/x'],
    ['$1x$@', 'x'],
    ['\\$A \\a \\\\', '$A a \\'],
    ["'$A\\x'", '$A\\x'],
    ['"$A\\x\\"\\$\\\\"', 'foo.bar.baz\\x"$\\'],
    ['"a\'b"', "a'b"],
    ['a\\', 'a'],
    ['${U:-d}${E:-d}${A:-d}', 'ddfoo.bar.baz'],
    ['${U-d}${E-d}', 'd'],
    ['${U:+d}${E:+d}${A:+d}', 'd'],
    ['${U+d}${E+d}', 'd'],
    ['${A:?no}${E?no}', 'foo.bar.baz'],
    ['${U:-${E:-$A}}', 'foo.bar.baz'],
    ['${U:-"}"}', '}'],
    ["${U:-'$A'}", '$A'],
    ['${A#*.}|${A##*.}', 'bar.baz|baz'],
    ['${A%.*}|${A%%.*}', 'foo.bar|foo'],
    ['${A#x}${A%x}', 'foo.bar.bazfoo.bar.baz'],
    ['${A#f?o}', '.bar.baz'],
    ['${P##*/}', 'c'],
    ['${Q#a\\*}', 'b'],
    ['${N#*}|${N##*}', 'x\ny|\ny'],
    ['${A/./-}|${A//./-}', 'foo-bar.baz|foo-bar-baz'],
    ['${A/b*/x}', 'foo.x'],
    ['${P/\\//x}|${P//\\//}', 'xa/b/c|abc'],
    ['${U#x}${U/a/b}', ''],
    ['< <<', '< <<'],
  ])('%j is %j', (text, value) => {
    expect(word(text)).toBe(value);
  });

  it.each<[text: string, message: string]>([
    ["a'", 'unexpected end of statement while looking for matching single-quote'],
    ['a"', 'unexpected end of statement while looking for matching double-quote'],
    ['${', "syntax error: missing '}'"],
    ['${A', "syntax error: missing '}'"],
    ['${A:-', "syntax error: missing '}'"],
    ['${}', 'syntax error: bad substitution'],
    ['${:-a}', 'syntax error: bad substitution'],
    ['${A:x}', 'unsupported modifier (:x) in substitution'],
    ['${A:#x}', 'unsupported modifier (:#) in substitution'],
    ['${A^x}', 'unsupported modifier (^) in substitution'],
    ['${A/x}', "syntax error: missing '/'"],
    ['${A#\\x}', "invalid escape '\\x'"],
    ['${U?}', 'U: is not allowed to be unset'],
    ['${E:?}', 'E: is not allowed to be empty'],
    ['${U:?say $A}', 'U: say foo.bar.baz'],
  ])('refuses %j: %s', (text, message) => {
    expect(() => word(text)).toThrow(message);
  });

  it('escapes by the directive', () => {
    expect(expandWord('`$A \\$A', { ...variables, escape: '`' }).value).toBe('$A \\foo.bar.baz');
  });

  it('tells which names it asked for', () => {
    const { used, missing } = expandWord("$A ${U:-$E} '$S' ${V:+$W}", variables);
    expect([...used]).toEqual(['A', 'E']);
    expect([...missing].toSorted()).toEqual(['U', 'V', 'W']);
  });
});

it.each<[text: string, words: string[]]>([
  ['a  b', ['a', 'b']],
  ['$S', ['x', 'y']],
  ['"$S"', [' x  y ']],
  ['a${S}b', ['a', 'x', 'y', 'b']],
  ['a\\ b', ['a b']],
  ['$U', []],
  ['80${U:-1}', ['801']],
  ['cat << EOF', ['cat', '<< EOF']],
])('splits %j to %j', (text, words) => {
  expect(expandWords(text, variables).values).toEqual(words);
});

describe('hostile words', () => {
  const bit = fc.constantFrom(
    '$',
    '{',
    '}',
    'A',
    'U',
    'E',
    ':',
    '-',
    '+',
    '?',
    '#',
    '%',
    '/',
    '*',
    '\\',
    '"',
    "'",
    ' ',
    '<',
  );

  it('end in a value or in an error of ours', () => {
    fc.assert(
      fc.property(fc.array(bit, { maxLength: 30 }), (bits) => {
        try {
          expandWords(bits.join(''), variables);
        } catch (error) {
          expect(error).toBeInstanceOf(AppError);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it.each<[what: string, text: string, message: string]>([
    ['deep', `${'${A:+'.repeat(100_000)}x${'}'.repeat(100_000)}`, 'nested deeper than 100'],
    ['long', '$L'.repeat(1000), 'longer than 4194304'],
    ['with a costly pattern', `\${L//${'*a'.repeat(5000)}b/x}`, 'too much work'],
  ])(
    '%s are refused in time',
    (_what, text, message) => {
      const long = { ...variables, get: () => 'a'.repeat(100_000) };
      expect(() => expandWord(text, long)).toThrow(message);
    },
    30_000,
  );

  it('share the meter of their file', () => {
    const meter = createMeter(1000);
    expect(() => {
      for (;;) expandWord('$A', { ...variables, meter });
    }).toThrow('its variables take too much work to expand');
  });
});
