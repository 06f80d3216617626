import { expect, it } from 'vitest';
import { coursesOf } from './course';

const point = (at_ms: number, n: number[], high: number[]) => ({
  at_ms,
  n,
  value: n.map(() => 0),
  low: n.map(() => 0),
  high,
});

it('each rule has a course of its own requests, without moments that told it nothing', () => {
  const courses = coursesOf({
    rules: [
      { rule: 'differ', limit: 0.05, is_difference: false },
      { rule: 'right', limit: -0.02, is_difference: true },
    ],
    points: [
      point(1, [0, 0], [1, 1]),
      point(2, [10, 0], [0.5, 1]),
      point(3, [20, 0], [0.3, 1]),
      point(4, [20, 5], [0.3, 0.1]),
    ],
  });
  expect(courses.map(({ x }) => x)).toEqual([[10, 20], [5]]);
  expect(courses[0]?.high).toEqual([0.5, 0.3]);
});

it('a replica that is gone leaves no line that runs back', () => {
  const [course] = coursesOf({
    rules: [{ rule: 'differ', limit: 0.05, is_difference: false }],
    points: [point(1, [10], [1]), point(2, [30], [0.9]), point(3, [20], [0.8]), point(4, [25], [0.7])],
  });
  expect(course?.x).toEqual([10, 20, 25]);
});

it('what is shown reaches beyond the limit and not to all that is possible', () => {
  const course = (high: number, isDifference = false) =>
    coursesOf({
      rules: [{ rule: 'r', limit: isDifference ? -0.02 : 0.05, is_difference: isDifference }],
      points: [point(1, [10], [high])],
    })[0]?.range;
  expect(course(0.06)).toEqual([0, 0.2]);
  expect(course(1)).toEqual([0, 0.5]);
  const [low, high] = course(0.05, true) ?? [];
  expect(low).toBeCloseTo(-0.065);
  expect(high).toBeCloseTo(0.065);
});
