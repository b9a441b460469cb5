/** The conversations in the browser's IndexedDB. */
import type { Conversation } from './model.ts';

const STORE = 'conversations';
/** Servers behind different path prefixes of one host keep their conversations apart. */
export const SCOPE = new URL('../', document.baseURI).pathname;

let opening: Promise<IDBDatabase> | null = null;

function open(): Promise<IDBDatabase> {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(`sconce ${SCOPE}`, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id' });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error('IndexedDB cannot be opened'));
  });
  return opening;
}

/** Runs one request in a transaction of its own, and waits until what it changed is written. */
async function run<T>(mode: IDBTransactionMode, ask: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = ask(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error ?? new Error('The browser did not keep it'));
    transaction.onerror = () => reject(transaction.error ?? new Error('The browser did not keep it'));
  });
}

export const readAll = (): Promise<Conversation[]> => run('readonly', (store) => store.getAll());

export const readOne = (id: string): Promise<Conversation | undefined> => run('readonly', (store) => store.get(id));

export async function write(conversation: Conversation): Promise<void> {
  await run('readwrite', (store) => store.put(conversation));
}

export async function remove(id: string): Promise<void> {
  await run('readwrite', (store) => store.delete(id));
}
