import { A } from '@solidjs/router';
import { type Accessor, createEffect, createSignal, For, type JSX, Match, on, Show, Switch } from 'solid-js';
import { number, plural, shortDigest, shortDigests } from '../lib/format';
import { createLive, message } from '../lib/live';
import { caseOf, millis, modelOf, replayCommand } from '../lib/serving';
import { Evidence } from '../parts/bits';
import { useParam } from '../parts/params';
import { ServerPicker, useServers, WithServer } from '../parts/server';
import { Empty, Failure, Moment, Skeleton } from '../parts/states';
import { useTitle } from '../parts/title';
import { type Chain, type Replayed, type RequestRecord, type Server, type StepRecord, serving } from '../serving';

const MAX_PASTED = 1_000_000;

export default function Requests(): JSX.Element {
  const servers = useServers();
  const [id, setId] = useParam('id');
  let field: HTMLInputElement | undefined;
  useTitle(() => (id() ? `Request ${id()}` : 'Requests'));
  return (
    <div class="page">
      <div class="page-head">
        <h1>Requests</h1>
        <span class="grow" />
        <ServerPicker servers={servers} />
      </div>
      <p class="soft">
        Every answer carries its id in <code>x-request-id</code>. What is kept of it is who answered, on what evidence,
        and the digest of the answer; never the input.
      </p>
      <form
        class="controls"
        onSubmit={(event) => {
          event.preventDefault();
          setId(field?.value.trim() || undefined);
        }}
      >
        <label class="field filter">
          <span class="visually-hidden">Id of a request</span>
          <input
            type="search"
            data-search
            ref={field}
            placeholder="x-request-id"
            maxlength="200"
            spellcheck={false}
            value={id()}
          />
        </label>
        <button type="submit" class="button accent">
          Look up
        </button>
      </form>
      <WithServer servers={servers}>
        {(server) => (
          <Show
            when={id()}
            fallback={
              <Empty title="Why did it answer that?">Look up the id of an answer to see what stands behind it.</Empty>
            }
          >
            <Found server={server} id={id} />
          </Show>
        )}
      </WithServer>
    </div>
  );
}

function Found(props: { server: Accessor<Server>; id: Accessor<string> }): JSX.Element {
  const [live, again] = createLive(
    () => ({ server: props.server(), id: props.id() }),
    ({ server, id }, signal) => serving.request(server, id, signal),
  );
  const isCurrent = () => {
    const [id] = props.id().split('@');
    const found = live.value?.request;
    return found !== undefined && [found.request_id, found.unique_id].includes(id);
  };
  return (
    <Switch>
      <Match when={live.error && !live.loading && !isCurrent()}>
        <Failure what="The request could not be looked up" error={live.error ?? ''} again={again} />
      </Match>
      <Match when={!isCurrent()}>
        <Skeleton rows={6} />
      </Match>
      <Match when={live.value}>
        {(value) => (
          <>
            <Record record={value().request} />
            <Show
              when={value().request.pipeline}
              fallback={
                <>
                  <h2>What stands behind it</h2>
                  <Behind record={value().request} chain={value().chain} />
                  <h2>Again</h2>
                  <Again record={value().request} server={props.server} />
                </>
              }
            >
              {(pipeline) => (
                <Steps id={ownId(value().request)} steps={pipeline().steps} stopped={pipeline().stopped} />
              )}
            </Show>
          </>
        )}
      </Match>
    </Switch>
  );
}

function Record(props: { record: RequestRecord }): JSX.Element {
  const hosted = () => props.record.hosted;
  return (
    <dl class="facts-grid card">
      <div>
        <dt>Answered by</dt>
        <dd>
          <bdi>{props.record.member}</bdi>, <bdi>{shortDigests(props.record.version)}</bdi>{' '}
          <Evidence of={props.record.evidence} />
        </dd>
      </div>
      <div>
        <dt>When</dt>
        <dd>
          <Moment at={Date.parse(props.record.time)} /> <span class="soft">{props.record.time}</span>
        </dd>
      </div>
      <div>
        <dt>Route</dt>
        <dd class="mono">{props.record.route}</dd>
      </div>
      <div>
        <dt>Took</dt>
        <dd>
          {millis(props.record.total_ms)}: {millis(props.record.queue_ms)} in the queue,{' '}
          {millis(props.record.compute_ms)} computing
        </dd>
      </div>
      <div>
        <dt>Inputs</dt>
        <dd>
          {props.record.n_tokens.length},{' '}
          {plural(
            props.record.n_tokens.reduce((sum, n) => sum + n, 0),
            'token',
          )}
          {props.record.n_truncated > 0 ? `, ${props.record.n_truncated} lost their end` : ''}
        </dd>
      </div>
      <div>
        <dt>Numerics</dt>
        <dd class="mono">{props.record.numerics_id}</dd>
      </div>
      <Show when={hosted()}>
        {(each) => (
          <div>
            <dt>Host</dt>
            <dd>
              <bdi>{each().model}</bdi>, {each().n_tries === 1 ? '1 try' : `${each().n_tries} tries`}
              {paid(each())}
              {each().fallback_from ? `, after ${each().fallback_from?.join(', ')}` : ''}
            </dd>
          </div>
        )}
      </Show>
      <Show when={props.record.step_of}>
        {(pipeline) => (
          <div>
            <dt>Step of</dt>
            <dd>
              <A href={`/requests?id=${encodeURIComponent(wholeOf(ownId(props.record)))}`}>
                <bdi>{pipeline()}</bdi>
              </A>
            </dd>
          </div>
        )}
      </Show>
      <div>
        <dt>Digests of its answers</dt>
        <dd class="mono">
          <For each={props.record.outputs.slice(0, 8)}>
            {(digest) => <div title={digest}>{shortDigest(digest)}</div>}
          </For>
          <Show when={props.record.outputs.length > 8}>and {props.record.outputs.length - 8} more</Show>
        </dd>
      </div>
    </dl>
  );
}

