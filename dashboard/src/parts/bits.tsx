// Small drawings of serving pages: a spark of the last minutes, bars of what is used, states.

import { type JSX, Show } from 'solid-js';
import { compact, plural } from '../lib/format';
import { share } from '../lib/serving';
import type { Member, Traffic } from '../serving';

const SPARK_WIDTH = 120;
const SPARK_HEIGHT = 22;

/** Requests in each five seconds of the last five minutes; what was not answered is drawn over them. */
export function Spark(props: { traffic: Traffic }): JSX.Element {
  const most = () => Math.max(1, ...props.traffic.course);
  const bars = (values: number[]) => {
    const width = SPARK_WIDTH / values.length;
    return values
      .map((n, i) => {
        if (n === 0) return '';
        const height = Math.max(1, (n / most()) * SPARK_HEIGHT);
        return `M${(i * width).toFixed(1)} ${SPARK_HEIGHT}v-${height.toFixed(1)}h${(width * 0.8).toFixed(2)}V${SPARK_HEIGHT}Z`;
      })
      .join('');
  };
  const sum = (values: number[]) => values.reduce((total, n) => total + n, 0);
  const told = () => {
    const [n, bad] = [sum(props.traffic.course), sum(props.traffic.errors)];
    return `${plural(n, 'request')} in five minutes${bad > 0 ? `, ${bad} not answered` : ''}`;
  };
  return (
    <svg class="spark" viewBox={`0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}`} role="img" aria-label={told()}>
      <title>{told()}</title>
      <path class="ground" d={`M0 ${SPARK_HEIGHT - 0.5}H${SPARK_WIDTH}`} />
      <path d={bars(props.traffic.course)} />
      <path class="bad" d={bars(props.traffic.errors)} />
    </svg>
  );
}

/** How much of something is used, and what is set aside of it. */
export function UsedBar(props: { used: number; reserved?: number; most: number; label: string }): JSX.Element {
  const part = (value: number) => (props.most > 0 ? Math.min(1, value / props.most) : 1) * 100;
  const used = () => part(props.used);
  const both = () => part(props.used + (props.reserved ?? 0));
  return (
    <svg
      class="used"
      classList={{ full: both() >= 100, near: both() >= 80 && both() < 100 }}
      viewBox="0 0 100 8"
      preserveAspectRatio="none"
      role="img"
      aria-label={props.label}
    >
      <rect class="ground" width="100" height="8" />
      <rect class="reserved" width={both()} height="8" />
      <rect class="taken" width={used()} height="8" />
    </svg>
  );
}

/** What serves: `ready`, and where something does not, what. */
export function MemberState(props: { member: Member }): JSX.Element {
  const state = () => {
    const { hosted, failure, serving, state } = props.member;
    if (hosted && hosted.breaker !== 'closed')
      return { text: hosted.breaker === 'open' ? 'left alone' : 'tried again', tone: 'bad' };
    if (failure && serving) return { text: 'holds the old one', tone: 'odd' };
    if (failure) return { text: 'does not load', tone: 'bad' };
    if (state === 'ready') return { text: 'ready', tone: 'good' };
    return { text: state === 'starting' ? 'starting' : 'undeployed', tone: state === 'starting' ? 'live' : '' };
  };
  return <span class={`pill ${state().tone}`}>{state().text}</span>;
}

/** Worth is told by tone: what rests on nothing is odd. */
export function Evidence(props: { of: string }): JSX.Element {
  const tone = () => ({ 'bit-exact': 'good', attested: 'good', override: 'bad', development: 'bad' })[props.of] ?? '';
  return <span class={`pill ${tone()}`}>{props.of}</span>;
}

export function ErrorShare(props: { traffic: Traffic }): JSX.Element {
  return (
    <Show when={props.traffic.error_share !== null} fallback={<span class="faint">–</span>}>
      <span classList={{ 'tone-bad': (props.traffic.error_share ?? 0) > 0.01 }} title={outcomes(props.traffic)}>
        {share(props.traffic.error_share)}
      </span>
    </Show>
  );
}

function outcomes(traffic: Traffic): string {
  const all = Object.entries(traffic.outcomes).sort((a, b) => b[1] - a[1]);
  return all.map(([outcome, n]) => `${outcome.replaceAll('_', ' ')} ${compact(n)}`).join(', ');
}
