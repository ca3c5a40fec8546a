import { readFileSync, writeFileSync } from 'node:fs';
import { Command } from 'commander';
import { expect, it } from 'vitest';
import { buildProgram } from '../../../runtime/cli/commands.ts';

const PAGE = new URL('../../../docs/cli.md', import.meta.url);

/** Every command with its flags, as the declarations have them. */
function reference(): string {
  const program = new Command('berth');
  const groups = ['builder', 'container', 'image', 'manifest', 'network', 'system', 'volume'];
  buildProgram({ program, act: () => async () => undefined, words: new Set([...groups, 'run', 'create', 'build']) });
  const lines = [
    '# berth: commands',
    '',
    'Generated from the declarations in `runtime/cli/declare`; a test compares it. Rewrite with `UPDATE_GOLDEN=1 npx vitest run --project unit test/unit/cli/reference.test.ts`.',
    '',
  ];
  const short = new Set(program.commands.map((command) => command.description()));
  const all = program.commands.flatMap((command) =>
    groups.includes(command.name())
      ? command.commands
          .map((inner) => ({ name: `${command.name()} ${inner.name()}`, command: inner }))
          .filter(({ command: inner }) => !short.has(inner.description()))
      : [{ name: command.name(), command }],
  );
  for (const { name, command } of all) {
    const usage = command.registeredArguments
      .map((argument) =>
        argument.required
          ? `<${argument.name()}${argument.variadic ? '...' : ''}>`
          : `[${argument.name()}${argument.variadic ? '...' : ''}]`,
      )
      .join(' ');
    lines.push(
      `## berth ${name}`,
      '',
      `${command.description()}`,
      '',
      `\`berth ${name}${command.options.length > 0 ? ' [options]' : ''}${usage === '' ? '' : ` ${usage}`}\``,
      '',
    );
    const options = command.options.filter((option) => !option.hidden);
    if (options.length > 0)
      lines.push(
        '| flag | meaning |',
        '|---|---|',
        ...options.map((option) => `| \`${option.flags.replaceAll('|', '\\|')}\` | ${option.description} |`),
        '',
      );
  }
  return `${lines.join('\n').trimEnd()}\n`;
}

it('docs/cli.md is what the declarations say', () => {
  const generated = reference();
  if (process.env.UPDATE_GOLDEN === '1') writeFileSync(PAGE, generated);
  expect(readFileSync(PAGE, 'utf8')).toBe(generated);
});
