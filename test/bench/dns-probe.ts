/** In a container's network: `dns-probe NAME COUNT` asks 127.0.0.11 for a name, and prints the median in ms. */
import { Resolver } from 'node:dns/promises';
import { median } from './measure.ts';

const [name = '', count = '1'] = process.argv.slice(2);
const resolver = new Resolver({ timeout: 2000, tries: 1 });
resolver.setServers(['127.0.0.11']);
const took: number[] = [];
for (let i = 0; i < Number(count); i += 1) {
  const from = performance.now();
  await resolver.resolve4(name);
  took.push(performance.now() - from);
}
console.log(median(took));
