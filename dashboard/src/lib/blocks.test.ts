import { expect, test } from 'vitest';
import { blocksOf } from './blocks';

test('a screen needs the blocks it touches', () => {
  expect(blocksOf(0, 30, 10_000)).toEqual([0]);
  expect(blocksOf(95, 130, 10_000)).toEqual([0, 100]);
  expect(blocksOf(9_950, 9_999, 10_000)).toEqual([9_900]);
  expect(blocksOf(0, 30, 0)).toEqual([0]);
  expect(blocksOf(0, 130, 100)).toEqual([0]);
});
