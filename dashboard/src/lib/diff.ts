// What differs between runs.

export interface Compared {
  metrics: { key: string; value: number | string }[];
  params: { key: string; value: string }[];
  tags: { key: string; value: string }[];
}

export interface DiffRow {
  key: string;
  /** One for each run; `undefined` where it lacks the key. */
  values: (number | string | undefined)[];
  differs: boolean;
}

/** Every key of any run in order, with each run's value. */
export function diff(runs: readonly Compared[], table: keyof Compared): DiffRow[] {
  const maps = runs.map((run) => new Map<string, number | string>(run[table].map(({ key, value }) => [key, value])));
  const keys = [...new Set(maps.flatMap((map) => [...map.keys()]))].sort((a, b) => a.localeCompare(b, 'en'));
  return keys.map((key) => {
    const values = maps.map((map) => map.get(key));
    return { key, values, differs: values.some((value) => value !== values[0]) };
  });
}

/** `+12.5 %` of `base`, where that can be said. */
export function change(value: number | string | undefined, base: number | string | undefined): string {
  if (typeof value !== 'number' || typeof base !== 'number' || base === 0 || value === base) return '';
  const percent = ((value - base) / Math.abs(base)) * 100;
  if (!Number.isFinite(percent)) return '';
  const shown = Math.abs(percent) >= 1000 ? percent.toExponential(1) : percent.toFixed(Math.abs(percent) < 10 ? 1 : 0);
  return `${percent > 0 ? '+' : ''}${shown} %`;
}

/** A place on an axis for each value: itself if all are numbers, else its rank among the texts. */
export function axisOf(values: readonly (number | string | undefined)[]): {
  numeric: boolean;
  places: (number | undefined)[];
  labels: string[];
} {
  const given = values.filter((value) => value !== undefined && value !== '');
  const numeric = given.length > 0 && given.every((value) => Number.isFinite(Number(value)));
  if (numeric) {
    const places = values.map((value) => (value === undefined || value === '' ? undefined : Number(value)));
    return { numeric, places, labels: [] };
  }
  const labels = [...new Set(given.map(String))].sort((a, b) => a.localeCompare(b, 'en'));
  const rank = new Map(labels.map((label, i) => [label, i]));
  return {
    numeric,
    places: values.map((value) => (value === undefined ? undefined : rank.get(String(value)))),
    labels,
  };
}
