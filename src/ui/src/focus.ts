/** Where the focus goes when what had it is taken away. */

/** Moves the focus to an element once the page shows it. */
export function focusSoon(id: string): void {
  requestAnimationFrame(() => document.getElementById(id)?.focus());
}

/** Moves the focus to where the next message is written; where that would bring up a keyboard, or is not shown, to the content. */
export function focusMessage(): void {
  requestAnimationFrame(() => {
    const box = matchMedia('(pointer: fine)').matches ? document.getElementById('message') : null;
    (box ?? document.getElementById('main'))?.focus();
  });
}
