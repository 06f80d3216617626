import { A } from '@solidjs/router';
import { type Accessor, createMemo, For, type JSX, Show } from 'solid-js';
import { plural } from '../lib/format';
import { createLive } from '../lib/live';
import { type Alert, type Server, serving } from '../serving';
import { Moment, Pill } from './states';
import { Told } from './told';

const EVERY_MS = 3000;
const RANK: Record<string, number> = { critical: 0, warning: 1, info: 2 };
const RESOLVED = 5;

/** What fires now, and what ended last; nothing where nothing does, or where the server has no alerts. */
export function Alerts(props: { server: Accessor<Server> }): JSX.Element {
  const [live] = createLive(props.server, serving.alerts, (value) => (value === null ? undefined : EVERY_MS));
  const of = (state: Alert['state']) => (live.value?.alerts ?? []).filter((alert) => alert.state === state);
  const firing = createMemo(() => of('firing').sort((a, b) => (RANK[a.severity] ?? 3) - (RANK[b.severity] ?? 3)));
  const resolved = createMemo(() =>
    of('resolved')
      .sort((a, b) => (b.resolved_at ?? '').localeCompare(a.resolved_at ?? ''))
      .slice(0, RESOLVED),
  );
  return (
    <>
      <Show when={live.error}>
        <p class="stale-note" role="status">
          Alerts could not be read: {live.error}
        </p>
      </Show>
      <Show when={firing().length > 0}>
        <section class="alerts card" aria-label="Alerts" aria-live="polite">
          <ul>
            <For each={firing()}>{(alert) => <Row alert={alert} />}</For>
          </ul>
        </section>
      </Show>
      <Show when={resolved().length > 0}>
        <details class="resolved">
          <summary>{plural(resolved().length, 'alert')} ended lately</summary>
          <ul class="card alerts">
            <For each={resolved()}>{(alert) => <Row alert={alert} />}</For>
          </ul>
        </details>
      </Show>
    </>
  );
}

function Row(props: { alert: Alert }): JSX.Element {
  const member = () => props.alert.labels.member;
  return (
    <li>
      <Pill text={props.alert.state === 'firing' ? props.alert.severity : 'ended'} />
      <span class="alert-text">
        <Told text={props.alert.summary} />
        <Show when={props.alert.alert.includes('drift') && member()}>
          {(name) => (
            <>
              {' '}
              <A href={`/monitor/${encodeURIComponent(name())}`}>how it differs</A>
            </>
          )}
        </Show>
      </span>
      <span class="soft nowrap">
        <Moment at={Date.parse(props.alert.resolved_at ?? props.alert.since)} />
      </span>
    </li>
  );
}
