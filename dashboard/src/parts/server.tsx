// Which serving process a page looks into.

import { type Accessor, createMemo, For, type JSX, Match, Show, Switch } from 'solid-js';
import { createLive } from '../lib/live';
import { type Server, serving } from '../serving';
import { useParam } from './params';
import { Empty, Failure, Skeleton } from './states';

const SERVERS_EVERY_MS = 60_000;

export interface Servers {
  /** The chosen one. */
  server: Accessor<Server | undefined>;
  all: Accessor<Server[] | undefined>;
  error: Accessor<string | undefined>;
  again: () => void;
}

/** The serving processes that are known here; `?server=` chooses one of several. */
export function useServers(): Servers {
  const [live, again] = createLive(
    () => true,
    (_, signal) => serving.servers(signal),
    () => SERVERS_EVERY_MS,
  );
  const [wanted] = useParam('server', '0');
  const all = () => live.value?.servers;
  // By what it is and not by its identity: asked again it is the same.
  const server = createMemo(() => all()?.[Number(wanted())] ?? all()?.[0], undefined, {
    equals: (a, b) => a?.base === b?.base && a?.name === b?.name,
  });
  return { server, all, error: () => live.error, again };
}

/** A choice, where there are several. */
export function ServerPicker(props: { servers: Servers }): JSX.Element {
  const [wanted, setWanted] = useParam('server', '0');
  return (
    <Show when={(props.servers.all() ?? []).length > 1}>
      <label class="control">
        Serving process
        <select value={wanted()} onChange={(event) => setWanted(event.target.value)}>
          <For each={props.servers.all()}>{(server, i) => <option value={i()}>{server.name}</option>}</For>
        </select>
      </label>
    </Show>
  );
}

/** `children` once there is a serving process; before, instead or without one what there is to say. */
export function WithServer(props: {
  servers: Servers;
  children: (server: Accessor<Server>) => JSX.Element;
}): JSX.Element {
  return (
    <Switch>
      {/* Another process begins anew: nothing of the one before may stand under its name. */}
      <Match when={props.servers.server()} keyed>
        {(server) => props.children(() => server)}
      </Match>
      <Match when={props.servers.error() && !props.servers.all()}>
        <Failure
          what="The serving processes could not be asked for"
          error={props.servers.error() ?? ''}
          again={props.servers.again}
        />
      </Match>
      <Match when={!props.servers.all()}>
        <Skeleton rows={4} />
      </Match>
      <Match when={true}>
        <NoServer />
      </Match>
    </Switch>
  );
}

export function NoServer(): JSX.Element {
  return (
    <Empty title="No serving process is known here">
      <p>
        <code>highroad up</code> serves and shows what it serves on one port.
      </p>
      <p>
        <code>highroad track --serving http://HOST:PORT</code> looks into a <code>highroad serve</code> that runs apart.
      </p>
    </Empty>
  );
}
