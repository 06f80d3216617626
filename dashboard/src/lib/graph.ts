// A pipeline as a drawing: boxes for its steps, the indexes they search and what goes in and comes out, laid out by dagre.

import { Graph, layout } from '@dagrejs/dagre';
import type { Index, Pipeline, PipelineStep } from '../serving';

export interface Box {
  id: string;
  kind: 'input' | 'step' | 'index' | 'answer';
  title: string;
  /** Second line: what it does and who does it. */
  text: string;
  /** The member that does it; of an index the one that embeds queries. */
  member?: string;
  step?: PipelineStep;
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Arrow {
  from: string;
  to: string;
  /** `reads` hands on a value, `waits` holds up alone, `searches` comes from an index. */
  kind: 'reads' | 'waits' | 'searches';
  points: { x: number; y: number }[];
}

export interface Drawing {
  width: number;
  height: number;
  boxes: Box[];
  arrows: Arrow[];
}

const HEIGHT = 46;
const CHAR = 6.7;
const MARGIN = 8;

export function draw(pipeline: Pipeline, indexes: readonly Index[]): Drawing {
  const graph = new Graph();
  graph.setGraph({ rankdir: 'LR', nodesep: 16, ranksep: 44, marginx: MARGIN, marginy: MARGIN });
  graph.setDefaultEdgeLabel(() => ({}));
  const boxes = new Map<string, Omit<Box, 'x' | 'y'>>();
  const kinds = new Map<string, Arrow['kind']>();
  const add = (box: Omit<Box, 'x' | 'y' | 'width' | 'height'>) => {
    const width = Math.max(72, Math.round(Math.max(box.title.length * 1.08, box.text.length) * CHAR) + 26);
    boxes.set(box.id, { ...box, width, height: HEIGHT });
    graph.setNode(box.id, { width, height: HEIGHT });
  };
  const join = (from: string, to: string, kind: Arrow['kind']) => {
    graph.setEdge(from, to);
    kinds.set(`${from}\n${to}`, kind);
  };

  add({ id: 'in', kind: 'input', title: 'input', text: 'the request' });
  for (const step of pipeline.steps) {
    const top = step.top === null ? '' : `, top ${step.top}`;
    const box = {
      id: `step ${step.name}`,
      kind: 'step' as const,
      title: step.name,
      text: `${step.does} · ${step.by}${top}`,
      step,
    };
    add(step.does === 'search' ? box : { ...box, member: step.by });
  }
  for (const step of pipeline.steps) {
    const id = `step ${step.name}`;
    for (const other of step.reads) join(`step ${other}`, id, 'reads');
    for (const other of step.after) join(`step ${other}`, id, 'waits');
    if (step.reads.length === 0) join('in', id, 'reads');
    const index = step.does === 'search' ? indexes.find(({ name }) => name === step.by) : undefined;
    if (index) {
      const text = `${index.n_documents.toLocaleString('en')} × ${index.dimensions}`;
      if (!boxes.has(`index ${index.name}`)) {
        add({ id: `index ${index.name}`, kind: 'index', title: index.name, text, member: index.embedder });
      }
      join(`index ${index.name}`, id, 'searches');
    }
  }
  add({ id: 'out', kind: 'answer', title: 'answer', text: pipeline.output ?? '' });
  const last = pipeline.output === null ? pipeline.steps.at(-1)?.name : pipeline.output;
  if (last !== undefined) join(`step ${last}`, 'out', 'reads');

  layout(graph);
  const placed = [...boxes.values()].map((box) => {
    const { x, y } = graph.node(box.id) as { x: number; y: number };
    return { ...box, x, y };
  });
  const arrows = graph.edges().map(({ v, w }) => {
    const { points } = graph.edge(v, w) as { points: { x: number; y: number }[] };
    return { from: v, to: w, kind: kinds.get(`${v}\n${w}`) ?? 'reads', points };
  });
  const whole = graph.graph() as { width: number; height: number };
  return { width: whole.width, height: whole.height, boxes: placed, arrows };
}

/** A smooth line through the points, for an SVG path. */
export function pathOf(points: readonly { x: number; y: number }[]): string {
  const at = ({ x, y }: { x: number; y: number }) => `${x.toFixed(1)} ${y.toFixed(1)}`;
  const [first, ...rest] = points;
  const last = rest.at(-1);
  if (!first || !last) return '';
  const middle = (a: { x: number; y: number }, b: { x: number; y: number }) => ({
    x: (a.x + b.x) / 2,
    y: (a.y + b.y) / 2,
  });
  const curves = rest.slice(0, -1).map((point, i) => `Q${at(point)} ${at(middle(point, rest[i + 1] ?? last))}`);
  return `M${at(first)} ${curves.join(' ')} L${at(last)}`;
}
