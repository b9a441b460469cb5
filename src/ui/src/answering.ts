/** Asks the server for answers and writes them into their conversations while they come in. */
import { effect, signal, untracked } from '@preact/signals';
import { ApiError, call, errorOf, serverInfo } from './api.ts';
import { settledMessages } from './merge.ts';
import { newAnswer, newId, type Answer, type Conversation, type Message, type Piece, type Place } from './model.ts';
import { requestBody } from './options.ts';
import { dismiss, notify, say } from './say.ts';
import { readSse } from './sse.ts';
import { changeMessages, find, removeConversation, replaceMessage } from './store.ts';
import { plural } from './words.ts';

/** How often what came in is shown; a long text takes longer to show, and is shown less often: so many milliseconds a character. */
const SHOW_EVERY_MS = 50;
const SHOW_MS_PER_CHARACTER = 1 / 100;
const SHOW_AT_LEAST_EVERY_MS = 1_000;

/** Whether the page is going away, which breaks connections off without anything being wrong. */
let leaving = false;
addEventListener('beforeunload', () => {
  leaving = true;
  // The page may stay after all.
  setTimeout(() => {
    leaving = false;
  }, 3_000);
});
// Before the conversations are kept for the last time, which is at the same event.
addEventListener(
  'pagehide',
  () => {
    leaving = true;
    for (const id of [...running.keys()]) end(id, 'interrupted');
  },
  true,
);
addEventListener('pageshow', () => {
  leaving = false;
});

interface Job {
  writer: Writer;
  controller: AbortController;
}

const running = new Map<string, Job>();

/** The conversations whose answer is being written by this page. */
export const writing = signal<ReadonlySet<string>>(new Set());

// An answer that is no longer part of its conversation is not waited for, whoever took it away.
effect(() => {
  for (const id of writing.value) {
    const job = running.get(id);
    if (job && !find(id)?.messages.some((message) => message.id === job.writer.answer.id)) untracked(() => stop(id));
  }
});

/** Sends a message of the reader. */
export function send(id: string, text: string): void {
  void answer(id, (messages) => [...messages, { id: newId(), role: 'user', text }]);
}

/** Makes the last answer again. */
export function retry(id: string): void {
  void answer(id, (messages) => (messages.at(-1)?.role === 'assistant' ? messages.slice(0, -1) : messages));
}

/** Goes on from a changed message of the reader; what came after it can be brought back. */
export function edit(id: string, messageId: string, text: string): void {
  stop(id);
  const before = find(id)?.messages ?? [];
  const at = before.findIndex((message) => message.id === messageId);
  if (at < 0) return;
  void answer(id, (messages) => [...messages.slice(0, at), { id: newId(), role: 'user', text }]);
  if (before.length > at + 2) {
    notify('The conversation goes on from the changed message.', 'Undo', () => {
      stop(id);
      changeMessages(id, () => settledMessages(before));
      dismiss();
    });
  }
}

/** Sends on what the tools answered that the last answer calls. */
export function sendResults(id: string, results: { callId: string; text: string }[]): void {
  void answer(id, (messages) => [
    ...messages,
    ...results.map(({ callId, text }): Message => ({ id: newId(), role: 'tool', callId, text })),
  ]);
}

/** Ends the answer that is being written. What there is of it stays. */
export function stop(id: string): void {
  end(id, 'stopped');
}

/** Removes a conversation, and ends its answer first, which may be brought back with it. */
export function discard(id: string): void {
  stop(id);
  removeConversation(id);
}

function end(id: string, status: 'stopped' | 'interrupted'): void {
  const job = running.get(id);
  if (job === undefined) return;
  track(id, null);
  job.writer.end(status);
  job.controller.abort();
}

async function answer(id: string, prepare: (messages: Message[]) => Message[]): Promise<void> {
  stop(id);
  changeMessages(id, prepare);
  const asked = find(id);
  if (asked === undefined) return;
  const controller = new AbortController();
  const writer = new Writer(id, newAnswer(asked.settings));
  changeMessages(id, (messages) => [...messages, writer.answer]);
  track(id, { writer, controller });
  try {
    await stream(asked, writer, controller.signal);
    writer.end('done');
  } catch (error) {
    writer.fail(error);
  } finally {
    if (running.get(id)?.writer === writer) track(id, null);
  }
}

function track(id: string, job: Job | null): void {
  if (job) running.set(id, job);
  else running.delete(id);
  writing.value = new Set(running.keys());
}

/** The parts of a chunk of an answer that are used. */
interface Chunk {
  choices?: {
    delta?: {
      content?: string | null;
      reasoning_content?: string | null;
      tool_calls?: { index?: number; id?: string | null; function?: { name?: string | null; arguments?: string | null } }[];
    };
    logprobs?: { content?: { token: string; logprob: number }[] | null } | null;
    finish_reason?: string | null;
  }[];
  usage?: { prompt_tokens?: number; completion_tokens?: number } | null;
}

async function stream(asked: Conversation, writer: Writer, signal: AbortSignal): Promise<void> {
  const body = requestBody(asked, serverInfo.peek()?.models[0] ?? serverInfo.peek()?.modelId ?? '');
  const response = await call('v1/chat/completions', { method: 'POST', body, signal });
  writer.place(placeOf((name) => response.headers.get(`x-route-${name}`)));
  if (response.body === null) throw new ApiError('The server sent an empty answer.', response.status);
  let ended = false;
  for await (const item of readSse(response.body)) {
    if (item.kind === 'comment') {
      const fields = new Map(
        item.text.split(/\s+/).map((field): [string, string] => {
          const equals = field.indexOf('=');
          return equals < 0 ? [field, ''] : [field.slice(0, equals), field.slice(equals + 1)];
        }),
      );
      writer.place(placeOf((name) => fields.get(`x-route-${name}`)));
    } else if (item.data === '[DONE]') {
      ended = true;
    } else {
      const chunk = JSON.parse(item.data) as Chunk;
      const error = errorOf(chunk);
      if (error !== null) throw new ApiError(error, null);
      writer.take(chunk);
    }
  }
  if (!ended && !writer.finished) throw new ApiError('The connection ended before the answer did.', null);
}

