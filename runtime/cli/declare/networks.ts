/** The commands about networks. */
import type { ConnectFlags, CreateFlags, ListFlags } from '../network-commands.ts';
import { filter, format, type Group, longFilter, many, type Place } from './group.ts';

const networks = () => import('../network-commands.ts');

export function declareNetworks(group: Group, { act }: Place): void {
  group.only('create', (command) =>
    command
      .description('make a network')
      .argument('<name>')
      .option('-d, --driver <DRIVER>', 'bridge, macvlan or ipvlan')
      .addOption(many('--subnet <CIDR>', 'where its addresses come from; chosen when absent'))
      .addOption(many('--gateway <IP>', "the host's address in the subnet"))
      .addOption(many('--ip-range <CIDR>', 'part of the subnet that containers get addresses from'))
      .addOption(many('--aux-address <NAME=IP>', 'an address that belongs to something else'))
      .option('--internal', 'nothing gets in or out')
      .option('--attachable', 'recorded with the network: containers can always be connected by hand')
      .option('--no-ipv4', 'IPv6 alone')
      .option('--ipv6', 'IPv6 as well')
      .addOption(many('-o, --opt <KEY=VALUE>', 'option of the driver'))
      .addOption(many('--label <KEY=VALUE>', 'label'))
      .action(
        act(async (session, name: string, flags: CreateFlags) => (await networks()).create(session, name, flags)),
      ),
  );
  group.only('ls', (command) =>
    command
      .alias('list')
      .description('list networks')
      .addOption(filter())
      .addOption(format())
      .option('-q, --quiet', 'only ids')
      .option('--no-trunc', 'whole ids')
      .action(act(async (session, flags: ListFlags) => (await networks()).ls(session, flags))),
  );
  group.only('inspect', (command) =>
    command
      .description('show everything about networks')
      .argument('<network...>')
      .option('-f, --format <FORMAT>', 'json, or a Go template')
      .action(
        act(async (session, names: string[], flags: { format?: string }) =>
          (await networks()).inspectNetworks(session, names, flags),
        ),
      ),
  );
  group.only('connect', (command) =>
    command
      .description('connect a container to a network, now if it runs')
      .argument('<network>')
      .argument('<container>')
      .option('--ip <IP>', 'IPv4 address')
      .option('--ip6 <IP>', 'IPv6 address')
      .addOption(many('--alias <NAME>', 'another name in the network'))
      .addOption(many('--driver-opt <KEY=VALUE>', 'option of the driver'))
      .option('--gw-priority <NUMBER>', 'the network with the highest has the default route')
      .action(
        act(async (session, name: string, container: string, flags: ConnectFlags) =>
          (await networks()).connect(session, name, container, flags),
        ),
      ),
  );
  group.only('disconnect', (command) =>
    command
      .description('take a container out of a network')
      .argument('<network>')
      .argument('<container>')
      .option('-f, --force', 'also when the container is in a bad state')
      .action(
        act(async (session, name: string, container: string, flags: { force?: boolean }) =>
          (await networks()).disconnect(session, name, container, flags),
        ),
      ),
  );
  group.only('rm', (command) =>
    command
      .alias('remove')
      .description('remove networks')
      .argument('<network...>')
      .action(act(async (session, names: string[]) => (await networks()).rm(session, names))),
  );
  group.only('prune', (command) =>
    command
      .description('remove networks that no container uses')
      .addOption(longFilter())
      .option('-f, --force', 'do not ask')
      .action(
        act(async (session, flags: { filter?: readonly string[]; force?: boolean }) =>
          (await networks()).prune(session, flags),
        ),
      ),
  );
}
