import { For, type JSX } from 'solid-js';

/** Tabs as the WAI-ARIA pattern has them: arrows move, one stop for the tab key. */
export function Tabs(props: {
  label: string;
  tabs: { id: string; title: string; count?: number | undefined }[];
  chosen: string;
  choose: (id: string) => void;
}): JSX.Element {
  const buttons: HTMLButtonElement[] = [];
  const step = (event: KeyboardEvent, from: number) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const to = (from + by + props.tabs.length) % props.tabs.length;
    const tab = props.tabs[to];
    if (tab) props.choose(tab.id);
    buttons[to]?.focus();
  };
  return (
    <div class="tabs" role="tablist" aria-label={props.label}>
      <For each={props.tabs}>
        {(tab, i) => (
          <button
            type="button"
            role="tab"
            id={`tab-${tab.id}`}
            aria-selected={props.chosen === tab.id}
            tabindex={props.chosen === tab.id ? 0 : -1}
            ref={(button) => {
              buttons[i()] = button;
            }}
            onClick={() => props.choose(tab.id)}
            onKeyDown={(event) => step(event, i())}
          >
            {tab.title}
            {tab.count === undefined ? null : <span class="count">{tab.count}</span>}
          </button>
        )}
      </For>
    </div>
  );
}
