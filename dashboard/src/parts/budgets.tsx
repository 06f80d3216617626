import { A } from '@solidjs/router';
import { type Accessor, createMemo, For, type JSX, Show } from 'solid-js';
import { number } from '../lib/format';
import { createLive, now } from '../lib/live';
import { share, until } from '../lib/serving';
import { type Budget, type Server, serving } from '../serving';
import { UsedBar } from './bits';

const EVERY_MS = 5000;
/** Accounts that the portfolio shows. */
const FULLEST = 6;

const limits: Record<Budget['limit'], string> = {
  cost_per_day: 'cost a day',
  cost_per_month: 'cost a month',
  tokens_per_minute: 'tokens a minute',
  tokens_per_day: 'tokens a day',
};

/** `cost a day`. */
export function limitName(limit: Budget['limit']): string {
  return limits[limit] ?? limit;
}

/** `12.5 USD`, `60,000`. */
export function amount(budget: Budget, value: number, currency: string | null): string {
  if (budget.limit.startsWith('cost')) return `${number(value)} ${currency ?? ''}`.trim();
  return value.toLocaleString('en');
}

/** How much of a limit is taken, what is set aside included. */
export function taken(budget: Budget): number {
  if (budget.most === null) return 0;
  return budget.most > 0 ? (budget.used + budget.reserved) / budget.most : 1;
}

export function BudgetBar(props: { budget: Budget; currency: string | null }): JSX.Element {
  const told = () => {
    const { budget, currency } = props;
    const reserved = budget.reserved > 0 ? `, ${amount(budget, budget.reserved, currency)} set aside` : '';
    const most = budget.most === null ? '' : ` of ${amount(budget, budget.most, currency)}`;
    return `${limitName(budget.limit)} of ${budget.scope} ${budget.name}: ${amount(budget, budget.used, currency)} used${most}${reserved}`;
  };
  return (
    <UsedBar used={props.budget.used} reserved={props.budget.reserved} most={props.budget.most ?? 0} label={told()} />
  );
}

/** The limits that are taken most; nothing where nothing is limited. */
export function BudgetBars(props: { server: Accessor<Server> }): JSX.Element {
  const [live] = createLive(props.server, serving.budgets, () => EVERY_MS);
  const fullest = createMemo(() =>
    (live.value?.budgets ?? [])
      .filter((budget) => budget.most !== null)
      .sort((a, b) => taken(b) - taken(a))
      .slice(0, FULLEST),
  );
  return (
    <Show when={fullest().length > 0}>
      <h2>
        <A href="/budgets">Budgets</A>
      </h2>
      <ul class="bars" aria-label="Budgets that are taken most">
        <For each={fullest()}>
          {(budget) => (
            <li class="card">
              <div class="bar-head">
                <strong class="clip">
                  <bdi>{budget.name}</bdi>
                </strong>
                <span class="soft">{limitName(budget.limit)}</span>
                <span class="grow" />
                <span class="n">{share(taken(budget))}</span>
              </div>
              <BudgetBar budget={budget} currency={live.value?.currency ?? null} />
              <div class="soft">
                {amount(budget, budget.used, live.value?.currency ?? null)} of{' '}
                {amount(budget, budget.most ?? 0, live.value?.currency ?? null)}, anew {until(budget.resets_at, now())}
              </div>
            </li>
          )}
        </For>
      </ul>
    </Show>
  );
}
