/**
 * One read for everybody who asks the same thing in the same turn of the event loop: under load, when hundreds of
 * clients pull one tag, the database answers once per turn instead of once per client.
 *
 * This is no cache. The read starts after the last of them has asked, so nobody gets an answer that is older than the
 * question, whatever other processes write meanwhile.
 */
import { setImmediate as turn } from 'node:timers/promises';

export function coalesce<K, V>(read: (key: K) => Promise<V>, nameOf: (key: K) => string): (key: K) => Promise<V> {
  const gathering = new Map<string, Promise<V>>();

  const start = async (key: K, name: string): Promise<V> => {
    await turn();
    gathering.delete(name);
    return read(key);
  };

  return (key) => {
    const name = nameOf(key);
    const running = gathering.get(name);
    if (running !== undefined) return running;
    const started = start(key, name);
    gathering.set(name, started);
    return started;
  };
}
