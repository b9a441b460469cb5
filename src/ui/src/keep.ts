/** The browser's small storages, which may be missing, full or forbidden. */

/** Servers behind different path prefixes of one host keep what is theirs apart. */
export const SCOPE = new URL('../', document.baseURI).pathname;

export function readKept(storage: 'local' | 'session', name: string): string | null {
  try {
    return area(storage).getItem(name);
  } catch {
    return null;
  }
}

/** Keeps a text, or removes it with null. Says whether that worked. */
export function keep(storage: 'local' | 'session', name: string, value: string | null): boolean {
  try {
    if (value === null) area(storage).removeItem(name);
    else area(storage).setItem(name, value);
    return true;
  } catch {
    return false;
  }
}

/** The names kept that begin with a prefix. */
export function namesKept(storage: 'local' | 'session', prefix: string): string[] {
  try {
    return Object.keys(area(storage)).filter((name) => name.startsWith(prefix));
  } catch {
    return [];
  }
}

function area(storage: 'local' | 'session'): Storage {
  return storage === 'local' ? localStorage : sessionStorage;
}