/** The id that names this record alone: the client's own may come again. */
function ownId(record: RequestRecord): string {
  return record.unique_id ?? record.request_id;
}

/** The request of a pipeline that `ID.STEP` is a step of. */
function wholeOf(id: string): string {
  const dot = id.lastIndexOf('.');
  return dot > 0 ? id.slice(0, dot) : id;
}

/** What the steps of a pipeline were, each with a record of its own where a member answered. */
function Steps(props: { id: string; steps: StepRecord[]; stopped: string | null | undefined }): JSX.Element {
  return (
    <>
      <h2>Its steps</h2>
      <section class="card scroll" tabindex="0" aria-label="Steps">
        <table class="rows tight">
          <thead>
            <tr>
              <th scope="col">Step</th>
              <th scope="col">Answered by</th>
              <th scope="col">Evidence</th>
              <th scope="col">What it gave</th>
            </tr>
          </thead>
          <tbody>
            <For each={props.steps}>
              {(step) => (
                <tr>
                  <td>
                    <Show when={step.member && !step.index} fallback={<bdi>{step.name}</bdi>}>
                      <A href={`/requests?id=${encodeURIComponent(`${props.id}.${step.name}`)}`}>
                        <bdi>{step.name}</bdi>
                      </A>
                    </Show>
                  </td>
                  <td>
                    <bdi>{shortDigests(step.version ?? step.member ?? '')}</bdi>
                    <Show when={step.index}>{(index) => <span class="soft"> index {shortDigest(index())}</span>}</Show>
                    {step.fell_back ? <span class="pill odd">stood in</span> : ''}
                    {step.skipped ? <span class="pill odd">skipped</span> : ''}
                  </td>
                  <td>
                    <Show when={step.evidence}>{(evidence) => <Evidence of={evidence()} />}</Show>
                  </td>
                  <td class="mono" title={step.value}>
                    {shortDigest(step.value)}
                  </td>
                </tr>
              )}
            </For>
          </tbody>
        </table>
      </section>
      <p class="soft note-below">
        <Show when={props.stopped}>
          {(step) => (
            <>
              Step <bdi>{step()}</bdi> ended the request.{' '}
            </>
          )}
        </Show>
        The whole is computed again by <code>highroad replay {props.id} --input case.json</code>.
      </p>
    </>
  );
}

function paid({ cost, currency }: NonNullable<RequestRecord['hosted']>): string {
  return cost === null || cost === undefined ? '' : `, ${number(cost)} ${currency ?? ''}`;
}

