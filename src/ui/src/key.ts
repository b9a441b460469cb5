/** The API key: asked for when the server wants one, kept for the tab or on this device. */
import { signal } from '@preact/signals';
import { keep, readKept } from './keep.ts';

const NAME = 'sconce.key';

export const apiKey = signal<string | null>(readKept('session', NAME) ?? readKept('local', NAME));

/** Whether the key is kept when the tab is closed. */
export const keyRemembered = signal(readKept('local', NAME) !== null);

/** Why a key is asked for; null while the form is closed. */
export type KeyQuestion = 'missing' | 'unknown' | 'admin' | 'change';
export const keyQuestion = signal<KeyQuestion | null>(null);

export function setKey(key: string, remember: boolean): void {
  forgetKey();
  keep(remember ? 'local' : 'session', NAME, key);
  apiKey.value = key;
  keyRemembered.value = remember;
}

export function forgetKey(): void {
  keep('session', NAME, null);
  keep('local', NAME, null);
  apiKey.value = null;
  keyRemembered.value = false;
}
