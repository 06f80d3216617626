import { A, useNavigate } from '@solidjs/router';
import { createMemo, For, type JSX, Show } from 'solid-js';
import { api } from '../api';
import { plural } from '../lib/format';
import { createLive } from '../lib/live';
import { useKeys } from '../parts/keys';
import { Loaded, Search } from '../parts/page';
import { useParam } from '../parts/params';
import { Empty, Moment } from '../parts/states';
import { useTitle } from '../parts/title';

const EVERY_MS = 5000;
const ROW = '[data-row]';

export default function Experiments(): JSX.Element {
  const [live, again] = createLive(
    () => true,
    (_, signal) => api.experiments(signal),
    () => EVERY_MS,
  );
  const [find, setFind] = useParam('q');
  const navigate = useNavigate();
  const shown = createMemo(() => {
    const wanted = find().toLowerCase();
    return (live.value?.experiments ?? []).filter((experiment) => experiment.name.toLowerCase().includes(wanted));
  });
  useKeys({ j: () => step(1), k: () => step(-1) });
  useTitle(() => 'Experiments');
  return (
    <div class="page">
      <div class="page-head">
        <h1>Experiments</h1>
        <Show when={live.value}>
          {(value) => <span class="soft">{plural(value().experiments.length, 'experiment')}</span>}
        </Show>
        <span class="grow" />
        <Search
          label="Find experiments"
          value={find()}
          set={setFind}
          onKeyDown={(event) => {
            const first = shown()[0];
            if (event.key === 'Enter' && first) navigate(`/experiments/${first.id}`);
            if (event.key === 'Escape') event.target instanceof HTMLElement && event.target.blur();
          }}
        />
      </div>
      <Loaded live={live} again={again} what="The experiments could not be read" rows={6}>
        {() => (
          <Show
            when={shown().length > 0}
            fallback={
              <Empty title={find() ? 'No experiment has this in its name' : 'No experiment yet'}>
                <Show when={!find()}>
                  Point a client here: <code>mlflow.set_tracking_uri("{location.origin}")</code>
                </Show>
              </Empty>
            }
          >
            <div class="card">
              <table class="rows">
                <thead>
                  <tr>
                    <th scope="col">Experiment</th>
                    <th scope="col" class="n">
                      Runs
                    </th>
                    <th scope="col">Under way</th>
                    <th scope="col">Last run</th>
                  </tr>
                </thead>
                <tbody>
                  <For each={shown()}>
                    {(experiment) => (
                      <tr>
                        <td class="name">
                          <A href={`/experiments/${experiment.id}`} data-row>
                            <bdi>{experiment.name}</bdi>
                          </A>
                        </td>
                        <td class="n">{experiment.n_runs.toLocaleString('en')}</td>
                        <td>
                          <Show when={experiment.n_running > 0} fallback={<span class="faint">–</span>}>
                            <span class="pill live">{experiment.n_running} running</span>
                          </Show>
                        </td>
                        <td class="soft nowrap">
                          <Moment at={experiment.last_start} />
                        </td>
                      </tr>
                    )}
                  </For>
                </tbody>
              </table>
            </div>
          </Show>
        )}
      </Loaded>
    </div>
  );
}

/** Moves the focus along the links of the rows. */
export function step(by: number): void {
  const rows = [...document.querySelectorAll<HTMLElement>(ROW)];
  const at = rows.indexOf(document.activeElement as HTMLElement);
  rows[at < 0 ? 0 : Math.max(0, Math.min(rows.length - 1, at + by))]?.focus();
}
