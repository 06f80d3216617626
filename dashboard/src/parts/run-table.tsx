import { A } from '@solidjs/router';
import { createVirtualizer } from '@tanstack/solid-virtual';
import { createEffect, createMemo, createSignal, For, type JSX, Show } from 'solid-js';
import type { Row } from '../api';
import { type Column, columnId, moved, nextSort, type Sort } from '../lib/columns';
import { duration, number, when } from '../lib/format';
import { now } from '../lib/live';
import { createRows, type TableQuery } from '../lib/rows';
import { Icon } from './icons';
import { useKeys } from './keys';
import { Empty, Failure, Moment, Pill } from './states';

const ROW_PX = 34;
/** Widths of the columns that are always there: select, name, status, started, took, user. */
const FIXED = '36px minmax(var(--name-min), var(--name-max)) 96px 108px 88px 92px';

export function RunTable(props: {
  query: TableQuery | undefined;
  columns: Column[];
  setColumns: (columns: Column[]) => void;
  sort: Sort | undefined;
  setSort: (sort: Sort | undefined) => void;
  selected: ReadonlySet<string>;
  setSelected: (selected: Set<string>) => void;
  open: (row: Row) => void;
  compare: () => void;
  counted: (n: number | undefined, first: Row[]) => void;
}): JSX.Element {
  let scroller: HTMLDivElement | undefined;
  const [screen, setScreen] = createSignal<[number, number]>([0, 40]);
  const [cursor, setCursor] = createSignal(-1);
  const [dragged, setDragged] = createSignal<number>();
  const rows = createRows(() => props.query, screen);

  const virtualizer = createVirtualizer({
    get count() {
      return rows.n ?? 0;
    },
    getScrollElement: () => scroller ?? null,
    estimateSize: () => ROW_PX,
    overscan: 10,
    paddingStart: 0,
  });
  createEffect(() => {
    const items = virtualizer.getVirtualItems();
    const first = items[0];
    const last = items[items.length - 1];
    if (first && last) setScreen([first.index, last.index]);
  });
  createEffect(() => props.counted(rows.n, rows.list.filter((row) => row !== undefined).slice(0, 100)));

  const template = createMemo(() => {
    const widths = props.columns.map((column) =>
      column.table === 'metrics' ? 'minmax(112px, 150px)' : 'minmax(120px, 190px)',
    );
    return [FIXED, ...widths].join(' ');
  });
  const toggle = (id: string) => {
    const next = new Set(props.selected);
    if (!next.delete(id)) next.add(id);
    props.setSelected(next);
  };
  const stepTo = (to: number) => {
    const at = Math.max(0, Math.min((rows.n ?? 1) - 1, to));
    setCursor(at);
    virtualizer.scrollToIndex(at);
    queueMicrotask(() => scroller?.querySelector<HTMLElement>(`[data-index="${at}"] a`)?.focus());
  };
  const atCursor = () => rows.list[cursor()];
  useKeys({
    j: () => stepTo(cursor() + 1),
    k: () => stepTo(cursor() - 1),
    x: () => {
      const row = atCursor();
      if (row) toggle(row.id);
    },
    Enter: (event) => {
      const row = atCursor();
      if (row && !(event.target as HTMLElement).closest('a, button')) props.open(row);
      else (event.target as HTMLElement).click();
    },
    c: () => props.compare(),
  });

  const loaded = () => rows.list.filter((row) => row !== undefined);
  const allChosen = () => loaded().length > 0 && loaded().every((row) => props.selected.has(row.id));
  const chooseAll = () => props.setSelected(new Set(allChosen() ? [] : loaded().map((row) => row.id)));

  const Header = (head: { id?: string; title: string; table?: string; class?: string; at?: number }): JSX.Element => {
    const sorted = () => (head.id !== undefined && props.sort?.column === head.id ? props.sort : undefined);
    const move = (event: KeyboardEvent) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (head.at === undefined || by === undefined || !event.altKey) return;
      event.preventDefault();
      const to = Math.max(0, Math.min(props.columns.length - 1, head.at + by));
      props.setColumns(moved(props.columns, head.at, to));
      queueMicrotask(() => scroller?.querySelector<HTMLElement>(`[data-column="${to}"] button`)?.focus());
    };
    return (
      <div
        role="columnheader"
        class={`cell head ${head.class ?? ''}`}
        classList={{ over: head.at !== undefined && dragged() !== undefined && dragged() !== head.at }}
        aria-sort={sorted() ? (sorted()?.descending ? 'descending' : 'ascending') : 'none'}
        data-column={head.at}
        draggable={head.at !== undefined}
        onDragStart={() => setDragged(head.at)}
        onDragEnd={() => setDragged(undefined)}
        onDragOver={(event) => head.at !== undefined && dragged() !== undefined && event.preventDefault()}
        onDrop={(event) => {
          event.preventDefault();
          const from = dragged();
          if (from !== undefined && head.at !== undefined) props.setColumns(moved(props.columns, from, head.at));
          setDragged(undefined);
        }}
      >
        <Show when={head.id} fallback={<span>{head.title}</span>}>
          {(id) => (
            <button
              type="button"
              title={head.table ? `${head.table}.${head.title}` : head.title}
              onClick={() => props.setSort(nextSort(props.sort, id()))}
              onKeyDown={move}
            >
              <bdi class="clip">{head.title}</bdi>
              <Show when={sorted()}>{(sort) => <Icon name={sort().descending ? 'down' : 'up'} />}</Show>
            </button>
          )}
        </Show>
      </div>
    );
  };

  return (
    <div class="table-frame">
      <Show when={rows.error}>
        {(error) => (
          <div class="table-error" role="alert">
            {error()}
          </div>
        )}
      </Show>
      <div class="table-scroll" ref={scroller} tabindex="-1">
        <div
          class="table"
          role="table"
          aria-label="Runs"
          aria-rowcount={(rows.n ?? 0) + 1}
          aria-busy={rows.stale}
          ref={(table) => createEffect(() => table.style.setProperty('--template', template()))}
        >
          <div role="rowgroup" class="table-head">
            <div role="row" class="row" aria-rowindex="1">
              <div role="columnheader" class="cell head pick">
                <input type="checkbox" aria-label="Select all shown" checked={allChosen()} onChange={chooseAll} />
              </div>
              <Header id="attributes.run_name" title="Run" class="pinned" />
              <Header id="attributes.status" title="Status" />
              <Header id="attributes.start_time" title="Started" />
              <Header title="Took" class="n" />
              <Header id="attributes.user_id" title="User" />
              <For each={props.columns}>
                {(column, i) => (
                  <Header
                    id={columnId(column)}
                    title={column.key}
                    table={column.table}
                    class={column.table === 'metrics' ? 'n' : ''}
                    at={i()}
                  />
                )}
              </For>
            </div>
          </div>
          <div
            role="rowgroup"
            class="table-body"
            classList={{ stale: rows.stale && rows.n !== undefined }}
            ref={(body) => createEffect(() => body.style.setProperty('height', `${virtualizer.getTotalSize()}px`))}
          >
            <For each={virtualizer.getVirtualItems()}>
              {(item) => {
                const row = () => rows.list[item.index];
                return (
                  <div
                    role="row"
                    class="row body"
                    classList={{ chosen: props.selected.has(row()?.id ?? ''), at: cursor() === item.index }}
                    aria-rowindex={item.index + 2}
                    data-index={item.index}
                    ref={(element) =>
                      createEffect(() => element.style.setProperty('transform', `translateY(${item.start}px)`))
                    }
                  >
                    <Show
                      when={row()}
                      fallback={
                        <div role="cell" class="cell wait">
                          <span class="bar" />
                        </div>
                      }
                    >
                      {(row) => (
                        <>
                          <div role="cell" class="cell pick">
                            <input
                              type="checkbox"
                              aria-label={`Select ${row().name}`}
                              checked={props.selected.has(row().id)}
                              onChange={() => toggle(row().id)}
                            />
                          </div>
                          <div role="cell" class="cell pinned">
                            <A
                              href={`/runs/${row().id}`}
                              class="clip"
                              title={row().name}
                              onFocus={() => setCursor(item.index)}
                            >
                              <bdi>{row().name || row().id}</bdi>
                            </A>
                          </div>
                          <div role="cell" class="cell">
                            <Pill text={row().deleted ? 'deleted' : row().status} />
                          </div>
                          <div role="cell" class="cell soft" title={when(row().started)}>
                            <Moment at={row().started} />
                          </div>
                          <div role="cell" class="cell n soft">
                            {duration(
                              (row().ended ?? (row().status === 'RUNNING' ? now() : Number.NaN)) - row().started ||
                                null,
                            )}
                          </div>
                          <div role="cell" class="cell soft">
                            <bdi class="clip">{row().user || '–'}</bdi>
                          </div>
                          <For each={props.columns}>
                            {(column, i) => {
                              const value = () => row().cells[i()];
                              return (
                                <div
                                  role="cell"
                                  class="cell"
                                  classList={{ n: column.table === 'metrics', faint: value() === null }}
                                  title={value() === null ? '' : String(value() ?? '')}
                                >
                                  <bdi class="clip">{number(value())}</bdi>
                                </div>
                              );
                            }}
                          </For>
                        </>
                      )}
                    </Show>
                  </div>
                );
              }}
            </For>
          </div>
        </div>
        <Show when={rows.n === undefined && !rows.error}>
          <div class="table-wait" role="status" aria-label="Loading">
            <For each={Array.from({ length: 14 })}>{() => <span class="bar" />}</For>
          </div>
        </Show>
        <Show when={rows.n === 0}>
          <Empty title={props.query?.filter || props.query?.text ? 'No run matches' : 'No run yet'}>
            <Show when={!(props.query?.filter || props.query?.text)}>
              Runs appear here as they start: <code>with mlflow.start_run(): …</code>
            </Show>
          </Empty>
        </Show>
        <Show when={rows.error && rows.n === undefined}>
          <Failure what="The runs could not be read" error={rows.error ?? ''} again={rows.again} />
        </Show>
      </div>
    </div>
  );
}
