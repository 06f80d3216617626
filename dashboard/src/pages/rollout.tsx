import { A, useParams } from '@solidjs/router';
import { type Accessor, createMemo, For, type JSX, Match, Show, Switch } from 'solid-js';
import { api } from '../api';
import { number, plural, shortDigest } from '../lib/format';
import { createLive } from '../lib/live';
import { apart, headline, inputText, isShadow, millis, percents, share, stageOf, timesOf } from '../lib/serving';
import { ActButton } from '../parts/act';
import { Courses } from '../parts/course';
import { ServerPicker, useServers } from '../parts/server';
import { Empty, Failure, Moment, Pill, Skeleton } from '../parts/states';
import { useTitle } from '../parts/title';
import { useViewer } from '../parts/viewer';
import { type Check, type End, type Latencies, type Registered, type Server, serving, type Trial } from '../serving';
import { planOf } from './rollouts';

const EVERY_MS = 2000;
const COURSE_EVERY_MS = 4000;
const MODEL_EVERY_MS = 4000;

export default function RolloutPage(): JSX.Element {
  const route = useParams();
  const model = () => decodeURIComponent(route.model ?? '');
  const [live, again] = createLive(
    () => true,
    (_, signal) => serving.registered(signal),
    () => EVERY_MS,
  );
  const found = createMemo(() =>
    live.value?.rollouts.find((each) => each.model === model() && each.rollout.id === route.id),
  );
  const earlier = createMemo(() =>
    live.value?.rollouts
      .filter((each) => each.model === model())
      .flatMap(({ ends }) => ends)
      .find((end) => end.rollout === route.id),
  );
  useTitle(() => `Rollout of ${model()}`);
  return (
    <div class="page">
      <nav class="crumbs" aria-label="Where this is">
        <A href="/rollouts">Rollouts</A>
        <A href={`/models/${encodeURIComponent(model())}`}>{model()}</A>
      </nav>
      <Switch>
        <Match when={live.error && !live.value}>
          <Failure what="The rollout could not be read" error={live.error ?? ''} again={again} />
        </Match>
        <Match when={!live.value}>
          <Skeleton rows={6} />
        </Match>
        <Match when={found()}>{(rollout) => <Shown found={rollout()} again={again} />}</Match>
        <Match when={earlier()}>{(end) => <Earlier model={model()} end={end()} />}</Match>
        <Match when={true}>
          <Empty title="The registry knows no such rollout">
            It may be of another model, or its record was taken away.
          </Empty>
        </Match>
      </Switch>
    </div>
  );
}

function Shown(props: { found: Registered; again: () => void }): JSX.Element {
  const servers = useServers();
  const [trials] = createLive(
    servers.server,
    async (server, signal) => ({ base: server.base, ...(await serving.rollouts(server, signal)) }),
    () => EVERY_MS,
  );
  const trial = createMemo(() => {
    if (trials.value?.base !== servers.server()?.base) return undefined;
    return trials.value?.rollouts.find(({ rollout }) => rollout.id === props.found.rollout.id);
  });
  // A process that ended it knows before the registry does.
  const current = createMemo<Registered>(() => ({ ...props.found, end: props.found.end ?? trial()?.end ?? null }));
  return (
    <>
      <div class="page-head">
        <h1>
          <bdi>{current().model}</bdi>:{current().rollout.candidate.version} beside {current().rollout.stable.version}
        </h1>
        <Pill text={stageOf(current())} />
        <span class="grow" />
        <ServerPicker servers={servers} />
        <Acts found={current()} trial={trial()} server={servers.server()} again={props.again} />
      </div>
      <p>
        <bdi>{headline(current())}</bdi>
      </p>
      <Stages found={current()} />
      <Facts found={current()} trial={trial()} />
      <h2>Rules</h2>
      <Checks checks={(!current().end && trial()?.checks) || current().checks} />
      <p class="soft note-below">
        All rules together are ever wrong with probability at most {number(current().rollout.rules.alpha)}, however
        often one looks. It can pass after {current().fewest_to_pass.toLocaleString('en')} requests that are answered
        alike.
      </p>
      <Show
        when={trial()}
        fallback={
          <p class="soft">
            <Show
              when={servers.server()}
              fallback="No serving process is known here, so what the registry holds is all there is."
            >
              {(server) =>
                `${server().name === 'this process' ? 'This process' : server().name} does not try it (any more): what the registry holds is all there is.`
              }
            </Show>
          </p>
        }
      >
        {(seen) => <Seen trial={seen()} server={servers.server as Accessor<Server>} />}
      </Show>
      <Replicas found={current()} />
    </>
  );
}

