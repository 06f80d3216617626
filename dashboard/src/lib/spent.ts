// What accounts spent on each of the last days, as charts have it. Pure functions.

import type { Budget, Spending } from '../serving';

export interface Spent {
  name: string;
  /** Money where any was spent, else tokens. */
  unit: 'cost' | 'tokens';
  days: string[];
  values: number[];
  cost: number[];
  tokens: number[];
  total: number;
  /** What may be spent on a day, where that is limited. */
  most: number | undefined;
  /** What of the vertical axis is worth seeing. */
  range: [number, number];
}

/** The accounts of a scope that spent anything, those that spent most first: by their money, then by their tokens. */
export function spentOf(
  { days, accounts }: Spending,
  budgets: readonly Budget[],
  scope: Budget['scope'],
  find: string,
): Spent[] {
  const sought = find.toLowerCase();
  const found = accounts.filter((each) => each.scope === scope && each.name.toLowerCase().includes(sought));
  const spent = found.map(({ name, cost, tokens }): Spent => {
    const unit = cost.some((value) => value > 0) ? 'cost' : 'tokens';
    const values = unit === 'cost' ? cost : tokens;
    const limit = `${unit}_per_day`;
    const most = budgets.find((each) => each.scope === scope && each.name === name && each.limit === limit)?.most;
    const highest = Math.max(...values);
    // A limit that is far above all that was spent would leave nothing to be seen of it.
    const shown = typeof most === 'number' && most <= 3 * highest ? most : undefined;
    const reach = 1.1 * Math.max(highest, shown ?? 0);
    return { name, unit, days, values, cost, tokens, total: sum(values), most: shown, range: [0, reach || 1] };
  });
  const order = { cost: 0, tokens: 1 };
  return spent.sort((a, b) => order[a.unit] - order[b.unit] || b.total - a.total);
}

/** `Nov 29` of `2026-11-29`. */
export function dayName(day: string | undefined): string {
  const at = new Date(`${day}T00:00:00Z`);
  if (Number.isNaN(at.getTime())) return '';
  return at.toLocaleDateString('en', { month: 'short', day: 'numeric', timeZone: 'UTC' });
}

function sum(values: readonly number[]): number {
  return values.reduce((all, value) => all + value, 0);
}
