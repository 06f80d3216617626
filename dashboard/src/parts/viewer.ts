// Who looks at the pages, and what they may do.

import { api } from '../api';
import { createLive } from '../lib/live';

const EVERY_MS = 60_000;

export type Scope = 'infer' | 'observe' | 'track' | 'deploy';

/** Whether the viewer may do what needs a scope; nothing before the server has said so. It decides again, whatever the page shows. */
export function useViewer(): { key: () => string | null | undefined; may: (scope: Scope) => boolean } {
  const [live] = createLive(
    () => true,
    (_, signal) => api.viewer(signal),
    () => EVERY_MS,
  );
  return { key: () => live.value?.key, may: (scope) => live.value?.scopes.includes(scope) ?? false };
}
