import { A, useParams } from '@solidjs/router';
import { type Accessor, createMemo, For, type JSX, Show } from 'solid-js';
import { number, plural, shortDigests } from '../lib/format';
import { createLive } from '../lib/live';
import { inOrder, share, signalName } from '../lib/serving';
import { Loaded } from '../parts/page';
import { ServerPicker, useServers, WithServer } from '../parts/server';
import { Moment, Pill } from '../parts/states';
import { useTitle } from '../parts/title';
import { Told } from '../parts/told';
import { type Ratio, type Server, type Signal, serving, type Watched } from '../serving';

const EVERY_MS = 5000;
/** More bins than this are drawn as a histogram. */
const FEW_BINS = 9;

export default function Monitored(): JSX.Element {
  const route = useParams();
  const servers = useServers();
  const member = () => decodeURIComponent(route.member ?? '');
  useTitle(() => `Monitoring of ${member()}`);
  return (
    <div class="page">
      <nav class="crumbs" aria-label="Where this is">
        <A href="/monitor">Monitoring</A>
      </nav>
      <div class="page-head">
        <h1>
          <bdi>{member()}</bdi>
        </h1>
        <span class="grow" />
        <ServerPicker servers={servers} />
      </div>
      <WithServer servers={servers}>{(server) => <OfServer server={server} member={member} />}</WithServer>
    </div>
  );
}

function OfServer(props: { server: Accessor<Server>; member: Accessor<string> }): JSX.Element {
  const [live, again] = createLive(
    () => ({ server: props.server(), member: props.member() }),
    ({ server, member }, signal) => serving.watchedMember(server, member, signal),
    () => EVERY_MS,
  );
  return (
    <Loaded live={live} again={again} what="The member's monitoring could not be read" rows={6}>
      {(value) => (
        <>
          <p>
            <Pill text={value().state.replaceAll('_', ' ')} /> <Told text={value().message} />
          </p>
          <Facts of={value()} />
          <Quality of={value()} />
          <Show when={value().signals.length > 0}>
            <h2>Signals of the last {span(value().window_s)}</h2>
            <div class="signals">
              <For each={inOrder(value().signals)}>
                {(signal) => <SignalCard signal={signal} series={value().series ?? []} />}
              </For>
            </div>
          </Show>
        </>
      )}
    </Loaded>
  );
}

function span(seconds: number): string {
  if (seconds >= 86_400) return plural(Math.round(seconds / 86_400), 'day');
  if (seconds >= 3600) return plural(Math.round(seconds / 3600), 'hour');
  return plural(Math.max(1, Math.round(seconds / 60)), 'minute');
}

function Facts(props: { of: Watched }): JSX.Element {
  const violations = () => Object.entries(props.of.violations).filter(([, n]) => n > 0);
  return (
    <dl class="facts-grid card">
      <div>
        <dt>Version</dt>
        <dd>
          <bdi title={props.of.version}>{shortDigests(props.of.version)}</bdi>
        </dd>
      </div>
      <div>
        <dt>Baseline</dt>
        <dd>
          <Show when={props.of.baseline} fallback={<span class="faint">none</span>}>
            {(baseline) => (
              <>
                {plural(baseline().n, 'input')} of <bdi>{baseline().name}</bdi>, by <bdi>{baseline().created_by}</bdi>{' '}
                at {baseline().created_at}
              </>
            )}
          </Show>
        </dd>
      </div>
      <div>
        <dt>Seen</dt>
        <dd>
          {plural(props.of.n_requests, 'request')} with {plural(props.of.n_inputs, 'input')} since{' '}
          <Moment at={Date.parse(props.of.since)} />
          {props.of.n_dropped > 0 ? `; ${props.of.n_dropped.toLocaleString('en')} were not looked at` : ''}
        </dd>
      </div>
      <div>
        <dt>Refused for what they asked</dt>
        <dd>
          <For each={violations()} fallback="none">
            {([kind, n], i) => (
              <>
                {i() > 0 ? ', ' : ''}
                {kind.replaceAll('_', ' ')} {n.toLocaleString('en')}
              </>
            )}
          </For>
        </dd>
      </div>
      <Show when={props.of.mmd}>
        {(mmd) => (
          <div>
            <dt>Embeddings against the baseline's</dt>
            <dd>
              squared MMD {number(mmd().squared)}, p {number(mmd().p)}, of {plural(mmd().n, 'vector')}
            </dd>
          </div>
        )}
      </Show>
    </dl>
  );
}

function ratio(found: Ratio | null | undefined): string {
  return found ? `${share(found.value)} (${found.interval.map(share).join(' … ')})` : '–';
}

function tile(found: Ratio): JSX.Element {
  return (
    <>
      {share(found.value)}
      <div class="soft between">{found.interval.map(share).join(' … ')}</div>
    </>
  );
}

