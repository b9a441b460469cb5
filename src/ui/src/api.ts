/** Calls of the server. Addresses are relative to the page, which lies one folder below the server's root. */
import { signal } from '@preact/signals';
import { apiKey, keyQuestion } from './key.ts';

/** The server's root, with whatever path prefix the page was reached by. */
const ROOT = new URL('../', document.baseURI);

/** A refusal by the server, or no answer from it at all (`status` is null). */
export class ApiError extends Error {
  override readonly name = 'ApiError';

  constructor(
    message: string,
    readonly status: number | null,
    readonly retryAfter: string | null = null,
  ) {
    super(message);
  }
}

export interface CallOptions {
  method?: 'GET' | 'POST';
  body?: unknown;
  signal?: AbortSignal;
  /** Tried instead of the key that is kept. */
  key?: string;
  /** Leaves it to the caller to ask for a key. */
  quiet?: boolean;
}

/** A call that was answered with success; anything else is thrown as an `ApiError`. */
export async function call(path: string, options: CallOptions = {}): Promise<Response> {
  const headers: Record<string, string> = {};
  const key = options.key ?? apiKey.value;
  if (key !== null) headers['Authorization'] = `Bearer ${key}`;
  const request: RequestInit = { method: options.method ?? 'GET', headers, cache: 'no-store' };
  if (options.body !== undefined) {
    headers['Content-Type'] = 'application/json';
    request.body = JSON.stringify(options.body);
  }
  if (options.signal) request.signal = options.signal;

  let response: Response;
  try {
    response = await fetch(new URL(path, ROOT), request);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError('The server cannot be reached.', null);
  }
  if (response.ok) return response;
  if (response.status === 401 && !options.quiet) keyQuestion.value = key === null ? 'missing' : 'unknown';
  const message = errorMessage(await response.text().catch(() => '')) ?? `The server answered ${response.status}.`;
  throw new ApiError(message, response.status, response.headers.get('retry-after'));
}

/** The text of an error in either of the server's two forms; null if there is none. */
export function errorMessage(body: string): string | null {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    const text = body.trim();
    return text !== '' && text.length < 500 && !text.startsWith('<') ? text : null;
  }
  return errorOf(value);
}

/** The same for a value that was parsed already. */
export function errorOf(value: unknown): string | null {
  if (typeof value !== 'object' || value === null || !('error' in value)) return null;
  const { error } = value;
  if (typeof error === 'string') return error;
  if (typeof error === 'object' && error !== null && 'message' in error) return String(error.message);
  return error === null ? null : JSON.stringify(error);
}

/** What the server says about itself. */
export interface ServerInfo {
  modelId: string;
  version: string;
  maxTotalTokens: number | null;
  models: string[];
}

export type ServerState = 'loading' | 'ready' | 'locked' | 'unreachable';

export const serverInfo = signal<ServerInfo | null>(null);
export const serverState = signal<ServerState>('loading');
/** Why the server did not say anything about itself. */
export const serverProblem = signal<string | null>(null);

/** Asks the server which models it has and how long their context is. */
export async function loadServerInfo(): Promise<void> {
  try {
    const [info, models] = await Promise.all([
      call('info').then((response) => response.json() as Promise<Record<string, unknown>>),
      call('v1/models').then((response) => response.json() as Promise<{ data?: { id: string }[] }>),
    ]);
    const ids = (models.data ?? []).map((model) => model.id);
    serverInfo.value = {
      modelId: String(info['model_id'] ?? ids[0] ?? ''),
      version: String(info['version'] ?? ''),
      maxTotalTokens: typeof info['max_total_tokens'] === 'number' ? info['max_total_tokens'] : null,
      models: ids,
    };
    serverState.value = 'ready';
    serverProblem.value = null;
  } catch (error) {
    const locked = error instanceof ApiError && (error.status === 401 || error.status === 403);
    serverState.value = locked ? 'locked' : 'unreachable';
    serverProblem.value = error instanceof Error ? error.message : String(error);
  }
}
