import { A, useParams } from '@solidjs/router';
import { For, type JSX, Match, Show, Switch } from 'solid-js';
import { api, type Schemas } from '../api';
import { number, plural, shortDigest } from '../lib/format';
import { createLive } from '../lib/live';
import { Moves } from '../parts/moves';
import { useParam } from '../parts/params';
import { Empty, Failure, Moment, Pill, Skeleton } from '../parts/states';
import { Tabs } from '../parts/tabs';
import { useTitle } from '../parts/title';

const EVERY_MS = 5000;

export default function ModelPage(): JSX.Element {
  const route = useParams();
  const name = () => decodeURIComponent(route.name ?? '');
  const [model, again] = createLive(name, api.model, () => EVERY_MS);
  const [moves] = createLive(
    name,
    (of, signal) => api.moves({ model: of }, signal),
    () => EVERY_MS,
  );
  const [tab, setTab] = useParam('tab', 'versions');
  useTitle(name);
  return (
    <div class="page">
      <nav class="crumbs" aria-label="Where this is">
        <A href="/models">Models</A>
      </nav>
      <div class="page-head">
        <h1>
          <bdi>{name()}</bdi>
        </h1>
        <For each={model.value?.aliases}>
          {(alias) => (
            <span class="pill alias">
              {alias.alias} → {alias.version}
            </span>
          )}
        </For>
      </div>
      <Show when={model.value?.description}>
        {(description) => (
          <p class="soft">
            <bdi>{description()}</bdi>
          </p>
        )}
      </Show>
      <Switch>
        <Match when={model.error && !model.value}>
          <Failure what="This model could not be read" error={model.error ?? ''} again={again} />
        </Match>
        <Match when={!model.value}>
          <Skeleton rows={5} />
        </Match>
        <Match when={model.value}>
          {(value) => (
            <>
              <Tabs
                label="Views of the model"
                chosen={tab()}
                choose={setTab}
                tabs={[
                  { id: 'versions', title: 'Versions', count: value().versions.length },
                  { id: 'audit', title: 'Audit trail', count: moves.value?.moves.length },
                ]}
              />
              <div role="tabpanel" aria-labelledby={`tab-${tab()}`} class="panel">
                <Show when={tab() === 'versions'}>
                  <Versions versions={value().versions} />
                  <Show when={value().more_versions}>
                    <p class="soft">Older versions are not listed here.</p>
                  </Show>
                </Show>
                <Show when={tab() === 'audit'}>
                  <Show
                    when={moves.value && moves.value.moves.length > 0}
                    fallback={
                      <Empty title="No alias has moved yet">
                        Each move is recorded here: who, why, and on what evidence.
                      </Empty>
                    }
                  >
                    <Moves moves={moves.value?.moves ?? []} label="Audit trail" />
                    <Show when={moves.value?.more}>
                      <p class="soft">
                        Older moves: <code>GET /api/2.0/highroad/audit</code>
                      </p>
                    </Show>
                  </Show>
                </Show>
              </div>
            </>
          )}
        </Match>
      </Switch>
    </div>
  );
}

