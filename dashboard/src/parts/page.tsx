// What pages share that list something: the field that finds in it, and what stands until it is there.

import { type Accessor, type JSX, Match, Switch } from 'solid-js';
import type { Live } from '../lib/live';
import { Failure, Skeleton } from './states';

/** A field that narrows what is listed, as it is typed. */
export function Search(props: {
  label: string;
  value: string;
  set: (value: string) => void;
  onKeyDown?: (event: KeyboardEvent) => void;
}): JSX.Element {
  return (
    <label class="field search">
      <span class="visually-hidden">{props.label}</span>
      <input
        type="search"
        data-search
        placeholder={props.label}
        value={props.value}
        onInput={(event) => props.set(event.target.value)}
        onKeyDown={(event) => props.onKeyDown?.(event)}
      />
    </label>
  );
}

/** `children` once `live` has a value, also an old one; before, what there is to say: that it comes, or why it does not. */
export function Loaded<T>(props: {
  live: Live<T>;
  again: () => void;
  /** What could not be read, as a sentence. */
  what: string;
  rows: number;
  children: (value: Accessor<NonNullable<T>>) => JSX.Element;
}): JSX.Element {
  return (
    <Switch>
      <Match when={props.live.value !== undefined && props.live.value}>{(value) => props.children(value)}</Match>
      <Match when={props.live.error}>
        <Failure what={props.what} error={props.live.error ?? ''} again={props.again} />
      </Match>
      <Match when={true}>
        <Skeleton rows={props.rows} />
      </Match>
    </Switch>
  );
}
