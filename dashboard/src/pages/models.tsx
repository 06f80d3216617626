import { A } from '@solidjs/router';
import { createMemo, For, type JSX, Show } from 'solid-js';
import { api } from '../api';
import { plural } from '../lib/format';
import { createLive } from '../lib/live';
import { useKeys } from '../parts/keys';
import { Moves } from '../parts/moves';
import { Loaded, Search } from '../parts/page';
import { useParam } from '../parts/params';
import { Empty, Moment, Pill } from '../parts/states';
import { useTitle } from '../parts/title';
import { step } from './experiments';

const EVERY_MS = 5000;
const LATEST_MOVES = 10;

export default function Models(): JSX.Element {
  const [live, again] = createLive(
    () => true,
    (_, signal) => api.models(signal),
    () => EVERY_MS,
  );
  const [moves] = createLive(
    () => true,
    (_, signal) => api.moves({ limit: LATEST_MOVES }, signal),
    () => EVERY_MS,
  );
  const [find, setFind] = useParam('q');
  const shown = createMemo(() => {
    const wanted = find().toLowerCase();
    return (live.value?.models ?? []).filter(({ name, description }) =>
      `${name} ${description}`.toLowerCase().includes(wanted),
    );
  });
  useKeys({ j: () => step(1), k: () => step(-1) });
  useTitle(() => 'Models');
  return (
    <div class="page">
      <div class="page-head">
        <h1>Models</h1>
        <Show when={live.value}>{(value) => <span class="soft">{plural(value().models.length, 'model')}</span>}</Show>
        <span class="grow" />
        <Search label="Find models" value={find()} set={setFind} />
      </div>
      <p class="soft">A Highroad package takes an alias only on a verdict that admits it.</p>
      <Loaded live={live} again={again} what="The models could not be read" rows={4}>
        {() => (
          <Show
            when={shown().length > 0}
            fallback={
              <Empty title={find() ? 'No model has this in its name' : 'No model is registered yet'}>
                <Show when={!find()}>
                  <code>highroad push PACKAGE NAME</code> makes the first.
                </Show>
              </Empty>
            }
          >
            <div class="card scroll">
              <table class="rows">
                <thead>
                  <tr>
                    <th scope="col">Model</th>
                    <th scope="col" class="n">
                      Newest version
                    </th>
                    <th scope="col">Its verdict</th>
                    <th scope="col">Aliases</th>
                    <th scope="col">Changed</th>
                  </tr>
                </thead>
                <tbody>
                  <For each={shown()}>
                    {(model) => (
                      <tr>
                        <td class="name">
                          <A href={`/models/${encodeURIComponent(model.name)}`} data-row>
                            <bdi>{model.name}</bdi>
                          </A>
                          <Show when={model.description}>
                            <div class="soft">
                              <bdi>{model.description}</bdi>
                            </div>
                          </Show>
                        </td>
                        <td class="n">{model.newest ?? '–'}</td>
                        <td>
                          <Show when={model.outcome} fallback={<span class="faint">free</span>}>
                            {(outcome) => <Pill text={outcome()} />}
                          </Show>
                        </td>
                        <td>
                          <For each={model.aliases} fallback={<span class="faint">–</span>}>
                            {(alias) => (
                              <span class="pill alias">
                                {alias.alias} → {alias.version}
                              </span>
                            )}
                          </For>
                        </td>
                        <td class="soft nowrap">
                          <Moment at={model.updated} />
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
      <Show when={moves.value && moves.value.moves.length > 0}>
        <h2>Latest moves</h2>
        <Moves moves={moves.value?.moves ?? []} label="Latest moves" />
      </Show>
    </div>
  );
}
