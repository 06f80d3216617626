// Keys that work on every page, and those that a page adds while it is shown.

import { onCleanup } from 'solid-js';

/** What `?` lists. Each key that does something is here. */
export const documented: [string, [string, string][]][] = [
  [
    'Everywhere',
    [
      ['?', 'Show these keys'],
      ['g e', 'Go to the experiments'],
      ['g m', 'Go to the models'],
      ['g p', 'Go to the portfolio'],
      ['g r', 'Go to the rollouts'],
      ['g b', 'Go to the budgets'],
      ['g d', 'Go to monitoring'],
      ['g q', 'Look up a request'],
      ['t', 'Light or dark'],
      ['/', 'Search or filter'],
      ['Esc', 'Close, or leave a field'],
    ],
  ],
  [
    'Table of runs',
    [
      ['j k', 'Next, previous run'],
      ['x', 'Select the run'],
      ['Enter', 'Open the run'],
      ['c', 'Compare the selected runs'],
      ['Alt ← →', 'Move the focused column'],
    ],
  ],
  [
    'Chart',
    [
      ['+ −', 'Zoom in, out'],
      ['← →', 'Move along'],
      ['0', 'Whole range again'],
    ],
  ],
];

type Handlers = Record<string, (event: KeyboardEvent) => void>;

function isTyping(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement && target.matches('input:not([type=checkbox]):not([type=range]), select, textarea')
  );
}

/** Runs `handlers[key]` for keys pressed outside of fields; two keys in a row are written `g e`. */
export function useKeys(handlers: Handlers): void {
  let prefix = '';
  let prefixed = 0;
  const pressed = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isTyping(event.target)) return;
    if (document.querySelector('dialog[open]') && event.key !== 'Escape') return;
    const pair = event.timeStamp - prefixed < 1000 ? `${prefix} ${event.key}` : '';
    prefix = event.key;
    prefixed = event.timeStamp;
    const handler = handlers[pair] ?? handlers[event.key];
    if (!handler) return;
    event.preventDefault();
    handler(event);
  };
  // At once, not on mount: mounting waits for what the page still loads, after it can be seen.
  document.addEventListener('keydown', pressed);
  onCleanup(() => document.removeEventListener('keydown', pressed));
}
