// From histories, as the server cuts them, to what a chart draws. Pure functions.

export type XAxis = 'step' | 'time' | 'relative';

export interface History {
  run_id: string;
  key: string;
  run_started: number;
  n_points: number;
  steps: number[];
  times: number[];
  values: (number | null)[];
  lows: number[];
  highs: number[];
}

/** One line of a chart; `low` and `high` are there where a point stands for many. */
export interface Line {
  x: number[];
  y: (number | null)[];
  low?: number[];
  high?: number[];
}

/** Whether steps say nothing: every point has the same. */
export function isStepless(history: History): boolean {
  return history.steps.length > 1 && history.steps.every((step) => step === history.steps[0]);
}

/** `time` is in seconds since 1970, `relative` in seconds since the run began. */
export function toLine(history: History, axis: XAxis): Line {
  const since = history.run_started;
  const place = {
    step: () => history.steps,
    time: () => history.times.map((time) => time / 1000),
    relative: () => history.times.map((time) => (time - since) / 1000),
  };
  const line: Line = { x: place[axis === 'step' && isStepless(history) ? 'relative' : axis](), y: history.values };
  if (history.lows.length > 0) Object.assign(line, { low: history.lows, high: history.highs });
  return line.x.every((x, i) => i === 0 || x >= (line.x[i - 1] ?? x)) ? line : sorted(line);
}

function sorted(line: Line): Line {
  const order = line.x.map((_, i) => i).sort((a, b) => (line.x[a] ?? 0) - (line.x[b] ?? 0));
  const pick = <T>(values: T[]) => order.map((i) => values[i] as T);
  return {
    x: pick(line.x),
    y: pick(line.y),
    ...(line.low && line.high && { low: pick(line.low), high: pick(line.high) }),
  };
}

/**
 * TensorBoard's smoothing: an exponential moving average over the points shown, with its start-up bias taken out
 * (divided by `1 - weight^n`). Missing values stay missing and do not count; a constant series stays as it is.
 */
export function smooth(values: readonly (number | null)[], weight: number): (number | null)[] {
  if (weight <= 0) return [...values];
  let mean = 0;
  let bias = 1;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean * weight + (1 - weight) * value;
    bias *= weight;
    return mean / (1 - bias);
  });
}

/** Every place of any of `lines` once and in order, and for each of `lines` its values there: uPlot's aligned data. */
export function align(lines: readonly Line[]): { x: number[]; columns: { y: Cells; low?: Cells; high?: Cells }[] } {
  const x = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const rowOf = new Map(x.map((place, row) => [place, row]));
  const spread = (line: Line, values: readonly (number | null)[]): Cells => {
    const cells: Cells = new Array(x.length).fill(undefined);
    line.x.forEach((place, i) => {
      cells[rowOf.get(place) as number] = values[i] ?? null;
    });
    return cells;
  };
  const columns = lines.map((line) => ({
    y: spread(line, line.y),
    ...(line.low && line.high && { low: spread(line, line.low), high: spread(line, line.high) }),
  }));
  return { x, columns };
}

/** `null` is a gap (NaN), `undefined` a place that this line does not have. */
export type Cells = (number | null | undefined)[];

/** What a logarithmic axis can show. */
export function positive(cells: Cells): Cells {
  return cells.map((value) => (typeof value === 'number' && value <= 0 ? null : value));
}

/** The cell of `row`, or of the nearest row that has one. */
export function nearest(cells: Cells, row: number): number | null {
  for (let away = 0; away < cells.length; away++) {
    for (const at of [row - away, row + away]) {
      const value = cells[at];
      if (typeof value === 'number') return value;
    }
  }
  return null;
}

/** `[from, to]` widened or narrowed around its middle, and moved by a part of its width. */
export function zoomed([from, to]: [number, number], factor: number, shift = 0): [number, number] {
  const middle = (from + to) / 2 + (to - from) * shift;
  const half = ((to - from) * factor) / 2;
  return [middle - half, middle + half];
}
