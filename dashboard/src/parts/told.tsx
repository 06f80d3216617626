import { For, type JSX } from 'solid-js';
import { codeParts, shortDigests } from '../lib/format';

/** A sentence of the server: digests are short, and what stands in backticks is code. */
export function Told(props: { text: string }): JSX.Element {
  return (
    <bdi>
      <For each={codeParts(shortDigests(props.text))}>{(part, i) => (i() % 2 === 1 ? <code>{part}</code> : part)}</For>
    </bdi>
  );
}
