/** Light, dark or as the system has it. */
import { effect, signal } from '@preact/signals';
import { keep, readKept } from './keep.ts';

export type Theme = 'system' | 'light' | 'dark';
export const THEMES: readonly Theme[] = ['system', 'light', 'dark'];
const NAME = 'sconce.theme';

const kept = readKept('local', NAME);
export const theme = signal<Theme>(THEMES.find((known) => known === kept) ?? 'system');

const systemDark = matchMedia('(prefers-color-scheme: dark)');
/** Whether the page is dark now, for what is not drawn by the style sheet. */
export const dark = signal(false);

function apply(): void {
  document.documentElement.dataset['theme'] = theme.value;
  dark.value = theme.value === 'dark' || (theme.value === 'system' && systemDark.matches);
}

systemDark.addEventListener('change', apply);
effect(() => {
  keep('local', NAME, theme.value === 'system' ? null : theme.value);
  apply();
});

const narrowQuery = matchMedia('(max-width: 860px)');
/** Whether the window is too narrow for panels beside each other. */
export const narrow = signal(narrowQuery.matches);
narrowQuery.addEventListener('change', () => {
  narrow.value = narrowQuery.matches;
});
