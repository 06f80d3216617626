// What a serving process answers under `/v1/highroad`: asked directly where the pages come from it (`highroad up`), and through the
// tracking server, which hands questions on, where they come from there. What the routes answer is in docs/reference/serving.md.

/** A serving process that the pages may look into. */
export interface Server {
  name: string;
  /** What its paths begin with. */
  base: string;
  /** Whether rollouts can be ended and promoted through it. */
  acts: boolean;
}

export interface Traffic {
  rate: number;
  p50_ms: number | null;
  p99_ms: number | null;
  error_share: number | null;
  outcomes: Record<string, number>;
  /** Requests in each five seconds of the last five minutes, the oldest first. */
  course: number[];
  errors: number[];
}

export interface Facts {
  version: string;
  package: string;
  verdict: string | null;
  evidence: string;
  override?: { digest: string; by: string; expires_at: string };
  development: string | null;
  numerics_id: string;
  loaded_at: string;
}

export interface Standing {
  model: string;
  host: string;
  breaker: 'closed' | 'half_open' | 'open';
  n_in_flight: number;
  concurrency: number;
  n_waiting: number;
  queue_requests: number;
  fallback: string[];
  price: { currency: string; input_per_million: number; output_per_million: number } | null;
}

export interface Member {
  member: string;
  source: string;
  state: 'starting' | 'ready' | 'undeployed';
  serving: Facts | null;
  failure: { version: string | null; reason: string; attempts: number; since: string } | null;
  /** Where a rollback leads, once that was walked. */
  way_back: { version: string; package: string; evidence: string | null; failure: string | null } | null;
  model: { name: string; reference: string } | null;
  task: string | null;
  queue: { used: number; most: number; of: string } | null;
  rollout?: { id: string; candidate: number; percent: number; passed: boolean } | null;
  owner?: string;
  run_id?: string | null;
  hosted?: Standing;
  /** Another description that is tried beside a hosted member's. */
  trial?: {
    id: string;
    candidate: string;
    percent: number;
    passed: boolean;
    ended: { by: string; reason: string } | null;
  } | null;
  traffic: Traffic;
}

export interface PipelineStep {
  name: string;
  does: 'classify' | 'embed' | 'search' | 'rerank' | 'generate';
  by: string;
  reads: string[];
  after: string[];
  top: number | null;
  stop_when: string[];
  fallback: string | null;
  skips: boolean;
  timeout_ms: number | null;
}

export interface Pipeline {
  name: string;
  timeout_ms: number;
  output: string | null;
  steps: PipelineStep[];
  traffic: Traffic;
}

export interface Index {
  name: string;
  embedder: string;
  n_documents: number;
  dimensions: number;
  package: string;
  stale: string | null;
}

export interface Portfolio {
  at_ms: number;
  ready: boolean;
  /** Whether the key sees all members. */
  all: boolean;
  members: Member[];
  pipelines: Pipeline[];
  indexes: Index[];
}

export interface Check {
  rule: string;
  outcome: 'pass' | 'fail' | 'inconclusive';
  n_cases: number;
  candidate: number;
  interval: [number, number] | null;
  reason: string;
}

export interface Counts {
  n_compared: number;
  n_differ: number;
  n_asked: number;
  n_errors: number;
  n_slow: number;
  n_labelled: number;
  n_regressions: number;
  n_improvements: number;
}

export interface Rollout {
  id: string;
  stable: { version: number; package: string };
  candidate: { version: number; package: string };
  plan: { shadow: { percent: number } } | { canary: { percents: number[] } };
  rules: { alpha: number; max_differ: number; max_errors: number; max_slow: number | null; margin: number | null };
  pace: { requests: number; seconds: number };
  limits: { min_cosine: number; min_overlap: number; max_relative?: number; latency_ms: number | null };
  on_pass: 'promote' | 'hold';
  by: string;
  why: string;
  begun_at: string;
}

export interface End {
  rollout: string;
  outcome: 'promoted' | 'aborted';
  candidate: number;
  reason: string;
  by: string;
  at: string;
  counts: Counts;
  checks: Check[];
}

export interface Step {
  idx: number;
  since_ms: number;
  n_asked: number;
  passed?: { at: string; checks: Check[] };
}

/** A request that both versions answered. Inputs are there only where the server's own file says that they are kept. */
export interface Pair {
  request_id: string;
  time: string;
  answered: 'stable' | 'candidate';
  n_flips?: number;
  shift?: number | null;
  cosine?: number | null;
  relative?: number | null;
  absolute?: number | null;
  overlap?: number | null;
  stable: string[];
  candidate: string[];
  inputs: string[];
  kept?: unknown[];
  live_ms: number;
  shadow_ms: number;
}

