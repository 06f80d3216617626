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
    const points = newer(course.points, (point) => at(point.n));
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

/** Points whose `n` is larger than that of all before; of equal ones the latest. A replica that is gone takes its counts with it. */
function newer<T>(points: readonly T[], n: (point: T) => number): T[] {
  const kept: T[] = [];
  let above = Number.POSITIVE_INFINITY;
  for (const point of [...points].reverse()) {
    if (n(point) <= 0 || n(point) >= above) continue;
    above = n(point);
    kept.unshift(point);
  }
  return kept;
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