function Quality(props: { of: Watched }): JSX.Element {
  const quality = () => props.of.quality;
  const days = createMemo(() =>
    Object.entries(quality()?.by_day ?? {})
      .sort(([a], [b]) => b.localeCompare(a))
      .slice(0, 14),
  );
  return (
    <Show when={quality()}>
      {(found) => (
        <>
          <h2>How often it is right</h2>
          <dl class="tiles">
            <div class="card">
              <dt>Right answers known</dt>
              <dd>{found().n.toLocaleString('en')}</dd>
            </div>
            <Show when={found().accuracy}>
              {(accuracy) => (
                <div class="card">
                  <dt>Accuracy</dt>
                  <dd>{tile(accuracy())}</dd>
                </div>
              )}
            </Show>
            <Show when={found().accuracy_always}>
              {(bounds) => (
                <div class="card">
                  <dt>Accuracy, at every look</dt>
                  <dd>{bounds().map(share).join(' … ')}</dd>
                </div>
              )}
            </Show>
            <Show when={found().ndcg_10}>
              {(each) => (
                <div class="card">
                  <dt>nDCG of the first ten</dt>
                  <dd>{tile(each())}</dd>
                </div>
              )}
            </Show>
            <Show when={found().mrr}>
              {(each) => (
                <div class="card">
                  <dt>Reciprocal rank</dt>
                  <dd>{tile(each())}</dd>
                </div>
              )}
            </Show>
            <Show when={found().baseline !== null}>
              <div class="card">
                <dt>In the baseline</dt>
                <dd>{share(found().baseline)}</dd>
              </div>
            </Show>
          </dl>
          <Show when={found().labels.length > 0}>
            <section class="card scroll" tabindex="0" aria-label="By label">
              <table class="rows tight">
                <thead>
                  <tr>
                    <th scope="col">Label</th>
                    <th scope="col" class="n">
                      Precision
                    </th>
                    <th scope="col" class="n">
                      Recall
                    </th>
                    <th scope="col" class="n">
                      F1
                    </th>
                  </tr>
                </thead>
                <tbody>
                  <For each={found().labels}>
                    {(label) => (
                      <tr>
                        <td>
                          <bdi>{label.label}</bdi>
                        </td>
                        <td class="n nowrap">{ratio(label.precision)}</td>
                        <td class="n nowrap">{ratio(label.recall)}</td>
                        <td class="n nowrap">{ratio(label.f1)}</td>
                      </tr>
                    )}
                  </For>
                </tbody>
              </table>
            </section>
          </Show>
          <Show when={days().length > 1}>
            <section class="card scroll by-day" tabindex="0" aria-label="By day">
              <table class="rows tight">
                <thead>
                  <tr>
                    <th scope="col">Day</th>
                    <th scope="col" class="n">
                      Known
                    </th>
                    <th scope="col" class="n">
                      Right
                    </th>
                  </tr>
                </thead>
                <tbody>
                  <For each={days()}>
                    {([day, found]) => (
                      <tr>
                        <td>{day}</td>
                        <td class="n">{found.n.toLocaleString('en')}</td>
                        <td class="n nowrap">{ratio(found)}</td>
                      </tr>
                    )}
                  </For>
                </tbody>
              </table>
            </section>
          </Show>
        </>
      )}
    </Show>
  );
}

/** A signal: its two distributions side by side, and what they say. */
function SignalCard(props: {
  signal: Signal;
  series: { since: string; effects: Record<string, number> }[];
}): JSX.Element {
  const bins = () => props.signal.bins ?? [];
  const course = () =>
    props.series.map(({ effects }) => effects[props.signal.signal]).filter((each) => each !== undefined);
  const told = () => {
    const { statistic, value, p, q, n } = props.signal;
    const short = (each: number) => number(Number(each.toPrecision(3)));
    return `${statistic.toUpperCase()} ${short(value)}, p ${short(p)}, q ${short(q)}, ${plural(n, 'input')}`;
  };
  return (
    <section class="card signal" aria-label={`Signal ${props.signal.signal}`}>
      <div class="bar-head">
        <h3>
          <bdi>{signalName(props.signal.signal)}</bdi>
        </h3>
        <Pill text={props.signal.verdict} />
        <span class="grow" />
        <span class="soft">{props.signal.kind.replaceAll('_', ' ')}</span>
      </div>
      <p class="soft">{told()}</p>
      <p class="soft">
        stability index {number(Number(props.signal.psi.toPrecision(3)))}, by chance up to{' '}
        {number(Number(props.signal.psi_by_chance.toPrecision(3)))}
      </p>
      <Show when={props.signal.alarm}>
        {(alarm) => (
          <p>
            differs since <Moment at={alarm().since_s * 1000} />, told by {plural(alarm().n, 'input')}
          </p>
        )}
      </Show>
      <Show when={bins().length > FEW_BINS} fallback={<Bins bins={bins()} />}>
        <Histogram bins={bins()} />
        <details>
          <summary>{plural(bins().length, 'bin')}</summary>
          <Bins bins={bins()} />
        </details>
      </Show>
      <Show when={course().length > 1}>
        <Trend values={course()} />
      </Show>
    </section>
  );
}

