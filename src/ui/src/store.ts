/**
 * The conversations: in memory as signals, and in the browser's database. A conversation is never changed
 * in place, so that what did not change is not drawn again.
 */
import { batch, signal, type Signal } from '@preact/signals';
import { readAll, readOne, remove, SCOPE, write } from './database.ts';
import { keep, namesKept, readKept } from './keep.ts';
import { newConversation, titleOf, type Conversation, type Message } from './model.ts';
import { dismiss, notify } from './say.ts';

/** A line of the list of conversations. */
export interface Summary {
  id: string;
  title: string;
  updatedMs: number;
}

const conversations = new Map<string, Signal<Conversation>>();

/** All conversations, the latest first. */
export const summaries = signal<Summary[]>([]);

/** Whether the conversations kept in the browser were read. */
export const loaded = signal(false);

/** Why conversations cannot be kept; null while they can. */
export const keepingProblem = signal<string | null>(null);

/** The empty conversation that a first message turns into a real one. */
export const blank = signal(newConversation());

const WRITE_EVERY_MS = 400;
const JOURNAL = `sconce.journal ${SCOPE} `;
/** Conversations that changed since they were last written. */
const unwritten = new Set<string>();
let writing: ReturnType<typeof setTimeout> | undefined;
const tabs = 'BroadcastChannel' in globalThis ? new BroadcastChannel(`sconce ${SCOPE}`) : null;

export function find(id: string): Conversation | undefined {
  return conversations.get(id)?.value ?? (blank.value.id === id ? blank.value : undefined);
}

/** Changes a conversation, and sees to it that it is kept. The blank one becomes a real one by its first message. */
export function change(id: string, update: (conversation: Conversation) => Partial<Conversation>): void {
  const old = conversations.get(id)?.peek() ?? (blank.peek().id === id ? blank.peek() : undefined);
  if (old === undefined) return;
  const next: Conversation = { ...old, ...update(old), revision: old.revision + 1 };
  batch(() => {
    if (!conversations.has(id)) {
      if (next.messages.length === 0) {
        blank.value = next;
        return;
      }
      blank.value = newConversation();
    }
    show(next);
  });
  if (conversations.has(id)) writeSoon(id);
}

/** Changes the messages, which makes the conversation the latest one. */
export function changeMessages(id: string, update: (messages: Message[]) => Message[]): void {
  change(id, (old) => {
    const messages = update(old.messages);
    const first = messages.find((message) => message.role === 'user');
    const title = old.named || first === undefined ? old.title : titleOf(first.text);
    return { messages, title, updatedMs: Date.now() };
  });
}

/** Replaces one message without moving the conversation in the list. */
export function replaceMessage(id: string, message: Message): void {
  change(id, (old) => ({ messages: old.messages.map((other) => (other.id === message.id ? message : other)) }));
}

export function rename(id: string, title: string): void {
  change(id, (old) => ({ title: title.trim() || old.title, named: true }));
}

/** Removes a conversation; for a while a notice offers to bring it back. */
export function removeConversation(id: string): void {
  const old = conversations.get(id)?.peek();
  if (old === undefined) return;
  conversations.delete(id);
  unwritten.delete(id);
  summaries.value = summaries.value.filter((summary) => summary.id !== id);
  void stored(remove(id)).then(() => tabs?.postMessage(id));
  notify(`“${old.title}” was deleted.`, 'Undo', () => {
    show(old);
    writeSoon(id);
    dismiss();
  });
}

