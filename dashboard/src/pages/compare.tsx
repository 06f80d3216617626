import { A } from '@solidjs/router';
import { createMemo, For, type JSX, Match, Show, Switch } from 'solid-js';
import { api, type ComparedRun } from '../api';
import { change, diff } from '../lib/diff';
import { duration, number, plural } from '../lib/format';
import { createLive, now } from '../lib/live';
import { Parallel, Scatter } from '../parts/axes-charts';
import { Swatch } from '../parts/chart';
import { Charts } from '../parts/charts';
import { useParam } from '../parts/params';
import { Empty, Failure, Moment, Pill, Skeleton } from '../parts/states';
import { Tabs } from '../parts/tabs';
import { useTitle } from '../parts/title';

const RUNNING_EVERY_MS = 3000;

export default function Compare(): JSX.Element {
  const [ids, setIds] = useParam('runs');
  const [tab, setTab] = useParam('tab', 'diff');
  const [all, setAll] = useParam('all');
  const wanted = createMemo(() => ids().split(',').filter(Boolean));
  const [found, again] = createLive(
    () => wanted().join(','),
    (_, signal) => api.runs(wanted(), signal),
    (value) => (value?.runs.some((run) => run.status === 'RUNNING') ? RUNNING_EVERY_MS : undefined),
  );
  const runs = () => found.value?.runs ?? [];
  const metrics = createMemo(() => [...new Set(runs().flatMap((run) => run.metrics.map(({ key }) => key)))].sort());
  const remove = (id: string) =>
    setIds(
      wanted()
        .filter((each) => each !== id)
        .join(','),
    );
  useTitle(() => 'Compare');
  return (
    <div class="page">
      <nav class="crumbs" aria-label="Where this is">
        <A href="/">Experiments</A>
        <Show when={runs()[0]}>{(run) => <A href={`/experiments/${run().experiment_id}`}>Runs</A>}</Show>
      </nav>
      <div class="page-head">
        <h1>Compare {plural(wanted().length, 'run')}</h1>
      </div>
      <Switch>
        <Match when={found.error && !found.value}>
          <Failure what="These runs could not be read" error={found.error ?? ''} again={again} />
        </Match>
        <Match when={!found.value}>
          <Skeleton rows={8} />
        </Match>
        <Match when={runs().length === 0}>
          <Empty title="No run to compare">
            Select two or more in the table of an <A href="/">experiment</A>.
          </Empty>
        </Match>
        <Match when={true}>
          <Show when={runs().length < wanted().length}>
            <p class="soft">{plural(wanted().length - runs().length, 'run')} of this link cannot be found.</p>
          </Show>
          <Tabs
            label="Views of the comparison"
            chosen={tab()}
            choose={setTab}
            tabs={[
              { id: 'diff', title: 'Differences' },
              { id: 'curves', title: 'Curves', count: metrics().length },
              { id: 'parallel', title: 'Parallel' },
              { id: 'scatter', title: 'Scatter' },
            ]}
          />
          <div role="tabpanel" aria-labelledby={`tab-${tab()}`} class="panel">
            <Show when={tab() !== 'diff'}>
              <Legend runs={runs()} />
            </Show>
            <Switch>
              <Match when={tab() === 'curves'}>
                <Charts
                  metrics={metrics()}
                  runs={runs()}
                  every={runs().some((run) => run.status === 'RUNNING') ? RUNNING_EVERY_MS : undefined}
                />
              </Match>
              <Match when={tab() === 'parallel'}>
                <Parallel runs={runs()} />
              </Match>
              <Match when={tab() === 'scatter'}>
                <Scatter runs={runs()} />
              </Match>
              <Match when={true}>
                <Differences
                  runs={runs()}
                  all={all() === '1'}
                  setAll={(yes) => setAll(yes ? '1' : undefined)}
                  remove={remove}
                />
              </Match>
            </Switch>
          </div>
        </Match>
      </Switch>
    </div>
  );
}

