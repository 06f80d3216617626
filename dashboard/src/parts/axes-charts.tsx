// Runs as points between two axes and as lines across many: which params go with which results.

import { createMemo, createSignal, For, type JSX, Show } from 'solid-js';
import type { ComparedRun } from '../api';
import { axisOf } from '../lib/diff';
import { number } from '../lib/format';
import { lineColor } from '../lib/palette';
import { theme } from './frame';
import { useParam } from './params';
import { Empty } from './states';

const WIDTH = 1000;
const HEIGHT = 380;
const MAX_AXES = 10;
const MAX_LABELS = 12;

/** `metrics.loss` of a run. */
function readOf(run: ComparedRun, id: string): number | string | undefined {
  const dot = id.indexOf('.');
  const [table, key] = [id.slice(0, dot), id.slice(dot + 1)];
  const list: { key: string; value: number | string }[] = table === 'metrics' ? run.metrics : run.params;
  return list.find((each) => each.key === key)?.value;
}

function axesOf(runs: ComparedRun[]): string[] {
  const ids = (table: 'params' | 'metrics') => runs.flatMap((run) => run[table].map(({ key }) => `${table}.${key}`));
  return [...new Set([...ids('params').sort(), ...ids('metrics').sort()])];
}

interface Scale {
  id: string;
  title: string;
  at: (run: ComparedRun) => number | undefined;
  ticks: { at: number; text: string }[];
}

/** Places from 0 (low) to 1. */
function scaleOf(runs: ComparedRun[], id: string): Scale {
  const values = runs.map((run) => readOf(run, id));
  const { numeric, places, labels } = axisOf(values);
  const known = places.filter((place) => place !== undefined);
  const low = Math.min(...known);
  const high = Math.max(...known);
  const width = high - low || 1;
  const part = (place: number) => (high === low ? 0.5 : (place - low) / width);
  const ticks = numeric
    ? [0, 0.25, 0.5, 0.75, 1].filter(() => high !== low).map((at) => ({ at, text: number(low + at * width) }))
    : labels
        .slice(0, MAX_LABELS)
        .map((text, i) => ({ at: part(i), text: text.length > 16 ? `${text.slice(0, 15)}…` : text }));
  return {
    id,
    title: id.slice(id.indexOf('.') + 1),
    at: (run) => {
      const place = places[runs.indexOf(run)];
      return place === undefined ? undefined : part(place);
    },
    ticks: ticks.length > 0 ? ticks : [{ at: 0.5, text: number(low) }],
  };
}

export function Parallel(props: { runs: ComparedRun[] }): JSX.Element {
  const [axesText, setAxesText] = useParam('axes');
  const [hot, setHot] = createSignal<string>();
  const all = createMemo(() => axesOf(props.runs));
  const chosen = createMemo(() => {
    const asked = axesText().split(',').map(decodeURIComponent);
    const known = all().filter((id) => asked.includes(id));
    if (known.length > 0) return known.slice(0, MAX_AXES);
    const differ = all().filter((id) => new Set(props.runs.map((run) => readOf(run, id))).size > 1);
    return [
      ...differ.filter((id) => id.startsWith('params.')).slice(0, 5),
      ...differ.filter((id) => id.startsWith('metrics.')).slice(0, 3),
    ];
  });
  const scales = createMemo(() => chosen().map((id) => scaleOf(props.runs, id)));
  const left = (n: number) => 70 + (n * (WIDTH - 140)) / Math.max(1, scales().length - 1);
  const top = (at: number) => HEIGHT - 30 - at * (HEIGHT - 80);
  const path = (run: ComparedRun) => {
    let pen = 'M';
    return scales()
      .map((scale, n) => {
        const at = scale.at(run);
        if (at === undefined) {
          pen = 'M';
          return '';
        }
        const part = `${pen}${left(n)} ${top(at)}`;
        pen = 'L';
        return part;
      })
      .join(' ');
  };
  const toggle = (id: string) => {
    const next = chosen().includes(id) ? chosen().filter((each) => each !== id) : [...chosen(), id];
    setAxesText(next.map(encodeURIComponent).join(','));
  };
  return (
    <Show
      when={scales().length > 1}
      fallback={<Empty title="Nothing differs">These runs have the same params and metrics.</Empty>}
    >
      <div class="card plate">
        <svg
          class="axes"
          viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
          role="img"
          aria-label={`Parallel axes: ${scales()
            .map((scale) => scale.title)
            .join(', ')}`}
        >
          <For each={props.runs}>
            {(run, n) => (
              // biome-ignore lint/a11y/noStaticElementInteractions: hovering only points out what the legend lists
              <path
                d={path(run)}
                stroke={lineColor(n(), theme())}
                class="run-line"
                classList={{ hot: hot() === run.id, cool: hot() !== undefined && hot() !== run.id }}
                onMouseEnter={() => setHot(run.id)}
                onMouseLeave={() => setHot(undefined)}
              >
                <title>{run.name}</title>
              </path>
            )}
          </For>
          <For each={scales()}>
            {(scale, n) => (
              <g>
                <line class="axis" x1={left(n())} x2={left(n())} y1={top(0)} y2={top(1)} />
                <text class="axis-title" x={left(n())} y={top(1) - 18} text-anchor="middle">
                  {scale.title.length > 20 ? `${scale.title.slice(0, 19)}…` : scale.title}
                </text>
                <For each={scale.ticks}>
                  {(tick) => (
                    <text class="tick" x={left(n()) + 6} y={top(tick.at) + 4}>
                      {tick.text}
                    </text>
                  )}
                </For>
              </g>
            )}
          </For>
        </svg>
      </div>
      <details class="axes-choice">
        <summary>Axes</summary>
        <div class="choices">
          <For each={all()}>
            {(id) => (
              <label class="choice">
                <input type="checkbox" checked={chosen().includes(id)} onChange={() => toggle(id)} />
                <bdi class="clip">{id}</bdi>
              </label>
            )}
          </For>
        </div>
      </details>
    </Show>
  );
}

