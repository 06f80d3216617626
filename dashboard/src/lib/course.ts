// The course of a rollout's rule as a chart has it. Pure functions.

import type { Course } from '../serving';

export interface RuleCourse {
  rule: string;
  limit: number;
  isDifference: boolean;
  /** Requests that the rule had seen. */
  x: number[];
  value: number[];
  low: number[];
  high: number[];
  /** What of the vertical axis is worth seeing: bounds begin at everything that is possible. */
  range: [number, number];
}

/** One chart for each rule; moments in which a rule had seen nothing new are one. */
export function coursesOf(course: Course): RuleCourse[] {
  return course.rules.map(({ rule, limit, is_difference }, i) => {
    const at = (list: number[]) => list[i] ?? 0;
    const points = course.points.filter(
      (point, n) => at(point.n) > 0 && at(course.points[n + 1]?.n ?? []) !== at(point.n),
    );
    const found = {
      rule,
      limit,
      isDifference: is_difference,
      x: points.map((point) => at(point.n)),
      value: points.map((point) => at(point.value)),
      low: points.map((point) => at(point.low)),
      high: points.map((point) => at(point.high)),
    };
    return { ...found, range: rangeOf(found) };
  });
}

function rangeOf(course: Omit<RuleCourse, 'range'>): [number, number] {
  const last = course.x.length - 1;
  const [low, high] = [course.low[last] ?? 0, course.high[last] ?? 0];
  if (course.isDifference) {
    const reach = Math.min(1, 1.3 * Math.max(2 * Math.abs(course.limit), Math.abs(low), Math.abs(high)));
    return [-reach, reach];
  }
  const reach = Math.max(4 * course.limit, 1.3 * (course.value[last] ?? 0), Math.min(1.2 * high, 10 * course.limit));
  return [0, Math.min(1, reach)];
}
