/** The way around the page: its two views, the conversations, the theme and the key. */
import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { signal } from '@preact/signals';
import { discard, writing } from './answering.ts';
import { serverInfo } from './api.ts';
import { focusSoon } from './focus.ts';
import { Icon, Mark, type IconName } from './icons.tsx';
import { keyQuestion } from './key.ts';
import { UNTITLED } from './model.ts';
import { IconButton } from './parts.tsx';
import { chatAddress, go, route } from './route.ts';
import { loaded, rename, search, summaries, type Summary } from './store.ts';
import { narrow, theme, THEMES, type Theme } from './theme.ts';

/** Whether the sidebar lies over a narrow window. */
export const drawerOpen = signal(false);

export function closeDrawer(): void {
  if (!drawerOpen.value) return;
  drawerOpen.value = false;
  focusSoon('menu');
}

const THEME_ICONS: Record<Theme, IconName> = { system: 'system', light: 'sun', dark: 'moon' };
const THEME_NAMES: Record<Theme, string> = { system: 'As the system', light: 'Light', dark: 'Dark' };

export function Sidebar(): JSX.Element {
  const panel = useRef<HTMLDivElement>(null);
  const open = drawerOpen.value;
  const hidden = narrow.value && !open;
  useEffect(() => {
    if (narrow.value && open) panel.current?.querySelector<HTMLElement>('button, a')?.focus();
  }, [open]);

  return (
    <div ref={panel} class={`sidebar ${open ? 'open' : ''}`} inert={hidden}>
      <header class="brand">
        <Mark />
        <span class="wordmark">sconce</span>
        {narrow.value && <IconButton icon="close" label="Close menu" onClick={closeDrawer} class="push" />}
      </header>
      <nav aria-label="Views" class="views">
        <ViewLink view="chat" icon="chat" name="Chat" address="#/chat" />
        <ViewLink view="dashboard" icon="chart" name="Dashboard" address="#/dashboard" />
      </nav>
      <Conversations />
      <footer class="sidebar-foot">
        <div class="themes" role="group" aria-label="Theme">
          {THEMES.map((name) => (
            <IconButton
              key={name}
              icon={THEME_ICONS[name]}
              label={THEME_NAMES[name]}
              pressed={theme.value === name}
              onClick={() => (theme.value = name)}
            />
          ))}
        </div>
        <IconButton
          icon="key"
          label="API key"
          text
          onClick={() => (keyQuestion.value = 'change')}
        />
        <p class="server">
          {serverInfo.value && `${serverInfo.value.modelId} · ${serverInfo.value.version} · `}
          <a href="./licenses.txt" target="_blank" rel="noopener">
            Licences
          </a>
        </p>
      </footer>
    </div>
  );
}

function ViewLink(props: { view: 'chat' | 'dashboard'; icon: IconName; name: string; address: string }): JSX.Element {
  return (
    <a href={props.address} aria-current={route.value.view === props.view ? 'page' : undefined} onClick={closeDrawer}>
      <Icon name={props.icon} />
      {props.name}
    </a>
  );
}

function Conversations(): JSX.Element {
  const [words, setWords] = useState('');
  const found = search(words);
  return (
    <section class="conversations" aria-label="Conversations">
      <button
        id="new-conversation"
        type="button"
        class="button new"
        onClick={() => {
          go('#/chat');
          closeDrawer();
          focusSoon('message');
        }}
      >
        <Icon name="plus" />
        {UNTITLED}
      </button>
      {summaries.value.length > 3 && (
        <label class="search">
          <span class="sr-only">Search conversations</span>
          <Icon name="search" />
          <input type="search" placeholder="Search" value={words} onInput={(event) => setWords(event.currentTarget.value)} />
        </label>
      )}
      <ul class="list" tabIndex={found.length > 0 ? undefined : -1}>
        {found.map((summary) => (
          <Line key={summary.id} summary={summary} />
        ))}
      </ul>
      {loaded.value && found.length === 0 && (
        <p class="hint">{words === '' ? 'Conversations are kept in this browser only.' : 'Nothing found.'}</p>
      )}
    </section>
  );
}

/** One conversation of the list. */
function Line({ summary }: { summary: Summary }): JSX.Element {
  const [renaming, setRenaming] = useState(false);
  const { id, title } = summary;
  const current = route.value.view === 'chat' && route.value.id === id;

  if (renaming) {
    return (
      <li>
        <RenameField
          title={title}
          done={(name, byKey) => {
            if (name !== null) rename(id, name);
            setRenaming(false);
            if (byKey) focusSoon(`conversation-${id}`);
          }}
        />
      </li>
    );
  }
  return (
    <li class={current ? 'current' : ''}>
      <a id={`conversation-${id}`} href={chatAddress(id)} aria-current={current ? 'true' : undefined} onClick={closeDrawer} title={title}>
        {writing.value.has(id) && <span class="pulse" role="img" aria-label="Being answered" />}
        <span class="cut">{title}</span>
      </a>
      <span class="line-actions">
        <IconButton icon="edit" label={`Rename ${title}`} onClick={() => setRenaming(true)} />
        <IconButton
          icon="trash"
          label={`Delete ${title}`}
          onClick={() => {
            discard(id);
            if (current) go('#/chat');
            focusSoon('new-conversation');
          }}
        />
      </span>
    </li>
  );
}

function RenameField({ title, done }: { title: string; done: (name: string | null, byKey: boolean) => void }): JSX.Element {
  const input = useRef<HTMLInputElement>(null);
  // Taking the field away takes the focus from it, which is no second end.
  const ended = useRef(false);
  const end = (name: string | null, byKey: boolean): void => {
    if (!ended.current) done(name, byKey);
    ended.current = true;
  };
  useEffect(() => input.current?.select(), []);
  return (
    <input
      ref={input}
      class="rename"
      aria-label="Name of the conversation"
      defaultValue={title}
      onBlur={(event) => end(event.currentTarget.value, false)}
      onKeyDown={(event) => {
        if (event.isComposing) return;
        if (event.key === 'Enter') end(event.currentTarget.value, true);
        if (event.key === 'Escape') {
          event.stopPropagation();
          end(null, true);
        }
      }}
    />
  );
}

/** Opens the sidebar of a narrow window. */
export function MenuButton(): JSX.Element | null {
  if (!narrow.value) return null;
  return <IconButton id="menu" icon="menu" label="Menu" expanded={drawerOpen.value} onClick={() => (drawerOpen.value = true)} />;
}
