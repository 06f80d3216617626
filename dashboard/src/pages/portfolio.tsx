import { A } from '@solidjs/router';
import { type Accessor, For, type JSX, Show } from 'solid-js';
import { compact, number, shortDigest } from '../lib/format';
import { createLive } from '../lib/live';
import { millis, rate, share } from '../lib/serving';
import { ActButton } from '../parts/act';
import { Alerts } from '../parts/alerts';
import { ErrorShare, Evidence, MemberState, Spark, UsedBar } from '../parts/bits';
import { BudgetBars } from '../parts/budgets';
import { Loaded } from '../parts/page';
import { PipelineGraph } from '../parts/pipeline-graph';
import { ServerPicker, useServers, WithServer } from '../parts/server';
import { Empty } from '../parts/states';
import { useTitle } from '../parts/title';
import { Told } from '../parts/told';
import { useViewer } from '../parts/viewer';
import { type Index, type Member, type Pipeline, type Server, type Portfolio as Shown, serving } from '../serving';

const EVERY_MS = 2000;

export default function Portfolio(): JSX.Element {
  const servers = useServers();
  useTitle(() => 'Portfolio');
  return (
    <div class="page">
      <div class="page-head">
        <h1>Portfolio</h1>
        <span class="grow" />
        <ServerPicker servers={servers} />
      </div>
      <WithServer servers={servers}>{(server) => <OfServer server={server} />}</WithServer>
    </div>
  );
}

function OfServer(props: { server: Accessor<Server> }): JSX.Element {
  const [live, again] = createLive(props.server, serving.portfolio, () => EVERY_MS);
  return (
    <Loaded live={live} again={again} what="The portfolio could not be read" rows={5}>
      {(value) => (
        <>
          <Show when={live.error}>
            <p class="stale-note" role="status">
              What is shown is not the present: {live.error}
            </p>
          </Show>
          <Alerts server={props.server} />
          <Members shown={value()} />
          <Hosted members={value().members.filter((member) => member.hosted)} server={props.server()} again={again} />
          <BudgetBars server={props.server} />
          <Pipelines shown={value()} />
          <Indexes indexes={value().indexes} />
        </>
      )}
    </Loaded>
  );
}

function Members(props: { shown: Shown }): JSX.Element {
  const own = () => props.shown.members.filter((member) => !member.hosted);
  return (
    <Show
      when={props.shown.members.length > 0}
      fallback={
        <Empty title={props.shown.all ? 'Nothing is served yet' : 'This key may ask no member'}>
          <Show when={props.shown.all}>
            <code>highroad promote NAME VERSION</code> makes a version the champion, which is served.
          </Show>
        </Empty>
      }
    >
      <Show when={own().length > 0}>
        <section class="card scroll" tabindex="0" aria-label="Members">
          <table class="rows members">
            <thead>
              <tr>
                <th scope="col">Member</th>
                <th scope="col">Serves</th>
                <th scope="col">State</th>
                <th scope="col">Five minutes</th>
                <th scope="col" class="n">
                  Requests
                </th>
                <th scope="col" class="n">
                  p50
                </th>
                <th scope="col" class="n">
                  p99
                </th>
                <th scope="col" class="n">
                  Errors
                </th>
                <th scope="col">Queue</th>
              </tr>
            </thead>
            <tbody>
              <For each={own()}>{(member) => <MemberRow member={member} />}</For>
            </tbody>
          </table>
        </section>
        <Show when={!props.shown.all}>
          <p class="soft note-below">Members that your key may not ask are not shown.</p>
        </Show>
      </Show>
    </Show>
  );
}

