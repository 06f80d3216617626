import 'uplot/dist/uPlot.min.css';
import { createEffect, createMemo, createSignal, For, type JSX, on, onCleanup, onMount, Show, untrack } from 'solid-js';
import uPlot from 'uplot';
import { api } from '../api';
import { ago, compact, duration, number, plural, when } from '../lib/format';
import { message, whileSeen } from '../lib/live';
import { lineColor, lineDash } from '../lib/palette';
import {
  align,
  type Cells,
  type History,
  isStepless,
  nearest,
  positive,
  smooth,
  toLine,
  type XAxis,
  zoomed,
} from '../lib/series';
import { theme } from './frame';
import { Icon } from './icons';

export interface ChartRun {
  id: string;
  name: string;
}

export interface ChartSettings {
  smoothing: number;
  axis: XAxis;
  log: boolean;
}

/** A downsampled history that grows is asked for this often; a short one as often as it changes. */
const LONG_HISTORY_EVERY_MS = 10_000;
/** More bands on one another hide the lines. */
const MAX_BANDS = 6;
const MAX_FAINT_LINES = 12;
const MAX_TOLD = 12;

interface Hover {
  row: number;
  left: number;
  flip: boolean;
}

/**
 * One metric of some runs. `stamp` changes when a run has logged more of it; `every` asks anew where nothing tells that.
 */
