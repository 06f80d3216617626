import { createMemo, For, type JSX } from 'solid-js';
import { type Box, draw, pathOf } from '../lib/graph';
import type { Index, Member, Pipeline } from '../serving';

/** A pipeline drawn as a graph; below it the same in words, for those who do not see it. */
export function PipelineGraph(props: { pipeline: Pipeline; indexes: Index[]; members: Member[] }): JSX.Element {
  // Drawn anew when its shape changes, and not when its numbers do.
  const shape = createMemo(() =>
    JSON.stringify([
      props.pipeline.steps,
      props.pipeline.output,
      props.indexes.map((index) => [index.name, index.n_documents]),
    ]),
  );
  const drawing = createMemo(() => {
    shape();
    return draw(props.pipeline, props.indexes);
  });
  const tone = (box: Box) => {
    const index = box.kind === 'index' ? props.indexes.find(({ name }) => `index ${name}` === box.id) : undefined;
    if (index?.stale) return 'bad';
    const member = props.members.find(({ member }) => member === box.member);
    if (!member) return '';
    if (!member.serving || (member.hosted && member.hosted.breaker !== 'closed')) return 'bad';
    return member.failure ? 'odd' : 'good';
  };
  const words = () => {
    const step = (each: Pipeline['steps'][number]) => {
      const reads = each.reads.length > 0 ? each.reads.join(' and ') : 'the input';
      const after = each.after.length > 0 ? `, after ${each.after.join(' and ')}` : '';
      return `${each.name}: ${each.does} by ${each.by} of ${reads}${after}`;
    };
    return `Pipeline ${props.pipeline.name}. ${props.pipeline.steps.map(step).join('. ')}. The answer is ${props.pipeline.output ?? 'the last'}.`;
  };
  const marker = () => `arrow-${props.pipeline.name}`;
  return (
    <div class="graph-scroll" tabindex="0" role="img" aria-label={words()}>
      <svg
        class="graph"
        width={drawing().width}
        height={drawing().height}
        viewBox={`0 0 ${drawing().width} ${drawing().height}`}
        aria-hidden="true"
      >
        <defs>
          <marker id={marker()} viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
            <path d="M0 0.8 7 4 0 7.2Z" />
          </marker>
        </defs>
        <For each={drawing().arrows}>
          {(arrow) => <path class={`arrow ${arrow.kind}`} d={pathOf(arrow.points)} marker-end={`url(#${marker()})`} />}
        </For>
        <For each={drawing().boxes}>
          {(box) => (
            <g
              transform={`translate(${box.x - box.width / 2} ${box.y - box.height / 2})`}
              class={`box ${box.kind} ${tone(box)}`}
            >
              <title>{about(box)}</title>
              <rect width={box.width} height={box.height} rx={box.kind === 'index' ? 2 : 8} />
              <text class="title" x="12" y="19">
                {box.title}
              </text>
              <text x="12" y="35">
                {box.text}
              </text>
            </g>
          )}
        </For>
      </svg>
    </div>
  );
}

function about({ step, title, text }: Box): string {
  const more = step && [
    step.stop_when.length > 0 ? `ends the request on ${step.stop_when.join(', ')}` : '',
    step.fallback ? `${step.fallback} stands in` : '',
    step.skips ? 'is skipped where it fails' : '',
    step.timeout_ms === null ? '' : `takes at most ${step.timeout_ms} ms`,
  ];
  return [`${title}: ${text}`, ...(more ?? []).filter(Boolean)].join('; ');
}