function placeOf(field: (name: string) => string | null | undefined): Place {
  const place: Place = {};
  const names: [keyof Place, string][] = [
    ['target', 'target'],
    ['reason', 'reason'],
    ['provider', 'provider'],
    ['upstream', 'upstream'],
    ['model', 'model'],
    ['attempts', 'attempts'],
    ['degraded', 'degraded'],
    ['requestId', 'request-id'],
    ['cost', 'cost-usd'],
    ['saved', 'saved-usd'],
    ['continued', 'continued'],
  ];
  for (const [key, name] of names) {
    const value = field(name);
    if (value) place[key] = value;
  }
  return place;
}

/** Gathers one answer and shows it from time to time. */
class Writer {
  private readonly began = performance.now();
  /** When the first token came, and when the first that can be seen. */
  private first: number | null = null;
  private firstShown: number | null = null;
  private last = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private ended = false;
  /** Grows; the answer has a copy of it as of when it was last shown. */
  private readonly pieces: Piece[] = [];

  constructor(
    private readonly conversation: string,
    public answer: Answer,
  ) {}

  /** Whether the server said how the answer ends. */
  get finished(): boolean {
    return this.answer.finish !== null;
  }

  place(place: Place): void {
    if (Object.keys(place).length > 0) this.update({ place: { ...this.answer.place, ...place } });
  }

  take(chunk: Chunk): void {
    if (chunk.usage) {
      this.update({
        promptTokens: chunk.usage.prompt_tokens ?? null,
        outputTokens: chunk.usage.completion_tokens ?? null,
      });
    }
    const choice = chunk.choices?.[0];
    if (choice === undefined) return;
    const { delta = {}, logprobs, finish_reason: finish } = choice;
    const content = delta.content ?? '';
    this.last = performance.now();
    this.first ??= this.last;
    if (content || delta.reasoning_content || delta.tool_calls) this.firstShown ??= this.last;
    if (content) {
      if (this.answer.pieces) this.pieces.push(...piecesOf(content, logprobs?.content ?? []));
      this.update({ text: this.answer.text + content });
    }
    if (delta.reasoning_content) this.update({ reasoning: this.answer.reasoning + delta.reasoning_content });
    for (const part of delta.tool_calls ?? []) {
      const calls = [...this.answer.calls];
      const at = part.index ?? 0;
      const known = calls[at];
      calls[at] = {
        id: known?.id || part.id || `call_${at}`,
        name: known?.name || part.function?.name || '',
        arguments: (known?.arguments ?? '') + (part.function?.arguments ?? ''),
      };
      this.update({ calls: calls.filter(Boolean) });
    }
    if (finish) this.update({ finish });
  }

  end(status: 'done' | 'stopped' | 'interrupted'): void {
    if (this.ended) return;
    this.finish({ status });
    if (status === 'interrupted') return;
    const { outputTokens, calls } = this.answer;
    const tokens = outputTokens === null ? '' : `, ${plural(outputTokens, 'token')}`;
    if (status === 'stopped') say('Answer stopped');
    else if (calls.length > 0) say(`The model calls ${calls.map((call) => call.name).join(', ')}${tokens}`);
    else say(`Answer complete${tokens}`);
  }

  fail(error: unknown): void {
    if (this.ended) return;
    if (leaving) {
      this.finish({ status: 'interrupted' });
      return;
    }
    const known = error instanceof ApiError ? error : null;
    const message = known?.message ?? 'The connection broke while the answer was being written.';
    this.finish({
      status: 'failed',
      failure: { message, status: known?.status ?? null, retryAfter: known?.retryAfter ?? null },
    });
    say(`No answer: ${message}`);
  }

  private finish(change: Partial<Answer>): void {
    const totalMs = performance.now() - this.began;
    const ttftMs = this.firstShown === null ? null : this.firstShown - this.began;
    const writingMs = this.first === null ? null : this.last - this.first;
    this.update({ ...change, totalMs, ttftMs, writingMs });
    this.show();
    this.ended = true;
  }

  private update(change: Partial<Answer>): void {
    if (this.ended) return;
    this.answer = { ...this.answer, ...change };
    this.timer ??= setTimeout(() => this.show(), this.pause());
  }

  private pause(): number {
    const { text, reasoning } = this.answer;
    const pause = SHOW_MS_PER_CHARACTER * (text.length + reasoning.length);
    return Math.min(SHOW_AT_LEAST_EVERY_MS, Math.max(SHOW_EVERY_MS, pause));
  }

  private show(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.answer.pieces) this.answer = { ...this.answer, pieces: [...this.pieces] };
    replaceMessage(this.conversation, this.answer);
  }
}

/** The tokens of a chunk; where they are not letter for letter its text, the text with the least of their probabilities. */
function piecesOf(content: string, tokens: { token: string; logprob: number }[]): Piece[] {
  if (tokens.length === 0) return [[content, null]];
  if (tokens.map(({ token }) => token).join('') === content) {
    return tokens.map(({ token, logprob }): Piece => [token, logprob]);
  }
  return [[content, Math.min(...tokens.map(({ logprob }) => logprob))]];
}