/** Answer, verdict, package, run, commit, data. */
function Behind(props: { record: RequestRecord; chain: Chain }): JSX.Element {
  const verdict = () => props.chain.verdict;
  const data = () => Object.entries(props.chain.data ?? {});
  const unknown = <span class="faint">not recorded</span>;
  const model = () => modelOf(props.record.version);
  return (
    <ol class="chain card">
      <li>
        <h3>Answer</h3>
        <div>
          <span class="mono">{props.record.request_id}</span>
        </div>
      </li>
      <li>
        <h3>Verdict</h3>
        <div>
          <Switch fallback={unknown}>
            <Match when={props.record.development}>{(why) => <bdi>none, served for development: {why()}</bdi>}</Match>
            <Match when={verdict().digest}>
              {(digest) => (
                <>
                  <Show when={verdict().file} fallback="its file is not on this machine">
                    {(file) => (
                      <>
                        {file().outcome} on {plural(file().golden_set.n_cases, 'case')} of{' '}
                        <bdi>{file().golden_set.name}</bdi>, by <bdi>{file().created_by}</bdi> at {file().created_at}
                      </>
                    )}
                  </Show>{' '}
                  <span class="mono soft" title={digest()}>
                    {shortDigest(digest())}
                  </span>
                </>
              )}
            </Match>
            <Match when={props.chain.override}>
              {(digest) => (
                <>none, let through by override {shortDigest(digest())}: the audit trail says by whom and why</>
              )}
            </Match>
          </Switch>
        </div>
      </li>
      <li>
        <h3>Package</h3>
        <div>
          <A href={`/models/${encodeURIComponent(model())}`}>
            <bdi>{props.record.version.split('@')[0]}</bdi>
          </A>
          <Show when={props.chain.package.owner}>
            {(owner) => (
              <>
                , owner <bdi>{owner()}</bdi>
              </>
            )}
          </Show>{' '}
          <span class="mono soft" title={props.record.package}>
            {shortDigest(props.record.package)}
          </span>
        </div>
      </li>
      <li>
        <h3>Run</h3>
        <div>
          <Show when={props.chain.run.id} fallback={unknown}>
            {(run) => (
              <A class="mono" href={`/runs/${run()}`}>
                {run()}
              </A>
            )}
          </Show>
        </div>
      </li>
      <li>
        <h3>Commit</h3>
        <div>
          <Show when={props.chain.commit} fallback={unknown}>
            {(commit) => <span class="mono">{commit()}</span>}
          </Show>
        </div>
      </li>
      <li>
        <h3>Data</h3>
        <div>
          <Show when={data().length > 0} fallback={unknown}>
            <ul>
              <For each={data()}>
                {([name, digest]) => (
                  <li>
                    <bdi>{name}</bdi>{' '}
                    <span class="mono soft" title={digest}>
                      {shortDigest(digest)}
                    </span>
                  </li>
                )}
              </For>
            </ul>
          </Show>
        </div>
      </li>
    </ol>
  );
}

/** The answer computed again: here, where somebody brings its input, or by the command line. */
function Again(props: { record: RequestRecord; server: Accessor<Server> }): JSX.Element {
  const [input, setInput] = createSignal('');
  const [result, setResult] = createSignal<Replayed>();
  const [error, setError] = createSignal<string>();
  const [busy, setBusy] = createSignal(false);
  const clear = () => {
    setResult(undefined);
    setError(undefined);
  };
  createEffect(on(() => ownId(props.record), clear, { defer: true }));
  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    if (busy()) return;
    const asked = ownId(props.record);
    clear();
    setBusy(true);
    try {
      const replayed = await serving.replay(props.server(), asked, caseOf(input()));
      if (asked === ownId(props.record)) setResult(replayed);
    } catch (failure) {
      if (asked === ownId(props.record)) setError(message(failure));
    } finally {
      setBusy(false);
    }
  };
  const command = () =>
    replayCommand(ownId(props.record), props.server().acts ? location.origin : `http://${props.server().name}`);
  return (
    <Show
      when={!props.record.hosted}
      fallback={<p class="soft">Its answer is a host's: it was observed, and nobody but the host can give it again.</p>}
    >
      <p class="soft">
        On a machine of your own: <code>{command()}</code>
      </p>
      <Show
        when={props.server().acts}
        fallback={<p class="soft">Computed again here it is on the pages of the serving process itself.</p>}
      >
        <form class="again" onSubmit={submit}>
          <label class="field">
            <span>What was asked: the text, a golden case, or the body that was sent (JSON)</span>
            <textarea
              rows="4"
              maxlength={MAX_PASTED}
              spellcheck={false}
              value={input()}
              onInput={(event) => {
                setInput(event.target.value);
                clear();
              }}
            />
          </label>
          <div>
            <button type="submit" class="button accent" disabled={busy() || input().trim() === ''}>
              {busy() ? 'Computing…' : 'Compute again'}
            </button>
          </div>
        </form>
        <div aria-live="polite">
          <Show when={error()}>
            <p class="failure">{error()}</p>
          </Show>
          <Show when={result()}>{(found) => <Result found={found()} />}</Show>
        </div>
      </Show>
    </Show>
  );
}

function Result(props: { found: Replayed }): JSX.Element {
  return (
    <section class="card result" aria-label="Computed again">
      <p>
        <span class={`pill ${props.found.same_bits ? 'good' : 'bad'}`}>
          {props.found.same_bits ? 'the same bits' : 'other bits'}
        </span>{' '}
        <Show when={!props.found.same_bits}>
          <bdi>{props.found.why}</bdi>
        </Show>
      </p>
      <For each={props.found.answers ?? []}>
        {({ answer, digest }) => (
          <div class="answer">
            <span class="mono soft" title={digest}>
              {shortDigest(digest)}
            </span>{' '}
            <bdi class="mono">{brief(answer)}</bdi>
          </div>
        )}
      </For>
    </section>
  );
}

/** A label with its scores, or a vector's first values. */
function brief(answer: unknown): string {
  const text = JSON.stringify(answer);
  return text.length > 400 ? `${text.slice(0, 400)}…` : text;
}
