// The columns of a table of runs, and how a set of them is written into an address.

export type Table = 'metrics' | 'params' | 'tags';

export interface Column {
  table: Table;
  key: string;
}

export interface KeyList {
  metrics: UsedKey[];
  params: UsedKey[];
  tags: UsedKey[];
}

export interface UsedKey {
  key: string;
  n_runs: number;
  varies: boolean;
}

export interface Sort {
  column: string;
  descending: boolean;
}

/** `metrics.a.b` is the metric `a.b`: only the first dot counts. */
export function columnId(column: Column): string {
  return `${column.table}.${column.key}`;
}

export function parseColumn(id: string): Column | undefined {
  const dot = id.indexOf('.');
  const table = id.slice(0, dot);
  const key = id.slice(dot + 1);
  if (dot < 0 || key === '' || !(table === 'metrics' || table === 'params' || table === 'tags')) return undefined;
  return { table, key };
}

/** Commas separate, so a comma in a key is escaped, and the sign that escapes too. */
export function writeColumns(columns: readonly Column[]): string {
  return columns.map((column) => columnId(column).replace(/[%,]/g, encodeURIComponent)).join(',');
}

/** What is no column is passed over: an address may come from anywhere. */
export function readColumns(text: string): Column[] {
  const read = text.split(',').map((part) => parseColumn(part.replace(/%25|%2C/gi, decodeURIComponent)));
  return unique(read.filter((column) => column !== undefined));
}

function unique(columns: Column[]): Column[] {
  return [...new Map(columns.map((column) => [columnId(column), column])).values()];
}

export function writeSort(sort: Sort | undefined): string | undefined {
  return sort && `${sort.descending ? '-' : ''}${sort.column}`;
}

export function readSort(text: string | undefined): Sort | undefined {
  if (!text) return undefined;
  const descending = text.startsWith('-');
  return { column: descending ? text.slice(1) : text, descending };
}

/** A click on a header: first the useful end of that column, then the other, then none. */
export function nextSort(sort: Sort | undefined, column: string): Sort | undefined {
  const downFirst = column.startsWith('metrics.') || column === 'attributes.start_time';
  if (sort?.column !== column) return { column, descending: downFirst };
  return sort.descending === downFirst ? { column, descending: !downFirst } : undefined;
}

const MAX_DEFAULT_METRICS = 5;
const MAX_DEFAULT_PARAMS = 4;

/** Without a choice: some metrics, not those of the machine, and the params in which runs differ. */
export function defaultColumns(keys: KeyList): Column[] {
  const metrics = keys.metrics.filter(({ key }) => !key.startsWith('system/'));
  const common = [...metrics].sort((a, b) => b.n_runs - a.n_runs).slice(0, MAX_DEFAULT_METRICS);
  const params = keys.params.filter(({ varies }) => varies).slice(0, MAX_DEFAULT_PARAMS);
  return [
    ...metrics.filter((used) => common.includes(used)).map(({ key }) => ({ table: 'metrics' as const, key })),
    ...params.map(({ key }) => ({ table: 'params' as const, key })),
  ];
}

/** `list` with the element at `from` moved to `to`. */
export function moved<T>(list: readonly T[], from: number, to: number): T[] {
  const rest = [...list];
  const [item] = rest.splice(from, 1);
  if (item !== undefined) rest.splice(Math.max(0, Math.min(to, rest.length)), 0, item);
  return rest;
}
