import { A } from '@solidjs/router';
import { createMemo, For, type JSX, Show } from 'solid-js';
import { number, plural } from '../lib/format';
import { createLive } from '../lib/live';
import { headline, isShadow, percents, stageOf } from '../lib/serving';
import { useKeys } from '../parts/keys';
import { Loaded, Search } from '../parts/page';
import { useParam } from '../parts/params';
import { Empty, Moment, Pill } from '../parts/states';
import { useTitle } from '../parts/title';
import { type End, type Registered, serving } from '../serving';
import { step } from './experiments';

const EVERY_MS = 2000;
const RECORD = 50;

/** Where the page of a rollout is. */
export function rolloutPath(model: string, id: string): string {
  return `/rollouts/${encodeURIComponent(model)}/${id}`;
}

export function planOf({ rollout }: Registered): string {
  const shares = percents(rollout.plan)
    .map((percent) => `${number(percent)} %`)
    .join(', ');
  return `${isShadow(rollout.plan) ? 'shadow of' : 'canary of'} ${shares}`;
}

export default function Rollouts(): JSX.Element {
  const [live, again] = createLive(
    () => true,
    (_, signal) => serving.registered(signal),
    () => EVERY_MS,
  );
  const [find, setFind] = useParam('q');
  const found = createMemo(() =>
    (live.value?.rollouts ?? [])
      .filter(({ model }) => model.toLowerCase().includes(find().toLowerCase()))
      .sort(
        (a, b) =>
          Number(Boolean(a.end)) - Number(Boolean(b.end)) || b.rollout.begun_at.localeCompare(a.rollout.begun_at),
      ),
  );
  useKeys({ j: () => step(1), k: () => step(-1) });
  useTitle(() => 'Rollouts');
  return (
    <div class="page">
      <div class="page-head">
        <h1>Rollouts</h1>
        <Show when={live.value}>
          <span class="soft">{plural(found().filter(({ end }) => !end).length, 'candidate')} tried now</span>
        </Show>
        <span class="grow" />
        <Search label="Find models" value={find()} set={setFind} />
      </div>
      <p class="soft">A version is tried beside the stable one on live traffic, and judged on the answers of both.</p>
      <Loaded live={live} again={again} what="The rollouts could not be read" rows={4}>
        {() => (
          <Show
            when={found().length > 0}
            fallback={
              <Empty title={find() ? 'No model with a rollout has this in its name' : 'Nothing was ever tried'}>
                <Show when={!find()}>
                  <code>highroad deploy NAME VERSION --shadow 20%</code> tries a version unseen by clients.
                </Show>
              </Empty>
            }
          >
            <section class="card scroll" tabindex="0" aria-label="Newest rollouts">
              <table class="rows">
                <thead>
                  <tr>
                    <th scope="col">Candidate</th>
                    <th scope="col">Stands</th>
                    <th scope="col">Plan</th>
                    <th scope="col" class="n">
                      Compared
                    </th>
                    <th scope="col" class="n">
                      Differently
                    </th>
                    <th scope="col" class="n">
                      Failed
                    </th>
                    <th scope="col">Who and why</th>
                    <th scope="col">Begun</th>
                  </tr>
                </thead>
                <tbody>
                  <For each={found()}>
                    {(rollout) => (
                      <tr>
                        <td class="name">
                          <A href={rolloutPath(rollout.model, rollout.rollout.id)} data-row>
                            <bdi>{rollout.model}</bdi>:{rollout.rollout.candidate.version}
                          </A>
                          <div class="soft">
                            beside {rollout.rollout.stable.version} for <bdi>{rollout.alias}</bdi>
                          </div>
                        </td>
                        <td class="why">
                          <Pill text={stageOf(rollout)} />
                          <div class="soft">
                            <bdi>{headline(rollout)}</bdi>
                          </div>
                        </td>
                        <td class="nowrap">{planOf(rollout)}</td>
                        <td class="n">{rollout.counts.n_compared.toLocaleString('en')}</td>
                        <td class="n">{rollout.counts.n_differ.toLocaleString('en')}</td>
                        <td class="n">{rollout.counts.n_errors.toLocaleString('en')}</td>
                        <td class="why">
                          <bdi>{rollout.rollout.by}</bdi>
                          <div class="soft">
                            <bdi>{rollout.rollout.why}</bdi>
                          </div>
                        </td>
                        <td class="soft nowrap">
                          <Moment at={Date.parse(rollout.rollout.begun_at)} />
                        </td>
                      </tr>
                    )}
                  </For>
                </tbody>
              </table>
            </section>
            <Record rollouts={found()} />
          </Show>
        )}
      </Loaded>
    </div>
  );
}

/** How earlier ones ended, the newest first. */
function Record(props: { rollouts: Registered[] }): JSX.Element {
  const ends = createMemo(() => {
    const all = props.rollouts.flatMap(({ model, alias, rollout, ends }) =>
      ends.filter((end) => end.rollout !== rollout.id).map((end) => ({ model, alias, end })),
    );
    return all.sort((a, b) => b.end.at.localeCompare(a.end.at)).slice(0, RECORD);
  });
  return (
    <Show when={ends().length > 0}>
      <h2>Earlier ones</h2>
      <section class="card scroll" tabindex="0" aria-label="Earlier rollouts">
        <table class="rows">
          <thead>
            <tr>
              <th scope="col">Candidate</th>
              <th scope="col">Ended</th>
              <th scope="col" class="n">
                Compared
              </th>
              <th scope="col">By</th>
              <th scope="col">Why</th>
              <th scope="col">When</th>
            </tr>
          </thead>
          <tbody>
            <For each={ends()}>{(each) => <EndRow {...each} />}</For>
          </tbody>
        </table>
      </section>
    </Show>
  );
}

function EndRow(props: { model: string; alias: string; end: End }): JSX.Element {
  return (
    <tr>
      <td class="name">
        <A href={rolloutPath(props.model, props.end.rollout)}>
          <bdi>{props.model}</bdi>:{props.end.candidate}
        </A>
      </td>
      <td>
        <Pill text={props.end.outcome} />
      </td>
      <td class="n">{props.end.counts.n_compared.toLocaleString('en')}</td>
      <td>
        <bdi>{props.end.by}</bdi>
      </td>
      <td class="why">
        <bdi>{props.end.reason}</bdi>
      </td>
      <td class="soft nowrap">
        <Moment at={Date.parse(props.end.at)} />
      </td>
    </tr>
  );
}
