import { A, useNavigate, useParams } from '@solidjs/router';
import { createEffect, createMemo, createSignal, type JSX, Match, on, Show, Switch } from 'solid-js';
import { api, type Row } from '../api';
import { type Column, defaultColumns, readColumns, readSort, writeColumns, writeSort } from '../lib/columns';
import { plural } from '../lib/format';
import { createLive } from '../lib/live';
import type { TableQuery } from '../lib/rows';
import { Charts } from '../parts/charts';
import { ColumnPicker } from '../parts/column-picker';
import { useParam } from '../parts/params';
import { RunTable } from '../parts/run-table';
import { Failure } from '../parts/states';
import { Tabs } from '../parts/tabs';
import { useTitle } from '../parts/title';

/** Runs drawn before somebody chooses some. */
const MAX_DRAWN = 10;
const MAX_COMPARED = 100;
const CHARTS_EVERY_MS = 5000;
const KEYS_EVERY_MS = 30_000;
const TYPING_MS = 200;

export default function ExperimentPage(): JSX.Element {
  const route = useParams();
  const id = () => route.id ?? '';
  const navigate = useNavigate();
  const [experiment, again] = createLive(id, api.experiment, () => 5000);
  const [keys, readKeys] = createLive(id, api.keys, () => KEYS_EVERY_MS);

  const [tab, setTab] = useParam('tab', 'runs');
  const [filter, setFilter] = useParam('filter');
  const [text, setText] = useParam('q');
  const [view, setView] = useParam('view', 'active');
  const [sortText, setSortText] = useParam('sort');
  const [columnText, setColumnText] = useParam('cols');
  const [selectedText, setSelectedText] = useParam('runs');
  const sort = createMemo(() => readSort(sortText()));
  const [count, setCount] = createSignal<number>();
  const [first, setFirst] = createSignal<Row[]>([]);

  // A choice of columns is in the address, so that a link shows the same, and remembered for this experiment.
  const kept = () => `highroad.columns.${id()}`;
  const columns = createMemo<Column[] | undefined>(() => {
    const chosen = columnText() || localStorage.getItem(kept());
    if (chosen !== null) return chosen === 'none' ? [] : readColumns(chosen);
    return keys.value && defaultColumns(keys.value);
  });
  const setColumns = (next: Column[] | undefined) => {
    if (next === undefined) localStorage.removeItem(kept());
    else localStorage.setItem(kept(), writeColumns(next) || 'none');
    setColumnText(next && (writeColumns(next) || 'none'));
  };
  // A new metric of the first run of an experiment should not wait for the next look at the keys.
  createEffect(on(count, () => readKeys(), { defer: true }));

  const selected = createMemo(() => new Set(selectedText().split(',').filter(Boolean)));
  const setSelected = (ids: Set<string>) => setSelectedText([...ids].slice(0, MAX_COMPARED).join(',') || undefined);
  const query = createMemo<TableQuery>(() => {
    const by = sort();
    return {
      experiment_ids: [id()],
      filter: filter(),
      text: text(),
      view: view(),
      order_by: by ? [by] : [],
      columns: (columns() ?? []).map((column) => `${column.table}.${column.key}`),
    };
  });
  const drawn = createMemo(
    () => {
      const known = new Map(first().map((row) => [row.id, row.name]));
      const top = first().slice(0, MAX_DRAWN);
      const ids = selected().size > 0 ? [...selected()] : top.map((row) => row.id);
      return ids.map((each) => ({ id: each, name: known.get(each) || each.slice(0, 8) }));
    },
    [],
    { equals: (a, b) => JSON.stringify(a) === JSON.stringify(b) },
  );
  const compare = () => selected().size > 1 && navigate(`/compare?runs=${[...selected()].join(',')}`);

  useTitle(() => experiment.value?.name);
  return (
    <div class="page full">
      <nav class="crumbs" aria-label="Where this is">
        <A href="/">Experiments</A>
      </nav>
      <div class="page-head">
        <h1>
          <bdi>{experiment.value?.name ?? ' '}</bdi>
        </h1>
        <Show when={experiment.value?.lifecycle_stage === 'deleted'}>
          <span class="pill bad">deleted</span>
        </Show>
        <Show when={experiment.value}>
          {(value) => (
            <span class="soft nowrap">
              {plural(value().n_runs, 'run')}
              {value().n_running > 0 ? `, ${value().n_running} running` : ''}
            </span>
          )}
        </Show>
        <span class="grow" />
        <Show when={experiment.value}>
          {(value) => <span class="mono faint location clip">{value().artifact_location}</span>}
        </Show>
      </div>
      <Show when={experiment.value?.note}>{(note) => <p class="soft note">{note()}</p>}</Show>
      <Switch>
        <Match when={experiment.error && !experiment.value}>
          <Failure what="This experiment could not be read" error={experiment.error ?? ''} again={again} />
        </Match>
        <Match when={true}>
          <Tabs
            label="Views of the experiment"
            chosen={tab()}
            choose={setTab}
            tabs={[
              { id: 'runs', title: 'Runs', count: count() },
              { id: 'charts', title: 'Charts' },
            ]}
          />
          <div class="controls">
            <DelayedField
              label="Quick search"
              hint="Name, id or user"
              class="search quick"
              value={text()}
              set={setText}
              search
            />
            <DelayedField
              label="Filter"
              hint="metrics.loss < 0.3 AND params.lr = '0.1'"
              class="filter mono"
              value={filter()}
              set={setFilter}
              whole
            />
            <label class="control">
              <span class="visually-hidden">Which runs</span>
              <select value={view()} onChange={(event) => setView(event.target.value)}>
                <option value="active">Active</option>
                <option value="deleted">Deleted</option>
                <option value="all">All</option>
              </select>
            </label>
            <ColumnPicker keys={keys.value} columns={columns() ?? []} setColumns={setColumns} />
            <span class="grow" />
            <Show when={selected().size > 0}>
              <span class="soft nowrap">{selected().size} selected</span>
              <button type="button" class="button quiet" onClick={() => setSelected(new Set())}>
                Clear
              </button>
            </Show>
            <button
              type="button"
              class="button accent"
              disabled={selected().size < 2}
              onClick={compare}
              title="Compare the selected runs (c)"
            >
              Compare
            </button>
          </div>
          <div
            role="tabpanel"
            aria-labelledby={`tab-${tab()}`}
            class="panel"
            classList={{ scrolls: tab() === 'charts' }}
          >
            <div class="fill" hidden={tab() === 'charts'}>
              <RunTable
                query={query()}
                columns={columns() ?? []}
                setColumns={setColumns}
                sort={sort()}
                setSort={(next) => setSortText(writeSort(next))}
                selected={selected()}
                setSelected={setSelected}
                open={(row) => navigate(`/runs/${row.id}`)}
                compare={compare}
                counted={(n, rows) => {
                  setCount(n);
                  setFirst(rows);
                }}
              />
            </div>
            <Show when={tab() === 'charts'}>
              <p class="soft note">
                {selected().size > 0
                  ? plural(drawn().length, 'selected run')
                  : `The first ${drawn().length} of the table, as it is sorted and filtered; select runs there to draw others`}
              </p>
              <Show when={drawn().length > 0}>
                <Charts
                  metrics={(keys.value?.metrics ?? []).map(({ key }) => key)}
                  runs={drawn()}
                  every={experiment.value && experiment.value.n_running > 0 ? CHARTS_EVERY_MS : undefined}
                />
              </Show>
            </Show>
          </div>
        </Match>
      </Switch>
    </div>
  );
}

/** A field whose value is taken over with Enter, when it is left, and unless it only makes sense `whole` when typing pauses. */
function DelayedField(props: {
  label: string;
  hint: string;
  class: string;
  value: string;
  set: (value: string | undefined) => void;
  search?: boolean;
  whole?: boolean;
}): JSX.Element {
  let timer: ReturnType<typeof setTimeout> | undefined;
  return (
    <label class={`field ${props.class}`}>
      <span class="visually-hidden">{props.label}</span>
      <input
        type="search"
        spellcheck={false}
        autocomplete="off"
        placeholder={props.hint}
        value={props.value}
        data-search={props.search ? '' : undefined}
        onChange={(event) => props.set(event.target.value)}
        onInput={(event) => {
          clearTimeout(timer);
          const isCleared = event.target.value === '';
          if (!props.whole || isCleared) timer = setTimeout(() => props.set(event.target.value), TYPING_MS);
        }}
        onKeyDown={(event) => {
          if (event.key === 'Enter') props.set(event.currentTarget.value);
          if (event.key === 'Escape') event.currentTarget.blur();
        }}
      />
    </label>
  );
}
