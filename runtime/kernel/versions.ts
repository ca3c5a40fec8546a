/** Comparing dotted versions, of kernels and programs. Pure. */

/** True when a version such as `6.12.3-amd64` is at least `wanted`. */
export function isAtLeast(version: string, wanted: string): boolean {
  const numbers = (text: string) => (/^\d+(?:\.\d+)*/.exec(text)?.[0] ?? '0').split('.').map(Number);
  const [have, want] = [numbers(version), numbers(wanted)];
  for (let index = 0; index < want.length; index += 1) {
    const difference = (have[index] ?? 0) - (want[index] ?? 0);
    if (difference !== 0) return difference > 0;
  }
  return true;
}
