// What stands where data will be, is not, or could not be had.

import { A } from '@solidjs/router';
import { For, type JSX, Show } from 'solid-js';
import { ago, when } from '../lib/format';
import { now } from '../lib/live';
import { useTitle } from './title';

export function Failure(props: { what: string; error: string; again?: () => void }): JSX.Element {
  return (
    <div class="state failure" role="alert">
      <strong>{props.what}</strong>
      <p>{props.error}</p>
      <Show when={props.again}>
        <button type="button" class="button" onClick={() => props.again?.()}>
          Try again
        </button>
      </Show>
    </div>
  );
}

export function Empty(props: { title: string; children?: JSX.Element }): JSX.Element {
  return (
    <div class="state">
      <strong>{props.title}</strong>
      <div class="soft">{props.children}</div>
    </div>
  );
}

/** Grey bars as high as the rows that will come, so that nothing moves when they do. */
export function Skeleton(props: { rows: number }): JSX.Element {
  return (
    <div class="skeleton" role="status" aria-label="Loading">
      <For each={Array.from({ length: props.rows })}>{() => <span class="bar" />}</For>
    </div>
  );
}

export function NotFound(): JSX.Element {
  useTitle(() => 'Not found');
  return (
    <div class="page">
      <h1>There is no such page</h1>
      <p class="soft">
        Go back to the <A href="/">experiments</A> or the <A href="/models">models</A>.
      </p>
    </div>
  );
}

const tones: Record<string, string> = {
  FINISHED: 'good',
  READY: 'good',
  pass: 'good',
  promote: 'good',
  FAILED: 'bad',
  KILLED: 'bad',
  fail: 'bad',
  RUNNING: 'live',
  SCHEDULED: 'odd',
  inconclusive: 'odd',
  missing: 'odd',
  rollback: 'odd',
  override: 'bad',
  deleted: 'bad',
  running: 'live',
  passed: 'odd',
  promoted: 'good',
  aborted: 'bad',
  drifted: 'bad',
  same: 'good',
  collecting: 'live',
  critical: 'bad',
  warning: 'odd',
};

/** What says too little by itself. */
const words: Record<string, string> = { missing: 'no verdict' };

export function Pill(props: { text: string }): JSX.Element {
  return <span class={`pill ${tones[props.text] ?? ''}`}>{(words[props.text] ?? props.text).toLowerCase()}</span>;
}

/** A moment as a person says it, the exact one on hover. */
export function Moment(props: { at: number | null | undefined }): JSX.Element {
  return <time title={when(props.at)}>{ago(props.at, now())}</time>;
}
