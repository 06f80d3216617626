import { createMemo, createSignal, For, type JSX, Show } from 'solid-js';

const LONG = 12;

/** Keys and values in two columns; a field to find some where there are many. */
export function Pairs(props: { title: string; pairs: { key: string; value: string }[]; empty: string }): JSX.Element {
  const [find, setFind] = createSignal('');
  const shown = createMemo(() => {
    const wanted = find().toLowerCase();
    return props.pairs.filter(({ key, value }) => `${key}\n${value}`.toLowerCase().includes(wanted));
  });
  return (
    <section class="card pairs" aria-label={props.title}>
      <div class="card-head">
        <h2>
          {props.title} <span class="count">{props.pairs.length}</span>
        </h2>
        <Show when={props.pairs.length > LONG}>
          <label class="field search">
            <span class="visually-hidden">Find in {props.title}</span>
            <input type="search" placeholder="Find" value={find()} onInput={(event) => setFind(event.target.value)} />
          </label>
        </Show>
      </div>
      <Show when={props.pairs.length > 0} fallback={<p class="soft none">{props.empty}</p>}>
        <dl>
          <For each={shown()}>
            {({ key, value }) => (
              <div>
                <dt>
                  <bdi>{key}</bdi>
                </dt>
                <dd class="mono">
                  <Show when={value.length > 300} fallback={<bdi>{value}</bdi>}>
                    <details>
                      <summary>
                        <bdi>{value.slice(0, 120)}…</bdi>
                      </summary>
                      <bdi>{value}</bdi>
                    </details>
                  </Show>
                </dd>
              </div>
            )}
          </For>
        </dl>
      </Show>
    </section>
  );
}
