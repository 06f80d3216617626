import { type Accessor, createEffect } from 'solid-js';

/** What the browser's tab says. */
export function useTitle(text: Accessor<string | undefined>): void {
  createEffect(() => {
    document.title = text() ? `${text()} · Highroad` : 'Highroad';
  });
}
