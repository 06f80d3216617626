import 'uplot/dist/uPlot.min.css';
import {
  type Accessor,
  createEffect,
  createSignal,
  type JSX,
  on,
  onCleanup,
  onMount,
  type ParentProps,
  Show,
  untrack,
} from 'solid-js';
import uPlot from 'uplot';
import { lineColor } from '../lib/palette';
import { theme } from './frame';

/** Where the pointer is: the row of the data, and pixels from the left. */
export interface Hover {
  row: number;
  left: number;
  flip: boolean;
}

/** Colours of the theme, and an axis in them. */
export interface Look {
  line: string;
  bad: string;
  axis: uPlot.Axis;
}

type Options = Omit<uPlot.Options, 'width' | 'height' | 'legend' | 'cursor' | 'hooks'>;

/** A plot that is as wide as its place, has the theme's colours and says where the pointer is; none while there are no `data`. */
export function createPlot(
  data: Accessor<uPlot.AlignedData | undefined>,
  options: (look: Look) => Options,
): { place: (element: HTMLDivElement) => void; hover: Accessor<Hover | undefined>; leave: () => void } {
  const [hover, setHover] = createSignal<Hover>();
  const leave = () => setHover(undefined);
  let canvas: HTMLDivElement | undefined;
  let plot: uPlot | undefined;

  function make(): void {
    plot?.destroy();
    plot = undefined;
    const first = untrack(data);
    if (!canvas || !first) return;
    const style = getComputedStyle(canvas);
    const color = (name: string) => style.getPropertyValue(name).trim();
    const axis: uPlot.Axis = {
      stroke: color('--soft'),
      grid: { stroke: color('--line'), width: 1 },
      ticks: { show: false },
      font: '11px "Inter Variable", sans-serif',
    };
    const setCursor = (u: uPlot) => {
      const { idx, left } = u.cursor;
      if (idx === null || idx === undefined || left === undefined || left < 0) return leave();
      setHover({ row: idx, left: left + u.bbox.left / uPlot.pxRatio, flip: left > u.over.clientWidth / 2 });
    };
    plot = new uPlot(
      {
        ...untrack(() => options({ line: lineColor(0, theme()), bad: color('--bad'), axis })),
        width: canvas.clientWidth,
        height: canvas.clientHeight,
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, points: { show: false } },
        hooks: { setCursor: [setCursor] },
      },
      first,
      canvas,
    );
  }

  createEffect(on(theme, make, { defer: true }));
  createEffect(() => {
    const next = data();
    if (plot && next) plot.setData(next);
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
  return {
    place: (element) => {
      canvas = element;
    },
    hover,
    leave,
  };
}

/** A box beside the pointer. */
export function HoverBox(props: ParentProps<{ at: Hover; title: string }>): JSX.Element {
  return (
    <div
      class="hover"
      classList={{ flip: props.at.flip }}
      ref={(box) => createEffect(() => box.style.setProperty('--at', `${props.at.left}px`))}
    >
      <strong>{props.title}</strong>
      <table>
        <tbody>{props.children}</tbody>
      </table>
    </div>
  );
}

/** A line of it. */
export function HoverRow(props: { name: string; value: string | undefined }): JSX.Element {
  return (
    <Show when={props.value !== undefined}>
      <tr>
        <td>{props.name}</td>
        <td class="n">{props.value}</td>
      </tr>
    </Show>
  );
}
