/**
 * Looks after what networks have on the host while containers use them: others flush rules, change the firewall's
 * policies and delete bridges. Word of changed rules comes from nft at once; links are looked at every few seconds, and
 * rules with them while there is no such word: nft may not be able to listen, and may end.
 */
import { messageOf } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Nft } from '../kernel/nft.ts';

/**
 * What to do about rules: nothing; to see whether they are as they were; the same, and to write them again when nobody has
 * seen them since they were written; or to write them again.
 */
export type RulesCheck = 'trust' | 'look' | 'doubt' | 'rewrite';

export interface Watch extends AsyncDisposable {
  /** There is something to look after from now on. */
  begin(): void;
}

export interface WatchOptions {
  readonly nft: Pick<Nft, 'watch'>;
  /** Of our tables: whatever others do to them is damage. */
  readonly tableName: string;
  /** false = there is nothing any more. */
  readonly isNeeded: () => boolean;
  /** Puts in order what is not as it should be. Calls never overlap. */
  readonly check: (rules: RulesCheck) => Promise<void>;
  readonly log: Log;
}

const LINKS_MS = 5000;
/** Word can be missed when there is too much of it at once. */
const LOOK_ALWAYS_MS = 60_000;
/** Who changes many rules one by one is followed at this pace. */
const RULES_MS = 500;
/** What cannot listen ends again and again: it is begun no more often than this. */
const LISTEN_MS = 60_000;

export function createWatch({ nft, tableName, isNeeded, check, log }: WatchOptions): Watch {
  let timer: NodeJS.Timeout | undefined;
  let soon: NodeJS.Timeout | undefined;
  let isDamaged = false;
  let word: ReturnType<Nft['watch']> | undefined;
  let listenedAt = Number.NEGATIVE_INFINITY;
  let lastRulesAt = Number.NEGATIVE_INFINITY;
  let running: Promise<void> = Promise.resolve();

  const run = (rules: RulesCheck): void => {
    running = running
      .then(() => check(rules))
      .catch((error) => log.warn('networks could not be checked', { error }))
      .then(() => {
        if (rules !== 'trust') lastRulesAt = performance.now();
      });
  };

  const listen = (): void => {
    // What happens before it listens is found by the first tick.
    lastRulesAt = Number.NEGATIVE_INFINITY;
    listenedAt = performance.now();
    const listening = nft.watch((lines) => {
      isDamaged ||= lines.some((line) => line.split(' ').includes(tableName));
      soon ??= setTimeout(
        () => {
          run(isDamaged ? 'rewrite' : 'look');
          soon = undefined;
          isDamaged = false;
        },
        Math.max(0, lastRulesAt + RULES_MS - performance.now()),
      ).unref();
    });
    word = listening;
    void listening.ended.then((why) => {
      if (word !== listening) return;
      word = undefined;
      log.warn('until it is listened to again, changes of the firewall are found by looking', { why });
    });
  };

  const end = async (): Promise<void> => {
    clearInterval(timer);
    clearTimeout(soon);
    timer = undefined;
    soon = undefined;
    const listening = word;
    word = undefined;
    await listening?.[Symbol.asyncDispose]();
  };

  const tick = (): void => {
    const isDue = word === undefined || performance.now() - lastRulesAt > LOOK_ALWAYS_MS;
    if (!isNeeded()) {
      end().catch((error) => log.warn('the firewall is still listened to', { error: messageOf(error) }));
      return;
    }
    if (word === undefined && performance.now() - listenedAt > LISTEN_MS) listen();
    run(isDue ? 'doubt' : 'trust');
  };

  return {
    begin() {
      if (timer !== undefined) return;
      timer = setInterval(tick, LINKS_MS).unref();
      listen();
    },
    async [Symbol.asyncDispose]() {
      await end();
      await running;
    },
  };
}
