/** The server's live data: one stream of events, read while the dashboard is looked at. */
import { batch, signal, type Signal } from '@preact/signals';
import { ApiError, call } from './api.ts';
import { readSse } from './sse.ts';

export interface Spread {
  p50: number;
  p95: number;
  p99: number;
}

/** What one second was like. */
export interface Sample {
  t_ms: number;
  running: number;
  waiting: number;
  max_running: number;
  kv_used: number;
  kv_total: number;
  prefill_tps: number;
  decode_tps: number;
  local: number;
  remote: number;
  failed: number;
  ttft_ms: Spread | null;
  itl_ms: Spread | null;
}

/** Calls since the server started, by reason or, where nothing was decided, by how they ended. */
export interface Totals {
  local: Record<string, number>;
  remote: Record<string, number>;
  refused: Record<string, number>;
  /** The caller left, or the answer broke off; by how it ended. */
  unfinished?: Record<string, number>;
  cost_usd: number;
  saved_usd: number;
  prompt_tokens: number;
  output_tokens: number;
}

export interface Target {
  target: string;
  upstream: string;
  provider: string | null;
  state: string;
  sentence: string;
  retry_after_s: number | null;
  inflight: number;
  limit: number;
  ttft_ms: { p50: number; p95: number } | null;
  spent_today_usd: number;
  max_usd_per_day: number | null;
  catalog_day: string | null;
}

export interface Budget {
  name: string;
  period: string;
  kind: string;
  unit: string;
  limit: number | null;
  used: number;
  resets: string;
}

export interface Attempt {
  target: string;
  provider: string | null;
  class: string | null;
  status: number | null;
  ttft_ms: number | null;
  cost_usd: number | null;
}

/** One request that has ended. */
export interface Decision {
  seq: number;
  at_ms: number;
  request_id: string;
  key: string | null;
  path: string;
  stream: boolean;
  model: string | null;
  side: 'local' | 'remote' | null;
  target: string | null;
  upstream: string | null;
  provider: string | null;
  /** Null where nothing was decided. */
  reason: string | null;
  reason_detail: string | null;
  outcome: string;
  ok: boolean;
  ttft_ms: number | null;
  total_ms: number;
  prompt_tokens: number;
  output_tokens: number;
  cost_usd: number | null;
  saved_usd: number | null;
  attempts: Attempt[];
  degraded: string[];
  explanation: string[];
}

export interface Server {
  version: string;
  model: string;
  started_ms: number;
  hybrid: boolean;
}

interface History {
  samples: Sample[];
  decisions: Decision[];
  server: Server;
}

interface Tick {
  sample: Sample;
  totals: Totals;
  targets: Target[];
  budgets: Budget[];
  decisions: Decision[];
}

/** `locked` wants another key; after `missing`, which has no live data, and `lost` it is tried again. */
export type Connection =
  | { state: 'connecting' | 'live' }
  | { state: 'locked'; admin: boolean }
  | { state: 'missing'; message: string }
  | { state: 'lost'; message: string; againMs: number };

export const connection = signal<Connection>({ state: 'connecting' });
/** The last 15 minutes, oldest first: the same array with each second, so that `sample` says when it changed. */
export const samples: Sample[] = [];
export const sample = signal<Sample | null>(null);
export const totals = signal<Totals | null>(null);
export const targets = signal<Target[] | null>(null);
export const budgets = signal<Budget[]>([]);
/** The last requests, newest first. */
export const decisions = signal<Decision[]>([]);
export const server = signal<Server | null>(null);

const SAMPLES = 900;
const DECISIONS = 100;
/** Numbers that change each second cost twice as much as these, and nobody reads them faster. */
const SHOW_EVERY_MS = 2_000;
/** A list that moves on is laid out and painted anew as a whole. */
const LIST_EVERY_MS = 5_000;
/** Without a word for so long, the connection is taken for broken. */
const SILENCE_MS = 6_000;
const LONGEST_PAUSE_MS = 15_000;
/** A server without live data may be in the middle of its start, or be replaced by another one. */
const MISSING_PAUSE_MS = 30_000;

