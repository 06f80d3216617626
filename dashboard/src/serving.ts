// What a serving process answers under `/v1/highroad`: asked directly where the pages come from it (`highroad up`), and through the
// tracking server, which hands questions on, where they come from there. What the routes answer is in docs/reference/serving.md.

import type { components } from './schema-serving';

/** A serving process that the pages may look into. */
export interface Server {
  name: string;
  /** What its paths begin with. */
  base: string;
  /** Whether rollouts can be ended and promoted through it. */
  acts: boolean;
}

/** The types of what it answers: `schema-serving.d.ts` is generated from `serving.json`. */
type Schemas = components['schemas'];
export type Traffic = Schemas['Traffic'];
export type Member = Schemas['Member'];
export type PipelineStep = Schemas['StepShown'];
export type Pipeline = Schemas['PipelineShown'];
export type Index = Schemas['IndexShown'];
export type Portfolio = Schemas['Portfolio'];
export type Check = Schemas['CheckResult'];
export type Rollout = Schemas['Rollout'];
export type End = Schemas['RolloutEnd'];
/** A request that both versions answered. Inputs are there only where the server's own file says that they are kept. */
export type Pair = Schemas['Pair'];
/** A rollout as one serving process sees it. */
export type Trial = Schemas['RolloutStatus'];
export type Course = Schemas['Course'];
/** What both versions of a rollout took for the same requests. */
export type Latencies = Schemas['Latencies'];
export type Budget = Schemas['Budget'];
export type Spending = Schemas['Spending'];
export type RequestRecord = Schemas['RequestRecord'];
export type StepRecord = Schemas['StepRecord'];
export type Chain = Schemas['Chain'];
export type Replayed = Schemas['Replayed'];
export type Alert = Schemas['Alert'];
export type Objective = Schemas['Objective'];
export type Ratio = Schemas['Rate'];
export type Signal = Schemas['SignalReport'];
/** How what a member meets compares with its baseline. */
export type Watched = Schemas['MonitorReport'];

/** A rollout as the registry holds it: what all replicas told. */
export interface Registered extends Pick<Trial, 'rollout' | 'step' | 'percent' | 'end' | 'counts' | 'checks'> {
  model: string;
  alias: string;
  fewest_to_pass: number;
  replicas: { replica: string; counts: Trial['counts'] }[];
  ends: End[];
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
  rollouts: (server: Server, signal: AbortSignal) => ask<Schemas['Rollouts']>(own(server, 'rollouts'), signal),
  course: (server: Server, member: string, signal: AbortSignal) =>
    ask<Schemas['RolloutCourse']>(own(server, `rollouts/${part(member)}/course`), signal),
  budgets: (server: Server, signal: AbortSignal) => ask<Schemas['Budgets']>(own(server, 'budgets'), signal),
  spending: (server: Server, signal: AbortSignal) => ifThere(ask<Spending>(own(server, 'budgets/history'), signal)),
  alerts: (server: Server, signal: AbortSignal) => ifThere(ask<Schemas['Alerts']>(own(server, 'alerts'), signal)),
  objectives: (server: Server, signal: AbortSignal) =>
    ifThere(ask<Schemas['Objectives']>(own(server, 'objectives'), signal)),
  watched: (server: Server, signal: AbortSignal) => ifThere(ask<Schemas['Monitored']>(own(server, 'monitor'), signal)),
  watchedMember: (server: Server, member: string, signal: AbortSignal) =>
    ask<Watched>(own(server, `monitor/${part(member)}`), signal),
  request: (server: Server, id: string, signal: AbortSignal) =>
    ask<Schemas['RequestChain']>(own(server, `requests/${part(id)}/chain`), signal),
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
