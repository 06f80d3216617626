import { type Accessor, createMemo, For, type JSX, Show } from 'solid-js';
import { when } from '../lib/format';
import { createLive, now } from '../lib/live';
import { share, until } from '../lib/serving';
import { amount, BudgetBar, limitName, taken } from '../parts/budgets';
import { useKeys } from '../parts/keys';
import { Objectives } from '../parts/objectives';
import { Loaded, Search } from '../parts/page';
import { useParam } from '../parts/params';
import { ServerPicker, useServers, WithServer } from '../parts/server';
import { Courses } from '../parts/spent';
import { Empty } from '../parts/states';
import { useTitle } from '../parts/title';
import { type Budget, type Server, serving } from '../serving';
import { step } from './experiments';

const EVERY_MS = 3000;
const HISTORY_EVERY_MS = 30_000;
const SCOPES = [
  ['member', 'Members'],
  ['pipeline', 'Pipelines'],
  ['tenant', 'Tenants'],
  ['key', 'Keys'],
] as const;

export default function Budgets(): JSX.Element {
  const servers = useServers();
  const [find, setFind] = useParam('q');
  useKeys({ j: () => step(1), k: () => step(-1) });
  useTitle(() => 'Budgets');
  return (
    <div class="page">
      <div class="page-head">
        <h1>Budgets</h1>
        <span class="grow" />
        <ServerPicker servers={servers} />
        <Search label="Find accounts" value={find()} set={setFind} />
      </div>
      <p class="soft">
        What is used and what is set aside for requests under way never pass a limit together. Each serving process
        keeps budgets of its own, of the present minute, day and month (UTC), unless they are shared; and what was spent
        on the last 30 days.
      </p>
      <WithServer servers={servers}>
        {(server) => (
          <>
            <Objectives server={server} />
            <OfServer server={server} find={find()} />
          </>
        )}
      </WithServer>
    </div>
  );
}

function OfServer(props: { server: Accessor<Server>; find: string }): JSX.Element {
  const [live, again] = createLive(props.server, serving.budgets, () => EVERY_MS);
  const [history] = createLive(props.server, serving.spending, () => HISTORY_EVERY_MS);
  const found = createMemo(() =>
    (live.value?.budgets ?? []).filter(({ name }) => name.toLowerCase().includes(props.find.toLowerCase())),
  );
  return (
    <Loaded live={live} again={again} what="The budgets could not be read" rows={5}>
      {() => (
        <Show
          when={found().length > 0}
          fallback={
            <Empty title={props.find ? 'No account has this in its name' : 'Nothing is limited here'}>
              <Show when={!props.find}>
                <code>[budgets.members.NAME]</code> in <code>portfolio.toml</code> limits what a member may spend.
              </Show>
            </Empty>
          }
        >
          <For each={SCOPES}>
            {([scope, title]) => (
              <>
                <Scope
                  title={title}
                  budgets={found().filter((budget) => budget.scope === scope)}
                  currency={live.value?.currency ?? null}
                />
                <Show when={history.value}>
                  {(spending) => (
                    <Courses history={spending()} budgets={found()} scope={scope} title={title} find={props.find} />
                  )}
                </Show>
              </>
            )}
          </For>
        </Show>
      )}
    </Loaded>
  );
}

function Scope(props: { title: string; budgets: Budget[]; currency: string | null }): JSX.Element {
  const limited = createMemo(() => props.budgets.filter(({ most }) => most !== null));
  const unlimited = createMemo(() => {
    const names = [...new Set(props.budgets.filter(({ most }) => most === null).map(({ name }) => name))];
    return names.map((name) => ({
      name,
      spent: METERS.map((limit) => props.budgets.find((each) => each.name === name && each.limit === limit)),
    }));
  });
  return (
    <Show when={props.budgets.length > 0}>
      <h2>{props.title}</h2>
      <Show when={limited().length > 0}>
        <Limited title={props.title} budgets={limited()} currency={props.currency} />
      </Show>
      <Show when={unlimited().length > 0}>
        <section class="card scroll unlimited" tabindex="0" aria-label={`What ${props.title.toLowerCase()} spend`}>
          <table class="rows tight">
            <thead>
              <tr>
                <th scope="col">All that is spent</th>
                <For each={METERS}>
                  {(limit) => (
                    <th scope="col" class="n">
                      {spanOf[limit]}
                    </th>
                  )}
                </For>
              </tr>
            </thead>
            <tbody>
              <For each={unlimited()}>
                {({ name, spent }) => (
                  <tr>
                    <td class="name">
                      <bdi>{name}</bdi>
                    </td>
                    <For each={spent}>
                      {(budget) => (
                        <td class="n nowrap">{budget ? amount(budget, budget.used, props.currency) : '–'}</td>
                      )}
                    </For>
                  </tr>
                )}
              </For>
            </tbody>
          </table>
        </section>
      </Show>
    </Show>
  );
}

const METERS = ['tokens_per_minute', 'tokens_per_day', 'cost_per_day', 'cost_per_month'] as const;
const spanOf = {
  tokens_per_minute: 'Tokens this minute',
  tokens_per_day: 'Tokens today',
  cost_per_day: 'Cost today',
  cost_per_month: 'Cost this month',
};

function Limited(props: { title: string; budgets: Budget[]; currency: string | null }): JSX.Element {
  return (
    <section class="card scroll" tabindex="0" aria-label={`Budgets of ${props.title.toLowerCase()}`}>
      <table class="rows budgets">
        <thead>
          <tr>
            <th scope="col">Name</th>
            <th scope="col">Limit</th>
            <th scope="col" class="n">
              Used
            </th>
            <th scope="col" class="n">
              Set aside
            </th>
            <th scope="col" class="n">
              At most
            </th>
            <th scope="col">Taken</th>
            <th scope="col">Anew</th>
          </tr>
        </thead>
        <tbody>
          <For each={props.budgets}>
            {(budget) => (
              <tr>
                <td class="name">
                  <strong>
                    <bdi>{budget.name}</bdi>
                  </strong>
                </td>
                <td class="nowrap">{limitName(budget.limit)}</td>
                <td class="n nowrap">{amount(budget, budget.used, props.currency)}</td>
                <td class="n nowrap">{budget.reserved > 0 ? amount(budget, budget.reserved, props.currency) : '–'}</td>
                <td class="n nowrap">{amount(budget, budget.most ?? 0, props.currency)}</td>
                <td>
                  <div class="queue">
                    <span class="n">{share(taken(budget))}</span>
                    <BudgetBar budget={budget} currency={props.currency} />
                  </div>
                </td>
                <td class="soft nowrap">
                  <time title={when(budget.resets_at === null ? null : Date.parse(budget.resets_at))}>
                    {until(budget.resets_at, now())}
                  </time>
                </td>
              </tr>
            )}
          </For>
        </tbody>
      </table>
    </section>
  );
}
