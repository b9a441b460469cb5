/** Short messages to the reader: spoken ones for screen readers, and notices at the window's edge. */
import { signal } from '@preact/signals';
import { focusMessage } from './focus.ts';

/** Read out by screen readers, politely. */
export const spoken = signal('');

export function say(text: string): void {
  // The same text twice would not be read out again: a no-break space makes it another one.
  spoken.value = spoken.value === text ? `${text}\u00a0` : text;
}

export interface Notice {
  text: string;
  action: string;
  run: () => void;
}

/** What was just done and can be undone. */
export const notice = signal<Notice | null>(null);
let timer: ReturnType<typeof setTimeout> | undefined;

export function notify(text: string, action: string, run: () => void): void {
  clearTimeout(timer);
  notice.value = { text, action, run };
  timer = setTimeout(dismiss, 10_000);
}

export function dismiss(): void {
  clearTimeout(timer);
  if (document.activeElement?.closest('.notice')) focusMessage();
  notice.value = null;
}