/** The conversations whose title or text contains all the words. */
export function search(words: string): Summary[] {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  if (wanted.length === 0) return summaries.value;
  return summaries.value.filter(({ id, title }) => {
    const messages = conversations.get(id)?.peek().messages ?? [];
    const text = [title, ...messages.map((message) => message.text)].join('\n').toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
}

/** Puts a conversation into memory and in its place of the list. */
function show(conversation: Conversation): void {
  const known = conversations.get(conversation.id);
  if (known) known.value = conversation;
  else conversations.set(conversation.id, signal(conversation));
  const { id, title, updatedMs } = conversation;
  const old = summaries.peek().find((summary) => summary.id === id);
  if (old?.title === title && old.updatedMs === updatedMs) return;
  const others = summaries.peek().filter((summary) => summary.id !== id);
  summaries.value = [{ id, title, updatedMs }, ...others].sort((a, b) => b.updatedMs - a.updatedMs);
}

/** Reads what was kept. An answer that was being written when the page was left is marked as interrupted. */
export async function load(): Promise<void> {
  const found = new Map<string, Conversation>();
  for (const conversation of (await stored(readAll())) ?? []) found.set(conversation.id, conversation);
  const recovered: string[] = [];
  for (const name of namesKept('local', JOURNAL)) {
    const kept = parse(readKept('local', name));
    if (kept && kept.revision > (found.get(kept.id)?.revision ?? -1)) {
      found.set(kept.id, kept);
      recovered.push(kept.id);
    }
    if (!kept) keep('local', name, null);
  }
  batch(() => {
    for (const conversation of found.values()) {
      // What was changed before this was read is newer.
      if (!conversations.has(conversation.id)) show(interrupted(conversation));
    }
    loaded.value = true;
  });
  for (const id of recovered) writeSoon(id);
  for (const id of found.keys()) if (!recovered.includes(id)) keep('local', JOURNAL + id, null);
}

function interrupted(conversation: Conversation): Conversation {
  const messages = conversation.messages.map((message) =>
    message.role === 'assistant' && message.status === 'streaming'
      ? { ...message, status: 'interrupted' as const }
      : message,
  );
  return { ...conversation, messages };
}

function parse(text: string | null): Conversation | null {
  try {
    return JSON.parse(text ?? 'null') as Conversation | null;
  } catch {
    return null;
  }
}

function writeSoon(id: string): void {
  unwritten.add(id);
  writing ??= setTimeout(() => void writeAll(), WRITE_EVERY_MS);
}

async function writeAll(): Promise<void> {
  const ids = [...unwritten];
  unwritten.clear();
  for (const id of ids) {
    const conversation = conversations.get(id)?.peek();
    if (conversation === undefined) continue;
    const written = await stored(write(conversation).then(() => true));
    if (written) {
      keep('local', JOURNAL + id, null);
      tabs?.postMessage(id);
    }
  }
  writing = undefined;
  if (unwritten.size > 0) writing = setTimeout(() => void writeAll(), WRITE_EVERY_MS);
}

/** A result of the database, or undefined and an explanation for the reader. */
async function stored<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    const result = await work;
    keepingProblem.value = null;
    return result;
  } catch (error) {
    const full = error instanceof DOMException && error.name === 'QuotaExceededError';
    keepingProblem.value = full
      ? 'The browser has no room left for conversations. What is new is here until this page is closed: delete conversations to make room.'
      : 'The browser does not let this page keep conversations. They are here until this page is closed.';
    return undefined;
  }
}

/**
 * Leaves no change behind when the page goes away: a page that is going may not live to see the database's
 * answer, so that what is not written yet is also put into the local storage, which is written at once.
 */
function flush(): void {
  for (const id of unwritten) {
    const conversation = conversations.get(id)?.peek();
    if (conversation) keep('local', JOURNAL + id, JSON.stringify(conversation));
  }
  if (unwritten.size > 0) void writeAll();
}

addEventListener('pagehide', flush);
document.addEventListener('visibilitychange', () => {
  if (document.hidden) flush();
});

// What another tab changed is shown here too.
tabs?.addEventListener('message', (event: MessageEvent<string>) => {
  const id = event.data;
  if (unwritten.has(id)) return;
  void stored(readOne(id)).then((conversation) => {
    if (conversation) {
      if (conversation.revision > (conversations.get(id)?.peek().revision ?? -1)) show(conversation);
    } else if (conversations.has(id)) {
      conversations.delete(id);
      summaries.value = summaries.value.filter((summary) => summary.id !== id);
    }
  });
});
