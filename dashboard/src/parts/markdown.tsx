// Markdown as safe HTML. It comes from anybody who logs a run, so nothing of it may run, load from elsewhere, or take a click
// somewhere it does not say.

import DOMPurify from 'dompurify';
import { marked } from 'marked';
import type { JSX } from 'solid-js';

const purify = DOMPurify(window);
purify.addHook('afterSanitizeAttributes', (node) => {
  if (node instanceof HTMLAnchorElement) {
    node.target = '_blank';
    node.rel = 'noopener noreferrer nofollow';
  }
});

export default function Markdown(props: { text: string }): JSX.Element {
  const html = () =>
    purify.sanitize(marked.parse(props.text, { async: false }), {
      USE_PROFILES: { html: true },
      FORBID_TAGS: ['style', 'form', 'input', 'button', 'select', 'textarea', 'iframe', 'audio', 'video', 'dialog'],
      FORBID_ATTR: ['style', 'class', 'id', 'name', 'srcset'],
    });
  return <div class="markdown" innerHTML={html()} />;
}
