/** The chat: one conversation, and where the next message is written. */
import type { JSX } from 'preact';
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { AnswerMessage, ShadingLegend } from './answer.tsx';
import { edit, send, stop, writing } from './answering.ts';
import { loadServerInfo, serverInfo, serverProblem, serverState } from './api.ts';
import { Composer, maySend } from './composer.tsx';
import { focusMessage, focusSoon } from './focus.ts';
import { Icon } from './icons.tsx';
import { keyQuestion } from './key.ts';
import type { Conversation, Message, ToolMessage, UserMessage } from './model.ts';
import { Banner, CopyButton, IconButton } from './parts.tsx';
import { chatAddress, replaceAddress, route } from './route.ts';
import { settingsOpen, SettingsPanel } from './settings.tsx';
import { MenuButton } from './sidebar.tsx';
import { blank, change, find, keepingProblem, loaded } from './store.ts';
import { narrow } from './theme.ts';
import { Welcome } from './welcome.tsx';

export function ChatView(): JSX.Element {
  const id = route.value.view === 'chat' ? route.value.id : null;
  if (id !== null && !loaded.value) return <main id="main" class="view" tabIndex={-1} aria-busy="true" />;
  const conversation = id === null ? blank.value : find(id);
  if (conversation === undefined) return <Missing />;
  return <ChatOf key={conversation.id} conversation={conversation} />;
}

function Missing(): JSX.Element {
  return (
    <main id="main" class="view" tabIndex={-1}>
      <header class="bar">
        <MenuButton />
        <h1 class="cut">Not here</h1>
      </header>
      <div class="welcome">
        <p>There is no such conversation in this browser. It may have been deleted, or made in another browser.</p>
        <p>
          <a href="#/chat">Begin a new one</a>
        </p>
      </div>
    </main>
  );
}

function ChatOf({ conversation }: { conversation: Conversation }): JSX.Element {
  const { id, settings, title, messages } = conversation;
  const panel = settingsOpen.value;
  useTitle(title);

  const begun = (): void => {
    if (route.peek().view === 'chat' && messages.length === 0) replaceAddress(chatAddress(id));
  };
  const ask = (text: string, values: Partial<typeof settings>): void => {
    change(id, (old) => ({ settings: { ...old.settings, ...values } }));
    const changed = find(id);
    if (!changed || !maySend(changed)) return;
    send(id, text);
    begun();
    focusMessage();
  };

  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      if (event.key !== 'Escape' || event.defaultPrevented || event.isComposing || keyQuestion.peek() !== null) return;
      if (isOtherField(event.target) || !writing.peek().has(id)) return;
      stop(id);
      // The button that stops goes away.
      if (document.activeElement?.matches('.stop')) focusMessage();
    };
    addEventListener('keydown', onKey);
    return () => removeEventListener('keydown', onKey);
  }, [id]);

  return (
    <div class={`chat ${panel ? 'with-settings' : ''}`}>
      <main id="main" class="view" tabIndex={-1} inert={panel && narrow.value}>
        <header class="bar">
          <MenuButton />
          <h1 class="cut">{title}</h1>
          <div class="bar-actions">
            <IconButton
              icon="shade"
              label="Confidence"
              text={!narrow.value}
              pressed={settings.confidence}
              onClick={() => change(id, (old) => ({ settings: { ...old.settings, confidence: !old.settings.confidence } }))}
            />
            <IconButton
              id="open-settings"
              icon="sliders"
              label="Settings"
              text={!narrow.value}
              expanded={panel}
              onClick={() => (settingsOpen.value = !panel)}
            />
          </div>
        </header>
        <Thread conversation={conversation} ask={ask} />
        <div class="dock">
          <Problems />
          {settings.confidence && <ShadingLegend />}
          <Composer conversation={conversation} sent={begun} />
        </div>
      </main>
      {panel && <SettingsPanel conversation={conversation} />}
    </div>
  );
}

/** Whether something else than a message is written there, where Escape has a meaning of its own. */
function isOtherField(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && target.id !== 'message' && (target.isContentEditable || target.matches('input, textarea, select'));
}