type BinsOf = NonNullable<Signal['bins']>;

const mostOf = (bins: BinsOf) => Math.max(1e-9, ...bins.flatMap(({ baseline, live }) => [baseline, live]));

function Bins(props: { bins: BinsOf }): JSX.Element {
  return (
    <Show when={props.bins.length > 0}>
      <table class="bins">
        <thead>
          <tr>
            <th scope="col">Bin</th>
            <th scope="col">Baseline and live</th>
            <th scope="col" class="n">
              Baseline
            </th>
            <th scope="col" class="n">
              Live
            </th>
          </tr>
        </thead>
        <tbody>
          <For each={props.bins}>
            {(bin) => (
              <tr>
                <th scope="row">
                  <bdi class="clip" title={bin.name}>
                    {bin.name}
                  </bdi>
                </th>
                <td>
                  <svg class="pair" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">
                    <rect class="baseline" width={(100 * bin.baseline) / mostOf(props.bins)} height="5" />
                    <rect class="live" y="6" width={(100 * bin.live) / mostOf(props.bins)} height="5" />
                  </svg>
                </td>
                <td class="n">{share(bin.baseline)}</td>
                <td class="n">{share(bin.live)}</td>
              </tr>
            )}
          </For>
        </tbody>
      </table>
    </Show>
  );
}

const HISTOGRAM_WIDTH = 320;
const HISTOGRAM_HEIGHT = 70;

/** Baseline behind, live before it; the bins in words are in the table below. */
function Histogram(props: { bins: BinsOf }): JSX.Element {
  const each = () => HISTOGRAM_WIDTH / props.bins.length;
  const height = (value: number) => (value / mostOf(props.bins)) * HISTOGRAM_HEIGHT;
  const fullest = (side: 'baseline' | 'live') =>
    props.bins.reduce((most, bin) => (bin[side] > most[side] ? bin : most), props.bins[0] as BinsOf[number]).name;
  return (
    <div>
      <svg
        class="histogram"
        viewBox={`0 0 ${HISTOGRAM_WIDTH} ${HISTOGRAM_HEIGHT}`}
        preserveAspectRatio="none"
        role="img"
        aria-label={`Histogram of ${props.bins.length} bins: most of the baseline in ${fullest('baseline')}, most of what is live in ${fullest('live')}`}
      >
        <For each={props.bins}>
          {(bin, i) => (
            <g>
              <title>{`${bin.name}: baseline ${share(bin.baseline)}, live ${share(bin.live)}`}</title>
              <rect
                class="baseline"
                x={i() * each()}
                y={HISTOGRAM_HEIGHT - height(bin.baseline)}
                width={each() * 0.92}
                height={height(bin.baseline)}
              />
              <rect
                class="live"
                x={(i() + 0.22) * each()}
                y={HISTOGRAM_HEIGHT - height(bin.live)}
                width={each() * 0.48}
                height={height(bin.live)}
              />
            </g>
          )}
        </For>
      </svg>
      <div class="ends soft">
        <bdi>{props.bins[0]?.name}</bdi>
        <bdi>{props.bins.at(-1)?.name}</bdi>
      </div>
    </div>
  );
}

const TREND_WIDTH = 240;
const TREND_HEIGHT = 30;

/** How an effect went, the oldest first. */
function Trend(props: { values: number[] }): JSX.Element {
  const most = () => Math.max(0.1, ...props.values);
  const line = () =>
    props.values
      .map((value, i) => {
        const x = (i / Math.max(1, props.values.length - 1)) * TREND_WIDTH;
        const y = TREND_HEIGHT - 2 - (Math.max(0, value) / most()) * (TREND_HEIGHT - 4);
        return `${i === 0 ? 'M' : 'L'}${x.toFixed(1)} ${y.toFixed(1)}`;
      })
      .join('');
  return (
    <svg
      class="trend"
      viewBox={`0 0 ${TREND_WIDTH} ${TREND_HEIGHT}`}
      role="img"
      aria-label={`Effect over time, now ${number(props.values.at(-1))}`}
    >
      <path class="ground" d={`M0 ${TREND_HEIGHT - 1.5}H${TREND_WIDTH}`} />
      <path class="line" d={line()} />
    </svg>
  );
}