let controller: AbortController | null = null;
let again: ReturnType<typeof setTimeout> | undefined;
let failures = 0;
/** Requests that were told of and are not shown yet, oldest first. */
let unshown: Decision[] = [];
let shownMs = 0;
let listedMs = 0;

/** Reads until `disconnect`, again and again if need be. */
export function connect(): void {
  disconnect();
  controller = new AbortController();
  void read(controller.signal);
}

export function disconnect(): void {
  clearTimeout(again);
  controller?.abort();
  controller = null;
}

async function read(stopped: AbortSignal): Promise<void> {
  if (!['lost', 'missing'].includes(connection.peek().state)) connection.value = { state: 'connecting' };
  const silence = new AbortController();
  let watch: ReturnType<typeof setTimeout> | undefined;
  const heard = (): void => {
    clearTimeout(watch);
    watch = setTimeout(() => silence.abort(), SILENCE_MS);
  };
  let message = 'The server ended the connection.';
  try {
    heard();
    const response = await call('ui/events', { signal: AbortSignal.any([stopped, silence.signal]) });
    if (response.body === null) throw new ApiError('The server sent nothing.', response.status);
    for await (const item of readSse(response.body)) {
      heard();
      if (item.kind === 'event') take(item.event, item.data);
    }
  } catch (error) {
    if (stopped.aborted) return;
    const status = error instanceof ApiError ? error.status : null;
    if (status === 401 || status === 403) {
      connection.value = { state: 'locked', admin: status === 403 };
      return;
    }
    if (status === 404) {
      connection.value = { state: 'missing', message: 'This server offers no live data.' };
      again = setTimeout(() => void read(stopped), MISSING_PAUSE_MS);
      return;
    }
    message = silence.signal.aborted || !(error instanceof ApiError) ? 'The server has fallen silent.' : error.message;
  } finally {
    clearTimeout(watch);
  }
  if (stopped.aborted) return;
  failures += 1;
  const pause = Math.min(LONGEST_PAUSE_MS, 500 * 2 ** failures);
  connection.value = { state: 'lost', message, againMs: Date.now() + pause };
  again = setTimeout(() => void read(stopped), pause);
}

function take(event: string, data: string): void {
  if (event === 'history') {
    const history = JSON.parse(data) as History;
    failures = 0;
    unshown = [];
    shownMs = 0;
    listedMs = 0;
    samples.splice(0, samples.length, ...history.samples.slice(-SAMPLES));
    batch(() => {
      connection.value = { state: 'live' };
      server.value = history.server;
      sample.value = history.samples.at(-1) ?? null;
      decisions.value = history.decisions.slice(-DECISIONS).reverse();
    });
  } else if (event === 'tick') {
    const tick = JSON.parse(data) as Tick;
    samples.push(tick.sample);
    if (samples.length > SAMPLES) samples.shift();
    unshown.push(...tick.decisions);
    // The ticks do not come on the millisecond.
    if (Date.now() - shownMs < SHOW_EVERY_MS - 500) return;
    shownMs = Date.now();
    batch(() => {
      sample.value = tick.sample;
      setIfChanged(totals, tick.totals);
      setIfChanged(targets, tick.targets);
      setIfChanged(budgets, tick.budgets);
      if (unshown.length === 0 || Date.now() - listedMs < LIST_EVERY_MS - 500) return;
      listedMs = Date.now();
      const last = decisions.peek()[0]?.seq ?? -1;
      const fresh = unshown.filter(({ seq }) => seq > last).reverse();
      unshown = [];
      if (fresh.length > 0) decisions.value = [...fresh, ...decisions.peek()].slice(0, DECISIONS);
    });
  }
}

/** Leaves a signal alone if the value says the same as before, so that nothing is drawn again for it. */
function setIfChanged<T>(target: Signal<T>, value: T): void {
  if (JSON.stringify(target.peek()) !== JSON.stringify(value)) target.value = value;
}
