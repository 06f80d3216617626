import { createMemo, createSignal, For, type JSX, Show } from 'solid-js';
import { type Column, columnId, type KeyList, moved, type Table } from '../lib/columns';
import { Icon } from './icons';

const MAX_LISTED = 200;
const titles: [Table, string][] = [
  ['metrics', 'Metrics'],
  ['params', 'Params'],
  ['tags', 'Tags'],
];

export function ColumnPicker(props: {
  keys: KeyList | undefined;
  columns: Column[];
  setColumns: (columns: Column[] | undefined) => void;
}): JSX.Element {
  let dialog: HTMLDialogElement | undefined;
  const [find, setFind] = createSignal('');
  const chosen = createMemo(() => new Set(props.columns.map(columnId)));
  const toggle = (column: Column) => {
    const id = columnId(column);
    const rest = props.columns.filter((each) => columnId(each) !== id);
    props.setColumns(chosen().has(id) ? rest : [...props.columns, column]);
  };
  return (
    <>
      <button type="button" class="button" onClick={() => dialog?.showModal()}>
        <Icon name="columns" /> Columns <span class="count">{props.columns.length}</span>
      </button>
      <dialog
        class="picker"
        ref={(element) => {
          dialog = element;
          // A click beside it closes it; Solid does not know this attribute yet.
          element.setAttribute('closedby', 'any');
        }}
        aria-labelledby="picker-title"
      >
        <div class="dialog-head">
          <h2 id="picker-title">Columns</h2>
          <button type="button" class="button quiet" aria-label="Close" onClick={() => dialog?.close()}>
            <Icon name="close" />
          </button>
        </div>
        <div class="picker-body">
          <section aria-label="Shown columns">
            <h3>Shown, in this order</h3>
            <ol>
              <For each={props.columns} fallback={<li class="soft">Only the run's own columns.</li>}>
                {(column, i) => (
                  <li>
                    <bdi class="clip" title={columnId(column)}>
                      {column.key}
                    </bdi>
                    <button
                      type="button"
                      class="button quiet small"
                      aria-label={`Move ${column.key} up`}
                      disabled={i() === 0}
                      onClick={() => props.setColumns(moved(props.columns, i(), i() - 1))}
                    >
                      <Icon name="up" />
                    </button>
                    <button
                      type="button"
                      class="button quiet small"
                      aria-label={`Move ${column.key} down`}
                      disabled={i() === props.columns.length - 1}
                      onClick={() => props.setColumns(moved(props.columns, i(), i() + 1))}
                    >
                      <Icon name="down" />
                    </button>
                    <button
                      type="button"
                      class="button quiet small"
                      aria-label={`Hide ${column.key}`}
                      onClick={() => toggle(column)}
                    >
                      <Icon name="close" />
                    </button>
                  </li>
                )}
              </For>
            </ol>
            <button type="button" class="button" onClick={() => props.setColumns(undefined)}>
              Back to the default
            </button>
          </section>
          <section aria-label="All columns">
            <label class="field search">
              <span class="visually-hidden">Find columns</span>
              <input
                type="search"
                placeholder="Find columns"
                value={find()}
                onInput={(event) => setFind(event.target.value)}
              />
            </label>
            <div class="picker-list">
              <For each={titles}>
                {([table, title]) => {
                  const found = createMemo(() =>
                    (props.keys?.[table] ?? []).filter(({ key }) => key.toLowerCase().includes(find().toLowerCase())),
                  );
                  return (
                    <Show when={found().length > 0}>
                      <h3>
                        {title} <span class="count">{found().length}</span>
                      </h3>
                      <For each={found().slice(0, MAX_LISTED)}>
                        {(used) => (
                          <label class="choice">
                            <input
                              type="checkbox"
                              checked={chosen().has(`${table}.${used.key}`)}
                              onChange={() => toggle({ table, key: used.key })}
                            />
                            <bdi class="clip" title={used.key}>
                              {used.key}
                            </bdi>
                            <span class="faint">{used.n_runs.toLocaleString('en')}</span>
                          </label>
                        )}
                      </For>
                      <Show when={found().length > MAX_LISTED}>
                        <p class="soft">and {found().length - MAX_LISTED} more: type to find them</p>
                      </Show>
                    </Show>
                  );
                }}
              </For>
            </div>
          </section>
        </div>
      </dialog>
    </>
  );
}
