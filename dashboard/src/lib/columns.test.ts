import { expect, test } from 'vitest';
import { defaultColumns, moved, nextSort, readColumns, readSort, writeColumns, writeSort } from './columns';

test('a set of columns survives the address bar, whatever the keys are', () => {
  const columns = [
    { table: 'metrics' as const, key: 'val.loss' },
    { table: 'params' as const, key: 'a,b 100%,%2C' },
    { table: 'tags' as const, key: '<script>é' },
  ];
  const query = new URLSearchParams({ cols: writeColumns(columns) }).toString();
  expect(readColumns(new URLSearchParams(query).get('cols') ?? '')).toEqual(columns);
});

test('what is no column is passed over', () => {
  expect(readColumns('nope,metrics.,metrics.a,datasets.x,metrics.a')).toEqual([{ table: 'metrics', key: 'a' }]);
});

test('a header cycles through its two directions and none', () => {
  const first = nextSort(undefined, 'metrics.loss');
  expect(first).toEqual({ column: 'metrics.loss', descending: true });
  const second = nextSort(first, 'metrics.loss');
  expect(second).toEqual({ column: 'metrics.loss', descending: false });
  expect(nextSort(second, 'metrics.loss')).toBeUndefined();
  expect(nextSort(first, 'params.lr')).toEqual({ column: 'params.lr', descending: false });
  expect(readSort(writeSort(first))).toEqual(first);
});

test('without a choice there are metrics and the params that differ', () => {
  const used = (key: string, n_runs = 1, varies = true) => ({ key, n_runs, varies });
  const keys = {
    metrics: [used('acc', 9), used('loss', 9), used('rare', 1), used('system/cpu', 9)],
    params: [used('lr'), used('seed', 9, false)],
    tags: [],
  };
  expect(writeColumns(defaultColumns(keys))).toBe('metrics.acc,metrics.loss,metrics.rare,params.lr');
});

test('an element moves to its new place', () => {
  expect(moved(['a', 'b', 'c'], 0, 2)).toEqual(['b', 'c', 'a']);
  expect(moved(['a', 'b', 'c'], 2, -1)).toEqual(['c', 'a', 'b']);
});
