/**
 * A vitest reporter that prints one last plain line, `12 passed, 0 failed`, which people and CI both read.
 * In a complete run (BERTH_TEST_COMPLETE=1) a skipped test is a failure: nothing here is optional.
 */
import type { Reporter, TestModule, Vitest } from 'vitest/node';

export default class ClosingLine implements Reporter {
  #vitest: Vitest | undefined;

  onInit(vitest: Vitest): void {
    this.#vitest = vitest;
  }

  onTestRunEnd(modules: readonly TestModule[]): void {
    const tests = modules.flatMap((module) => [...module.children.allTests()]);
    const count = (state: string) => tests.filter((test) => test.result().state === state).length;
    const skipped = tests.filter((test) => ['skipped', 'pending'].includes(test.result().state));
    const unloaded = modules.filter((module) => module.state() === 'failed' && module.children.size === 0);
    const complete = process.env.BERTH_TEST_COMPLETE === '1';
    const failed = count('failed') + unloaded.length + (complete ? skipped.length : 0);
    if (complete) {
      for (const test of skipped) this.#vitest?.logger.log(`skipped: ${test.project.name} ${test.fullName}`);
      if (skipped.length > 0) process.exitCode = 1;
    }
    const aside = skipped.length > 0 && !complete ? `, ${skipped.length} skipped` : '';
    this.#vitest?.logger.log(`${count('passed')} passed, ${failed} failed${aside}`);
  }
}
