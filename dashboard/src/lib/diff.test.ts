import { expect, test } from 'vitest';
import { axisOf, change, diff } from './diff';

const run = (params: Record<string, string>) => ({
  metrics: [],
  tags: [],
  params: Object.entries(params).map(([key, value]) => ({ key, value })),
});

test('a key that one run lacks differs', () => {
  expect(diff([run({ lr: '1', seed: '7' }), run({ lr: '2', seed: '7', new: 'x' })], 'params')).toEqual([
    { key: 'lr', values: ['1', '2'], differs: true },
    { key: 'new', values: [undefined, 'x'], differs: true },
    { key: 'seed', values: ['7', '7'], differs: false },
  ]);
});

test('a change is told in percent of the first run, where that means something', () => {
  expect([change(1.1, 1), change(0.5, 1), change(1, 0), change('NaN', 1), change(1, 1), change(-2, -1)]).toEqual([
    '+10 %',
    '-50 %',
    '',
    '',
    '',
    '-100 %',
  ]);
});

test('an axis is numeric only if every value is a number', () => {
  expect(axisOf(['0.1', 2, undefined])).toEqual({ numeric: true, places: [0.1, 2, undefined], labels: [] });
  expect(axisOf(['adam', 'sgd', 'adam'])).toEqual({ numeric: false, places: [0, 1, 0], labels: ['adam', 'sgd'] });
});
