import { createMemo, For, type JSX, Show } from 'solid-js';
import type uPlot from 'uplot';
import { coursesOf, type RuleCourse } from '../lib/course';
import { compact } from '../lib/format';
import { share } from '../lib/serving';
import type { Course } from '../serving';
import { createPlot, HoverBox, HoverRow } from './plot';

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
  const shown = (value: number | undefined) =>
    props.course.isDifference && value !== undefined ? `${(100 * value).toFixed(2)} points` : share(value);
  const { place, hover, leave } = createPlot(
    () => (props.course.x.length < 2 ? undefined : data(props.course)),
    ({ line, bad, axis }) => ({
      scales: { x: { time: false }, y: { range: () => props.course.range } },
      series: [
        {},
        { stroke: 'transparent', width: 0, points: { show: false } },
        { stroke: 'transparent', width: 0, points: { show: false } },
        { stroke: line, width: 1.75, points: { show: false } },
        { stroke: bad, width: 1.25, dash: [6, 4], points: { show: false } },
      ],
      bands: [{ series: [1, 2], fill: `${line}2e` }],
      axes: [
        { ...axis, size: 30, space: 70, values: (_, ticks) => ticks.map((tick) => compact(tick)) },
        {
          ...axis,
          size: 52,
          space: 34,
          values: (_, ticks) => ticks.map((tick) => `${Number((100 * tick).toPrecision(3))} %`),
        },
      ],
    }),
  );

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
      <div class="plot" role="img" aria-label={summary()} onMouseLeave={leave}>
        <div class="canvas" ref={place} />
        <Show when={props.course.x.length < 2}>
          <p class="plot-note">{last() < 0 ? 'Nothing was seen yet.' : 'There is a line from the second moment on.'}</p>
        </Show>
        <Show when={hover()}>
          {(at) => (
            <HoverBox at={at()} title={`${(props.course.x[at().row] ?? 0).toLocaleString('en')} requests`}>
              <HoverRow name="seen" value={shown(props.course.value[at().row])} />
              <HoverRow
                name="between"
                value={`${shown(props.course.low[at().row])} … ${shown(props.course.high[at().row])}`}
              />
              <HoverRow name={props.course.isDifference ? 'at least' : 'at most'} value={shown(props.course.limit)} />
            </HoverBox>
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
