/** What a conversation is made of, as it is shown, kept in the browser and sent. */

/** How the answers of one conversation are to be made. `null` and empty texts leave it to the server. */
export interface Settings {
  model: string | null;
  system: string;
  temperature: number | null;
  topP: number | null;
  maxTokens: number | null;
  seed: number | null;
  frequencyPenalty: number | null;
  presencePenalty: number | null;
  /** One stop sequence a line. */
  stop: string;
  schemaOn: boolean;
  schema: string;
  toolsOn: boolean;
  tools: string;
  /** Asks for each token's probability and shades the text by it. */
  confidence: boolean;
}

export const DEFAULT_SETTINGS: Settings = {
  model: null,
  system: '',
  temperature: null,
  topP: null,
  maxTokens: null,
  seed: null,
  frequencyPenalty: null,
  presencePenalty: null,
  stop: '',
  schemaOn: false,
  schema: '',
  toolsOn: false,
  tools: '',
  confidence: false,
};

export interface UserMessage {
  id: string;
  role: 'user';
  text: string;
}

/** What a tool answered, as the reader typed it in. */
export interface ToolMessage {
  id: string;
  role: 'tool';
  callId: string;
  text: string;
}

export interface ToolCall {
  id: string;
  name: string;
  /** JSON, possibly still incomplete. */
  arguments: string;
}

/** A piece of an answer with the natural logarithm of its probability, if the server said it. */
export type Piece = [text: string, logprob: number | null];

/** Where an answer was made and what it cost, as far as the server said. */
export interface Place {
  target?: string;
  reason?: string;
  provider?: string;
  upstream?: string;
  model?: string;
  attempts?: string;
  degraded?: string;
  requestId?: string;
  cost?: string;
  saved?: string;
  continued?: string;
}

/** Why there is no answer, or no whole one. */
export interface Failure {
  message: string;
  status: number | null;
  retryAfter: string | null;
}

/**
 * `streaming` is being written, `done` came to its end, `stopped` was ended by the reader, `interrupted`
 * by the page being left, `failed` by an error.
 */
export type AnswerStatus = 'streaming' | 'done' | 'stopped' | 'interrupted' | 'failed';

export interface Answer {
  id: string;
  role: 'assistant';
  status: AnswerStatus;
  text: string;
  reasoning: string;
  calls: ToolCall[];
  /** The text in pieces with their probabilities; null if these were not asked for. */
  pieces: Piece[] | null;
  /** Whether the answer was to be JSON of a schema. */
  json: boolean;
  finish: string | null;
  failure: Failure | null;
  place: Place;
  promptTokens: number | null;
  outputTokens: number | null;
  ttftMs: number | null;
  totalMs: number | null;
  /** From the first to the last token, shown or not. */
  writingMs: number | null;
}

export type Message = UserMessage | ToolMessage | Answer;

export interface Conversation {
  id: string;
  title: string;
  /** Whether the reader chose the title; otherwise it is the beginning of the first message. */
  named: boolean;
  updatedMs: number;
  /** Counts the changes, so that of two copies the newer one is known. */
  revision: number;
  settings: Settings;
  messages: Message[];
}

export const UNTITLED = 'New conversation';

/** A random name; `crypto.randomUUID` is missing where the page comes over plain HTTP from another machine. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return Array.from(bytes, (byte) => byte.toString(36).padStart(2, '0')).join('');
}

export function newConversation(): Conversation {
  return {
    id: newId(),
    title: UNTITLED,
    named: false,
    updatedMs: Date.now(),
    revision: 0,
    settings: { ...DEFAULT_SETTINGS },
    messages: [],
  };
}

export function newAnswer(settings: Settings): Answer {
  return {
    id: newId(),
    role: 'assistant',
    status: 'streaming',
    text: '',
    reasoning: '',
    calls: [],
    pieces: settings.confidence ? [] : null,
    json: settings.schemaOn,
    finish: null,
    failure: null,
    place: {},
    promptTokens: null,
    outputTokens: null,
    ttftMs: null,
    totalMs: null,
    writingMs: null,
  };
}

/** The beginning of a text, short enough for a list. */
export function titleOf(text: string): string {
  const line = text.trim().split('\n')[0]?.trim() ?? '';
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line || UNTITLED;
}

/** Whether an answer has calls of tools that nothing was answered to yet. */
export function awaitsResults(messages: Message[], answer: Answer): boolean {
  if (answer.calls.length === 0) return false;
  const at = messages.indexOf(answer);
  return messages[at + 1]?.role !== 'tool';
}