export function Scatter(props: { runs: ComparedRun[] }): JSX.Element {
  const [xText, setX] = useParam('sx');
  const [yText, setY] = useParam('sy');
  const all = createMemo(() => axesOf(props.runs));
  const differs = (id: string) => new Set(props.runs.map((run) => readOf(run, id))).size > 1;
  const pick = (asked: string, table: string) =>
    all().includes(asked) ? asked : (all().find((id) => id.startsWith(table) && differs(id)) ?? all()[0] ?? '');
  const x = createMemo(() => scaleOf(props.runs, pick(xText(), 'params.')));
  const y = createMemo(() => scaleOf(props.runs, pick(yText(), 'metrics.')));
  const left = (at: number) => 80 + at * (WIDTH - 120);
  const top = (at: number) => HEIGHT - 50 - at * (HEIGHT - 80);
  const Choice = (choice: { label: string; value: string; set: (id: string) => void }): JSX.Element => (
    <label class="control">
      {choice.label}
      <select value={choice.value} onChange={(event) => choice.set(event.target.value)}>
        <For each={all()}>{(id) => <option value={id}>{id}</option>}</For>
      </select>
    </label>
  );
  return (
    <Show
      when={all().length > 0}
      fallback={<Empty title="Nothing to draw">These runs logged neither params nor metrics.</Empty>}
    >
      <div class="controls">
        <Choice label="Across" value={x().id} set={setX} />
        <Choice label="Up" value={y().id} set={setY} />
      </div>
      <div class="card plate">
        <svg class="axes" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`${y().title} over ${x().title}`}>
          <For each={x().ticks}>
            {(tick) => (
              <g>
                <line class="grid" x1={left(tick.at)} x2={left(tick.at)} y1={top(0)} y2={top(1)} />
                <text class="tick" x={left(tick.at)} y={top(0) + 22} text-anchor="middle">
                  {tick.text}
                </text>
              </g>
            )}
          </For>
          <For each={y().ticks}>
            {(tick) => (
              <g>
                <line class="grid" x1={left(0)} x2={left(1)} y1={top(tick.at)} y2={top(tick.at)} />
                <text class="tick" x={left(0) - 10} y={top(tick.at) + 4} text-anchor="end">
                  {tick.text}
                </text>
              </g>
            )}
          </For>
          <text class="axis-title" x={left(1)} y={HEIGHT - 8} text-anchor="end">
            {x().title}
          </text>
          <text class="axis-title" x={left(0)} y={16}>
            {y().title}
          </text>
          <For each={props.runs}>
            {(run, n) => {
              const [across, up] = [() => x().at(run), () => y().at(run)];
              return (
                <Show when={across() !== undefined && up() !== undefined}>
                  <circle cx={left(across() ?? 0)} cy={top(up() ?? 0)} r="6" fill={lineColor(n(), theme())} class="dot">
                    <title>{`${run.name}: ${number(readOf(run, x().id))}, ${number(readOf(run, y().id))}`}</title>
                  </circle>
                </Show>
              );
            }}
          </For>
        </svg>
      </div>
    </Show>
  );
}
