// Which pages of a long table are on screen.

/** Rows asked for at once. */
export const BLOCK = 100;

/** First rows of the blocks that hold rows `first..=last` of `n`. */
export function blocksOf(first: number, last: number, n: number): number[] {
  const blocks: number[] = [];
  const end = Math.min(last, Math.max(0, n - 1));
  for (let start = Math.floor(first / BLOCK) * BLOCK; start <= end; start += BLOCK) blocks.push(start);
  return blocks;
}
