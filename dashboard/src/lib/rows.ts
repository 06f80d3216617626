// A table of any length: the blocks on screen are read, kept, and read again while somebody looks.

import { type Accessor, createEffect, createSignal, on, onCleanup } from 'solid-js';
import { createStore, reconcile } from 'solid-js/store';
import { api, type Row, type Schemas } from '../api';
import { BLOCK, blocksOf } from './blocks';
import { message, whileSeen } from './live';

export type TableQuery = Omit<Schemas['TableQuery'], 'limit' | 'offset'>;

const RUNNING_EVERY_MS = 2000;
const EVERY_MS = 5000;

export interface Rows {
  /** Holes are rows that were not read yet. */
  readonly list: (Row | undefined)[];
  readonly n: number | undefined;
  readonly error: string | undefined;
  /** Whether `list` still shows the answer to an earlier question. */
  readonly stale: boolean;
  again: () => void;
}

export function createRows(query: Accessor<TableQuery | undefined>, screen: Accessor<[number, number]>): Rows {
  const [rows, setRows] = createStore<{ list: (Row | undefined)[]; n: number | undefined }>({ list: [], n: undefined });
  const [error, setError] = createSignal<string>();
  const [stale, setStale] = createSignal(true);
  let under = new AbortController();
  const asked = new Set<number>();

  async function read(start: number, asking: TableQuery): Promise<void> {
    asked.add(start);
    const { signal } = under;
    try {
      const page = await api.table({ ...asking, offset: start, limit: BLOCK }, signal);
      if (signal.aborted) return;
      if (stale() || rows.n !== page.n_rows) {
        const kept = stale() ? [] : rows.list.slice(0, page.n_rows);
        setRows({ list: kept, n: page.n_rows });
        setStale(false);
      }
      setRows('list', (list) => {
        const next = [...list];
        page.rows.forEach((row, i) => {
          next[start + i] = row;
        });
        return reconcile(next, { key: 'id', merge: true })(list);
      });
      setError(undefined);
    } catch (failure) {
      asked.delete(start);
      if (!signal.aborted) setError(message(failure));
    }
  }

  const needed = () => blocksOf(screen()[0], screen()[1], rows.n ?? BLOCK);
  const again = () => {
    const asking = query();
    if (!asking) return;
    asked.clear();
    for (const start of needed()) void read(start, asking);
  };
  createEffect(
    on(
      () => JSON.stringify(query()),
      () => {
        under.abort();
        under = new AbortController();
        setStale(true);
        asked.clear();
        const asking = query();
        if (asking) void read(0, asking);
      },
    ),
  );
  createEffect(() => {
    const asking = query();
    if (!asking || stale()) return;
    for (const start of needed()) if (!asked.has(start)) void read(start, asking);
  });
  whileSeen(again, () => (rows.list.some((row) => row?.status === 'RUNNING') ? RUNNING_EVERY_MS : EVERY_MS));
  onCleanup(() => under.abort());
  return {
    get list() {
      return rows.list;
    },
    get n() {
      return rows.n;
    },
    get error() {
      return error();
    },
    get stale() {
      return stale();
    },
    again,
  };
}
