/**
 * The one thing that we do in tables of others. An accept of ours does not override a drop of theirs, and dockerd and
 * ufw make the policy of FORWARD drop; so commented accepts for each of our bridges go to where administrators put
 * theirs: into DOCKER-USER where dockerd has made it, else into FORWARD. In the second case they let out what containers
 * send, and nothing in: that, published ports included, stays the decision of that firewall, which lets in answers as
 * all of them do. Only what iptables can print is written: an unknown match would hide the whole table from it. Pure.
 */

export interface HostChains {
  readonly family: 'ip' | 'ip6';
  /** As `nft -a list chain` prints them; undefined = there is none. */
  readonly forward: string | undefined;
  readonly dockerUser: string | undefined;
}

interface Rule {
  readonly chain: 'FORWARD' | 'DOCKER-USER';
  /** Without the comment. */
  readonly text: string;
}

/** What to do so that these bridges, and no others of ours, are let through; empty = nothing. */
export function hostFirewallChange(mark: string, links: readonly string[], chains: HostChains): string {
  const { family, forward, dockerUser } = chains;
  const wanted = /policy drop/.test(forward ?? '')
    ? links.flatMap((link) => rulesFor(link, dockerUser !== undefined))
    : [];
  const present = [...ownRules(mark, 'FORWARD', forward), ...ownRules(mark, 'DOCKER-USER', dockerUser)];
  const isSame = (a: Rule, b: Rule) => a.chain === b.chain && a.text === b.text;
  const stale = present.filter((rule) => !wanted.some((each) => isSame(each, rule)));
  const missing = wanted.filter((rule) => !present.some((each) => isSame(each, rule)));
  return [
    ...stale.map(({ chain, handle }) => `delete rule ${family} filter ${chain} handle ${handle}\n`),
    ...missing.map(({ chain, text }) => `insert rule ${family} filter ${chain} ${text} comment "${mark}"\n`),
  ].join('');
}

function rulesFor(link: string, hasDocker: boolean): readonly Rule[] {
  if (hasDocker)
    return [
      { chain: 'DOCKER-USER', text: `iifname "${link}" accept` },
      { chain: 'DOCKER-USER', text: `oifname "${link}" accept` },
    ];
  return [{ chain: 'FORWARD', text: `iifname "${link}" accept` }];
}

function ownRules(mark: string, chain: Rule['chain'], text = ''): readonly (Rule & { readonly handle: string })[] {
  return text.split('\n').flatMap((line) => {
    const match = /^\s*(.*) comment "([^"]*)" # handle (\d+)$/.exec(line);
    if (match === null || match[2] !== mark) return [];
    return [{ chain, text: match[1] ?? '', handle: match[3] ?? '' }];
  });
}
