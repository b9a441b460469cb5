/** The conversations in the browser's IndexedDB. */
import { SCOPE } from './keep.ts';
import type { Conversation } from './model.ts';

const STORE = 'conversations';

let opening: Promise<IDBDatabase> | null = null;

function open(): Promise<IDBDatabase> {
  if (opening) return opening;
  const mine = new Promise<IDBDatabase>((resolve, reject) => {
    const request = indexedDB.open(`sconce ${SCOPE}`, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id' });
    request.onerror = () => reject(request.error ?? new Error('IndexedDB cannot be opened'));
    request.onsuccess = () => {
      const database = request.result;
      database.onclose = reopen;
      database.onversionchange = () => {
        database.close();
        reopen();
      };
      resolve(database);
    };
  });
  // What failed once or was closed by the browser is opened anew the next time.
  const reopen = (): void => {
    if (opening === mine) opening = null;
  };
  mine.catch(reopen);
  opening = mine;
  return mine;
}

/** Works in a transaction of its own, and waits until what it changed is written. */
async function run<T>(mode: IDBTransactionMode, work: (store: IDBObjectStore, result: (value: T) => void) => void): Promise<T | undefined> {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    let found: T | undefined;
    transaction.oncomplete = () => resolve(found);
    transaction.onabort = () => reject(transaction.error ?? new Error('The browser did not keep it'));
    work(transaction.objectStore(STORE), (value) => {
      found = value;
    });
  });
}

export async function readAll(): Promise<Conversation[]> {
  const read = await run<Conversation[]>('readonly', (store, result) => {
    const request = store.getAll() as IDBRequest<Conversation[]>;
    request.onsuccess = () => result(request.result);
  });
  return read ?? [];
}

export function readOne(id: string): Promise<Conversation | undefined> {
  return run<Conversation>('readonly', (store, result) => {
    const request = store.get(id) as IDBRequest<Conversation>;
    request.onsuccess = () => result(request.result);
  });
}

/**
 * Writes what `next` makes of the conversation that is kept, with nobody between the two; nothing if it makes
 * nothing. Gives what is kept then.
 */
export function write(id: string, next: (kept: Conversation | undefined) => Conversation | undefined): Promise<Conversation | undefined> {
  return run<Conversation>('readwrite', (store, result) => {
    const request = store.get(id) as IDBRequest<Conversation | undefined>;
    request.onsuccess = () => {
      const conversation = next(request.result);
      if (conversation === undefined) return;
      result(conversation);
      store.put(conversation);
    };
  });
}

export async function remove(id: string): Promise<void> {
  await run('readwrite', (store) => store.delete(id));
}
