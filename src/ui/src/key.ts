/** The API key: asked for when the server wants one, kept for the tab or on this device. */
import { batch, signal } from '@preact/signals';
import { keep, readKept, SCOPE } from './keep.ts';

const NAME = `sconce.key ${SCOPE}`;

export const apiKey = signal<string | null>(readKept('session', NAME) ?? readKept('local', NAME));

/** Whether the key is kept when the tab is closed. */
export const keyRemembered = signal(readKept('local', NAME) !== null);

/** How often a key was entered or forgotten: the same key again is worth another try. */
export const keyEntries = signal(0);

/** Why a key is asked for; null while the form is closed. */
export type KeyQuestion = 'missing' | 'unknown' | 'admin' | 'change';
export const keyQuestion = signal<KeyQuestion | null>(null);

export function setKey(key: string, remember: boolean): void {
  keep(remember ? 'session' : 'local', NAME, null);
  keep(remember ? 'local' : 'session', NAME, key);
  use(key, remember);
}

export function forgetKey(): void {
  keep('session', NAME, null);
  keep('local', NAME, null);
  use(null, false);
}

function use(key: string | null, remembered: boolean): void {
  batch(() => {
    apiKey.value = key;
    keyRemembered.value = remembered;
    keyEntries.value += 1;
  });
}

// A key that another tab remembers or forgets is remembered or forgotten here too, unless this tab has its own.
addEventListener('storage', ({ storageArea, key: name, oldValue, newValue }) => {
  if (storageArea !== localStorage || (name !== null && name !== NAME)) return;
  const own = readKept('session', NAME);
  if (newValue === null && (own === null || own === oldValue)) {
    keep('session', NAME, null);
    use(null, false);
  } else if (own === null) {
    use(newValue, true);
  }
});
