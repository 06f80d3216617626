import { describe, expect, it } from 'vitest';
import { type Registered, type Signal, told } from '../serving';
import {
  apart,
  caseOf,
  headline,
  inOrder,
  inputText,
  millis,
  modelOf,
  rate,
  replayCommand,
  share,
  signalName,
  stageOf,
  timesOf,
  until,
} from './serving';

describe('numbers of serving', () => {
  it('shares keep what matters of them', () => {
    expect([0, 0.0004, 0.042, 0.5, 1, null].map(share)).toEqual(['0 %', '0.04 %', '4.2 %', '50 %', '100 %', '–']);
  });
  it('times and rates have the unit that fits', () => {
    expect([0.1234, 1.9, 310.4, 4210, null].map(millis)).toEqual(['0.12 ms', '1.9 ms', '310 ms', '4.21 s', '–']);
    expect([0, 0.05, 0.5, 12.345].map(rate)).toEqual(['0', '3 /min', '0.5 /s', '12.3 /s']);
  });
  it('an account says when it begins anew', () => {
    const now = Date.parse('2026-11-29T10:00:00Z');
    const at = (text: string) => until(text, now);
    expect(at('2026-11-29T10:00:30Z')).toBe('in 30 s');
    expect(at('2026-11-29T13:12:00Z')).toBe('in 3 h 12 min');
    expect(at('2026-12-01T10:00:00Z')).toBe('in 2 d 0 h');
    expect([at('2026-11-29T09:00:00Z'), until(null, now), at('never')]).toEqual(['now', '–', '–']);
  });
});

describe('signals of monitoring', () => {
  const signal = (name: string, verdict: string, effect: number) => ({ signal: name, verdict, effect }) as Signal;
  it('what differs comes first, the furthest before the others, which stay in order', () => {
    const signals = [
      signal('a', 'same', 0.05),
      signal('b', 'drifted', 0.2),
      signal('c', 'collecting', 9),
      signal('d', 'drifted', 1),
    ];
    expect(inOrder(signals).map((each) => each.signal)).toEqual(['d', 'b', 'a', 'c']);
    expect(signals[0]?.signal).toBe('a');
  });
  it('features keep the names of their columns', () => {
    expect(['unseen_words', 'input.x[mean_area]', 'output.y[0]'].map(signalName)).toEqual([
      'unseen words',
      'input.x[mean_area]',
      'output.y[0]',
    ]);
  });
});

describe('a rollout in words', () => {
  const registered = (more: object) =>
    ({
      rollout: { plan: { canary: { percents: [5, 100] } }, on_pass: 'promote' },
      step: { idx: 0 },
      end: null,
      percent: 5,
      ...more,
    }) as unknown as Registered;
  it('says what it does, or how it ended', () => {
    expect(headline(registered({}))).toContain('5 % of the requests instead of');
    expect(headline(registered({ step: { idx: 1, passed: { at: '', checks: [] } } }))).toContain('is being promoted');
    const held = registered({
      step: { idx: 1, passed: { at: '', checks: [] } },
      rollout: { plan: { shadow: { percent: 5 } }, on_pass: 'hold' },
    });
    expect([headline(held), stageOf(held)]).toEqual(['It kept every rule and waits for a person.', 'passed']);
    const ended = registered({ end: { outcome: 'aborted', by: 'ann', reason: 'worse' } });
    expect([headline(ended), stageOf(ended)]).toEqual(['Aborted by ann: worse', 'aborted']);
  });
  it('tells how far answers are apart', () => {
    const pair = (more: object) => ({ stable: [], candidate: [], ...more }) as never;
    expect(apart(pair({ n_flips: 1, shift: 0.25 }))).toBe('1 label flipped, scores by 0.250');
    expect(apart(pair({ cosine: 0.5, overlap: 0 }))).toBe('cosine 0.5000, overlap 0.000');
    expect(apart(pair({ relative: 0.2, absolute: 1.5 }))).toBe('relative difference 0.2000, by 1.5000 at most');
    expect(apart(pair({ n_flips: 0 }))).toBe('alike');
  });
  it('tells what both versions took', () => {
    const at = (percentile: number, value: number, interval?: number[]) => ({ percentile, value, interval });
    const rows = timesOf({
      of_processor: true,
      n_requests: 120,
      stable_mean_ms: 2,
      candidate_mean_ms: 3,
      stable_ms: [at(50, 2), at(95, 4)],
      candidate_ms: [at(50, 3), at(95, 6)],
      ratios: [at(50, 1.5, [1.4, 1.62]), at(95, 1.5)],
    } as never);
    expect(rows.map(({ name, stable, candidate, ratio }) => [name, stable, candidate, ratio])).toEqual([
      ['Median', '2 ms', '3 ms', '1.50 times (1.40 to 1.62)'],
      ['p95', '4 ms', '6 ms', '1.50 times'],
      ['Mean', '2 ms', '3 ms', '1.50 times'],
    ]);
  });
  it('shows a kept input as it was', () => {
    expect([{ text: 'hi' }, 'hi', { tokens: [1] }, null].map(inputText)).toEqual([
      'hi',
      'hi',
      '{"tokens":[1]}',
      'null',
    ]);
  });
});

describe('a request again', () => {
  it('takes JSON for what it says and anything else for the text', () => {
    expect(caseOf(' {"input": {"text": "a"}}\n')).toEqual({ input: { text: 'a' } });
    expect(caseOf('ignore "all" {')).toEqual({ text: 'ignore "all" {' });
    expect(['[1]', '7', '"a"', 'null'].map(caseOf)).toEqual([
      { text: '[1]' },
      { text: '7' },
      { text: '"a"' },
      { text: 'null' },
    ]);
  });
  it('knows the model of a version, and the command', () => {
    expect(['router:7', 'router@sha256:ab', 'router'].map(modelOf)).toEqual(['router', 'router', 'router']);
    expect(replayCommand('01-a.safe', 'http://localhost:8080')).toBe(
      'highroad replay 01-a.safe --input case.json --server http://localhost:8080',
    );
  });
});

it('the message of a refusal is found in every shape of one', () => {
  expect(told({ error: { message: 'no' } }, 400)).toBe('no');
  expect(told({ error: 'no' }, 400)).toBe('no');
  expect(told({ error_code: 'X', message: 'no' }, 400)).toBe('no');
  for (const odd of [undefined, null, 7, {}, { error: { message: 7 } }, []]) {
    expect(told(odd, 502)).toBe('The server answered 502.');
  }
});
