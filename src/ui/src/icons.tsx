/** Small drawings in the colour of the text around them. They mean nothing to a screen reader: names stand beside them. */
import type { JSX } from 'preact';

const PATHS = {
  plus: 'M8 3v10M3 8h10',
  chat: 'M2.5 4.500a1.500 1.500 0 0 1 1.500-1.500h8a1.500 1.500 0 0 1 1.500 1.500v5a1.500 1.500 0 0 1-1.500 1.500H7l-3 2.500V11a1.500 1.500 0 0 1-1.500-1.500z',
  chart: 'M2.500 13.500h11M4.500 11V8M8 11V3.500M11.500 11V6',
  search: 'M7 11.500a4.500 4.500 0 1 0 0-9 4.500 4.500 0 0 0 0 9zM10.500 10.500l3 3',
  send: 'M8 13V3.500M4 7.200 8 3.200l4 4',
  stop: 'M5 5h6v6H5z',
  retry: 'M13 8a5 5 0 1 1-1.600-3.700M13 2.500v3h-3',
  edit: 'M3 13l.6-2.800 7.200-7.200 2.200 2.200-7.200 7.200z',
  copy: 'M5.500 5.500h7v7h-7zM10.500 3.500h-7v7',
  check: 'M3.500 8.500l3 3 6-7',
  trash: 'M3 4.500h10M6.500 4.500V3h3v1.500M4.500 4.500l.5 8.500h6l.5-8.500',
  close: 'M4 4l8 8M12 4l-8 8',
  menu: 'M2.500 4.500h11M2.500 8h11M2.500 11.500h11',
  sliders: 'M2.500 5h6M11.500 5h2M2.500 11h2M7.500 11h6M10 3.500v3M6 9.500v3',
  down: 'M8 3v9.500M4 8.700l4 4 4-4',
  right: 'M6 3.500 10.500 8 6 12.500',
  key: 'M10.500 2.500a3 3 0 1 1-2.600 4.500L3 12v1.500h2V12h1.500v-1.500M11 5h.01',
  tool: 'M10.200 2.700a3.200 3.200 0 0 0-3.900 4.200L2.700 10.500a1.500 1.500 0 0 0 2.800 2.800l3.600-3.600a3.200 3.200 0 0 0 4.200-3.900L11.500 7.500 9 7 8.500 4.500z',
  shade: 'M2.500 12.500h11M4 9.500 6.500 3h.5L9.500 9.500M5 7.500h3.500M11 9.500h2.500',
  warn: 'M8 2.500 14 13H2zM8 6.500v3M8 11.200v.01',
  ok: 'M8 13.500a5.500 5.500 0 1 0 0-11 5.500 5.500 0 0 0 0 11zM5.500 8.200l1.800 1.800 3.200-3.800',
  pause: 'M8 13.500a5.500 5.500 0 1 0 0-11 5.500 5.500 0 0 0 0 11zM6.500 6v4M9.500 6v4',
  cross: 'M5.700 2.500h4.600l3.200 3.200v4.600l-3.200 3.200H5.700l-3.200-3.200V5.700zM6 6l4 4M10 6l-4 4',
  clock: 'M8 13.500a5.500 5.500 0 1 0 0-11 5.500 5.500 0 0 0 0 11zM8 5v3.200l2 1.300',
  system: 'M2.500 3.500h11v7h-11zM6 13h4M8 10.500V13',
  sun: 'M8 10.500a2.500 2.500 0 1 0 0-5 2.500 2.500 0 0 0 0 5zM8 1.500v1.200M8 13.300v1.200M1.500 8h1.200M13.300 8h1.200M3.400 3.400l.9.9M11.700 11.700l.9.9M3.400 12.600l.9-.9M11.700 4.300l.9-.9',
  moon: 'M13 9.700A5.500 5.500 0 1 1 6.300 3a4.500 4.500 0 0 0 6.700 6.700z',
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }): JSX.Element {
  return (
    <svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}

/** The flame of the product's mark. */
export function Mark(): JSX.Element {
  return (
    <svg class="mark" viewBox="0 0 32 32" width="22" height="22" aria-hidden="true" focusable="false">
      <path class="mark-flame" d="M16 2c4 4.300 6.200 7.600 6.200 10.800a6.200 6.200 0 0 1-12.400 0C9.800 9.600 12 6.300 16 2z" />
      <path class="mark-stand" d="M8 21.500h16l-2.500 3.500h-3.700V30h-3.600v-5h-3.700z" />
    </svg>
  );
}
