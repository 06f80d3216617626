import { type Accessor, For, type JSX, Show } from 'solid-js';
import { number } from '../lib/format';
import { createLive } from '../lib/live';
import { share } from '../lib/serving';
import { type Objective, type Server, serving } from '../serving';
import { UsedBar } from './bits';

const EVERY_MS = 5000;

/** What is left of every objective's error budget, and how fast it burns; nothing where none is set. */
export function Objectives(props: { server: Accessor<Server> }): JSX.Element {
  const [live] = createLive(props.server, serving.objectives, (value) => (value === null ? undefined : EVERY_MS));
  const spent = (each: Objective) => Math.max(0, 1 - each.budget_left);
  const fastest = (each: Objective) => each.rules.reduce((most, rule) => Math.max(most, rule.long_rate), 0);
  return (
    <Show when={live.value && live.value.objectives.length > 0}>
      <h2>Error budgets</h2>
      <section class="card scroll" tabindex="0" aria-label="Error budgets of objectives">
        <table class="rows budgets">
          <thead>
            <tr>
              <th scope="col">Objective</th>
              <th scope="col">Of</th>
              <th scope="col" class="n">
                Target
              </th>
              <th scope="col" class="n">
                Bad requests
              </th>
              <th scope="col">Spent</th>
              <th scope="col" class="n">
                Burns
              </th>
              <th scope="col">Alert</th>
            </tr>
          </thead>
          <tbody>
            <For each={live.value?.objectives}>
              {(each) => (
                <tr>
                  <td class="name">
                    <strong>
                      <bdi>{each.objective}</bdi>
                    </strong>
                    <div class="soft">{each.indicator}</div>
                  </td>
                  <td>
                    {each.scope} <bdi>{each.name}</bdi>
                  </td>
                  <td class="n nowrap">
                    {share(each.target)} in {each.window}
                  </td>
                  <td class="n nowrap">
                    {each.bad_requests.toLocaleString('en')} of {each.requests.toLocaleString('en')}
                  </td>
                  <td>
                    <div class="queue">
                      <span class="n">{share(spent(each))}</span>
                      <UsedBar
                        used={spent(each)}
                        most={1}
                        label={`${share(spent(each))} of the error budget of ${each.objective} is spent`}
                      />
                    </div>
                  </td>
                  <td
                    class="n nowrap"
                    title={each.rules.map((rule) => `${number(rule.long_rate)}× over ${rule.long}`).join(', ')}
                  >
                    {number(Number(fastest(each).toPrecision(3)))}×
                  </td>
                  <td>
                    <Show when={each.rules.some((rule) => rule.fires)} fallback={<span class="faint">–</span>}>
                      <span class="pill bad">fires</span>
                    </Show>
                  </td>
                </tr>
              )}
            </For>
          </tbody>
        </table>
      </section>
    </Show>
  );
}