/** A rollout as one serving process sees it. */
export interface Trial {
  member: string;
  rollout: Rollout;
  step: Step;
  percent: number;
  end: End | null;
  counts: Counts;
  here: Counts;
  checks: Check[];
  apart: {
    n_flips: number;
    mean_shift?: number;
    mean_cosine?: number;
    mean_relative?: number;
    mean_overlap?: number;
    mean_live_ms: number;
    mean_shadow_ms: number;
  };
  n_waiting: number;
  n_dropped: number;
  switch_ms: number | null;
  worst: Pair[];
}

export interface Course {
  rules: { rule: string; limit: number; is_difference: boolean }[];
  points: { at_ms: number; n: number[]; value: number[]; low: number[]; high: number[] }[];
}

/** A rollout as the registry holds it: what all replicas told. */
export interface Registered {
  model: string;
  alias: string;
  rollout: Rollout;
  step: Step;
  percent: number;
  fewest_to_pass: number;
  end: End | null;
  counts: Counts;
  checks: Check[];
  replicas: { replica: string; counts: Counts }[];
  ends: End[];
}

export interface Budget {
  scope: 'member' | 'pipeline' | 'tenant' | 'key';
  name: string;
  limit: 'cost_per_day' | 'cost_per_month' | 'tokens_per_minute' | 'tokens_per_day';
  most: number | null;
  used: number;
  reserved: number;
  resets_at: string | null;
}

/** What accounts spent on each of the last days, the oldest first; of those that spent anything. */
export interface Spending {
  currency: string | null;
  days: string[];
  accounts: { scope: Budget['scope']; name: string; cost: number[]; tokens: number[] }[];
}

export interface RequestRecord {
  request_id: string;
  time: string;
  member: string;
  route: string;
  version: string;
  package: string;
  verdict?: string;
  evidence: string;
  override?: string;
  development?: string;
  numerics_id: string;
  outputs: string[];
  n_tokens: number[];
  n_truncated: number;
  queue_ms: number;
  compute_ms: number;
  total_ms: number;
  hosted?: { model: string; cost: number | null; currency: string | null; n_tries: number; fallback_from: string[] };
  /** The pipeline that this is a step of. */
  step_of?: string;
  /** Of a whole request to a pipeline; each step that asked a member has a record of its own, `ID.STEP`. */
  pipeline?: { name: string; steps: StepRecord[]; stopped?: string; streamed?: boolean };
}

export interface StepRecord {
  name: string;
  member?: string;
  version?: string;
  evidence?: string;
  index?: string;
  value: string;
  fell_back?: boolean;
  skipped?: boolean;
}

export interface Chain {
  verdict: {
    digest: string | null;
    file: {
      outcome: string;
      golden_set: { name: string; n_cases: number };
      created_by: string;
      created_at: string;
    } | null;
  };
  override: string | null;
  package: { digest: string; version: string; owner: string | null };
  run: { id: string | null };
  commit: string | null;
  environment: string | null;
  data: Record<string, string> | null;
}

export interface Replayed {
  same_bits: boolean;
  why: string;
  numerics_id: string;
  answers: { answer: unknown; digest: string }[] | null;
}

export interface Alert {
  fingerprint: string;
  alert: string;
  severity: 'info' | 'warning' | 'critical';
  state: 'firing' | 'resolved';
  labels: Record<string, string>;
  summary: string;
  since: string;
  resolved_at?: string;
}

export interface Objective {
  objective: string;
  scope: string;
  name: string;
  indicator: string;
  target: number;
  window: string;
  requests: number;
  bad_requests: number;
  budget_left: number;
  rules: { burn: number; long: string; short: string; long_rate: number; short_rate: number; fires: boolean }[];
}

export interface Ratio {
  value: number;
  n: number;
  interval: [number, number];
}

export interface Signal {
  signal: string;
  kind: string;
  n: number;
  n_baseline: number;
  statistic: string;
  value: number;
  p: number;
  q: number;
  psi: number;
  psi_by_chance: number;
  effect: number;
  evidence: number;
  threshold: number;
  verdict: 'collecting' | 'same' | 'drifted';
  alarm?: { since_s: number; n: number; effect: number };
  /** Only of one member. */
  bins?: { name: string; baseline: number; live: number }[];
}

export interface Finding {
  id: string;
  member: string;
  version: string;
  signal: string;
  kind: string;
  since: string;
  n: number;
  effect: number;
  message: string;
}

