import 'uplot/dist/uPlot.min.css';
import { createEffect, createMemo, createSignal, For, type JSX, on, onCleanup, onMount, Show, untrack } from 'solid-js';
import uPlot from 'uplot';
import { coursesOf, type RuleCourse } from '../lib/course';
import { compact } from '../lib/format';
import { lineColor } from '../lib/palette';
import { share } from '../lib/serving';
import type { Course } from '../serving';
import { theme } from './frame';

/** One chart for each rule: what was seen, the bounds that held at every moment, and what is allowed. */
export function Courses(props: { course: Course }): JSX.Element {
  const courses = createMemo(() => coursesOf(props.course));
  const n = () => courses().length;
  const indices = createMemo(() => Array.from({ length: n() }, (_, i) => i));
  return (
    <div class="charts">
      <For each={indices()}>
        {(i) => <Show when={courses()[i]}>{(course) => <RuleChart course={course()} />}</Show>}
      </For>
    </div>
  );
}

function RuleChart(props: { course: RuleCourse }): JSX.Element {
  const [hover, setHover] = createSignal<{ row: number; left: number; flip: boolean }>();
  let canvas: HTMLDivElement | undefined;
  let plot: uPlot | undefined;
  const shown = (value: number | undefined) =>
    props.course.isDifference && value !== undefined ? `${(100 * value).toFixed(2)} points` : share(value);

  function make(): void {
    if (!canvas) return;
    plot?.destroy();
    plot = undefined;
    const { course } = untrack(() => props);
    if (course.x.length < 2) return;
    const style = getComputedStyle(canvas);
    const [ink, grid, bad] = ['--soft', '--line', '--bad'].map((name) => style.getPropertyValue(name).trim());
    const color = lineColor(0, theme());
    const axis: uPlot.Axis = {
      stroke: ink as string,
      grid: { stroke: grid as string, width: 1 },
      ticks: { show: false },
      font: '11px "Inter Variable", sans-serif',
    };
    plot = new uPlot(
      {
        width: canvas.clientWidth,
        height: canvas.clientHeight,
        legend: { show: false },
        scales: { x: { time: false }, y: { range: () => untrack(() => props.course.range) } },
        series: [
          {},
          { stroke: 'transparent', width: 0, points: { show: false } },
          { stroke: 'transparent', width: 0, points: { show: false } },
          { stroke: color, width: 1.75, points: { show: false } },
          { stroke: bad as string, width: 1.25, dash: [6, 4], points: { show: false } },
        ],
        bands: [{ series: [1, 2], fill: `${color}2e` }],
        axes: [
          { ...axis, size: 30, space: 70, values: (_, ticks) => ticks.map((tick) => compact(tick)) },
          {
            ...axis,
            size: 52,
            space: 34,
            values: (_, ticks) => ticks.map((tick) => `${Number((100 * tick).toPrecision(3))} %`),
          },
        ],
        cursor: { drag: { x: false, y: false }, points: { show: false } },
        hooks: {
          setCursor: [
            (u) => {
              const { idx, left } = u.cursor;
              if (idx === null || idx === undefined || left === undefined || left < 0) return setHover(undefined);
              setHover({ row: idx, left: left + u.bbox.left / uPlot.pxRatio, flip: left > u.over.clientWidth / 2 });
            },
          ],
        },
      },
      data(course),
      canvas,
    );
  }
  createEffect(on(theme, make, { defer: true }));
  createEffect(() => {
    const { course } = props;
    if (plot && course.x.length >= 2) plot.setData(data(course));
    else untrack(make);
  });
  onMount(() => {
    make();
    const observer = new ResizeObserver(() => {
      if (plot && canvas) plot.setSize({ width: canvas.clientWidth, height: canvas.clientHeight });
    });
    if (canvas) observer.observe(canvas);
    onCleanup(() => observer.disconnect());
  });
  onCleanup(() => plot?.destroy());

  const last = () => props.course.x.length - 1;
  const summary = () => {
    const { course } = props;
    if (last() < 0) return `${course.rule}: nothing was seen yet`;
    const i = last();
    return `${course.rule}. After ${course.x[i]} requests ${shown(course.value[i])}, between ${shown(course.low[i])} and ${shown(course.high[i])}`;
  };
  return (
    <figure class="chart">
      <figcaption>
        <h3 title={props.course.rule}>{props.course.rule}</h3>
        <span class="grow" />
        <span class="last">{last() >= 0 ? shown(props.course.value[last()]) : ''}</span>
      </figcaption>
      <div class="plot" role="img" aria-label={summary()} onMouseLeave={() => setHover(undefined)}>
        <div class="canvas" ref={canvas} />
        <Show when={props.course.x.length < 2}>
          <p class="plot-note">{last() < 0 ? 'Nothing was seen yet.' : 'There is a line from the second moment on.'}</p>
        </Show>
        <Show when={hover()}>
          {(at) => (
            <div
              class="hover"
              classList={{ flip: at().flip }}
              ref={(box) => createEffect(() => box.style.setProperty('--at', `${at().left}px`))}
            >
              <strong>{(props.course.x[at().row] ?? 0).toLocaleString('en')} requests</strong>
              <table>
                <tbody>
                  <tr>
                    <td>seen</td>
                    <td class="n">{shown(props.course.value[at().row])}</td>
                  </tr>
                  <tr>
                    <td>between</td>
                    <td class="n">
                      {shown(props.course.low[at().row])} … {shown(props.course.high[at().row])}
                    </td>
                  </tr>
                  <tr>
                    <td>{props.course.isDifference ? 'at least' : 'at most'}</td>
                    <td class="n">{shown(props.course.limit)}</td>
                  </tr>
                </tbody>
              </table>
            </div>
          )}
        </Show>
      </div>
    </figure>
  );
}

function data({ x, low, high, value, limit }: RuleCourse): uPlot.AlignedData {
  // uPlot fills from a band's first series down to its second.
  return [x, high, low, value, x.map(() => limit)];
}
