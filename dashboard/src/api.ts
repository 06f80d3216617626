// The client of `/ui/api`, typed by `schema.d.ts`, which is generated from `openapi.json`.

import createClient from 'openapi-fetch';
import type { components, paths } from './schema';

export type Schemas = components['schemas'];
export type Row = Schemas['Row'];
export type RunDetail = Schemas['RunDetail'];
export type ComparedRun = Schemas['ComparedRun'];
export type Experiment = Schemas['Experiment'];
export type Artifact = Schemas['Artifact'];

const client = createClient<paths>({ baseUrl: '/ui/api' });

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

/** What the server answered, or an error that says what it said. */
async function answered<T>(call: Promise<Answer<T>>): Promise<T> {
  const { data, error, response } = await call.catch((cause: unknown) => {
    if (cause instanceof DOMException) throw cause;
    throw new Error('The server does not answer. It may have been stopped.', { cause });
  });
  if (data !== undefined) return data;
  const told = (error as { message?: string } | undefined)?.message;
  throw new Error(told || `The server answered ${response.status}.`);
}

export const api = {
  experiments: (signal: AbortSignal) => answered(client.GET('/experiments', { signal })),
  experiment: (id: string, signal: AbortSignal) =>
    answered(client.GET('/experiments/{id}', { params: { path: { id } }, signal })),
  keys: (id: string, signal: AbortSignal) =>
    answered(client.GET('/experiments/{id}/keys', { params: { path: { id } }, signal })),
  table: (body: Schemas['TableQuery'], signal: AbortSignal) => answered(client.POST('/runs/table', { body, signal })),
  run: (id: string, signal: AbortSignal) => answered(client.GET('/runs/{id}', { params: { path: { id } }, signal })),
  runs: (run_ids: string[], signal: AbortSignal) => answered(client.POST('/runs', { body: { run_ids }, signal })),
  series: (body: Schemas['SeriesQuery'], signal: AbortSignal) => answered(client.POST('/series', { body, signal })),
  artifacts: (query: { run_id?: string; model_id?: string; path?: string }, signal: AbortSignal) =>
    answered(client.GET('/artifacts', { params: { query }, signal })),
  models: (signal: AbortSignal) => answered(client.GET('/models', { signal })),
  model: (name: string, signal: AbortSignal) =>
    answered(client.GET('/models/{name}', { params: { path: { name } }, signal })),
  moves: (query: { model?: string; limit?: number }, signal: AbortSignal) =>
    answered(client.GET('/moves', { params: { query }, signal })),
  viewer: (signal: AbortSignal) => answered(client.GET('/viewer', { signal })),
};
