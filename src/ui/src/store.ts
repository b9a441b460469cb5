/**
 * The conversations: in memory as signals, and in the browser's database. A conversation is never changed
 * in place, so that what did not change is not drawn again.
 */
import { batch, signal, type Signal } from '@preact/signals';
import { readAll, readOne, remove, write } from './database.ts';
import { keep, namesKept, readKept, SCOPE } from './keep.ts';
import { merge, settled, sizeOf } from './merge.ts';
import { newConversation, newId, titleOf, type Conversation, type Message } from './model.ts';
import { dismiss, notify } from './say.ts';

/** A line of the list of conversations. */
export interface Summary {
  id: string;
  title: string;
  updatedMs: number;
}

const conversations = new Map<string, Signal<Conversation>>();
/** How many were taken out of these: a conversation's own signal cannot tell that it is gone. */
const removals = signal(0);

/** All conversations, the latest first. */
export const summaries = signal<Summary[]>([]);

/** Whether the conversations kept in the browser were read. */
export const loaded = signal(false);

/** Why conversations cannot be kept; null while they can. */
export const keepingProblem = signal<string | null>(null);

/** The empty conversation that a first message turns into a real one. */
export const blank = signal(newConversation());

const WRITE_EVERY_MS = 400;
/** A long conversation takes longer to write, and is written less often: so many milliseconds a character. */
const WRITE_MS_PER_CHARACTER = 1 / 20;
const WRITE_AT_LEAST_EVERY_MS = 3_000;
/** When the browser kept nothing, it may later. */
const WRITE_AGAIN_MS = 5_000;

/** Conversations that are not in the database as they are here, those removed included. */
const unwritten = new Set<string>();
/** What is known to be in the database: the very object that is in memory, unless that changed since. */
const bases = new Map<string, Conversation>();
/** What could not be kept, and why. */
const failures = new Map<string, unknown>();
/** Whether what the browser keeps could not be read. */
let unreadable = false;
let timer: ReturnType<typeof setTimeout> | undefined;
let busy = false;
const tabs = 'BroadcastChannel' in globalThis ? new BroadcastChannel(`sconce ${SCOPE}`) : null;

export function find(id: string): Conversation | undefined {
  void removals.value;
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

/** Replaces one message without moving the conversation in the list. One that is gone stays gone. */
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
  forget(id);
  unwritten.add(id);
  void writeAll();
  notify(`“${old.title}” was deleted.`, 'Undo', () => {
    show(settled({ ...old, revision: old.revision + 1 }));
    writeSoon(id);
    dismiss();
  });
}

