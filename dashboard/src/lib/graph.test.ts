import { expect, it } from 'vitest';
import type { Index, Pipeline, PipelineStep } from '../serving';
import { draw, pathOf } from './graph';

const step = (
  name: string,
  does: PipelineStep['does'],
  by: string,
  reads: string[] = [],
  after: string[] = [],
): PipelineStep => ({
  name,
  does,
  by,
  reads,
  after,
  top: null,
  stop_when: [],
  fallback: null,
  skips: false,
  timeout_ms: null,
});
const pipeline = {
  name: 'support',
  output: 'best',
  steps: [
    step('safe', 'classify', 'moderation'),
    step('found', 'search', 'help'),
    step('best', 'rerank', 'reranker', ['found'], ['safe']),
  ],
} as unknown as Pipeline;
const index = { name: 'help', embedder: 'embedder', n_documents: 12, dimensions: 3 } as Index;

it('a pipeline flows from the request to the answer', () => {
  const drawing = draw(pipeline, [index]);
  const arrows = drawing.arrows.map(({ from, to, kind }) => `${from} > ${to} ${kind}`).sort();
  expect(arrows).toEqual([
    'in > step found reads',
    'in > step safe reads',
    'index help > step found searches',
    'step best > out reads',
    'step found > step best reads',
    'step safe > step best waits',
  ]);
  const at = new Map(drawing.boxes.map((box) => [box.id, box]));
  for (const { from, to } of drawing.arrows) {
    expect(at.get(from)?.x).toBeLessThan(at.get(to)?.x ?? 0);
  }
  for (const { x, y, width, height } of drawing.boxes) {
    expect(x - width / 2).toBeGreaterThanOrEqual(0);
    expect(x + width / 2).toBeLessThanOrEqual(drawing.width);
    expect(y + height / 2).toBeLessThanOrEqual(drawing.height);
  }
  expect(at.get('index help')?.member).toBe('embedder');
});

it('an index that the viewer may not see is left out', () => {
  expect(draw(pipeline, []).boxes.map(({ id }) => id)).not.toContain('index help');
});

it('a path begins and ends where its arrow does', () => {
  const path = pathOf([
    { x: 0, y: 0 },
    { x: 5, y: 9 },
    { x: 10, y: 0 },
  ]);
  expect(path).toMatch(/^M0.0 0.0 .*L10.0 0.0$/);
  expect(pathOf([])).toBe('');
});