/** What may be done about it, by whoever may. */
function Acts(props: {
  found: Registered;
  trial: Trial | undefined;
  server: Server | undefined;
  again: () => void;
}): JSX.Element {
  const viewer = useViewer();
  const name = () => `${props.found.model}:${props.found.rollout.candidate.version}`;
  const stage = () => stageOf(props.found);
  const [model] = createLive(
    () => (stage() === 'promoted' ? props.found.model : undefined),
    api.model,
    () => MODEL_EVERY_MS,
  );
  /** Whether the alias still names what was promoted: else going back would undo somebody else's move. */
  const isChampion = () =>
    model.value?.aliases.find(({ alias }) => alias === props.found.alias)?.version ===
    String(props.found.rollout.candidate.version);
  const here = () => Boolean(props.server?.acts && props.trial && !props.trial.end);
  const disabled = () => {
    if (!viewer.may('deploy')) return 'Your key has no scope `deploy`';
    return undefined;
  };
  const bound = () => {
    const { server, trial } = props;
    if (!server || !trial) throw new Error('The rollout does not go on here any more.');
    return [server, trial.member, trial.rollout.id] as const;
  };
  return (
    <Switch>
      <Match when={!props.found.end && here()}>
        <Show when={stage() === 'passed' && props.found.rollout.on_pass === 'hold'}>
          <ActButton
            title="Promote"
            does={`Promote ${name()}`}
            tone="accent"
            disabled={disabled()}
            explains={`The way back is rehearsed, then ${props.found.alias} names ${name()} and every replica follows.`}
            act={(given) => serving.promote(...bound(), given)}
            done={props.again}
          />
        </Show>
        <ActButton
          title="Abort"
          does={`Abort ${name()}`}
          tone="danger"
          disabled={disabled()}
          explains={`${name()} takes no more traffic: here at once, and on other replicas as soon as they look at the registry.`}
          act={(given) => serving.abort(...bound(), given)}
          done={props.again}
        />
      </Match>
      <Match when={!props.found.end}>
        <span class="soft">
          <code>highroad deploy abort {props.found.model}</code> ends it
        </span>
      </Match>
      <Match when={stage() === 'promoted' && isChampion()}>
        <ActButton
          title="Roll back"
          does="Roll back"
          tone="danger"
          disabled={disabled()}
          explains={`${props.found.model}@${props.found.alias} names again what it named before its last move.`}
          act={(given) => serving.rollBack(props.found.model, props.found.alias, given)}
          done={props.again}
        />
      </Match>
    </Switch>
  );
}

/** The plan's shares, one after the other, and where it is. */
function Stages(props: { found: Registered }): JSX.Element {
  const all = () => percents(props.found.rollout.plan);
  const at = () => (props.found.end ? -1 : props.found.step.idx);
  const outcome = () => stageOf(props.found);
  return (
    <ol class="stages" aria-label={`Plan: ${planOf(props.found)}`}>
      <For each={all()}>
        {(percent, i) => (
          <li
            classList={{ over: props.found.end ? i() <= props.found.step.idx : i() < at(), now: i() === at() }}
            aria-current={i() === at() ? 'step' : undefined}
          >
            {isShadow(props.found.rollout.plan) ? 'shadow' : 'canary'} {number(percent)} %
          </li>
        )}
      </For>
      <li classList={{ over: outcome() !== 'running', now: outcome() === 'passed' }} class={outcome()}>
        {{ running: 'verdict', passed: 'passed', promoted: 'promoted', aborted: 'aborted' }[outcome()]}
      </li>
    </ol>
  );
}

function Facts(props: { found: Registered; trial: Trial | undefined }): JSX.Element {
  const release = (each: { version: number; package: string }) => (
    <>
      version {each.version},{' '}
      <span class="mono" title={each.package}>
        {shortDigest(each.package)}
      </span>
    </>
  );
  return (
    <dl class="facts-grid card">
      <div>
        <dt>Stable</dt>
        <dd>{release(props.found.rollout.stable)}</dd>
      </div>
      <div>
        <dt>Candidate</dt>
        <dd>{release(props.found.rollout.candidate)}</dd>
      </div>
      <div>
        <dt>Who takes part</dt>
        <dd>
          <Show when={!props.found.end} fallback="nobody any more">
            {number(props.found.percent)} %, by a hash of the rollout and <code>x-highroad-user</code>, else{' '}
            <code>x-highroad-tenant</code>, else the request
          </Show>
        </dd>
      </div>
      <div>
        <dt>Begun</dt>
        <dd>
          <Moment at={Date.parse(props.found.rollout.begun_at)} /> by <bdi>{props.found.rollout.by}</bdi>:{' '}
          <bdi>{props.found.rollout.why}</bdi>
        </dd>
      </div>
      <div>
        <dt>Seen</dt>
        <dd>
          {props.found.counts.n_asked.toLocaleString('en')} asked, {props.found.counts.n_compared.toLocaleString('en')}{' '}
          compared, {props.found.counts.n_labelled.toLocaleString('en')} with a right answer
        </dd>
      </div>
      <div>
        <dt>Time to switch</dt>
        <dd>{millis(props.trial?.switch_ms)}</dd>
      </div>
    </dl>
  );
}

