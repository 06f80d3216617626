// Colours of lines. Ten that stay apart on light and on dark, and for people who tell fewer colours apart.

const LIGHT = [
  '#2f5bea',
  '#d4622a',
  '#178a5b',
  '#9a3fb5',
  '#c2314f',
  '#0f86a0',
  '#8a6d00',
  '#5b5f6b',
  '#6a4bd8',
  '#3c7a1e',
];
const DARK = [
  '#7b9bff',
  '#f2935c',
  '#54c896',
  '#cf86e3',
  '#f27d92',
  '#56c5db',
  '#d3b84a',
  '#aab0bd',
  '#a892ff',
  '#8fce6a',
];

export function lineColor(n: number, theme: 'light' | 'dark'): string {
  const colors = theme === 'dark' ? DARK : LIGHT;
  return colors[n % colors.length] as string;
}

/** Dashes tell lines apart once the colours repeat. */
export function lineDash(n: number): number[] {
  return [[], [6, 4], [2, 3], [10, 3, 2, 3]][Math.floor(n / LIGHT.length) % 4] as number[];
}
