import Papa from 'papaparse';
import { For, type JSX, Show } from 'solid-js';
import { MAX_TABLE_ROWS } from '../lib/preview';

const MAX_COLUMNS = 100;

export default function Csv(props: { text: string; name: string }): JSX.Element {
  const parsed = () => Papa.parse<string[]>(props.text, { preview: MAX_TABLE_ROWS + 2, skipEmptyLines: 'greedy' }).data;
  const head = () => (parsed()[0] ?? []).slice(0, MAX_COLUMNS);
  const body = () => parsed().slice(1, MAX_TABLE_ROWS + 1);
  return (
    <>
      <section class="scroll" tabindex="0" aria-label={`Table of ${props.name}`}>
        <table class="rows tight">
          <thead>
            <tr>
              <For each={head()}>{(title) => <th scope="col">{title}</th>}</For>
            </tr>
          </thead>
          <tbody>
            <For each={body()}>
              {(row) => (
                <tr>
                  <For each={row.slice(0, MAX_COLUMNS)}>
                    {(value) => <td classList={{ n: value !== '' && Number.isFinite(Number(value)) }}>{value}</td>}
                  </For>
                </tr>
              )}
            </For>
          </tbody>
        </table>
      </section>
      <Show when={parsed().length > MAX_TABLE_ROWS + 1}>
        <p class="soft">The first {MAX_TABLE_ROWS} rows; download the file for the others.</p>
      </Show>
    </>
  );
}
