import { A, type RouteSectionProps, useNavigate } from '@solidjs/router';
import { createEffect, createSignal, ErrorBoundary, For, type JSX, on, Suspense } from 'solid-js';
import { message } from '../lib/live';
import { Icon } from './icons';
import { documented, useKeys } from './keys';
import { Failure } from './states';

const CHOSEN = 'highroad.theme';
const system = matchMedia('(prefers-color-scheme: dark)');

type Theme = 'light' | 'dark';

function shownTheme(): Theme {
  const chosen = document.documentElement.dataset.theme;
  if (chosen === 'light' || chosen === 'dark') return chosen;
  return system.matches ? 'dark' : 'light';
}

const [theme, setTheme] = createSignal<Theme>(shownTheme());
system.addEventListener('change', () => setTheme(shownTheme()));

/** The theme on screen; charts draw themselves anew when it changes. */
export { theme };

/** The other theme. Where that is what the system says anyway, the system decides again. */
function toggleTheme(): void {
  const next = shownTheme() === 'dark' ? 'light' : 'dark';
  if ((next === 'dark') === system.matches) {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem(CHOSEN);
  } else {
    document.documentElement.dataset.theme = next;
    localStorage.setItem(CHOSEN, next);
  }
  setTheme(next);
}

/** Whether a page is of experiments, whose runs have paths of their own. */
function isOfRuns(pathname: string): boolean {
  return ['', 'experiments', 'runs', 'compare'].includes(pathname.split('/')[2] ?? '');
}

export function Frame(props: RouteSectionProps): JSX.Element {
  const navigate = useNavigate();
  let help: HTMLDialogElement | undefined;
  let pages: HTMLElement | undefined;
  // Where there is no room for all of them, the link of this page is in sight.
  createEffect(
    on(
      () => props.location.pathname,
      () =>
        queueMicrotask(() => pages?.querySelector('.active')?.scrollIntoView({ block: 'nearest', inline: 'center' })),
    ),
  );
  useKeys({
    '?': () => help?.showModal(),
    'g e': () => navigate('/'),
    'g m': () => navigate('/models'),
    'g p': () => navigate('/portfolio'),
    'g r': () => navigate('/rollouts'),
    'g b': () => navigate('/budgets'),
    'g d': () => navigate('/monitor'),
    'g q': () => navigate('/requests'),
    t: toggleTheme,
    '/': () => document.querySelector<HTMLInputElement>('[data-search]')?.focus(),
  });
  return (
    <>
      <a class="skip" href="#main">
        Skip to the content
      </a>
      <header class="top">
        <A class="mark" href="/" end>
          <svg viewBox="0 0 20 20" aria-hidden="true">
            <path d="M8.2 2 3 18h4.2l.6-3M11.8 2 17 18h-4.2l-.6-3M10 3v2.4M10 8v3M10 13.6V17" />
          </svg>
          Highroad
        </A>
        <nav aria-label="Main" ref={pages}>
          <A href="/" end classList={{ active: isOfRuns(props.location.pathname) }}>
            Experiments
          </A>
          <A href="/models">Models</A>
          <A href="/portfolio">Portfolio</A>
          <A href="/rollouts">Rollouts</A>
          <A href="/budgets">Budgets</A>
          <A href="/monitor">Monitoring</A>
          <A href="/requests">Requests</A>
        </nav>
        <span class="grow" />
        <button
          type="button"
          class="button quiet"
          aria-label="Light or dark"
          title="Light or dark (t)"
          onClick={toggleTheme}
        >
          <Icon name={theme() === 'dark' ? 'sun' : 'moon'} />
        </button>
        <button type="button" class="button quiet" aria-label="Keys" title="Keys (?)" onClick={() => help?.showModal()}>
          <Icon name="help" />
        </button>
      </header>
      <main id="main" tabindex="-1">
        <ErrorBoundary
          fallback={(error, reset) => (
            <div class="page">
              <Failure what="This page failed" error={message(error)} again={reset} />
            </div>
          )}
        >
          <Suspense>{props.children}</Suspense>
        </ErrorBoundary>
      </main>
      <dialog
        class="help"
        ref={(element) => {
          help = element;
          // A click beside it closes it; Solid does not know this attribute yet.
          element.setAttribute('closedby', 'any');
        }}
        aria-labelledby="help-title"
      >
        <div class="dialog-head">
          <h2 id="help-title">Keys</h2>
          <button type="button" class="button quiet" aria-label="Close" onClick={() => help?.close()}>
            <Icon name="close" />
          </button>
        </div>
        <div class="help-groups">
          <For each={documented}>
            {([group, keys]) => (
              <section>
                <h3>{group}</h3>
                <dl>
                  <For each={keys}>
                    {([key, does]) => (
                      <div>
                        <dt>
                          <For each={key.split(' ')}>{(part) => <kbd>{part}</kbd>}</For>
                        </dt>
                        <dd>{does}</dd>
                      </div>
                    )}
                  </For>
                </dl>
              </section>
            )}
          </For>
        </div>
      </dialog>
    </>
  );
}
