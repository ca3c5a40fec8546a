/**
 * Who must run before whom: `joins` names for each container those whose namespaces it shares. Waves, in order; within
 * one, nobody needs anybody. Those in a circle come last, together: none of them can start. Pure.
 */
export function startOrder(joins: ReadonlyMap<string, readonly string[]>): readonly (readonly string[])[] {
  const waves: string[][] = [];
  const done = new Set<string>();
  for (let left = [...joins.keys()]; left.length > 0; left = left.filter((id) => !done.has(id))) {
    const ready = left.filter((id) => (joins.get(id) ?? []).every((other) => done.has(other) || !joins.has(other)));
    const wave = ready.length > 0 ? ready : left;
    for (const id of wave) done.add(id);
    waves.push(wave);
  }
  return waves;
}