function Legend(props: { runs: ComparedRun[] }): JSX.Element {
  return (
    <ul class="legend">
      <For each={props.runs}>
        {(run, n) => (
          <li>
            <Swatch n={n()} />
            <A href={`/runs/${run.id}`} class="clip">
              <bdi>{run.name || run.id}</bdi>
            </A>
          </li>
        )}
      </For>
    </ul>
  );
}

function Differences(props: {
  runs: ComparedRun[];
  all: boolean;
  setAll: (yes: boolean) => void;
  remove: (id: string) => void;
}): JSX.Element {
  const groups = createMemo(() =>
    (['metrics', 'params', 'tags'] as const).map((table) => {
      const rows = diff(props.runs, table).filter(
        ({ key }) => table !== 'tags' || !key.startsWith('mlflow.') || key.startsWith('mlflow.source.git'),
      );
      return { table, rows, shown: props.all ? rows : rows.filter(({ differs }) => differs) };
    }),
  );
  const hidden = () => groups().reduce((sum, { rows, shown }) => sum + rows.length - shown.length, 0);
  return (
    <>
      <div class="controls">
        <label class="control">
          <input type="checkbox" checked={props.all} onChange={(event) => props.setAll(event.target.checked)} />
          Show what is the same
        </label>
        <Show when={!props.all && hidden() > 0}>
          <span class="soft">{plural(hidden(), 'key')} with the same value in every run</span>
        </Show>
      </div>
      <section class="card scroll" tabindex="0" aria-label="Differences">
        <table class="rows diff">
          <thead>
            <tr>
              <td />
              <For each={props.runs}>
                {(run, n) => (
                  <th scope="col">
                    <Swatch n={n()} />
                    <A href={`/runs/${run.id}`}>
                      <bdi>{run.name || run.id}</bdi>
                    </A>
                    <button
                      type="button"
                      class="button quiet small"
                      aria-label={`Take ${run.name} out`}
                      onClick={() => props.remove(run.id)}
                    >
                      ×
                    </button>
                  </th>
                )}
              </For>
            </tr>
          </thead>
          <tbody>
            <tr>
              <th scope="row">Status</th>
              <For each={props.runs}>
                {(run) => (
                  <td>
                    <Pill text={run.status} />
                  </td>
                )}
              </For>
            </tr>
            <tr>
              <th scope="row">Started</th>
              <For each={props.runs}>
                {(run) => (
                  <td class="soft">
                    <Moment at={run.started} />
                  </td>
                )}
              </For>
            </tr>
            <tr>
              <th scope="row">Took</th>
              <For each={props.runs}>
                {(run) => (
                  <td class="soft">
                    {duration((run.ended ?? (run.status === 'RUNNING' ? now() : run.started)) - run.started)}
                  </td>
                )}
              </For>
            </tr>
            <tr>
              <th scope="row">Data</th>
              <For each={props.runs}>{(run) => <td class="soft">{run.datasets.join(', ') || '–'}</td>}</For>
            </tr>
          </tbody>
          <For each={groups()}>
            {(group) => (
              <Show when={group.shown.length > 0}>
                <tbody>
                  <tr class="group-row">
                    <th scope="rowgroup" colspan={props.runs.length + 1}>
                      {group.table[0]?.toUpperCase()}
                      {group.table.slice(1)}
                    </th>
                  </tr>
                  <For each={group.shown}>
                    {(row) => (
                      <tr classList={{ differs: row.differs }}>
                        <th scope="row">
                          <bdi>{row.key}</bdi>
                        </th>
                        <For each={row.values}>
                          {(value, n) => (
                            <td
                              class="value"
                              classList={{ other: row.differs && n() > 0 && value !== row.values[0] }}
                              title={String(value ?? 'not logged')}
                            >
                              <bdi>{group.table === 'metrics' ? number(value) : (value ?? '–')}</bdi>
                              <Show when={n() > 0 && change(value, row.values[0])}>
                                {(text) => <span class="change">{text()}</span>}
                              </Show>
                            </td>
                          )}
                        </For>
                      </tr>
                    )}
                  </For>
                </tbody>
              </Show>
            )}
          </For>
        </table>
      </section>
    </>
  );
}