function Versions(props: { versions: Schemas['Version'][] }): JSX.Element {
  return (
    <Show when={props.versions.length > 0} fallback={<Empty title="No version yet" />}>
      <ul class="versions">
        <For each={props.versions}>
          {(version) => (
            <li class="card version">
              <div class="version-head">
                <h2>Version {version.version}</h2>
                <For each={version.aliases}>{(alias) => <span class="pill alias">{alias}</span>}</For>
                <Show when={version.outcome} fallback={<span class="faint">free: no Highroad package</span>}>
                  {(outcome) => <Pill text={outcome()} />}
                </Show>
                <Show when={version.stage !== 'None'}>
                  <span class="pill">{version.stage}</span>
                </Show>
                <span class="grow" />
                <span class="soft nowrap">
                  <Moment at={version.created} />
                </span>
              </div>
              <ul class="facts soft">
                <li>
                  {version.package ? 'package ' : 'source '}
                  <span class="mono" title={version.package ?? version.source}>
                    {version.package ? shortDigest(version.package) : version.source}
                  </span>
                </li>
                <Show when={version.run_id}>
                  <li>
                    run{' '}
                    <A class="mono" href={`/runs/${version.run_id}`}>
                      {version.run_id.slice(0, 12)}
                    </A>
                  </li>
                </Show>
                <Show when={version.user}>
                  <li>
                    by <bdi>{version.user}</bdi>
                  </li>
                </Show>
                <For
                  each={version.tags.filter(({ key }) => !key.startsWith('highroad.') && !key.startsWith('mlflow.'))}
                >
                  {(tag) => (
                    <li>
                      <bdi>{tag.key}</bdi>: <bdi>{tag.value.slice(0, 200)}</bdi>
                    </li>
                  )}
                </For>
              </ul>
              <Show when={version.description}>
                <p>
                  <bdi>{version.description}</bdi>
                </p>
              </Show>
              <Show when={version.verdict}>{(verdict) => <Verdict verdict={verdict()} />}</Show>
            </li>
          )}
        </For>
      </ul>
    </Show>
  );
}

function Verdict(props: { verdict: Schemas['VerdictShown'] }): JSX.Element {
  const summary = () =>
    [
      plural(props.verdict.checks.length, 'check'),
      `on ${plural(props.verdict.n_cases, 'case')} of ${props.verdict.golden_set}`,
      props.verdict.flips.length > 0 ? plural(props.verdict.flips.length, 'flip') : '',
      props.verdict.waivers.length > 0 ? `${props.verdict.waivers.length} accepted` : '',
    ].filter(Boolean);
  return (
    <details class="verdict">
      <summary>{summary().join(', ')}</summary>
      <p class="soft">
        Judged {props.verdict.created_at} by <bdi>{props.verdict.created_by}</bdi> on numerics{' '}
        <span class="mono">{props.verdict.numerics_id}</span>, golden set{' '}
        <span class="mono" title={props.verdict.golden_digest}>
          {shortDigest(props.verdict.golden_digest)}
        </span>
      </p>
      <table class="rows tight">
        <thead>
          <tr>
            <th scope="col">Outcome</th>
            <th scope="col">Rule</th>
            <th scope="col" class="n">
              Candidate
            </th>
            <th scope="col" class="n">
              Baseline
            </th>
            <th scope="col" class="n">
              Interval
            </th>
            <th scope="col">Reason</th>
          </tr>
        </thead>
        <tbody>
          <For each={props.verdict.checks}>
            {(check) => (
              <tr>
                <td>
                  <Pill text={check.outcome} />
                </td>
                <td>{check.rule}</td>
                <td class="n">{number(check.candidate)}</td>
                <td class="n">{number(check.baseline)}</td>
                <td class="n nowrap">{check.interval ? check.interval.map(number).join(' … ') : '–'}</td>
                <td class="soft">{check.reason}</td>
              </tr>
            )}
          </For>
        </tbody>
      </table>
      <Show when={props.verdict.flips.length > 0}>
        <table class="rows tight">
          <thead>
            <tr>
              <th scope="col">Flipped case</th>
              <th scope="col">Expected</th>
              <th scope="col">Baseline</th>
              <th scope="col">Candidate</th>
            </tr>
          </thead>
          <tbody>
            <For each={props.verdict.flips}>
              {(flip) => (
                <tr>
                  <td>
                    <bdi>{flip.case}</bdi>{' '}
                    <Show when={flip.regression}>
                      <span class="pill bad">worse</span>
                    </Show>
                  </td>
                  <td>{flip.expected}</td>
                  <td>{flip.baseline}</td>
                  <td>{flip.candidate}</td>
                </tr>
              )}
            </For>
          </tbody>
        </table>
      </Show>
      <For each={props.verdict.waivers}>
        {(waiver) => (
          <p>
            <span class="pill odd">accepted</span> case <bdi>{waiver.case}</bdi> by <bdi>{waiver.by}</bdi> until{' '}
            {waiver.expires_at}: <bdi>{waiver.why}</bdi>
          </p>
        )}
      </For>
    </details>
  );
}