export function Chart(props: {
  metric: string;
  runs: ChartRun[];
  settings: ChartSettings;
  stamp?: string | undefined;
  every?: number | undefined;
}): JSX.Element {
  const [histories, setHistories] = createSignal<History[]>();
  const [error, setError] = createSignal<string>();
  const [zoom, setZoom] = createSignal<[number, number]>();
  const [wide, setWide] = createSignal(false);
  const [hover, setHover] = createSignal<Hover>();
  const [seen, setSeen] = createSignal(false);
  let frame: HTMLElement | undefined;
  let canvas: HTMLDivElement | undefined;
  let plot: uPlot | undefined;
  let plotted = '';
  let under: AbortController | undefined;
  let asked = 0;

  const stepless = () => histories()?.some(isStepless) ?? false;
  const axis = () => (props.settings.axis === 'step' && stepless() ? 'relative' : props.settings.axis);

  async function load(): Promise<void> {
    under?.abort();
    under = new AbortController();
    const { signal } = under;
    asked = Date.now();
    const part = zoom();
    const scale = axis() === 'step' ? 1 : 1000;
    const window = part && { by: axis(), from: Math.floor(part[0] * scale), to: Math.ceil(part[1] * scale) };
    try {
      const run_ids = props.runs.map((run) => run.id);
      const buckets = Math.max(200, Math.min(2000, canvas?.clientWidth ?? 600));
      const answer = await api.series({ run_ids, keys: [props.metric], buckets, window: window ?? null }, signal);
      if (signal.aborted) return;
      setHistories(answer.series);
      setError(undefined);
    } catch (failure) {
      if (!signal.aborted) setError(message(failure));
    }
  }

  // Only what is on screen is asked for.
  onMount(() => {
    const observer = new IntersectionObserver(
      (entries) => entries.some((entry) => entry.isIntersecting) && setSeen(true),
      {
        rootMargin: '200px',
      },
    );
    if (frame) observer.observe(frame);
    onCleanup(() => observer.disconnect());
  });
  createEffect(
    on([seen, () => props.runs.map((run) => run.id).join(), zoom, () => props.settings.axis], ([isSeen]) => {
      if (isSeen) void load();
    }),
  );
  createEffect(
    on(
      () => props.stamp,
      () => {
        const isLong = histories()?.some((history) => history.lows.length > 0);
        if (seen() && !(isLong && Date.now() - asked < LONG_HISTORY_EVERY_MS)) void load();
      },
      { defer: true },
    ),
  );
  whileSeen(
    () => seen() && void load(),
    () => props.every,
  );
  onCleanup(() => under?.abort());

  /** What is drawn: one entry for each run that has this metric, in the order of the runs. */
  const drawn = createMemo(() => {
    const found = histories() ?? [];
    const entries = props.runs.flatMap((run, n) => {
      const history = found.find((each) => each.run_id === run.id);
      return history ? [{ run, n, history }] : [];
    });
    const { x, columns } = align(entries.map((entry) => toLine(entry.history, axis())));
    const shape = (cells: Cells) => (props.settings.log ? positive(cells) : cells);
    return {
      x,
      lines: entries.map((entry, i) => {
        const column = columns[i] as (typeof columns)[number];
        return {
          ...entry,
          exact: column.y,
          y: shape(smoothCells(column.y, props.settings.smoothing)),
          faint: shape(column.y),
          low: column.low && shape(column.low),
          high: column.high && shape(column.high),
        };
      }),
    };
  });

  /** One value for each run: there is no course to draw. */
  const isPointless = () => drawn().lines.length > 0 && drawn().lines.every((line) => line.history.n_points === 1);

  function draw(): void {
    if (!canvas) return;
    const { x, lines } = drawn();
    if (x.length === 0 || isPointless()) {
      plot?.destroy();
      plot = undefined;
      setHover(undefined);
      return;
    }
    const style = getComputedStyle(canvas);
    const ink = style.getPropertyValue('--soft').trim();
    const grid = style.getPropertyValue('--line').trim();
    const series: uPlot.Series[] = [{}];
    const bands: uPlot.Band[] = [];
    const data: Cells[] = [x];
    const single = lines.length === 1;
    const banded = lines.filter((line) => line.low).length <= MAX_BANDS;
    for (const line of lines) {
      const color = lineColor(line.n, theme());
      if (line.low && line.high && banded) {
        data.push(line.high, line.low);
        const edge = { stroke: 'transparent', width: 0, points: { show: false }, spanGaps: true };
        series.push(edge, { ...edge });
        bands.push({ series: [data.length - 2, data.length - 1], fill: `${color}30` });
      } else if (props.settings.smoothing > 0 && lines.length <= MAX_FAINT_LINES) {
        data.push(line.faint);
        series.push({ stroke: `${color}38`, width: 1, points: { show: false }, spanGaps: false });
      }
      data.push(line.y);
      const few = line.history.steps.length <= 60 && lines.length <= 10;
      series.push({
        stroke: color,
        width: single ? 1.75 : 1.5,
        dash: lineDash(line.n),
        points: { show: few || line.history.steps.length === 1, size: 4, fill: color },
      });
    }
    const place = axis();
    // New points of the same lines go into the same plot: what the cursor points at stays.
    const kind = JSON.stringify([series, bands, place, props.settings.log, theme()]);
    if (plot && kind === plotted) {
      plot.setData(data as uPlot.AlignedData);
      return;
    }
    plot?.destroy();
    plotted = kind;
    setHover(undefined);
    const font = '11px "Inter Variable", system-ui, sans-serif';
    const lines_ = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
    const xValues = {
      step: (_: uPlot, ticks: number[]) => ticks.map((tick) => (Number.isInteger(tick) ? compact(tick) : '')),
      relative: (_: uPlot, ticks: number[]) => ticks.map((tick) => duration(tick * 1000)),
    };
    plot = new uPlot(
      {
        width: canvas.clientWidth,
        height: canvas.clientHeight,
        series,
        bands,
        legend: { show: false },
        padding: [10, 12, 0, 0],
        scales: {
          x: {
            time: place === 'time',
            range: (_, low, high) => untrack(zoom) ?? (low === high ? [low - 1, high + 1] : [low, high]),
          },
          y: { distr: props.settings.log ? 3 : 1 },
        },
        axes: [
          { ...lines_, size: 30, space: 70, ...(place === 'time' ? {} : { values: xValues[place] }) },
          {
            ...lines_,
            size: 52,
            space: 34,
            values: (_, ticks) => ticks.map((tick) => (tick === null ? '' : tickText(tick))),
          },
        ],
        cursor: {
          drag: { x: true, y: false, setScale: false },
          points: { show: lines.length <= 20 },
          sync: { key: `highroad-${place}`, setSeries: false },
        },
        hooks: {
          setSelect: [
            (u) => {
              if (u.select.width < 4) return;
              const from = u.posToVal(u.select.left, 'x');
              const to = u.posToVal(u.select.left + u.select.width, 'x');
              u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              setZoom([from, to]);
            },
          ],
          setCursor: [
            (u) => {
              const { idx, left, event } = u.cursor;
              if (idx === null || idx === undefined || left === undefined || left < 0 || !event)
                return setHover(undefined);
              setHover({ row: idx, left: left + u.bbox.left / uPlot.pxRatio, flip: left > u.over.clientWidth / 2 });
            },
          ],
        },
      },
      data as uPlot.AlignedData,
      canvas,
    );
    // uPlot's own double click shows what is loaded, which while zoomed is not everything.
    plot.over.addEventListener('dblclick', () => setZoom(undefined));
  }
  createEffect(on([drawn, theme, zoom, () => props.settings.log], draw));
  onMount(() => {
    const observer = new ResizeObserver(() => {
      if (plot && canvas) plot.setSize({ width: canvas.clientWidth, height: canvas.clientHeight });
    });
    if (canvas) observer.observe(canvas);
    onCleanup(() => observer.disconnect());
  });
  onCleanup(() => plot?.destroy());

  function pressed(event: KeyboardEvent): void {
    const { x } = drawn();
    const whole: [number, number] = [x[0] ?? 0, x[x.length - 1] ?? 1];
    const part = zoom();
    const next = {
      '+': () => zoomed(part ?? whole, 0.5),
      '=': () => zoomed(part ?? whole, 0.5),
      '-': () => part && zoomed(part, 2),
      ArrowLeft: () => part && zoomed(part, 1, -0.25),
      ArrowRight: () => part && zoomed(part, 1, 0.25),
      '0': () => undefined,
    }[event.key];
    if (!next || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    setZoom(next());
  }

  const place = (row: number) => {
    const x = drawn().x[row] ?? 0;
    if (axis() === 'step') return `Step ${x.toLocaleString('en')}`;
    return axis() === 'relative' ? `After ${duration(x * 1000)}` : when(x * 1000);
  };
  const told = (row: number) =>
    drawn()
      .lines.map((line) => ({
        line,
        value: nearest(line.y, row),
        low: line.low && nearest(line.low, row),
        high: line.high && nearest(line.high, row),
      }))
      .filter(({ value }) => value !== null)
      .sort((a, b) => (b.value ?? 0) - (a.value ?? 0));
  const points = () => drawn().lines.reduce((sum, line) => sum + line.history.n_points, 0);
  const isCut = () => drawn().lines.some((line) => line.low);
  const summary = () => {
    const values = drawn()
      .lines.slice(0, 5)
      .map((line) => `${line.run.name} ${number(nearest(line.exact, line.exact.length - 1))}`);
    return `Chart of ${props.metric}: ${plural(drawn().lines.length, 'run')}, last ${values.join(', ')}`;
  };

  return (
    <figure class="chart" classList={{ wide: wide() }} ref={frame} data-metric={props.metric}>
      <figcaption>
        <h3 title={props.metric}>
          <bdi>{props.metric}</bdi>
        </h3>
        <Show when={drawn().lines.length === 1 && !isPointless()}>
          <span class="last">{number(nearest(drawn().lines[0]?.exact ?? [], drawn().x.length - 1))}</span>
        </Show>
        <span class="grow" />
        <Show when={zoom()}>
          <button
            type="button"
            class="button quiet small"
            title="Whole range again (0)"
            aria-label="Whole range again"
            onClick={() => setZoom(undefined)}
          >
            <Icon name="reset" />
          </button>
        </Show>
        <button
          type="button"
          class="button quiet small"
          aria-label={wide() ? 'Smaller' : 'Larger'}
          aria-pressed={wide()}
          onClick={() => setWide(!wide())}
        >
          <Icon name="expand" />
        </button>
      </figcaption>
      <div
        class="plot"
        role="img"
        aria-label={summary()}
        tabindex="0"
        onKeyDown={pressed}
        onMouseLeave={() => setHover(undefined)}
        data-zoomed={zoom()
          ?.map((edge) => edge.toPrecision(6))
          .join(' ')}
      >
        <div class="canvas" ref={canvas} />
        <Show when={isPointless()}>
          <dl class="values" classList={{ one: drawn().lines.length === 1 }}>
            <For each={drawn().lines.slice(0, MAX_TOLD - 4)}>
              {(line) => (
                <div>
                  <dt>
                    <Swatch n={line.n} />
                    <bdi class="clip">{line.run.name}</bdi>
                  </dt>
                  <dd>{number(line.history.values[0] ?? Number.NaN)}</dd>
                </div>
              )}
            </For>
          </dl>
          <Show when={drawn().lines.length > MAX_TOLD - 4}>
            <p class="values-more soft">and {drawn().lines.length - MAX_TOLD + 4} more</p>
          </Show>
        </Show>
        <Show when={error()}>
          <p class="plot-note" role="alert">
            {error()}
          </p>
        </Show>
        <Show when={!error() && histories() && drawn().lines.length === 0}>
          <p class="plot-note">No points in this range.</p>
        </Show>
        <Show when={!error() && !histories()}>
          <span class="bar plot-loading" role="status" aria-label="Loading" />
        </Show>
        <Show when={hover()}>
          {(at) => (
            <div
              class="hover"
              classList={{ flip: at().flip }}
              ref={(box) => createEffect(() => box.style.setProperty('--at', `${at().left}px`))}
            >
              <strong>{place(at().row)}</strong>
              <table>
                <tbody>
                  <For each={told(at().row).slice(0, MAX_TOLD)}>
                    {({ line, value, low, high }) => (
                      <tr>
                        <td>
                          <Swatch n={line.n} />
                          <bdi>{line.run.name}</bdi>
                        </td>
                        <td class="n">{number(value)}</td>
                        <Show when={low !== undefined && high !== undefined}>
                          <td class="n soft">
                            {number(low)} … {number(high)}
                          </td>
                        </Show>
                      </tr>
                    )}
                  </For>
                </tbody>
              </table>
              <Show when={told(at().row).length > MAX_TOLD}>
                <span class="soft">and {told(at().row).length - MAX_TOLD} more</span>
              </Show>
            </div>
          )}
        </Show>
      </div>
      <Show when={isCut()}>
        <p class="chart-note" title={`Asked ${ago(asked, Date.now())}`}>
          {compact(points())} points; band: smallest to largest, line: mean
        </p>
      </Show>
    </figure>
  );
}

export function Swatch(props: { n: number }): JSX.Element {
  return (
    <i
      class="swatch"
      ref={(box) => createEffect(() => box.style.setProperty('--color', lineColor(props.n, theme())))}
    />
  );
}

/** Smoothing runs along a line's own points, not along the places that only other lines have. */
function smoothCells(cells: Cells, weight: number): Cells {
  if (weight <= 0) return cells;
  const own = cells.filter((value) => value !== undefined);
  const smoothed = smooth(own, weight);
  let next = 0;
  return cells.map((value) => (value === undefined ? undefined : smoothed[next++]));
}

function tickText(tick: number): string {
  const size = Math.abs(tick);
  return size !== 0 && (size < 1e-3 || size >= 1e6)
    ? tick
        .toExponential(2)
        .replace(/\.?0+e/, 'e')
        .replace('e+', 'e')
    : compact(tick);
}