function MemberRow(props: { member: Member }): JSX.Element {
  const name = () => props.member.model?.name;
  return (
    <tr id={`member-${props.member.member}`}>
      <td class="name">
        <strong>
          <bdi>{props.member.member}</bdi>
        </strong>
        <div class="soft">{props.member.task ?? 'not known yet'}</div>
      </td>
      <td>
        <Show when={props.member.serving} fallback={<span class="soft">{props.member.source}</span>}>
          {(facts) => (
            <>
              <Show when={name()} fallback={<bdi>{facts().version.split('@')[0]}</bdi>}>
                {(model) => (
                  <A href={`/models/${encodeURIComponent(model())}`}>
                    <bdi>{facts().version}</bdi>
                  </A>
                )}
              </Show>{' '}
              <Evidence of={facts().evidence} />
              <div class="soft">
                <span class="mono" title={facts().package}>
                  {shortDigest(facts().package)}
                </span>
                <Show when={props.member.run_id}>
                  {(run) => (
                    <>
                      {' of run '}
                      <A class="mono" href={`/runs/${run()}`}>
                        {run().slice(0, 8)}
                      </A>
                    </>
                  )}
                </Show>
                <Show when={facts().override}>
                  {(given) => (
                    <>
                      {' let through by '}
                      <bdi>{given().by}</bdi> until {given().expires_at}
                    </>
                  )}
                </Show>
                <Show when={facts().development}>
                  {(why) => (
                    <>
                      {', '}
                      <bdi>{why()}</bdi>
                    </>
                  )}
                </Show>
              </div>
            </>
          )}
        </Show>
      </td>
      <td class="state-cell">
        <MemberState member={props.member} />
        <Show when={props.member.rollout}>
          {(rollout) => (
            <A
              class="pill live"
              href={`/rollouts/${encodeURIComponent(name() ?? props.member.member)}/${rollout().id}`}
            >
              trying {rollout().candidate}
              {rollout().passed ? ', passed' : ` at ${number(rollout().percent)} %`}
            </A>
          )}
        </Show>
        <Show when={props.member.failure}>
          {(failure) => (
            <div class="soft reason">
              <Told text={`${failure().version ? `${failure().version}: ` : ''}${failure().reason}`} />
            </div>
          )}
        </Show>
        <Show when={props.member.way_back}>
          {(back) => (
            <div class="soft reason">
              way back <bdi>{back().version}</bdi>:{' '}
              <bdi>{back().evidence ?? back().failure ?? 'brought, not loaded'}</bdi>
            </div>
          )}
        </Show>
      </td>
      <td>
        <Spark traffic={props.member.traffic} />
      </td>
      <td class="n nowrap">{rate(props.member.traffic.rate)}</td>
      <td class="n nowrap">{millis(props.member.traffic.p50_ms)}</td>
      <td class="n nowrap">{millis(props.member.traffic.p99_ms)}</td>
      <td class="n nowrap">
        <ErrorShare traffic={props.member.traffic} />
      </td>
      <td>
        <Show when={props.member.queue} fallback={<span class="faint">–</span>}>
          {(queue) => (
            <div class="queue">
              <span class="n">{compact(queue().used)}</span>
              <UsedBar
                used={queue().used}
                most={queue().most}
                label={`${queue().used} of ${queue().most} ${queue().of} wait`}
              />
            </div>
          )}
        </Show>
      </td>
    </tr>
  );
}

/** What is tried beside a hosted member, and the button that stops it. */
function HostedTrial(props: { member: Member; server: Server; again: () => void }): JSX.Element {
  const viewer = useViewer();
  return (
    <Show when={props.member.trial}>
      {(trial) => (
        <Show
          when={!trial().ended}
          fallback={
            <div class="soft reason">
              <bdi>{trial().candidate}</bdi> stopped by <bdi>{trial().ended?.by}</bdi>:{' '}
              <bdi>{trial().ended?.reason}</bdi>
            </div>
          }
        >
          <div class="pill live">
            trying <bdi>{trial().candidate}</bdi>
            {trial().passed ? ', passed' : ` at ${number(trial().percent)} %`}
          </div>
          <Show when={props.server.acts}>
            <ActButton
              title="Stop trial"
              does={`Stop trying ${trial().candidate}`}
              tone="danger"
              disabled={viewer.may('deploy') ? undefined : 'Your key has no scope `deploy`'}
              explains={`${trial().candidate} is asked no more beside ${props.member.member}, by this serving process.`}
              act={(given) => serving.abort(props.server, props.member.member, trial().id, given)}
              done={props.again}
            />
          </Show>
        </Show>
      )}
    </Show>
  );
}