/** Takes a conversation out of memory. */
function forget(id: string): void {
  batch(() => {
    conversations.delete(id);
    bases.delete(id);
    unwritten.delete(id);
    removals.value += 1;
    summaries.value = summaries.value.filter((summary) => summary.id !== id);
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

/** What a page that goes away leaves of a conversation that it could not write any more. */
interface Journal {
  /** Null if it was removed. */
  conversation: Conversation | null;
  /** What was known to be in the database: its revision and its messages' ids; null if nothing was. */
  base: { revision: number; ids: string[] } | null;
}

const JOURNAL = `sconce.journal ${SCOPE} `;
const TAKE_OVER_AFTER_MS = 1_000;
/** Each page has journals of its own. */
const PAGE = newId();
/** The journals that are done with once a conversation is written. */
const journals = new Map<string, Set<string>>();

/** Reads what was kept. An answer that was being written when the page was left is marked as interrupted. */
export async function load(): Promise<void> {
  const found = new Map<string, Conversation>();
  try {
    for (const conversation of await readAll()) found.set(conversation.id, conversation);
  } catch {
    keepingProblem.value =
      'The conversations that this browser keeps cannot be read. Load the page again to try once more; what is new may be lost when it is closed.';
    unreadable = true;
  }
  const changed = new Map<string, Conversation | null>();
  for (const name of unreadable ? [] : namesKept('local', JOURNAL)) {
    const id = idOf(name);
    const journal = parse(readKept('local', name));
    const theirs = changed.has(id) ? changed.get(id) : found.get(id);
    const recovered = journal && theirs !== null ? recover(journal, theirs) : undefined;
    if (recovered === undefined) {
      keep('local', name, null);
      continue;
    }
    changed.set(id, recovered);
    noteJournal(id, name);
  }
  batch(() => {
    for (const id of new Set([...found.keys(), ...changed.keys()])) {
      // What was changed before this was read is newer.
      if (conversations.has(id)) continue;
      const kept = found.get(id);
      const conversation = changed.has(id) ? changed.get(id) : kept;
      const shown = conversation && settled(conversation);
      if (shown) show(shown);
      if (kept && shown) bases.set(id, changed.has(id) ? kept : shown);
      if (changed.has(id)) unwritten.add(id);
    }
    loaded.value = true;
  });
  if (unwritten.size > 0) void writeAll();
}

/** What a journal makes of the conversation that is kept: null removes it, and undefined leaves it alone. */
function recover({ conversation, base }: Journal, kept: Conversation | undefined): Conversation | null | undefined {
  if (conversation === null) return kept && null;
  if (kept === undefined) return base === null ? conversation : undefined;
  if (base === null) return merge(undefined, conversation, kept);
  if (kept.revision === base.revision) return conversation;
  const ids = new Set(base.ids);
  const known = [...kept.messages, ...conversation.messages].filter(({ id }) => ids.has(id));
  const messages = [...new Map(known.reverse().map((message) => [message.id, message])).values()];
  return merge({ ...kept, messages, revision: base.revision }, conversation, kept);
}

function parse(text: string | null): Journal | null {
  try {
    const journal = JSON.parse(text ?? 'null') as Partial<Journal> | null;
    return journal?.conversation === undefined || journal.base === undefined ? null : (journal as Journal);
  } catch {
    return null;
  }
}

const idOf = (journal: string): string => journal.slice(JOURNAL.length).split(' ')[0] ?? '';

/** Keeps what another page left when it went away, which could not write it any more. */
async function takeOver(name: string): Promise<void> {
  const id = idOf(name);
  const journal = parse(readKept('local', name));
  if (journal === null || !loaded.peek()) return;
  const kept = await readOne(id);
  // What changed here too comes first; the journal is still there the next time that the page is loaded.
  if (unwritten.has(id)) return;
  const recovered = recover(journal, kept);
  noteJournal(id, name);
  if (recovered === undefined) {
    dropJournals(id);
    return;
  }
  if (recovered === null) forget(id);
  else show(settled(recovered));
  if (recovered && kept) bases.set(id, kept);
  writeSoon(id);
}

// A page that stays writes at once what it also puts there, and takes it away again.
addEventListener('storage', ({ key, newValue }) => {
  if (key?.startsWith(JOURNAL) && newValue !== null) setTimeout(() => takeOver(key).catch(() => undefined), TAKE_OVER_AFTER_MS);
});

function noteJournal(id: string, name: string): void {
  journals.set(id, (journals.get(id) ?? new Set()).add(name));
}

function writeJournal(id: string): void {
  const conversation = conversations.get(id)?.peek() ?? null;
  const base = bases.get(id);
  const known = base ? { revision: base.revision, ids: base.messages.map((message) => message.id) } : null;
  const name = `${JOURNAL}${id} ${PAGE}`;
  if (keep('local', name, JSON.stringify({ conversation, base: known } satisfies Journal))) noteJournal(id, name);
}

function dropJournals(id: string): void {
  for (const name of journals.get(id) ?? []) keep('local', name, null);
  journals.delete(id);
}

function writeSoon(id: string): void {
  unwritten.add(id);
  schedule();
}

function schedule(): void {
  if (busy || timer !== undefined || unwritten.size === 0) return;
  const sizes = [...unwritten].map((id) => conversations.get(id)?.peek()).map((conversation) => (conversation ? sizeOf(conversation) : 0));
  const pause = Math.min(WRITE_AT_LEAST_EVERY_MS, Math.max(WRITE_EVERY_MS, WRITE_MS_PER_CHARACTER * Math.max(...sizes)));
  timer = setTimeout(() => void writeAll(), failures.size > 0 ? WRITE_AGAIN_MS : pause);
}

async function writeAll(): Promise<void> {
  clearTimeout(timer);
  timer = undefined;
  if (busy) return;
  busy = true;
  for (const id of [...unwritten]) {
    try {
      await writeOne(id);
      failures.delete(id);
      tabs?.postMessage(id);
    } catch (error) {
      failures.set(id, error);
    }
    explain();
  }
  busy = false;
  schedule();
}

/** Brings what is here and what is in the database together. */
async function writeOne(id: string): Promise<void> {
  const mine = conversations.get(id)?.peek();
  if (mine === undefined) {
    await remove(id);
    if (!conversations.has(id)) unwritten.delete(id);
  } else {
    const base = bases.get(id);
    // What was in the database and is no longer was deleted by another tab: that wins.
    const written = await write(id, (kept) => (kept ? merge(base, mine, kept) : base ? undefined : mine));
    const now = conversations.get(id)?.peek();
    if (now !== undefined && bases.get(id) === base) {
      if (written === undefined) {
        forget(id);
      } else {
        if (now === mine) unwritten.delete(id);
        bases.set(id, written);
        show(now === mine ? written : merge(mine, now, written));
      }
    }
  }
  // A journal that was written meanwhile may say more.
  const again = journals.has(id) && unwritten.has(id);
  dropJournals(id);
  if (again) writeJournal(id);
}

/** Says what cannot be kept, until it is. */
function explain(): void {
  if (unreadable) return;
  const error = [...failures.values()].at(-1);
  const full = error instanceof DOMException && error.name === 'QuotaExceededError';
  const words = full
    ? 'The browser has no room left for conversations. What is new is here until this page is closed: delete conversations to make room.'
    : 'The browser does not let this page keep conversations. They are here until this page is closed.';
  keepingProblem.value = failures.size === 0 ? null : words;
}

/**
 * Leaves no change behind when the page goes away: a page that is going may not live to see the database's
 * answer, so that what is not written yet is also put into the local storage, which is written at once.
 */
function flush(): void {
  for (const id of unwritten) writeJournal(id);
  if (unwritten.size > 0) void writeAll();
}

addEventListener('pagehide', flush);
document.addEventListener('visibilitychange', () => {
  if (document.hidden) flush();
});

// What another tab changed is shown here too.
tabs?.addEventListener('message', (event: MessageEvent<string>) => {
  const id = event.data;
  // What changed here too is brought together when it is written.
  if (unwritten.has(id) || !loaded.peek()) return;
  readOne(id).then(
    (kept) => {
      if (unwritten.has(id)) return;
      const mine = conversations.get(id)?.peek();
      if (kept === undefined) {
        if (mine !== undefined) forget(id);
        return;
      }
      const next = mine ? merge(bases.get(id), mine, kept) : kept;
      bases.set(id, next);
      show(next);
    },
    () => undefined,
  );
});