function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · sconce`;
  }, [title]);
}

/** What keeps the page from working as it should. */
function Problems(): JSX.Element | null {
  const state = serverState.value;
  return (
    <>
      {keepingProblem.value && <Banner tone="warn">{keepingProblem.value}</Banner>}
      {state === 'unreachable' && (
        <Banner tone="error">
          {serverProblem.value}{' '}
          <button type="button" class="text-button" onClick={() => void loadServerInfo()}>
            Try again
          </button>
        </Banner>
      )}
      {state === 'locked' && (
        <Banner tone="warn">
          This server asks for a key.{' '}
          <button type="button" class="text-button" onClick={() => (keyQuestion.value = 'missing')}>
            Enter a key
          </button>
        </Banner>
      )}
    </>
  );
}

interface ThreadProps {
  conversation: Conversation;
  ask: Parameters<typeof Welcome>[0]['ask'];
}

/** The messages. New text is followed as long as the reader is at the end. */
function Thread({ conversation, ask }: ThreadProps): JSX.Element {
  const { messages } = conversation;
  const scroller = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  const [away, setAway] = useState(false);
  const count = messages.length;

  const toEnd = (smooth: boolean): void => {
    const element = scroller.current;
    element?.scrollTo({ top: element.scrollHeight, behavior: smooth ? 'smooth' : 'instant' });
  };
  // A new message is always shown: it is the reader's own, or the answer to it.
  useLayoutEffect(() => {
    following.current = true;
    toEnd(false);
  }, [count]);
  useLayoutEffect(() => {
    if (following.current) toEnd(false);
  });
  useEffect(() => {
    const element = scroller.current;
    if (!element) return;
    const observer = new ResizeObserver(() => {
      if (following.current) toEnd(false);
    });
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  const onScroll = (event: Event): void => {
    if (!(event.currentTarget instanceof HTMLElement)) return;
    const { scrollHeight, scrollTop, clientHeight } = event.currentTarget;
    following.current = scrollHeight - scrollTop - clientHeight < 40;
    setAway(!following.current);
  };

  return (
    <div class="thread-frame">
      <div ref={scroller} class="thread" onScroll={onScroll} tabIndex={0} role="region" aria-label="Messages">
        {messages.length === 0 ? <Welcome ask={ask} /> : <Messages conversation={conversation} />}
      </div>
      {away && (
        <button
          type="button"
          class="to-end"
          onClick={() => {
            following.current = true;
            setAway(false);
            toEnd(!matchMedia('(prefers-reduced-motion: reduce)').matches);
          }}
        >
          <Icon name="down" />
          Jump to latest
        </button>
      )}
    </div>
  );
}

function Messages({ conversation }: { conversation: Conversation }): JSX.Element {
  const { id, messages, settings } = conversation;
  const severalModels = (serverInfo.value?.models.length ?? 0) > 1;
  return (
    <ol class="messages">
      {messages.map((message, at) => {
        if (message.role === 'tool') return null;
        return (
          <li key={message.id}>
            <h2 class="sr-only">{message.role === 'user' ? 'You' : 'Answer'}</h2>
            {message.role === 'user' ? (
              <Question conversation={conversation} message={message} />
            ) : (
              <AnswerMessage
                conversation={id}
                answer={message}
                results={resultsAfter(messages, at)}
                last={at === messages.length - 1}
                shaded={settings.confidence}
                showModel={severalModels}
              />
            )}
          </li>
        );
      })}
    </ol>
  );
}

function resultsAfter(messages: Message[], at: number): ToolMessage[] {
  const results: ToolMessage[] = [];
  for (const message of messages.slice(at + 1)) {
    if (message.role !== 'tool') break;
    results.push(message);
  }
  return results;
}

/** What the reader asked; it can be changed. */
function Question({ conversation, message }: { conversation: Conversation; message: UserMessage }): JSX.Element {
  const [editing, setEditing] = useState(false);
  if (editing) {
    return (
      <EditQuestion
        text={message.text}
        cancel={() => {
          setEditing(false);
          focusSoon(`edit-${message.id}`);
        }}
        done={(text) => {
          if (!maySend(conversation)) return;
          edit(conversation.id, message.id, text);
          focusMessage();
        }}
      />
    );
  }
  return (
    <div class="question" data-testid="question">
      <div class="bubble">{message.text}</div>
      <div class="actions">
        <CopyButton text={message.text} label="Copy" />
        <IconButton id={`edit-${message.id}`} icon="edit" label="Edit" onClick={() => setEditing(true)} />
      </div>
    </div>
  );
}

interface EditProps {
  text: string;
  cancel: () => void;
  done: (text: string) => void;
}

function EditQuestion({ text, cancel, done }: EditProps): JSX.Element {
  const area = useRef<HTMLTextAreaElement>(null);
  const [typed, setTyped] = useState(text);
  useEffect(() => {
    area.current?.focus();
    area.current?.setSelectionRange(text.length, text.length);
  }, []);
  const submit = (): void => {
    if (typed.trim() !== '') done(typed.trim());
  };
  return (
    <form
      class="edit"
      aria-label="Edit the message"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <textarea
        ref={area}
        aria-label="Changed message"
        rows={Math.min(12, Math.max(2, typed.split('\n').length))}
        value={typed}
        onInput={(event) => setTyped(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.isComposing) return;
          if (event.key === 'Escape') {
            event.preventDefault();
            cancel();
          } else if (event.key === 'Enter' && !event.shiftKey) {
            event.preventDefault();
            submit();
          }
        }}
      />
      <div class="dialog-actions">
        <button type="button" class="button" onClick={cancel}>
          Cancel
        </button>
        <button type="submit" class="button primary" disabled={typed.trim() === ''}>
          Send
        </button>
      </div>
    </form>
  );
}