function Hosted(props: { members: Member[]; server: Server; again: () => void }): JSX.Element {
  return (
    <Show when={props.members.length > 0}>
      <h2>Hosted elsewhere</h2>
      <section class="card scroll" tabindex="0" aria-label="Hosted members">
        <table class="rows members">
          <thead>
            <tr>
              <th scope="col">Member</th>
              <th scope="col">Model and host</th>
              <th scope="col">State</th>
              <th scope="col">Five minutes</th>
              <th scope="col" class="n">
                Requests
              </th>
              <th scope="col" class="n">
                p50
              </th>
              <th scope="col" class="n">
                p99
              </th>
              <th scope="col" class="n">
                Errors
              </th>
              <th scope="col">Under way</th>
              <th scope="col">Stands in</th>
            </tr>
          </thead>
          <tbody>
            <For each={props.members}>
              {(member) => (
                <Show when={member.hosted}>
                  {(hosted) => (
                    <tr id={`member-${member.member}`}>
                      <td class="name">
                        <strong>
                          <bdi>{member.member}</bdi>
                        </strong>
                        <div class="soft">{member.task}</div>
                      </td>
                      <td>
                        <bdi>{hosted().model}</bdi>{' '}
                        <Show when={member.serving}>{(facts) => <Evidence of={facts().evidence} />}</Show>
                        <div class="soft">
                          <bdi>{hosted().host}</bdi>
                          <Show when={hosted().price}>
                            {(price) => (
                              <>
                                , {number(price().input_per_million)} and {number(price().output_per_million)}{' '}
                                {price().currency} per million tokens
                              </>
                            )}
                          </Show>
                        </div>
                      </td>
                      <td class="state-cell">
                        <MemberState member={member} />
                        <Show when={member.failure}>
                          {(failure) => (
                            <div class="soft reason">
                              <Told text={failure().reason} />
                            </div>
                          )}
                        </Show>
                        <HostedTrial member={member} server={props.server} again={props.again} />
                      </td>
                      <td>
                        <Spark traffic={member.traffic} />
                      </td>
                      <td class="n nowrap">{rate(member.traffic.rate)}</td>
                      <td class="n nowrap">{millis(member.traffic.p50_ms)}</td>
                      <td class="n nowrap">{millis(member.traffic.p99_ms)}</td>
                      <td class="n nowrap">
                        <ErrorShare traffic={member.traffic} />
                      </td>
                      <td>
                        <div class="queue">
                          <span class="n">
                            {hosted().n_in_flight}
                            {hosted().n_waiting > 0 ? ` + ${hosted().n_waiting}` : ''}
                          </span>
                          <UsedBar
                            used={hosted().n_in_flight}
                            most={hosted().concurrency}
                            label={`${hosted().n_in_flight} of ${hosted().concurrency} requests under way, ${hosted().n_waiting} wait`}
                          />
                        </div>
                      </td>
                      <td>{hosted().fallback.join(', ') || <span class="faint">nobody</span>}</td>
                    </tr>
                  )}
                </Show>
              )}
            </For>
          </tbody>
        </table>
      </section>
    </Show>
  );
}

function Pipelines(props: { shown: Shown }): JSX.Element {
  const traffic = (pipeline: Pipeline) => {
    const { rate: each, p50_ms, p99_ms, error_share } = pipeline.traffic;
    return `${rate(each)}, p50 ${millis(p50_ms)}, p99 ${millis(p99_ms)}, errors ${share(error_share)}`;
  };
  return (
    <Show when={props.shown.pipelines.length > 0}>
      <h2>Pipelines</h2>
      <div class="stack">
        <For each={props.shown.pipelines}>
          {(pipeline) => (
            <section class="card pipeline" aria-label={`Pipeline ${pipeline.name}`}>
              <div class="card-head">
                <h3>
                  <bdi>{pipeline.name}</bdi>
                </h3>
                <Spark traffic={pipeline.traffic} />
                <span class="soft">{traffic(pipeline)}</span>
                <span class="grow" />
                <span class="soft">at most {millis(pipeline.timeout_ms)}</span>
              </div>
              <PipelineGraph pipeline={pipeline} indexes={props.shown.indexes} members={props.shown.members} />
            </section>
          )}
        </For>
      </div>
    </Show>
  );
}

function Indexes(props: { indexes: Index[] }): JSX.Element {
  return (
    <Show when={props.indexes.length > 0}>
      <h2>Indexes</h2>
      <section class="card scroll" tabindex="0" aria-label="Indexes">
        <table class="rows">
          <thead>
            <tr>
              <th scope="col">Index</th>
              <th scope="col">State</th>
              <th scope="col" class="n">
                Documents
              </th>
              <th scope="col" class="n">
                Dimensions
              </th>
              <th scope="col">Embedded by</th>
              <th scope="col">Queries by</th>
            </tr>
          </thead>
          <tbody>
            <For each={props.indexes}>
              {(index) => (
                <tr>
                  <td class="name">
                    <strong>
                      <bdi>{index.name}</bdi>
                    </strong>
                  </td>
                  <td class="why">
                    <Show when={index.stale} fallback={<span class="pill good">fits</span>}>
                      {(why) => (
                        <>
                          <span class="pill bad">stale</span> <bdi class="soft">{why()}</bdi>
                        </>
                      )}
                    </Show>
                  </td>
                  <td class="n">{index.n_documents.toLocaleString('en')}</td>
                  <td class="n">{index.dimensions}</td>
                  <td class="mono" title={index.package}>
                    {shortDigest(index.package)}
                  </td>
                  <td>{index.embedder}</td>
                </tr>
              )}
            </For>
          </tbody>
        </table>
      </section>
    </Show>
  );
}
