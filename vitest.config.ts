import { defineConfig } from 'vitest/config';

// Four projects, by what a test needs: nothing (unit), a disk (contract), root and the kernel (kernel),
// whole programs and other people's clients (e2e). Kernel and e2e tests share one host; three files at a time
// keep two cores busy while they wait for disks and programs. Files go largest first, so that none is left alone at the end.
// Long limits and a second try are for a host that is busy with something else; what fails twice is wrong.
const patient = { expect: { poll: { timeout: 20_000 } } };
const inProcess = { ...patient, maxWorkers: 2, testTimeout: 30_000 } as const;
const onHost = {
  ...patient,
  retry: 1,
  pool: 'forks',
  maxWorkers: 3,
  testTimeout: 60_000,
  hookTimeout: 120_000,
} as const;

export default defineConfig({
  test: {
    reporters: ['default', './test/closing-line.ts'],
    projects: [
      { test: { name: 'unit', include: ['test/unit/**/*.test.ts'], sequence: { groupOrder: 0 }, ...inProcess } },
      {
        test: { name: 'contract', include: ['test/contract/**/*.test.ts'], sequence: { groupOrder: 0 }, ...inProcess },
      },
      { test: { name: 'kernel', include: ['test/kernel/**/*.test.ts'], sequence: { groupOrder: 1 }, ...onHost } },
      { test: { name: 'e2e', include: ['test/e2e/**/*.test.ts'], sequence: { groupOrder: 1 }, ...onHost } },
    ],
  },
});
