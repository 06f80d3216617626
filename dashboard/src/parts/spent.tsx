import { createMemo, For, type JSX, Show } from 'solid-js';
import uPlot from 'uplot';
import { compact, number } from '../lib/format';
import { dayName, type Spent, spentOf } from '../lib/spent';
import type { Budget, Spending } from '../serving';
import { createPlot, HoverBox, HoverRow } from './plot';

/** Charts of a scope; a search finds the others. */
const MOST_CHARTS = 24;

/** What each account of a scope spent on each of the last days; nothing where nothing was. */
export function Courses(props: {
  history: Spending;
  budgets: Budget[];
  scope: Budget['scope'];
  title: string;
  find: string;
}): JSX.Element {
  const spent = createMemo(() => spentOf(props.history, props.budgets, props.scope, props.find));
  const shown = createMemo(() => spent().slice(0, MOST_CHARTS));
  const indices = createMemo(() => Array.from({ length: shown().length }, (_, i) => i));
  return (
    <Show when={shown().length > 0}>
      <section aria-label={`What ${props.title.toLowerCase()} spent on the last ${props.history.days.length} days`}>
        <h3 class="over-charts">
          The last {props.history.days.length} days{props.history.of_all_servers ? ', of all servers' : ''}
        </h3>
        <div class="charts small">
          <For each={indices()}>
            {(i) => (
              <Show when={shown()[i]}>
                {(each) => <Days spent={each()} scope={props.scope} currency={props.history.currency} />}
              </Show>
            )}
          </For>
        </div>
        <Show when={spent().length > MOST_CHARTS}>
          <p class="soft">
            {spent().length - MOST_CHARTS} more spent less than these: a search by their names shows them.
          </p>
        </Show>
      </section>
    </Show>
  );
}

function Days(props: { spent: Spent; scope: string; currency: string | null }): JSX.Element {
  const money = (value: number | undefined) => `${number(value)} ${props.currency ?? ''}`.trim();
  const tokens = (value: number | undefined) => `${(value ?? 0).toLocaleString('en')} tokens`;
  const amount = (value: number | undefined) => (props.spent.unit === 'cost' ? money(value) : tokens(value));
  const limits = () => props.spent.values.map(() => props.spent.most);
  const { place, hover, leave } = createPlot(
    () => [props.spent.days.map((_, i) => i), props.spent.values, limits()],
    ({ line, bad, axis }) => ({
      padding: [8, 4, 0, 0],
      scales: {
        x: { time: false, range: () => [-0.5, props.spent.days.length - 0.5] },
        y: { range: () => props.spent.range },
      },
      series: [
        {},
        {
          stroke: line,
          fill: `${line}b0`,
          width: 0,
          points: { show: false },
          ...(uPlot.paths.bars && { paths: uPlot.paths.bars({ size: [0.75, 28] }) }),
        },
        { stroke: bad, width: 1.25, dash: [6, 4], points: { show: false } },
      ],
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 24,
          space: 64,
          values: (_, ticks) => ticks.map((tick) => dayName(props.spent.days[tick])),
        },
        { ...axis, size: 46, space: 30, values: (_, ticks) => ticks.map((tick) => compact(tick)) },
      ],
    }),
  );
  const summary = () => {
    const { name, days, values, total } = props.spent;
    const highest = values.indexOf(Math.max(...values));
    const today = values.length - 1;
    return `${props.scope} ${name}, ${days.length} days: ${amount(total)}, most on ${dayName(days[highest])} with ${amount(values[highest])}, today ${amount(values[today])}`;
  };
  return (
    <figure class="chart">
      <figcaption>
        <h4 class="clip" title={props.spent.name}>
          <bdi>{props.spent.name}</bdi>
        </h4>
        <span class="grow" />
        <span class="last nowrap">{amount(props.spent.total)}</span>
      </figcaption>
      <div class="plot" role="img" aria-label={summary()} onMouseLeave={leave}>
        <div class="canvas" ref={place} />
        <Show when={hover()}>
          {(at) => (
            <HoverBox at={at()} title={dayName(props.spent.days[at().row])}>
              <HoverRow
                name="cost"
                value={props.spent.unit === 'cost' ? money(props.spent.cost[at().row]) : undefined}
              />
              <HoverRow name="tokens" value={(props.spent.tokens[at().row] ?? 0).toLocaleString('en')} />
              <HoverRow name="at most" value={props.spent.most === undefined ? undefined : amount(props.spent.most)} />
            </HoverBox>
          )}
        </Show>
      </div>
    </figure>
  );
}