function Checks(props: { checks: Check[] }): JSX.Element {
  return (
    <section class="card scroll" tabindex="0" aria-label="Rules">
      <table class="rows">
        <thead>
          <tr>
            <th scope="col">Stands</th>
            <th scope="col">Rule</th>
            <th scope="col" class="n">
              Requests
            </th>
            <th scope="col">What was seen</th>
          </tr>
        </thead>
        <tbody>
          <For each={props.checks} fallback={<EmptyRow />}>
            {(check) => (
              <tr>
                <td>
                  <Pill text={check.outcome} />
                </td>
                <td class="words">{check.rule}</td>
                <td class="n">{check.n_cases.toLocaleString('en')}</td>
                <td class="soft words">
                  <bdi>{check.reason}</bdi>
                </td>
              </tr>
            )}
          </For>
        </tbody>
      </table>
    </section>
  );
}

function EmptyRow(): JSX.Element {
  return (
    <tr>
      <td class="soft" colspan="4">
        A person decided before any rule was judged.
      </td>
    </tr>
  );
}

/** What one serving process has seen: the course of the rules, how far answers are apart, and the worst side by side. */
function Seen(props: { trial: Trial; server: Accessor<Server> }): JSX.Element {
  const [course] = createLive(
    () => ({ server: props.server(), member: props.trial.member, id: props.trial.rollout.id }),
    async ({ server, member, id }, signal) => {
      const found = await serving.course(server, member, signal);
      return found.rollout === id ? found.course : { rules: [], points: [] };
    },
    () => (props.trial.end ? undefined : COURSE_EVERY_MS),
  );
  const means = () => {
    const { apart, counts } = props.trial;
    return [
      ['Answered differently', share(counts.n_compared > 0 ? counts.n_differ / counts.n_compared : null)],
      ['Labels flipped', apart.n_flips.toLocaleString('en')],
      ['Scores by', apart.mean_shift?.toFixed(4)],
      ['Cosine', apart.mean_cosine?.toFixed(4)],
      ['Relative difference', apart.mean_relative?.toFixed(4)],
      ['Overlap of rankings', apart.mean_overlap?.toFixed(4)],
      ['Client waited', millis(apart.mean_live_ms)],
      ['Second answer took', millis(apart.mean_shadow_ms)],
      ['Wait for it', props.trial.n_waiting.toLocaleString('en')],
      ['Dropped', props.trial.n_dropped.toLocaleString('en')],
    ].filter((pair): pair is [string, string] => pair[1] !== undefined);
  };
  return (
    <>
      <h2>In the course of it</h2>
      <Switch>
        <Match when={course.value && course.value.rules.length > 0 && course.value}>
          {(value) => (
            <>
              <Courses course={value()} />
              <p class="soft note-below">
                By requests, since this process began to try it. The line is what was seen, the band the bounds that
                held at every look, the dashes the limit.
              </p>
            </>
          )}
        </Match>
        <Match when={course.error}>
          <Failure what="Its course could not be read" error={course.error ?? ''} />
        </Match>
        <Match when={!course.value}>
          <Skeleton rows={3} />
        </Match>
      </Switch>
      <h2>How far apart the answers are here</h2>
      <dl class="tiles">
        <For each={means()}>
          {([name, value]) => (
            <div class="card">
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          )}
        </For>
      </dl>
      <Show when={course.value?.latency}>{(latency) => <Times latency={latency()} />}</Show>
      <h2>Furthest apart</h2>
      <Worst trial={props.trial} />
    </>
  );
}

