// Numbers of serving as people read them, and what pages say of them. Pure functions.

import type { Latencies, Pair, Registered, Rollout, Signal, Traffic } from '../serving';
import { number } from './format';

/** `4.2 %`; small shares keep two digits, and none is none. */
export function share(value: number | null | undefined): string {
  if (value === null || value === undefined) return '–';
  const percent = 100 * value;
  if (percent === 0) return '0 %';
  const size = Math.abs(percent);
  return `${Number(size >= 10 ? percent.toFixed(1) : percent.toPrecision(2))} %`;
}

/** `1.9 ms`, `310 ms`, `4.2 s`. */
export function millis(value: number | null | undefined): string {
  if (value === null || value === undefined) return '–';
  if (value < 1000) return `${Number(value.toPrecision(value < 10 ? 2 : 3))} ms`;
  return `${Number((value / 1000).toPrecision(3))} s`;
}

/** Requests in a second: `12.4 /s`; less than one in ten seconds by the minute. */
export function rate(value: number): string {
  if (value === 0) return '0';
  if (value < 0.1) return `${Number((value * 60).toPrecision(2))} /min`;
  return `${Number(value.toPrecision(3))} /s`;
}

export function isQuiet(traffic: Traffic): boolean {
  return traffic.course.every((n) => n === 0);
}

/** What differs first, by how far: a table of a hundred columns has a hundred signals. The others stay where they are. */
export function inOrder(signals: Signal[]): Signal[] {
  const far = ({ verdict, effect }: Signal) => (verdict === 'drifted' ? effect : -1);
  return [...signals].sort((a, b) => far(b) - far(a));
}

/** `n_chars` in words; features of tensors keep the names that their columns have. */
export function signalName(signal: string): string {
  return /^(in|out)put\./.test(signal) ? signal : signal.replaceAll('_', ' ');
}

/** The registered model of `router:7` or `router@sha256:…`. */
export function modelOf(version: string): string {
  return version.split(/[@:]/)[0] ?? version;
}

export function percents(plan: Rollout['plan']): number[] {
  return 'shadow' in plan ? [plan.shadow.percent] : plan.canary.percents;
}

export function isShadow(plan: Rollout['plan']): boolean {
  return 'shadow' in plan;
}

export type Stage = 'running' | 'passed' | 'promoted' | 'aborted';

export function stageOf(found: Pick<Registered, 'end' | 'step'>): Stage {
  if (found.end) return found.end.outcome;
  return found.step.passed ? 'passed' : 'running';
}

/** What a rollout does, in a sentence. */
export function headline(found: Registered): string {
  const { rollout, end, step } = found;
  if (end?.outcome === 'promoted') return `Promoted by ${end.by}: ${end.reason}`;
  if (end) return `Aborted by ${end.by}: ${end.reason}`;
  if (step.passed) {
    return rollout.on_pass === 'hold'
      ? 'It kept every rule and waits for a person.'
      : 'It kept every rule and is being promoted.';
  }
  const how = isShadow(rollout.plan) ? 'a second time, unseen by clients' : 'instead of the stable version';
  return `It answers ${number(found.percent)} % of the requests ${how}; too few were compared to tell.`;
}

/** How far two answers are apart, in words. */
export function apart(pair: Pair): string {
  const parts = [
    pair.n_flips ? `${pair.n_flips} ${pair.n_flips === 1 ? 'label' : 'labels'} flipped` : '',
    pair.shift === null || pair.shift === undefined ? '' : `scores by ${pair.shift.toFixed(3)}`,
    pair.cosine === null || pair.cosine === undefined ? '' : `cosine ${pair.cosine.toFixed(4)}`,
    pair.relative === null || pair.relative === undefined ? '' : `relative difference ${pair.relative.toFixed(4)}`,
    pair.absolute === null || pair.absolute === undefined ? '' : `by ${pair.absolute.toFixed(4)} at most`,
    pair.overlap === null || pair.overlap === undefined ? '' : `overlap ${pair.overlap.toFixed(3)}`,
  ];
  return parts.filter(Boolean).join(', ') || 'alike';
}

/** What both versions took at a percentile, and the ratio with its bounds where there are any. */
export interface TimesRow {
  name: string;
  stable: string;
  candidate: string;
  ratio: string;
}

export function timesOf(latency: Latencies): TimesRow[] {
  const rows = latency.ratios.map((ratio, i): TimesRow => {
    const bounds = ratio.interval ? ` (${ratio.interval.map((end) => end.toFixed(2)).join(' to ')})` : '';
    return {
      name: ratio.percentile === 50 ? 'Median' : `p${ratio.percentile}`,
      stable: millis(latency.stable_ms[i]?.value),
      candidate: millis(latency.candidate_ms[i]?.value),
      ratio: `${ratio.value.toFixed(2)} times${bounds}`,
    };
  });
  const { stable_mean_ms: stable, candidate_mean_ms: candidate } = latency;
  const ratio = stable > 0 ? `${(candidate / stable).toFixed(2)} times` : '–';
  return [...rows, { name: 'Mean', stable: millis(stable), candidate: millis(candidate), ratio }];
}

/** A kept input as text: a text itself, anything else as JSON. */
export function inputText(input: unknown): string {
  const text = typeof input === 'object' && input !== null ? (input as { text?: unknown }).text : input;
  return typeof text === 'string' ? text : JSON.stringify(input);
}

/** When an account begins anew: `in 3 h 12 min`. */
export function until(at: string | null, now: number): string {
  const left = at === null ? Number.NaN : (Date.parse(at) - now) / 1000;
  if (Number.isNaN(left)) return '–';
  if (left <= 0) return 'now';
  if (left < 60) return `in ${Math.ceil(left)} s`;
  if (left < 3600) return `in ${Math.ceil(left / 60)} min`;
  if (left < 86_400) return `in ${Math.floor(left / 3600)} h ${Math.floor((left % 3600) / 60)} min`;
  return `in ${Math.floor(left / 86_400)} d ${Math.floor((left % 86_400) / 3600)} h`;
}

/**
 * What somebody pastes as the input of a request: JSON is what it says; any other text is the text that was asked.
 * A bare JSON string or number is taken for text too, as no route takes one.
 */
export function caseOf(pasted: string): unknown {
  const text = pasted.trim();
  try {
    const parsed: unknown = JSON.parse(text);
    if (typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed)) return parsed;
  } catch {
    // Text, then.
  }
  return { text: pasted };
}

/** `highroad replay` for a shell; ids hold no character that a shell reads. */
export function replayCommand(id: string, server: string): string {
  return `highroad replay ${id} --input case.json --server ${server}`;
}
