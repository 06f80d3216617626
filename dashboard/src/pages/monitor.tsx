import { A } from '@solidjs/router';
import { type Accessor, For, type JSX, Match, Show, Switch } from 'solid-js';
import { number, plural, shortDigests } from '../lib/format';
import { createLive } from '../lib/live';
import { share, signalName } from '../lib/serving';
import { useKeys } from '../parts/keys';
import { ServerPicker, useServers, WithServer } from '../parts/server';
import { Empty, Failure, Moment, Pill, Skeleton } from '../parts/states';
import { useTitle } from '../parts/title';
import { Told } from '../parts/told';
import { type Server, serving, type Watched } from '../serving';
import { step } from './experiments';

const EVERY_MS = 5000;

export default function Monitor(): JSX.Element {
  const servers = useServers();
  useKeys({ j: () => step(1), k: () => step(-1) });
  useTitle(() => 'Monitoring');
  return (
    <div class="page">
      <div class="page-head">
        <h1>Monitoring</h1>
        <span class="grow" />
        <ServerPicker servers={servers} />
      </div>
      <p class="soft">What members meet and answer, against what their packages were judged on.</p>
      <WithServer servers={servers}>{(server) => <OfServer server={server} />}</WithServer>
    </div>
  );
}

function OfServer(props: { server: Accessor<Server> }): JSX.Element {
  const [live, again] = createLive(props.server, serving.watched, (value) => (value === null ? undefined : EVERY_MS));
  return (
    <Switch>
      <Match when={live.error && live.value === undefined}>
        <Failure what="Monitoring could not be read" error={live.error ?? ''} again={again} />
      </Match>
      <Match when={live.value === undefined}>
        <Skeleton rows={4} />
      </Match>
      <Match when={live.value === null}>
        <Empty title="This server does not monitor">
          One that does compares what members meet with their baselines.
        </Empty>
      </Match>
      <Match when={live.value?.members.length === 0}>
        <Empty title="No member is watched yet">A member is watched from its first request on.</Empty>
      </Match>
      <Match when={live.value}>
        {(value) => (
          <>
            <Show when={value().findings.length > 0}>
              <section class="alerts card" aria-label="What differs" aria-live="polite">
                <ul>
                  <For each={value().findings}>
                    {(finding) => (
                      <li>
                        <span class="pill bad">{finding.kind.replaceAll('_', ' ')}</span>
                        <span class="alert-text">
                          <Told text={finding.message} />
                        </span>
                        <span class="soft nowrap">
                          <Moment at={Date.parse(finding.since)} />
                        </span>
                      </li>
                    )}
                  </For>
                </ul>
              </section>
            </Show>
            <Members members={value().members} />
          </>
        )}
      </Match>
    </Switch>
  );
}

function Members(props: { members: Watched[] }): JSX.Element {
  const violations = (member: Watched) => Object.values(member.violations).reduce((sum, n) => sum + n, 0);
  const quality = (member: Watched) => member.quality?.accuracy ?? member.quality?.ndcg_10 ?? member.quality?.mrr;
  return (
    <section class="card scroll" tabindex="0" aria-label="Watched members">
      <table class="rows">
        <thead>
          <tr>
            <th scope="col">Member</th>
            <th scope="col">Stands</th>
            <th scope="col">Baseline</th>
            <th scope="col" class="n">
              Requests
            </th>
            <th scope="col" class="n">
              Refused
            </th>
            <th scope="col">Differs most</th>
            <th scope="col" class="n">
              Right
            </th>
          </tr>
        </thead>
        <tbody>
          <For each={props.members}>
            {(member) => (
              <tr>
                <td class="name">
                  <A href={`/monitor/${encodeURIComponent(member.member)}`} data-row>
                    <bdi>{member.member}</bdi>
                  </A>
                  <div class="soft">
                    <bdi>{shortDigests(member.version)}</bdi>
                  </div>
                </td>
                <td class="why">
                  <Pill text={member.state.replaceAll('_', ' ')} />
                  <div class="soft">
                    <Told text={member.message} />
                  </div>
                </td>
                <td>
                  <Show when={member.baseline} fallback={<span class="faint">none</span>}>
                    {(baseline) => (
                      <>
                        <bdi>{baseline().name}</bdi>
                        <div class="soft">{plural(baseline().n, 'input')}</div>
                      </>
                    )}
                  </Show>
                </td>
                <td class="n">{member.n_requests.toLocaleString('en')}</td>
                <td class="n">{violations(member).toLocaleString('en')}</td>
                <td>
                  <Show when={worst(member)} fallback={<span class="faint">–</span>}>
                    {(signal) => (
                      <>
                        <bdi>{signalName(signal().signal)}</bdi>
                        <div class="soft">index {number(Number(signal().effect.toPrecision(3)))}</div>
                      </>
                    )}
                  </Show>
                </td>
                <td class="n nowrap">
                  <Show when={quality(member)} fallback={<span class="faint">–</span>}>
                    {(found) => (
                      <span title={`${plural(found().n, 'right answer')} known`}>
                        {share(found().value)}
                        <div class="soft">{found().interval.map(share).join(' … ')}</div>
                      </span>
                    )}
                  </Show>
                </td>
              </tr>
            )}
          </For>
        </tbody>
      </table>
    </section>
  );
}

function worst(member: Watched) {
  return member.signals.filter(({ verdict }) => verdict !== 'collecting').sort((a, b) => b.effect - a.effect)[0];
}
