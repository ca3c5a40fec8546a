/**
 * Compiled seccomp filters, used again: crun takes 25 of the 45 ms of a create to compile Docker's profile, each time.
 * What it made of a profile for one container is handed to it with the next one of the same profile, by an annotation.
 * https://github.com/containers/crun/blob/1.8.1/crun.1.md#runociseccomp_bpf_databpf_data
 *
 * The profile stays in config.json: a runtime that does not know the annotation compiles it as ever.
 */
import type { OciSpec } from './spec.ts';

export interface SeccompFilters {
  /** The spec with the filter of its profile, if there is one by now. `containerId` may tell it later. */
  applied(containerId: string, spec: OciSpec): OciSpec;
  /** The runtime has made this container. Never rejects. */
  created(containerId: string): Promise<void>;
}

export interface SeccompFiltersOptions {
  /** What the runtime compiled for a container that it made; undefined = it keeps none. */
  readonly compiledOf: (containerId: string) => Promise<Buffer | undefined>;
}

const ANNOTATION = 'run.oci.seccomp_bpf_data';
/** Of eight bytes each; the kernel takes no more (BPF_MAXINSNS). */
const INSTRUCTIONS_MAX = 4096;
const INSTRUCTION_BYTES = 8;
/** Few engines see more profiles. */
const FILTERS_MAX = 32;

export function createSeccompFilters({ compiledOf }: SeccompFiltersOptions): SeccompFilters {
  /** By profile as JSON; in base64. */
  const filters = new Map<string, string>();
  /** Profiles whose filter a container will tell, by its id. */
  const expected = new Map<string, string>();
  return {
    applied(containerId, spec) {
      expected.delete(containerId);
      const { seccomp } = spec.linux;
      // Who brings a filter, or is asked about calls, is left alone: nothing is learned from either.
      if (seccomp === undefined || spec.annotations?.[ANNOTATION] !== undefined) return spec;
      if (seccomp.syscalls.some(({ action }) => action === 'SCMP_ACT_NOTIFY')) return spec;
      const profile = JSON.stringify(seccomp);
      const filter = filters.get(profile);
      if (filter !== undefined) return { ...spec, annotations: { ...spec.annotations, [ANNOTATION]: filter } };
      if (filters.size < FILTERS_MAX) expected.set(containerId, profile);
      return spec;
    },
    async created(containerId) {
      const profile = expected.get(containerId);
      if (!expected.delete(containerId) || profile === undefined) return;
      const filter = await compiledOf(containerId).catch(() => undefined);
      if (filter === undefined || filter.length === 0 || filter.length % INSTRUCTION_BYTES !== 0) return;
      if (filter.length <= INSTRUCTIONS_MAX * INSTRUCTION_BYTES) filters.set(profile, filter.toString('base64'));
    },
  };
}
