// Reading that keeps itself fresh while somebody looks.

import { type Accessor, createEffect, createSignal, on, onCleanup } from 'solid-js';
import { createStore, reconcile } from 'solid-js/store';

export interface Live<T> {
  value: T | undefined;
  error: string | undefined;
  loading: boolean;
}

export function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Calls `tick` every `millis()` while the page can be seen, and at once when it is seen again. */
export function whileSeen(tick: () => void, millis: Accessor<number | undefined>): void {
  let last = Date.now();
  const timer = setInterval(() => {
    const every = millis();
    if (every === undefined || document.hidden || Date.now() - last < every) return;
    last = Date.now();
    tick();
  }, 250);
  onCleanup(() => clearInterval(timer));
}

/**
 * Loads whenever `source` changes, and again every `every` milliseconds. An earlier value stays until the next is there;
 * rows of it that did not change keep their identity, so that nothing that stays the same is drawn again.
 */
export function createLive<S, T>(
  source: Accessor<S | undefined>,
  load: (source: S, signal: AbortSignal) => Promise<T>,
  every: (value: T | undefined) => number | undefined = () => undefined,
): [Live<T>, () => void] {
  const [live, setLive] = createStore<{ box: { value?: T }; error: string | undefined; loading: boolean }>({
    box: {},
    error: undefined,
    loading: true,
  });
  let under: AbortController | undefined;
  const run = async (from: S) => {
    under?.abort();
    under = new AbortController();
    const { signal } = under;
    try {
      const value = await load(from, signal);
      if (signal.aborted) return;
      setLive('box', reconcile({ value }, { merge: false }));
      setLive({ error: undefined, loading: false });
    } catch (error) {
      if (!signal.aborted) setLive({ error: message(error), loading: false });
    }
  };
  createEffect(
    on(source, (from) => {
      if (from === undefined) return;
      setLive('loading', true);
      void run(from);
    }),
  );
  const again = () => {
    const from = source();
    if (from !== undefined) void run(from);
  };
  whileSeen(again, () => every(live.box.value as T | undefined));
  onCleanup(() => under?.abort());
  const view: Live<T> = {
    get value() {
      return live.box.value as T | undefined;
    },
    get error() {
      return live.error;
    },
    get loading() {
      return live.loading;
    },
  };
  return [view, again];
}

const [now, setNow] = createSignal(Date.now());
setInterval(() => document.hidden || setNow(Date.now()), 1000);

/** The present, once a second. */
export { now };
