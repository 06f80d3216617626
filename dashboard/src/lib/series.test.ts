import { expect, test } from 'vitest';
import { align, type History, isStepless, nearest, positive, smooth, toLine, zoomed } from './series';

const history = (over: Partial<History>): History => ({
  run_id: 'r',
  key: 'loss',
  run_started: 1000,
  n_points: 3,
  steps: [0, 1, 2],
  times: [1000, 2000, 4000],
  values: [3, 2, 1],
  lows: [],
  highs: [],
  ...over,
});

test('smoothing is the debiased average that TensorBoard draws', () => {
  // By hand for weight 0.6: 1; (0.6*0.4*1 + 0.4*2)/(1 - 0.36); …
  const [first, second, third] = smooth([1, 2, 3], 0.6);
  expect(first).toBeCloseTo(1, 12);
  expect(second).toBeCloseTo((0.6 * 0.4 + 0.8) / 0.64, 12);
  expect(third).toBeCloseTo((0.6 * (0.6 * 0.4 + 0.8) + 1.2) / (1 - 0.216), 12);
  expect(smooth([5, 5, 5], 0.99).every((value) => Math.abs((value as number) - 5) < 1e-9)).toBe(true);
  expect(smooth([1, 2], 0)).toEqual([1, 2]);
});

test('smoothing passes over what is not a number', () => {
  const smoothed = smooth([4, null, 4], 0.9);
  expect(smoothed[1]).toBeNull();
  expect(smoothed[2]).toBeCloseTo(4, 12);
});

test('a line lies along steps, the clock, or the time since its run began', () => {
  expect(toLine(history({}), 'step').x).toEqual([0, 1, 2]);
  expect(toLine(history({}), 'time').x).toEqual([1, 2, 4]);
  expect(toLine(history({}), 'relative').x).toEqual([0, 1, 3]);
});

test('a metric without steps is drawn over time', () => {
  const stepless = history({ steps: [0, 0, 0] });
  expect(isStepless(stepless)).toBe(true);
  expect(toLine(stepless, 'step').x).toEqual([0, 1, 3]);
  expect(isStepless(history({ steps: [7], times: [1], values: [1] }))).toBe(false);
});

test('a clock that went backwards does not draw backwards', () => {
  const line = toLine(history({ times: [3000, 1000, 2000], lows: [1, 2, 3], highs: [4, 5, 6] }), 'time');
  expect(line).toEqual({ x: [1, 2, 3], y: [2, 1, 3], low: [2, 3, 1], high: [5, 6, 4] });
});

test('lines with other places share one axis', () => {
  const { x, columns } = align([
    { x: [0, 2], y: [1, null] },
    { x: [1, 2], y: [5, 6], low: [4, 5], high: [6, 7] },
  ]);
  expect(x).toEqual([0, 1, 2]);
  expect(columns[0]).toEqual({ y: [1, undefined, null] });
  expect(columns[1]).toEqual({ y: [undefined, 5, 6], low: [undefined, 4, 5], high: [undefined, 6, 7] });
});

test('the nearest value is read under the cursor', () => {
  expect(nearest([1, undefined, undefined, 4], 2)).toBe(4);
  expect(nearest([undefined, null], 0)).toBeNull();
});

test('a logarithmic axis leaves out what it cannot show', () => {
  expect(positive([1, 0, -1, null, undefined])).toEqual([1, null, null, null, undefined]);
});

test('zooming keeps the middle and panning keeps the width', () => {
  expect(zoomed([0, 10], 0.5)).toEqual([2.5, 7.5]);
  expect(zoomed([0, 10], 1, 0.2)).toEqual([2, 12]);
});
