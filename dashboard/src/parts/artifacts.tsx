import { createEffect, createSignal, For, type JSX, lazy, Match, on, onCleanup, Show, Switch } from 'solid-js';
import { type Artifact, api } from '../api';
import { size } from '../lib/format';
import { createLive, message } from '../lib/live';
import { asText, imageType, indented, kindOf, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, readStart } from '../lib/preview';
import { Icon } from './icons';
import { Empty, Failure, Skeleton } from './states';

const Markdown = lazy(() => import('./markdown'));
const Csv = lazy(() => import('./csv'));

type Owner = { run_id: string } | { model_id: string };

export function Artifacts(props: {
  owner: Owner;
  chosen: string;
  choose: (path: string) => void;
  live: boolean;
}): JSX.Element {
  const [file, setFile] = createSignal<Artifact>();
  return (
    <div class="artifacts">
      <div class="tree card">
        <FolderList
          owner={props.owner}
          path=""
          chosen={props.chosen}
          live={props.live}
          choose={(chosen) => {
            setFile(chosen);
            props.choose(chosen.path);
          }}
          found={(found) => !file() && setFile(found)}
        />
      </div>
      <div class="preview card">
        <Show when={file()} keyed fallback={<Empty title="No file chosen">Choose one to look at it here.</Empty>}>
          {(chosen) => <Preview file={chosen} />}
        </Show>
      </div>
    </div>
  );
}

function FolderList(props: {
  owner: Owner;
  path: string;
  chosen: string;
  live: boolean;
  choose: (file: Artifact) => void;
  found: (file: Artifact) => void;
}): JSX.Element {
  const [list, again] = createLive(
    () => ({ ...props.owner, path: props.path }),
    api.artifacts,
    () => (props.live ? 5000 : undefined),
  );
  // A link to a file opens it once its folder is read.
  createEffect(() => {
    const linked = list.value?.files.find((file) => file.path === props.chosen && file.href);
    if (linked) props.found(linked);
  });
  return (
    <Switch>
      <Match when={list.error && !list.value}>
        <Failure what="The artifacts could not be listed" error={list.error ?? ''} again={again} />
      </Match>
      <Match when={!list.value}>
        <Skeleton rows={3} />
      </Match>
      <Match when={list.value && !list.value.kept_here}>
        <Empty title="Kept elsewhere">
          <span class="mono">{list.value?.uri}</span>
        </Empty>
      </Match>
      <Match when={list.value?.files.length === 0}>
        <Show when={props.path === ''} fallback={<p class="soft">Empty.</p>}>
          <Empty title="No artifact" />
        </Show>
      </Match>
      <Match when={true}>
        <ul>
          <For each={list.value?.files}>
            {(file) => (
              <li>
                <Show
                  when={file.href === null}
                  fallback={
                    <button
                      type="button"
                      class="entry"
                      aria-current={props.chosen === file.path}
                      onClick={() => props.choose(file)}
                    >
                      <Icon name="file" />
                      <bdi class="clip">{file.name}</bdi>
                      <span class="faint n">{size(file.size_bytes ?? 0)}</span>
                    </button>
                  }
                >
                  <Folder {...props} folder={file} />
                </Show>
              </li>
            )}
          </For>
        </ul>
      </Match>
    </Switch>
  );
}

function Folder(props: Parameters<typeof FolderList>[0] & { folder: Artifact }): JSX.Element {
  const [open, setOpen] = createSignal(props.chosen.startsWith(`${props.folder.path}/`));
  return (
    <>
      <button type="button" class="entry" aria-expanded={open()} onClick={() => setOpen(!open())}>
        <span class="turn" classList={{ open: open() }}>
          <Icon name="chevron" />
        </span>
        <Icon name="folder" />
        <bdi class="clip">{props.folder.name}</bdi>
      </button>
      <Show when={open()}>
        <FolderList {...props} path={props.folder.path} />
      </Show>
    </>
  );
}

interface Shown {
  text?: string;
  image?: string;
  whole: boolean;
}

function Preview(props: { file: Artifact }): JSX.Element {
  const [shown, setShown] = createSignal<Shown>();
  const [error, setError] = createSignal<string>();
  const kind = () => kindOf(props.file.name);
  const href = () => props.file.href ?? '';
  const bytes = () => props.file.size_bytes ?? 0;

  createEffect(
    on(href, (from) => {
      const under = new AbortController();
      let url: string | undefined;
      onCleanup(() => {
        under.abort();
        if (url) URL.revokeObjectURL(url);
      });
      const isImage = kind() === 'image';
      if (isImage && bytes() > MAX_IMAGE_BYTES) return setShown({ whole: false });
      if (kind() === 'other' && bytes() > MAX_TEXT_BYTES) return setShown({ whole: false });
      readStart(from, isImage ? MAX_IMAGE_BYTES : MAX_TEXT_BYTES, under.signal)
        .then((read) => {
          if (under.signal.aborted) return;
          if (isImage) {
            url = URL.createObjectURL(
              new Blob([read.bytes as Uint8Array<ArrayBuffer>], { type: imageType(props.file.name) }),
            );
            setShown({ image: url, whole: read.whole });
          } else {
            const text = asText(read.bytes, read.whole);
            setShown({ whole: read.whole, ...(text !== undefined && { text }) });
          }
        })
        .catch((failure) => under.signal.aborted || setError(message(failure)));
    }),
  );
  return (
    <>
      <div class="preview-head">
        <h2>
          <bdi class="clip">{props.file.path}</bdi>
        </h2>
        <span class="faint nowrap">{size(bytes())}</span>
        <span class="grow" />
        <a class="button" href={href()} download={props.file.name}>
          <Icon name="download" /> Download
        </a>
      </div>
      <Switch fallback={<Empty title="This file cannot be shown here">Download it to look at it.</Empty>}>
        <Match when={error()}>{(text) => <Failure what="This file could not be read" error={text()} />}</Match>
        <Match when={!shown()}>
          <Skeleton rows={5} />
        </Match>
        <Match when={shown()?.image}>{(image) => <img class="picture" src={image()} alt={props.file.name} />}</Match>
        <Match when={shown()?.text === ''}>
          <Empty title="Empty file" />
        </Match>
        <Match when={kind() === 'markdown' && shown()?.text}>{(text) => <Markdown text={text()} />}</Match>
        <Match when={kind() === 'table' && shown()?.text}>
          {(text) => <Csv text={text()} name={props.file.name} />}
        </Match>
        <Match when={shown()?.text}>
          {(text) => (
            <pre class="scroll" tabindex="0">
              {kind() === 'json' && shown()?.whole ? indented(text()) : text()}
            </pre>
          )}
        </Match>
      </Switch>
      <Show when={shown()?.text && !shown()?.whole}>
        <p class="soft preview-note">The first {size(MAX_TEXT_BYTES)}; download the file for the rest.</p>
      </Show>
    </>
  );
}
