// State that lives in the address, so that every view is a link.

import { useSearchParams } from '@solidjs/router';
import type { Accessor } from 'solid-js';

/** One entry of the query; `undefined` and the default leave it out. It replaces the address: Back leaves the page. */
export function useParam(name: string, standard = ''): [Accessor<string>, (value: string | undefined) => void] {
  const [params, setParams] = useSearchParams();
  const value = () => {
    const found = params[name];
    return (Array.isArray(found) ? found[0] : found) ?? standard;
  };
  const set = (next: string | undefined) =>
    setParams({ [name]: next === undefined || next === standard ? null : next }, { replace: true, scroll: false });
  return [value, set];
}
