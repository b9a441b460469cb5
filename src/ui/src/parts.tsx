/** Small parts that several views use. */
import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { copyText } from './copying.ts';
import { Icon, type IconName } from './icons.tsx';
import { say } from './say.ts';

interface IconButtonProps {
  icon: IconName;
  label: string;
  onClick: (event: MouseEvent) => void;
  pressed?: boolean;
  expanded?: boolean;
  /** Shows the label beside the drawing. */
  text?: boolean;
  id?: string;
  class?: string;
}

/** A button with a drawing, named by its label. */
export function IconButton({ id, icon, label, onClick, pressed, expanded, text, class: extra }: IconButtonProps): JSX.Element {
  return (
    <button
      id={id}
      type="button"
      class={`icon-button ${text ? 'with-text' : ''} ${extra ?? ''}`}
      aria-label={text ? undefined : label}
      title={text ? undefined : label}
      aria-pressed={pressed}
      aria-expanded={expanded}
      onClick={onClick}
    >
      <Icon name={icon} />
      {text && <span>{label}</span>}
    </button>
  );
}

/** Copies a text, and shows for a moment that it did. */
export function CopyButton({ text, label }: { text: string; label: string }): JSX.Element {
  const [copied, setCopied] = useState(false);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = async (): Promise<void> => {
    const done = await copyText(text);
    say(done ? 'Copied' : 'The browser does not allow copying');
    setCopied(done);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setCopied(false), 1500);
  };
  return <IconButton icon={copied ? 'check' : 'copy'} label={label} onClick={() => void copy()} />;
}

/** Something that the reader should know, with what can be done about it. */
export function Banner({ tone, children }: { tone: 'warn' | 'error' | 'quiet'; children: ComponentChildren }): JSX.Element {
  return (
    <div class={`banner ${tone}`} role={tone === 'error' ? 'alert' : 'status'}>
      <Icon name="warn" />
      <div class="banner-text">{children}</div>
    </div>
  );
}

/** A bar filled to a share of 0 to 100. What it shows stands beside it in words. */
export function Meter({ share, tone }: { share: number; tone?: 'warn' | 'bad' }): JSX.Element {
  return (
    <span class={`meter ${tone ?? ''}`} aria-hidden="true">
      <span style={{ width: `${Math.min(100, Math.max(0, share))}%` }} />
    </span>
  );
}
