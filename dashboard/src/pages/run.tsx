import { A, useParams } from '@solidjs/router';
import { createMemo, For, type JSX, Match, Show, Switch } from 'solid-js';
import { api, type RunDetail } from '../api';
import { duration, number, when } from '../lib/format';
import { createLive, now } from '../lib/live';
import { Artifacts } from '../parts/artifacts';
import { Charts } from '../parts/charts';
import { Pairs } from '../parts/pairs';
import { useParam } from '../parts/params';
import { Failure, Moment, Pill, Skeleton } from '../parts/states';
import { Tabs } from '../parts/tabs';
import { useTitle } from '../parts/title';

const RUNNING_EVERY_MS = 1000;
/** A run that ended may still get tags, versions and a second life. */
const ENDED_EVERY_MS = 15_000;

export default function RunPage(): JSX.Element {
  const route = useParams();
  const id = () => route.id ?? '';
  const [run, again] = createLive(id, api.run, (value) =>
    value?.status === 'RUNNING' ? RUNNING_EVERY_MS : ENDED_EVERY_MS,
  );
  const [tab, setTab] = useParam('tab', 'charts');
  const [path, setPath] = useParam('path');
  /** The logged model whose artifacts are shown; nothing for the run's own. */
  const [of, setOf] = useParam('of');
  const metrics = createMemo(() => run.value?.metrics.map(({ key }) => key) ?? [], [], {
    equals: (a, b) => a.join('\n') === b.join('\n'),
  });
  const runs = createMemo(() => [{ id: id(), name: run.value?.name || id().slice(0, 8) }]);
  /** Changes when there is something new to draw. */
  const stampOf = (metric: string) => {
    const latest = run.value?.metrics.find(({ key }) => key === metric);
    return latest && `${latest.step} ${latest.time} ${latest.value}`;
  };
  useTitle(() => run.value?.name);
  return (
    <div class="page">
      <nav class="crumbs" aria-label="Where this is">
        <A href="/">Experiments</A>
        <Show when={run.value}>
          {(value) => (
            <A href={`/experiments/${value().experiment_id}`}>
              <bdi>{value().experiment_name}</bdi>
            </A>
          )}
        </Show>
      </nav>
      <Switch>
        <Match when={run.error && !run.value}>
          <h1>Run</h1>
          <Failure what="This run could not be read" error={run.error ?? ''} again={again} />
        </Match>
        <Match when={!run.value}>
          <h1>Run</h1>
          <Skeleton rows={8} />
        </Match>
        <Match when={run.value}>
          {(value) => (
            <>
              <div class="page-head">
                <h1>
                  <bdi>{value().name || value().id}</bdi>
                </h1>
                <Pill text={value().deleted ? 'deleted' : value().status} />
              </div>
              <ul class="facts soft">
                <li class="mono">{value().id}</li>
                <li title={when(value().started)}>
                  started <Moment at={value().started} />
                </li>
                <Show when={value().ended ?? (value().status === 'RUNNING' ? now() : undefined)}>
                  {(end) => (
                    <li>
                      {value().ended === null
                        ? `for ${duration(end() - value().started)}`
                        : `took ${duration(end() - value().started)}`}
                    </li>
                  )}
                </Show>
                <Show when={value().user}>
                  <li>
                    by <bdi>{value().user}</bdi>
                  </li>
                </Show>
                <For each={value().versions}>
                  {(version) => (
                    <li>
                      registered as{' '}
                      <A href={`/models/${encodeURIComponent(version.name)}`}>
                        {version.name}:{version.version}
                      </A>
                    </li>
                  )}
                </For>
              </ul>
              <Tabs
                label="Views of the run"
                chosen={tab()}
                choose={setTab}
                tabs={[
                  { id: 'charts', title: 'Charts', count: value().metrics.length },
                  { id: 'overview', title: 'Overview' },
                  { id: 'data', title: 'Data and models', count: value().datasets.length + value().models.length },
                  { id: 'artifacts', title: 'Artifacts' },
                ]}
              />
              <div role="tabpanel" aria-labelledby={`tab-${tab()}`} class="panel">
                <Switch>
                  <Match when={tab() === 'overview'}>
                    <Overview run={value()} />
                  </Match>
                  <Match when={tab() === 'data'}>
                    <DataAndModels run={value()} />
                  </Match>
                  <Match when={tab() === 'artifacts'}>
                    <Show when={value().models.length > 0}>
                      <div class="controls">
                        <label class="control">
                          Of
                          <select
                            value={of()}
                            onChange={(event) => {
                              setPath(undefined);
                              setOf(event.target.value);
                            }}
                          >
                            <option value="">the run</option>
                            <For each={value().models}>
                              {(model) => <option value={model.id}>{`model ${model.name}`}</option>}
                            </For>
                          </select>
                        </label>
                      </div>
                    </Show>
                    <Show when={of() || 'run'} keyed>
                      {(owner) => (
                        <Artifacts
                          owner={owner === 'run' ? { run_id: id() } : { model_id: owner }}
                          chosen={path()}
                          choose={setPath}
                          live={value().status === 'RUNNING'}
                        />
                      )}
                    </Show>
                  </Match>
                  <Match when={true}>
                    <Charts metrics={metrics()} runs={runs()} stampOf={stampOf} />
                  </Match>
                </Switch>
              </div>
            </>
          )}
        </Match>
      </Switch>
    </div>
  );
}

