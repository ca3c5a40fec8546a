/** Names of containers: their grammar, the ones we make up, and what a caller may call a container by. Pure. */
import { AppError } from '../../shared/errors.ts';

/** Docker's; its message names the same set. */
const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]+$/;
const ID = /^[0-9a-f]{64}$/;

/** Takes Docker's leading slash off. @throws AppError 'invalid' with Docker's words */
export function parseName(text: string): string {
  const name = text.startsWith('/') ? text.slice(1) : text;
  if (!NAME.test(name))
    throw new AppError('invalid', `Invalid container name (${text}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed`);
  return name;
}

const ADJECTIVES = (
  'amber ample brave brisk bright calm candid cheerful clear clever crisp curious daring deft eager early easy fair ' +
  'fearless festive fluent fond frank fresh gentle glad golden graceful grand happy hardy hearty honest humble jolly ' +
  'keen kind lively loyal lucid lucky mellow merry mighty mindful modest neat nimble noble patient peaceful placid ' +
  'plucky polite proud quick quiet radiant rapid ready robust serene sharp silent silver simple sincere smooth snug ' +
  'solid spry stable steady stoic sturdy subtle sunny swift tidy tranquil trusty upbeat valiant vivid warm wise witty zesty'
).split(' ');
/** Harbour towns, ships' parts and sea winds: where one berths, in what, and how one got there. */
const NOUNS = (
  'aarhus anchor antwerp bergen bilbao binnacle boom bosun bow bremen bristol bulwark buoy cabin cadiz capstan cleat ' +
  'clipper compass cork cutter davit deck dock dory dover dunkirk fairway fathom ferry funnel galley gdansk genoa ' +
  'gimbal gunwale halyard hamburg harbor hatch haven hawser helm hull izmir jetty jib keel kiel lagos lantern lighthouse ' +
  'limassol lisbon lorient mainsail malmo marina mast mistral monsoon mooring nantes napier narvik odessa oporto oslo ' +
  'passat pennant pier pilot piraeus plimsoll porthole quay rigging rotterdam rudder sail schooner scirocco sextant ' +
  'shoal skiff sloop spinnaker split stern tern tiller trieste tug turku valletta varna vigo wharf whitby yawl zadar'
).split(' ');

/**
 * `adjective_noun`, with a number when the first tries are taken. `random` answers an integer in [0, limit).
 * The first three tries have none.
 */
export function generateName(random: (limit: number) => number, isTaken: (name: string) => boolean): string {
  for (let attempt = 0; ; attempt += 1) {
    const words = `${ADJECTIVES[random(ADJECTIVES.length)]}_${NOUNS[random(NOUNS.length)]}`;
    const name = attempt < 3 ? words : `${words}${random(10 ** Math.min(attempt, 9))}`;
    if (!isTaken(name)) return name;
  }
}

export interface Named {
  readonly id: string;
  readonly name: string;
}

/**
 * A full id, a name, or a prefix of one id only, in this order.
 * @throws AppError 'not-found' and 'invalid' (ambiguous prefix) with Docker's words
 */
export function resolveName<T extends Named>(
  text: string,
  containers: { readonly byId: ReadonlyMap<string, T>; readonly idByName: ReadonlyMap<string, string> },
): T {
  const { byId, idByName } = containers;
  const exact = byId.get(text) ?? byId.get(idByName.get(text.startsWith('/') ? text.slice(1) : text) ?? '');
  if (exact !== undefined) return exact;
  if (text !== '' && !ID.test(text)) {
    const matches = [...byId.values()].filter(({ id }) => id.startsWith(text));
    if (matches.length > 1) throw new AppError('invalid', `Multiple IDs found with provided prefix: ${text}`);
    if (matches[0] !== undefined) return matches[0];
  }
  throw new AppError('not-found', `No such container: ${text}`);
}

/** Docker's words for a name that is taken. */
export function nameConflict(name: string, id: string): AppError {
  return new AppError(
    'conflict',
    `Conflict. The container name "/${name}" is already in use by container "${id}". You have to remove (or rename) that container to be able to reuse that name.`,
  );
}
