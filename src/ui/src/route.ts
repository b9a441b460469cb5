/** What the address asks for: `#/chat`, `#/chat/<id>` or `#/dashboard`. */
import { signal } from '@preact/signals';

export type Route = { view: 'chat'; id: string | null } | { view: 'dashboard' };

function read(): Route {
  const [, view, id] = location.hash.split('/');
  if (view === 'dashboard') return { view: 'dashboard' };
  return { view: 'chat', id: id ? decoded(id) : null };
}

/** An address may be anything that somebody typed. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const route = signal<Route>(read());

addEventListener('hashchange', () => {
  route.value = read();
});

export const chatAddress = (id: string): string => `#/chat/${id}`;

export function go(address: string): void {
  location.hash = address;
}

/** Goes there without a step in the browser's history. */
export function replaceAddress(address: string): void {
  history.replaceState(null, '', address);
  route.value = read();
}