function Overview(props: { run: RunDetail }): JSX.Element {
  const own = () => props.run.tags.filter(({ key }) => !key.startsWith('mlflow.'));
  const system = () => props.run.tags.filter(({ key }) => key.startsWith('mlflow.'));
  return (
    <div class="two">
      <div class="stack">
        <section class="card pairs" aria-label="Metrics">
          <div class="card-head">
            <h2>
              Metrics <span class="count">{props.run.metrics.length}</span>
            </h2>
          </div>
          <Show when={props.run.metrics.length > 0} fallback={<p class="soft none">None was logged.</p>}>
            <table class="rows tight">
              <thead>
                <tr>
                  <th scope="col">Metric</th>
                  <th scope="col" class="n">
                    Last value
                  </th>
                  <th scope="col" class="n">
                    Step
                  </th>
                </tr>
              </thead>
              <tbody>
                <For each={props.run.metrics}>
                  {(metric) => (
                    <tr>
                      <td>
                        <bdi>{metric.key}</bdi>
                      </td>
                      <td class="n" title={String(metric.value)}>
                        {number(metric.value)}
                      </td>
                      <td class="n soft">{metric.step.toLocaleString('en')}</td>
                    </tr>
                  )}
                </For>
              </tbody>
            </table>
          </Show>
        </section>
      </div>
      <div class="stack">
        <Pairs title="Params" pairs={props.run.params} empty="None was logged." />
        <Pairs title="Tags" pairs={own()} empty="None was set." />
        <Pairs title="Tags of MLflow" pairs={system()} empty="None was set." />
      </div>
    </div>
  );
}

function DataAndModels(props: { run: RunDetail }): JSX.Element {
  return (
    <div class="stack">
      <section aria-labelledby="datasets-title">
        <h2 id="datasets-title">Datasets it read</h2>
        <Show when={props.run.datasets.length > 0} fallback={<p class="soft">None was logged.</p>}>
          <div class="card scroll">
            <table class="rows">
              <thead>
                <tr>
                  <th scope="col">Dataset</th>
                  <th scope="col">For</th>
                  <th scope="col">Digest</th>
                  <th scope="col">Source</th>
                  <th scope="col">Profile</th>
                </tr>
              </thead>
              <tbody>
                <For each={props.run.datasets}>
                  {(dataset) => (
                    <tr>
                      <td>
                        <bdi>{dataset.name}</bdi>
                      </td>
                      <td>{dataset.context ?? '–'}</td>
                      <td class="mono">{dataset.digest}</td>
                      <td class="mono long" title={dataset.source}>
                        {dataset.source_type}
                      </td>
                      <td class="mono long">
                        <Show when={dataset.schema || dataset.profile} fallback="–">
                          <details>
                            <summary>{(dataset.profile ?? dataset.schema ?? '').slice(0, 60)}</summary>
                            <pre>{[dataset.profile, dataset.schema].filter(Boolean).join('\n')}</pre>
                          </details>
                        </Show>
                      </td>
                    </tr>
                  )}
                </For>
              </tbody>
            </table>
          </div>
        </Show>
      </section>
      <section aria-labelledby="models-title">
        <h2 id="models-title">Logged models</h2>
        <Show when={props.run.models.length > 0} fallback={<p class="soft">None was logged.</p>}>
          <div class="card scroll">
            <table class="rows">
              <thead>
                <tr>
                  <th scope="col">Model</th>
                  <th scope="col">Direction</th>
                  <th scope="col">Status</th>
                  <th scope="col">Made</th>
                  <th scope="col">Registered as</th>
                  <th scope="col">Metrics</th>
                </tr>
              </thead>
              <tbody>
                <For each={props.run.models}>
                  {(model) => (
                    <tr>
                      <td>
                        <bdi>{model.name}</bdi>
                        <br />
                        <span class="mono faint">{model.id}</span>
                      </td>
                      <td>{model.direction}</td>
                      <td>
                        <Pill text={model.status} />
                      </td>
                      <td class="soft nowrap">
                        <Moment at={model.created} />
                      </td>
                      <td>
                        <For each={model.versions} fallback={<span class="faint">–</span>}>
                          {(version) => (
                            <A href={`/models/${encodeURIComponent(version.name)}`}>
                              {version.name}:{version.version}{' '}
                            </A>
                          )}
                        </For>
                      </td>
                      <td class="soft">
                        <For each={model.metrics} fallback={<span class="faint">–</span>}>
                          {(metric) => (
                            <div>
                              <bdi>{metric.key}</bdi> {number(metric.value)}
                            </div>
                          )}
                        </For>
                      </td>
                    </tr>
                  )}
                </For>
              </tbody>
            </table>
          </div>
        </Show>
      </section>
    </div>
  );
}