function Times(props: { latency: Latencies }): JSX.Element {
  return (
    <>
      <h2>Latency on the same requests here</h2>
      <section class="card scroll" tabindex="0" aria-label="Latency on the same requests">
        <table class="rows">
          <thead>
            <tr>
              <th scope="col">Latency</th>
              <th scope="col" class="n">
                Stable
              </th>
              <th scope="col" class="n">
                Candidate
              </th>
              <th scope="col" class="n">
                Candidate / stable
              </th>
            </tr>
          </thead>
          <tbody>
            <For each={timesOf(props.latency)}>
              {(row) => (
                <tr>
                  <td>{row.name}</td>
                  <td class="n">{row.stable}</td>
                  <td class="n">{row.candidate}</td>
                  <td class="n">{row.ratio}</td>
                </tr>
              )}
            </For>
          </tbody>
        </table>
      </section>
      <p class="soft note-below">
        The latest {plural(props.latency.n_requests, 'request')} that both were timed on:{' '}
        {props.latency.of_processor
          ? 'processor time of each with the request alone, on one thread that nobody waits for'
          : 'time of each from the question to the whole answer'}
        . Bounds are 95 % intervals of one look and decide nothing.
      </p>
    </>
  );
}

function Worst(props: { trial: Trial }): JSX.Element {
  return (
    <Show
      when={props.trial.worst.length > 0}
      fallback={<Empty title="No two answers were apart here">What differs is shown side by side.</Empty>}
    >
      <section class="card scroll" tabindex="0" aria-label="Answers that were furthest apart">
        <table class="rows tight worst">
          <thead>
            <tr>
              <th scope="col">Request</th>
              <th scope="col">Apart</th>
              <th scope="col">Stable</th>
              <th scope="col">Candidate</th>
              <th scope="col">Input</th>
            </tr>
          </thead>
          <tbody>
            <For each={props.trial.worst}>
              {(pair) => (
                <tr>
                  <td class="mono id">
                    <A href={`/requests?id=${encodeURIComponent(pair.request_id)}`}>
                      <bdi>{pair.request_id}</bdi>
                    </A>
                  </td>
                  <td>{apart(pair)}</td>
                  <td>
                    <bdi>{pair.stable.join(', ')}</bdi>
                  </td>
                  <td>
                    <bdi>{pair.candidate.join(', ')}</bdi>
                  </td>
                  <td class="long">
                    <Show
                      when={pair.kept}
                      fallback={
                        <span class="faint" title="This server keeps digests of inputs, not inputs">
                          <span class="mono">{pair.inputs.map(shortDigest).join(', ')}</span>
                        </span>
                      }
                    >
                      {(kept) => <bdi>{kept().map(inputText).join(' · ').slice(0, 600)}</bdi>}
                    </Show>
                  </td>
                </tr>
              )}
            </For>
          </tbody>
        </table>
      </section>
      <p class="soft note-below">
        Inputs are kept only where <code>[rollouts] keep_inputs</code> says so.
      </p>
    </Show>
  );
}

function Replicas(props: { found: Registered }): JSX.Element {
  return (
    <Show when={props.found.replicas.length > 0}>
      <h2>{plural(props.found.replicas.length, 'replica')} told the registry</h2>
      <section class="card scroll" tabindex="0" aria-label="Replicas">
        <table class="rows tight">
          <thead>
            <tr>
              <th scope="col">Replica</th>
              <For each={['Asked', 'Failed', 'Slow', 'Compared', 'Differently', 'Labelled', 'Lost', 'Won']}>
                {(title) => (
                  <th scope="col" class="n">
                    {title}
                  </th>
                )}
              </For>
            </tr>
          </thead>
          <tbody>
            <For each={props.found.replicas}>
              {({ replica, counts }) => (
                <tr>
                  <td class="mono">{replica}</td>
                  <For
                    each={[
                      counts.n_asked,
                      counts.n_errors,
                      counts.n_slow,
                      counts.n_compared,
                      counts.n_differ,
                      counts.n_labelled,
                      counts.n_regressions,
                      counts.n_improvements,
                    ]}
                  >
                    {(n) => <td class="n">{n.toLocaleString('en')}</td>}
                  </For>
                </tr>
              )}
            </For>
          </tbody>
        </table>
      </section>
    </Show>
  );
}

/** A rollout of which the record alone is left. */
function Earlier(props: { model: string; end: End }): JSX.Element {
  return (
    <>
      <div class="page-head">
        <h1>
          <bdi>{props.model}</bdi>:{props.end.candidate}
        </h1>
        <Pill text={props.end.outcome} />
      </div>
      <p>
        Ended <Moment at={Date.parse(props.end.at)} /> by <bdi>{props.end.by}</bdi>: <bdi>{props.end.reason}</bdi>
      </p>
      <p class="soft">
        {props.end.counts.n_asked.toLocaleString('en')} requests were asked of it and{' '}
        {props.end.counts.n_compared.toLocaleString('en')} compared. A newer rollout took its place, so its plan is not
        kept.
      </p>
      <h2>Rules</h2>
      <Checks checks={props.end.checks} />
    </>
  );
}
