/** Checks what was typed into the settings, and turns a conversation into a request. */
import type { Conversation, Message, Settings } from './model.ts';

/** A problem with one of the texts of JSON: which, and what is wrong. */
export interface SettingsProblem {
  field: 'schema' | 'tools';
  message: string;
}

/** What is wrong with the settings' JSON, or null. */
export function settingsProblem(settings: Settings): SettingsProblem | null {
  if (settings.schemaOn) {
    const message = schemaProblem(settings.schema);
    if (message !== null) return { field: 'schema', message };
  }
  if (settings.toolsOn) {
    const message = toolsProblem(settings.tools);
    if (message !== null) return { field: 'tools', message };
  }
  return null;
}

export function schemaProblem(text: string): string | null {
  const { value, problem } = parseJson(text, 'a JSON schema');
  if (problem !== null) return problem;
  return isObject(value) ? null : 'A schema is an object, such as {"type": "object", …}.';
}

export function toolsProblem(text: string): string | null {
  const { value, problem } = parseJson(text, 'an array of tools');
  if (problem !== null) return problem;
  if (!Array.isArray(value) || value.length === 0) return 'Tools are an array with at least one tool, such as [{"type": "function", …}].';
  const unnamed = value.findIndex((tool: unknown) => toolName(tool) === null);
  return unnamed < 0 ? null : `Tool ${unnamed + 1} has no function name.`;
}

/** The names of the tools in a text, as far as it can be read. */
export function toolNames(text: string): string[] {
  const { value } = parseJson(text, '');
  if (!Array.isArray(value)) return [];
  return value.map(toolName).filter((name) => name !== null);
}

function toolName(tool: unknown): string | null {
  if (!isObject(tool) || !isObject(tool['function'])) return null;
  const name = tool['function']['name'];
  return typeof name === 'string' && name !== '' ? name : null;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function parseJson(text: string, what: string): { value: unknown; problem: string | null } {
  if (text.trim() === '') return { value: null, problem: `Put ${what} here, or switch this off.` };
  try {
    return { value: JSON.parse(text) as unknown, problem: null };
  } catch (error) {
    const detail = error instanceof Error ? error.message.replace(/^JSON\.parse: /, '') : '';
    return { value: null, problem: `This is no JSON yet: ${detail}` };
  }
}

/** JSON with line breaks, or the text itself where it is none (yet). */
export function prettyJson(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** The body of a chat request for the messages so far. */
export function requestBody(conversation: Conversation, model: string): Record<string, unknown> {
  const { settings } = conversation;
  const body: Record<string, unknown> = {
    model: settings.model ?? model,
    messages: wireMessages(settings.system, conversation.messages),
    stream: true,
    stream_options: { include_usage: true },
  };
  const numbers: [string, number | null][] = [
    ['temperature', settings.temperature],
    ['top_p', settings.topP],
    ['max_tokens', settings.maxTokens],
    ['seed', settings.seed],
    ['frequency_penalty', settings.frequencyPenalty],
    ['presence_penalty', settings.presencePenalty],
  ];
  for (const [name, value] of numbers) if (value !== null) body[name] = value;
  const stop = settings.stop.split('\n').filter((line) => line !== '');
  if (stop.length > 0) body['stop'] = stop;
  if (settings.confidence) body['logprobs'] = true;
  if (settings.schemaOn) {
    const schema = JSON.parse(settings.schema) as unknown;
    body['response_format'] = { type: 'json_schema', json_schema: { name: 'answer', schema } };
  }
  if (settings.toolsOn) body['tools'] = JSON.parse(settings.tools) as unknown;
  return body;
}

interface WireMessage {
  role: string;
  content: string | null;
  tool_calls?: unknown[];
  tool_call_id?: string;
}

/**
 * The messages as the API wants them. Answers without anything in them are left out, the reader's messages
 * around them become one, and calls that got no result say so: some chat templates refuse anything else.
 */
function wireMessages(system: string, messages: Message[]): WireMessage[] {
  const wire: WireMessage[] = [];
  if (system.trim() !== '') wire.push({ role: 'system', content: system });
  messages.forEach((message, at) => {
    const last = wire.at(-1);
    if (message.role === 'user') {
      if (last?.role === 'user') last.content += `\n\n${message.text}`;
      else wire.push({ role: 'user', content: message.text });
    } else if (message.role === 'tool') {
      wire.push({ role: 'tool', tool_call_id: message.callId, content: message.text });
    } else if (message.calls.length > 0) {
      const calls = message.calls.map(({ id, name, arguments: text }) => ({
        id,
        type: 'function',
        function: { name, arguments: text },
      }));
      wire.push({ role: 'assistant', content: message.text || null, tool_calls: calls });
      if (messages[at + 1]?.role !== 'tool') {
        for (const { id } of message.calls) wire.push({ role: 'tool', tool_call_id: id, content: 'No result was given.' });
      }
    } else if (message.text !== '') {
      wire.push({ role: 'assistant', content: message.text });
    }
  });
  return wire;
}
