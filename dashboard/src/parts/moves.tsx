import { A } from '@solidjs/router';
import { For, type JSX, Show } from 'solid-js';
import type { Schemas } from '../api';
import { shortDigest } from '../lib/format';
import { Moment, Pill } from './states';

/** The record of alias moves: who, when, from where to where, why, and on what evidence. */
export function Moves(props: { moves: Schemas['Move'][]; label: string }): JSX.Element {
  return (
    <section class="card scroll" tabindex="0" aria-label={props.label}>
      <table class="rows">
        <thead>
          <tr>
            <th scope="col">When</th>
            <th scope="col">What</th>
            <th scope="col">Alias</th>
            <th scope="col">From → to</th>
            <th scope="col">Who</th>
            <th scope="col">Why</th>
            <th scope="col">Evidence</th>
          </tr>
        </thead>
        <tbody>
          <For each={props.moves}>
            {(move) => (
              <tr>
                <td class="soft nowrap">
                  <Moment at={move.at} />
                </td>
                <td>
                  <Pill text={move.action} />
                </td>
                <td>
                  <A href={`/models/${encodeURIComponent(move.model)}`}>
                    <bdi>{move.alias === '' ? move.model : `${move.model}@${move.alias}`}</bdi>
                  </A>
                </td>
                <td class="nowrap">
                  {move.from ?? 'none'} → {move.to ?? 'none'}
                </td>
                <td>
                  <bdi>{move.by}</bdi>
                </td>
                <td class="why">
                  <bdi>{move.why}</bdi>
                </td>
                <td class="soft">
                  <Show when={move.verdict} fallback={overridden(move.overridden) ?? <span class="faint">–</span>}>
                    {(verdict) => (
                      <span class="mono" title={verdict()}>
                        verdict {shortDigest(verdict())}
                      </span>
                    )}
                  </Show>
                  <Show when={rehearsed(move.rehearsal)}>
                    {(text) => (
                      <>
                        <br />
                        {text()}
                      </>
                    )}
                  </Show>
                </td>
              </tr>
            )}
          </For>
        </tbody>
      </table>
    </section>
  );
}

/** Who overrode the gate, until when, and what the version lacks. */
function overridden(text: string | null): string | undefined {
  if (text === null) return undefined;
  try {
    const given = JSON.parse(text);
    return `no verdict: overridden by ${given.by} until ${given.expires_at} (${given.missing?.reason})`;
  } catch {
    return 'an override that cannot be read';
  }
}

/** What the rehearsal of the way back found. Its JSON comes from whoever promoted, so it may be anything. */
function rehearsed(text: string | null): string | undefined {
  try {
    const found = JSON.parse(text ?? 'null');
    if (found?.passed !== true) return undefined;
    const cases = found.parity?.n_cases;
    return `way back rehearsed${typeof cases === 'number' ? `: ${cases} parity cases` : ''}`;
  } catch {
    return undefined;
  }
}
