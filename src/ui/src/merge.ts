/** Two tabs may change one conversation: what both copies come to. */
import type { Conversation, Message } from './model.ts';

/**
 * Brings together two copies that both come of `base`; without one, they only share what has the same name.
 * Nothing that one of them added is lost, what one of them removed is gone, and of what both changed mine stays.
 */
export function merge(base: Conversation | undefined, mine: Conversation, theirs: Conversation): Conversation {
  if (base?.revision === theirs.revision) return mine;
  const before = byId(base?.messages ?? []);
  const here = byId(mine.messages);
  const there = byId(theirs.messages);
  const messages: Message[] = [];
  for (const message of theirs.messages) {
    const { id } = message;
    const [old, own] = [before.get(id), here.get(id)];
    if (own === undefined) {
      if (old === undefined) messages.push(message);
    } else {
      const changed = old === undefined || !same(old, own);
      messages.push(changed || same(own, message) ? own : message);
    }
  }
  for (const message of mine.messages) if (!there.has(message.id) && !before.has(message.id)) messages.push(message);

  const pick = <K extends 'title' | 'named' | 'settings'>(name: K): Conversation[K] =>
    base !== undefined && same(base[name], mine[name]) ? theirs[name] : mine[name];
  return {
    id: mine.id,
    title: pick('title'),
    named: pick('named'),
    settings: pick('settings'),
    updatedMs: Math.max(mine.updatedMs, theirs.updatedMs),
    revision: mine === base ? theirs.revision : Math.max(mine.revision, theirs.revision) + 1,
    messages,
  };
}

const byId = (messages: Message[]): Map<string, Message> => new Map(messages.map((message) => [message.id, message]));

const same = (one: unknown, other: unknown): boolean => one === other || JSON.stringify(one) === JSON.stringify(other);

/** The conversation without answers that nobody writes any more. */
export function settled(conversation: Conversation): Conversation {
  if (!conversation.messages.some(isStreaming)) return conversation;
  return { ...conversation, messages: settledMessages(conversation.messages) };
}

export const settledMessages = (messages: Message[]): Message[] =>
  messages.map((message) => (isStreaming(message) ? { ...message, status: 'interrupted' as const } : message));

function isStreaming(message: Message): message is Message & { role: 'assistant' } {
  return message.role === 'assistant' && message.status === 'streaming';
}

/** About how many characters there are to write. */
export function sizeOf({ messages }: Conversation): number {
  return messages.reduce((sum, message) => {
    const more = message.role === 'assistant' ? message.reasoning.length + 20 * (message.pieces?.length ?? 0) : 0;
    return sum + message.text.length + more;
  }, 0);
}
