import { describe, expect, it } from 'vitest';
import { parseTemplate } from '../../../runtime/cli/go-template.ts';

const container = {
  Name: '/web',
  State: { Running: true, ExitCode: 0 },
  Mounts: [
    { Source: '/a', Destination: '/x' },
    { Source: '/b', Destination: '/y' },
  ],
  Config: { Labels: { 'com.example.role': 'front', app: 'shop' }, Env: null },
};

describe('Go templates', () => {
  it.each([
    ['{{.Name}}', '/web'],
    ['{{.State.Running}} {{.State.ExitCode}}', 'true 0'],
    ['{{json .State}}', '{"Running":true,"ExitCode":0}'],
    ['{{range .Mounts}}{{.Source}}:{{.Destination}} {{end}}', '/a:/x /b:/y '],
    ['{{index .Config.Labels "com.example.role"}}', 'front'],
    ['{{index .Config.Labels "absent"}}', ''],
    ['{{len .Mounts}}', '2'],
    ['{{if .State.Running}}up{{else}}down{{end}}', 'up'],
    ['{{if not .State.Running}}down{{else}}up{{end}}', 'up'],
    ['{{.Config.Env}}', '<no value>'],
    ['{{.Config.Labels}}', 'map[app:shop com.example.role:front]'],
    ['{{upper .Name}} {{.Name | printf "<%s>"}}', '/WEB </web>'],
    ['{{with .State}}{{.ExitCode}}{{end}}', '0'],
    ['{{range .Mounts}}{{$.Name}}{{end}}', '/web/web'],
    ['a {{- .Name -}} b', 'a/webb'],
    ['{{eq .Name "/web"}} {{(index .Mounts 1).Source}}', 'true /b'],
    ['{{/* nothing */}}x', 'x'],
  ])('%s', (source, expected) => {
    expect(parseTemplate(source)(container)).toBe(expected);
  });

  it('names the field that is not there', () => {
    expect(() => parseTemplate('{{.Nmae}}')(container)).toThrow(
      'there is no field "Nmae", only Config, Mounts, Name, State',
    );
  });

  it.each(['{{', '{{.Name', '{{range .Mounts}}x', '{{end}}', '{{nosuch .Name}}', '{{}}', '{{(.Name}}'])(
    'refuses %s',
    (source) => {
      expect(() => parseTemplate(source)).toThrow(/cannot parse template/);
    },
  );
});
