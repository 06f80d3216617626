// What a person does to production: with a name, a reason and a second click.

import { createSignal, type JSX, Show } from 'solid-js';
import { message } from '../lib/live';
import type { Act } from '../serving';
import { Icon } from './icons';

const BY = 'highroad.by';
const MAX_CHARS = 200;

/**
 * A button that opens a dialog, and does `act` once somebody has said who they are and why. The name is remembered by this
 * browser. `why` is a first suggestion of a reason.
 */
export function ActButton(props: {
  title: string;
  explains: JSX.Element;
  does: string;
  tone?: 'accent' | 'danger';
  disabled?: string | undefined;
  act: (given: Act) => Promise<unknown>;
  done: () => void;
}): JSX.Element {
  const [by, setBy] = createSignal(localStorage.getItem(BY) ?? '');
  const [why, setWhy] = createSignal('');
  const [error, setError] = createSignal<string>();
  const [busy, setBusy] = createSignal(false);
  let dialog: HTMLDialogElement | undefined;
  const id = `act-${props.title.toLowerCase().replaceAll(' ', '-')}`;

  const open = () => {
    setError(undefined);
    dialog?.showModal();
  };
  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    if (busy()) return;
    setBusy(true);
    try {
      await props.act({ by: by().trim(), why: why().trim() });
      localStorage.setItem(BY, by().trim());
      dialog?.close();
      setWhy('');
      props.done();
    } catch (failure) {
      setError(message(failure));
    } finally {
      setBusy(false);
    }
  };
  return (
    <>
      <button
        type="button"
        class={`button ${props.tone ?? ''}`}
        disabled={props.disabled !== undefined}
        title={props.disabled}
        onClick={open}
      >
        {props.title}
      </button>
      <dialog
        class="act"
        ref={(element) => {
          dialog = element;
        }}
        aria-labelledby={id}
      >
        <div class="dialog-head">
          <h2 id={id}>{props.title}</h2>
          <button type="button" class="button quiet" aria-label="Close" onClick={() => dialog?.close()}>
            <Icon name="close" />
          </button>
        </div>
        <form onSubmit={submit}>
          <p>{props.explains}</p>
          <label class="field">
            <span>Who you are</span>
            <input
              required
              maxlength={MAX_CHARS}
              autocomplete="name"
              value={by()}
              onInput={(event) => setBy(event.target.value)}
            />
          </label>
          <label class="field">
            <span>Why</span>
            <input required maxlength={MAX_CHARS} value={why()} onInput={(event) => setWhy(event.target.value)} />
          </label>
          <Show when={error()}>
            <p class="failure" role="alert">
              {error()}
            </p>
          </Show>
          <div class="form-end">
            <button type="button" class="button" onClick={() => dialog?.close()}>
              Leave it
            </button>
            <button
              type="submit"
              class={`button ${props.tone ?? 'accent'}`}
              disabled={busy() || by().trim() === '' || why().trim() === ''}
            >
              {busy() ? 'Doing it…' : props.does}
            </button>
          </div>
        </form>
      </dialog>
    </>
  );
}
