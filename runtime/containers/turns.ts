/** What is done to one thing, one after another, until it is gone. */
export class Turns {
  readonly #gone: () => Error;
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #areOver = false;

  /** `gone` is what is told to those who come too late. */
  constructor(gone: () => Error) {
    this.#gone = gone;
  }

  get areOver(): boolean {
    return this.#areOver;
  }

  /** Nobody has a turn, or waits for one. */
  get areIdle(): boolean {
    return this.#waiting === 0;
  }

  /** Resolves when all that have asked by now have had their turn. */
  async settled(): Promise<void> {
    await this.#last;
  }

  /** Does it when all before it is done, whether that went well or not; also when the turns are over. */
  takeAlways<T>(work: () => Promise<T>): Promise<T> {
    this.#waiting += 1;
    const turn = this.#last.then(work).finally(() => {
      this.#waiting -= 1;
    });
    this.#last = turn.catch(() => {});
    return turn;
  }

  /** @throws what `gone` makes, when the thing went away while this waited */
  take<T>(work: () => Promise<T>): Promise<T> {
    return this.takeAlways(() => {
      if (this.#areOver) throw this.#gone();
      return work();
    });
  }

  /** It is gone. */
  end(): void {
    this.#areOver = true;
  }
}
