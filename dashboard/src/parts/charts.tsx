// Charts of many metrics with one set of controls.

import { createMemo, createSignal, For, type JSX, Show } from 'solid-js';
import { plural } from '../lib/format';
import type { XAxis } from '../lib/series';
import { Chart, type ChartRun, type ChartSettings } from './chart';
import { useParam } from './params';
import { Empty } from './states';

/** Charts put on a page before somebody asks for more: each is a canvas. */
const MAX_AT_ONCE = 48;

export function Charts(props: {
  metrics: string[];
  runs: ChartRun[];
  stampOf?: (metric: string) => string | undefined;
  every?: number | undefined;
}): JSX.Element {
  const [smoothing, setSmoothing] = useParam('smooth', '0');
  const [axis, setAxis] = useParam('x', 'step');
  const [log, setLog] = useParam('log', '');
  const [find, setFind] = useParam('metric', '');
  const [limit, setLimit] = createSignal(MAX_AT_ONCE);
  const settings = createMemo<ChartSettings>(() => ({
    smoothing: Math.min(0.999, Math.max(0, Number(smoothing()) || 0)),
    axis: (['step', 'time', 'relative'].includes(axis()) ? axis() : 'step') as XAxis,
    log: log() === '1',
  }));
  const matching = createMemo(() => {
    const wanted = find().toLowerCase();
    return props.metrics.filter((metric) => metric.toLowerCase().includes(wanted));
  });
  /** `train/loss` and `train/accuracy` stand together under `train`. */
  const groups = createMemo(() => {
    const found = new Map<string, string[]>();
    for (const metric of matching().slice(0, limit())) {
      const slash = metric.lastIndexOf('/');
      const group = slash > 0 ? metric.slice(0, slash) : '';
      found.set(group, [...(found.get(group) ?? []), metric]);
    }
    return [...found];
  });
  return (
    <section class="charts-part" aria-label="Metric charts">
      <div class="controls">
        <label class="field search">
          <span class="visually-hidden">Find metrics</span>
          <input
            type="search"
            placeholder="Find metrics"
            value={find()}
            onInput={(event) => setFind(event.target.value)}
          />
        </label>
        <label class="control">
          Smoothing
          <input
            type="range"
            min="0"
            max="0.99"
            step="0.01"
            value={settings().smoothing}
            onInput={(event) => setSmoothing(event.target.value)}
          />
          <output>{settings().smoothing.toFixed(2)}</output>
        </label>
        <label class="control">
          Along
          <select value={settings().axis} onChange={(event) => setAxis(event.target.value)}>
            <option value="step">Step</option>
            <option value="relative">Time since start</option>
            <option value="time">Clock</option>
          </select>
        </label>
        <label class="control">
          <input
            type="checkbox"
            checked={settings().log}
            onChange={(event) => setLog(event.target.checked ? '1' : undefined)}
          />
          Log scale
        </label>
      </div>
      <For
        each={groups()}
        fallback={
          <Empty title={props.metrics.length === 0 ? 'No metric yet' : 'No metric has this in its name'}>
            <Show when={props.metrics.length === 0}>
              A run's metrics appear here as it logs them: <code>mlflow.log_metric("loss", 0.5, step=1)</code>
            </Show>
          </Empty>
        }
      >
        {([group, metrics]) => (
          <>
            <h2 class={group ? 'group' : 'visually-hidden'}>
              <bdi>{group || 'Metrics'}</bdi>
            </h2>
            <div class="charts">
              <For each={metrics}>
                {(metric) => (
                  <Chart
                    metric={metric}
                    runs={props.runs}
                    settings={settings()}
                    stamp={props.stampOf?.(metric)}
                    every={props.every}
                  />
                )}
              </For>
            </div>
          </>
        )}
      </For>
      <Show when={matching().length > limit()}>
        <button type="button" class="button" onClick={() => setLimit(limit() + MAX_AT_ONCE)}>
          Show more of {plural(matching().length, 'metric')}
        </button>
      </Show>
    </section>
  );
}
