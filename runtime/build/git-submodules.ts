/**
 * What a tree says of its submodules: where they lie, at which commit, and which repository has it. Names of submodules
 * are never paths here (CVE-2018-11235), and an address must fit the grammar of a remote, so that none is taken for an
 * option (CVE-2018-17456). Pure.
 * https://git-scm.com/docs/gitmodules
 */
import { AppError } from '../../shared/errors.ts';
import { redactText } from '../../shared/redact.ts';
import { parseRemote } from './git-reference.ts';

export interface Submodule {
  /** From the root of the repository. */
  readonly path: string;
  readonly commit: string;
  readonly remote: string;
}

export interface SubmoduleWords {
  /** Of the repository that they are in. */
  readonly remote: string;
  /** Commits by path, as the tree has them. */
  readonly links: ReadonlyMap<string, string>;
  /** `.gitmodules`, as `git config --null --list` prints it. */
  readonly config: string;
}

/** In the order of paths. @throws AppError 'invalid' for one without an address, or with one that is malformed */
export function submodulesOf({ remote, links, config }: SubmoduleWords): readonly Submodule[] {
  const settings = new Map<string, { path?: string; url?: string }>();
  for (const entry of config.split('\0')) {
    const [, name, field, value] = /^submodule\.([\s\S]*)\.(path|url)\n([\s\S]*)$/.exec(entry) ?? [];
    if (name === undefined || value === undefined) continue;
    settings.set(name, { ...settings.get(name), [field === 'url' ? 'url' : 'path']: value });
  }
  const addresses = new Map([...settings.values()].map(({ path, url }) => [path, url]));
  return [...links].map(([path, commit]) => {
    const url = addresses.get(path);
    if (url === undefined) throw unusable(path, 'there is no url for it in .gitmodules');
    const address = /^\.{1,2}\//.test(url) ? resolveAddress(remote, url) : url;
    const found = address === undefined ? undefined : parseRemote(address);
    if (found === undefined) throw unusable(path, `its url ${JSON.stringify(redactText(url))} is none that is fetched`);
    return { path, commit, remote: found };
  });
}

/** `../x` and `./x` from where the repository is, which counts as a directory. undefined = it leads out of the host. */
function resolveAddress(remote: string, url: string): string | undefined {
  let base = remote.replace(/\/+$/, '');
  let rest = url;
  for (;;) {
    if (rest.startsWith('./')) rest = rest.slice(2);
    else if (rest.startsWith('../')) {
      rest = rest.slice(3);
      const [, above] = /^(.*[^/:])[/:][^/:]+$/.exec(base) ?? [];
      if (above === undefined || /^[a-z+]+:?\/*$/i.test(above)) return undefined;
      base = base[above.length] === ':' ? `${above}:` : above;
    } else break;
  }
  return base.endsWith(':') ? `${base}${rest}` : `${base}/${rest}`;
}

function unusable(path: string, why: string): AppError {
  return new AppError('invalid', `cannot fetch submodule ${JSON.stringify(path)}: ${why}`);
}