/** How what a member meets compares with its baseline. */
export interface Watched {
  member: string;
  version: string;
  state: 'no_baseline' | 'collecting' | 'same' | 'drifted';
  message: string;
  baseline: { kind: string; name: string; n: number; created_at: string; created_by: string } | null;
  since: string;
  window_s: number;
  n_requests: number;
  n_inputs: number;
  n_dropped: number;
  violations: Record<string, number>;
  signals: Signal[];
  mmd: { n: number; n_baseline: number; squared: number; p: number } | null;
  quality: {
    n: number;
    accuracy: Ratio | null;
    accuracy_always: [number, number] | null;
    labels: { label: string; precision: Ratio; recall: Ratio; f1: Ratio }[];
    mrr: Ratio | null;
    ndcg_10: Ratio | null;
    by_version: Record<string, Ratio>;
    by_day: Record<string, Ratio>;
    baseline: number | null;
  } | null;
  findings: Finding[];
  series?: { since: string; n: number; effects: Record<string, number> }[];
}

/** What a server refused, with its status: some pages know what to do about some. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

/** The message of an error's body: of our own routes (`error.message`, `message`) and of the shell around them (`error`). */
export function told(body: unknown, status: number): string {
  const { error, message } = (body ?? {}) as { error?: unknown; message?: unknown };
  const inner = typeof error === 'object' && error !== null ? (error as { message?: unknown }).message : error;
  const found = [inner, message].find((each) => typeof each === 'string' && each !== '');
  return typeof found === 'string' ? found : `The server answered ${status}.`;
}

async function ask<T>(url: string, signal?: AbortSignal, body?: unknown): Promise<T> {
  const init: RequestInit =
    body === undefined
      ? {}
      : { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) };
  const response = await fetch(url, { ...init, ...(signal && { signal }) }).catch((cause: unknown) => {
    if (cause instanceof DOMException) throw cause;
    throw new Error('The server does not answer. It may have been stopped.', { cause });
  });
  const answer: unknown = await response.json().catch(() => undefined);
  if (!response.ok || answer === undefined) throw new Refusal(told(answer, response.status), response.status);
  return answer as T;
}

/** What a route answers; `null` where the server does not have it, as one that was built or told without that does not. */
async function ifThere<T>(asked: Promise<T>): Promise<T | null> {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof Refusal && error.status === 404) return null;
    throw error;
  }
}

const own = (server: Server, path: string) => `${server.base}/v1/highroad/${path}`;
const part = encodeURIComponent;

export interface Act {
  by: string;
  why: string;
}

export const serving = {
  servers: (signal: AbortSignal) => ask<{ servers: Server[] }>('/ui/api/servers', signal),
  registered: (signal: AbortSignal) => ask<{ rollouts: Registered[]; more: boolean }>('/ui/api/rollouts', signal),
  portfolio: (server: Server, signal: AbortSignal) => ask<Portfolio>(own(server, 'portfolio'), signal),
  rollouts: (server: Server, signal: AbortSignal) => ask<{ rollouts: Trial[] }>(own(server, 'rollouts'), signal),
  course: (server: Server, member: string, signal: AbortSignal) =>
    ask<{ rollout: string; course: Course }>(own(server, `rollouts/${part(member)}/course`), signal),
  budgets: (server: Server, signal: AbortSignal) =>
    ask<{ currency: string | null; budgets: Budget[] }>(own(server, 'budgets'), signal),
  spending: (server: Server, signal: AbortSignal) => ifThere(ask<Spending>(own(server, 'budgets/history'), signal)),
  alerts: (server: Server, signal: AbortSignal) =>
    ifThere(ask<{ firing: number; alerts: Alert[] }>(own(server, 'alerts'), signal)),
  objectives: (server: Server, signal: AbortSignal) =>
    ifThere(ask<{ objectives: Objective[] }>(own(server, 'objectives'), signal)),
  watched: (server: Server, signal: AbortSignal) =>
    ifThere(ask<{ members: Watched[]; findings: Finding[] }>(own(server, 'monitor'), signal)),
  watchedMember: (server: Server, member: string, signal: AbortSignal) =>
    ask<Watched>(own(server, `monitor/${part(member)}`), signal),
  request: (server: Server, id: string, signal: AbortSignal) =>
    ask<{ request: RequestRecord; chain: Chain }>(own(server, `requests/${part(id)}/chain`), signal),
  replay: (server: Server, request_id: string, input: unknown) =>
    ask<Replayed>(own(server, 'replay'), undefined, { request_id, case: input }),
  abort: (server: Server, member: string, rollout: string, act: Act) =>
    ask<End>(own(server, `rollouts/${part(member)}/abort`), undefined, { rollout, ...act }),
  promote: (server: Server, member: string, rollout: string, act: Act) =>
    ask<End>(own(server, `rollouts/${part(member)}/promote`), undefined, { rollout, ...act }),
  /** Moves the alias back to what it named before; asked of the registry that the pages come from. */
  rollBack: (name: string, alias: string, act: Act) =>
    ask<unknown>('/api/2.0/highroad/rollback', undefined, { name, alias, ...act }),
};
