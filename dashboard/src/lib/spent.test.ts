import { expect, it } from 'vitest';
import type { Budget, Spending } from '../serving';
import { dayName, spentOf } from './spent';

const account = (scope: 'member' | 'tenant', name: string, cost: number[], tokens: number[]) => ({
  scope,
  name,
  cost,
  tokens,
});

const HISTORY: Spending = {
  of_all_servers: false,
  currency: 'EUR',
  days: ['2026-11-28', '2026-11-29'],
  accounts: [
    account('member', 'embedder', [0, 0], [10, 50]),
    account('member', 'chat', [0, 0.5], [7, 9]),
    account('member', 'router', [0, 0], [100, 0]),
    account('tenant', 'acme', [0, 0.5], [7, 9]),
  ],
};

const limited = (name: string, limit: Budget['limit'], most: number): Budget => ({
  scope: 'member',
  name,
  limit,
  most,
  used: 0,
  reserved: 0,
  resets_at: null,
});

it('accounts that spent most come first, in money before tokens', () => {
  const spent = spentOf(HISTORY, [], 'member', '');
  expect(spent.map(({ name, unit, total }) => [name, unit, total])).toEqual([
    ['chat', 'cost', 0.5],
    ['router', 'tokens', 100],
    ['embedder', 'tokens', 60],
  ]);
  expect(spentOf(HISTORY, [], 'tenant', '').map(({ name }) => name)).toEqual(['acme']);
  expect(spentOf(HISTORY, [], 'member', 'EMB').map(({ values }) => values)).toEqual([[10, 50]]);
});

it('a limit is shown where it is near what was spent', () => {
  const budgets = [limited('chat', 'cost_per_day', 1), limited('embedder', 'tokens_per_day', 1000)];
  const [chat, router, embedder] = spentOf(HISTORY, budgets, 'member', '');
  expect([chat?.most, router?.most, embedder?.most]).toEqual([1, undefined, undefined]);
  expect(chat?.range[1]).toBeCloseTo(1.1);
  expect(embedder?.range[1]).toBeCloseTo(55);
});

it('days have names', () => {
  expect([dayName('2026-11-29'), dayName('2026-01-01'), dayName(undefined)]).toEqual(['Nov 29', 'Jan 1', '']);
});
