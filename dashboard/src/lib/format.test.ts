import { expect, test } from 'vitest';
import { ago, codeParts, compact, duration, number, plural, shortDigests, size } from './format';

test('numbers are short and honest', () => {
  for (const [value, text] of [
    [0, '0'],
    [3, '3'],
    [0.96, '0.96'],
    [0.123456, '0.1235'],
    [1234.567, '1235'],
    [1e-9, '1e-9'],
    [Number.NaN, 'NaN'],
    [-0.5, '-0.5'],
    [1.7976931348623157e308, '1.798e308'],
    ['NaN', 'NaN'],
    [null, '–'],
  ] as const) {
    expect(number(value)).toBe(text);
  }
});

test('what stands in backticks is code, and one alone is a backtick', () => {
  expect(codeParts('`a` of `b:1` differs')).toEqual(['', 'a', ' of ', 'b:1', ' differs']);
  expect(codeParts('5` wide')).toEqual(['5` wide']);
});

test('counts and sizes have units', () => {
  expect([999, 1000, 1_234_567, -2500].map(compact)).toEqual(['999', '1k', '1.23M', '-2.5k']);
  expect([999, 1500, 1_234_567].map(size)).toEqual(['999 B', '1.5 kB', '1.2 MB']);
  expect([plural(1, 'run'), plural(12_000, 'run')]).toEqual(['1 run', '12,000 runs']);
});

test('durations and times read as a person says them', () => {
  expect([12, 1500, 61_000, 3_660_000, 90_000_000].map(duration)).toEqual([
    '12 ms',
    '1.5 s',
    '1m 01s',
    '1h 01m',
    '1d 01h',
  ]);
  expect([5_000, 45_000, 120_000, 7_200_000].map((back) => ago(1e12 - back, 1e12))).toEqual([
    'just now',
    '45 s ago',
    '2 min ago',
    '2 h ago',
  ]);
});

test('digests within a text are cut', () => {
  const digest = `sha256:0123456789ab${'c'.repeat(52)}`;
  expect(shortDigests(`router@${digest} and ${digest}, not sha256:0123`)).toBe(
    'router@sha256:0123456789ab and sha256:0123456789ab, not sha256:0123',
  );
});
