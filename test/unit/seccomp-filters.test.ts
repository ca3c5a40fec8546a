import { expect, it } from 'vitest';
import { createSeccompFilters } from '../../runtime/containers/seccomp-filters.ts';
import type { OciSpec } from '../../runtime/containers/spec.ts';

const ANNOTATION = 'run.oci.seccomp_bpf_data';
const spec = (action: string, annotations?: Readonly<Record<string, string>>): OciSpec =>
  ({
    ...(annotations && { annotations }),
    linux: { seccomp: { defaultAction: 'SCMP_ACT_ERRNO', syscalls: [{ names: ['read'], action }] } },
  }) as unknown as OciSpec;
const given = (answer: OciSpec) => answer.annotations?.[ANNOTATION];

it('a filter is used again for the same profile alone, and learned once', async () => {
  const asked: string[] = [];
  const filters = createSeccompFilters({
    async compiledOf(id) {
      asked.push(id);
      return id === 'bad' ? Buffer.alloc(9) : Buffer.alloc(16, id);
    },
  });
  const first = filters.applied('a', spec('SCMP_ACT_ALLOW'));
  expect(given(first)).toBeUndefined();
  expect(given(filters.applied('b', spec('SCMP_ACT_ALLOW')))).toBeUndefined();
  await filters.created('a');
  await filters.created('a');
  await filters.created('nobody');
  expect(asked).toEqual(['a']);
  const again = filters.applied('c', spec('SCMP_ACT_ALLOW', { mine: '1' }));
  expect(again.annotations).toEqual({ mine: '1', [ANNOTATION]: Buffer.alloc(16, 'a').toString('base64') });
  expect(again.linux.seccomp).toEqual(first.linux.seccomp);
  // Another profile, whose filter is none.
  expect(given(filters.applied('bad', spec('SCMP_ACT_LOG')))).toBeUndefined();
  await filters.created('bad');
  expect(given(filters.applied('d', spec('SCMP_ACT_LOG')))).toBeUndefined();
});

it('nothing is learned from a container that brings a filter of its own, or asks', async () => {
  const filters = createSeccompFilters({ compiledOf: async () => Buffer.alloc(8) });
  expect(given(filters.applied('a', spec('SCMP_ACT_ALLOW', { [ANNOTATION]: 'own' })))).toBe('own');
  filters.applied('b', spec('SCMP_ACT_NOTIFY'));
  for (const id of ['a', 'b']) await filters.created(id);
  expect(given(filters.applied('c', spec('SCMP_ACT_ALLOW')))).toBeUndefined();
  expect(given(filters.applied('d', spec('SCMP_ACT_NOTIFY')))).toBeUndefined();
});
