/** Where a message is written. */
import type { JSX } from 'preact';
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { send, stop, writing } from './answering.ts';
import { serverState } from './api.ts';
import { Icon } from './icons.tsx';
import { keep, readKept, SCOPE } from './keep.ts';
import type { Conversation } from './model.ts';
import { settingsProblem, toolNames } from './options.ts';
import { say } from './say.ts';
import { settingsOpen } from './settings.tsx';

/** Whether the settings allow to send. If not, the panel opens at what is wrong. */
export function maySend(conversation: Conversation): boolean {
  const problem = settingsProblem(conversation.settings);
  if (problem === null) return true;
  settingsOpen.value = true;
  say(problem.message);
  requestAnimationFrame(() => document.getElementById(`setting-${problem.field}`)?.focus());
  return false;
}

interface Props {
  conversation: Conversation;
  /** Called when a message was sent. */
  sent: () => void;
}

export function Composer({ conversation, sent }: Props): JSX.Element {
  const { id, messages } = conversation;
  // The text of a conversation without messages is kept under one name, as its id changes with each load.
  const draftName = `sconce.draft ${SCOPE} ${messages.length === 0 ? 'new' : id}`;
  const [text, setText] = useState(() => readKept('session', draftName) ?? '');
  const area = useRef<HTMLTextAreaElement>(null);
  const busy = writing.value.has(id);

  useEffect(() => {
    keep('session', draftName, text === '' ? null : text);
  }, [draftName, text]);

  useLayoutEffect(() => {
    const element = area.current;
    if (!element) return;
    element.style.height = 'auto';
    element.style.height = `${element.scrollHeight}px`;
  }, [text]);

  useEffect(() => {
    if (matchMedia('(pointer: fine)').matches) area.current?.focus({ preventScroll: true });
  }, [id]);

  const submit = (): void => {
    if (text.trim() === '' || busy || !maySend(conversation)) return;
    keep('session', draftName, null);
    setText('');
    send(id, text.trim());
    sent();
  };

  return (
    <form
      class="composer"
      aria-label="Write a message"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <Modes conversation={conversation} />
      <div class="composer-box">
        <textarea
          ref={area}
          id="message"
          aria-label="Message"
          aria-describedby="composer-hint"
          rows={1}
          placeholder="Ask something"
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
            event.preventDefault();
            submit();
          }}
        />
        {busy ? (
          <button
            key="stop"
            type="button"
            class="round stop"
            aria-label="Stop"
            title="Stop (Escape)"
            onClick={() => {
              stop(id);
              area.current?.focus();
            }}
          >
            <Icon name="stop" />
          </button>
        ) : (
          <button
            key="send"
            type="submit"
            class="round"
            aria-label="Send"
            title="Send"
            disabled={text.trim() === '' || serverState.value === 'loading'}
          >
            <Icon name="send" />
          </button>
        )}
      </div>
      <p id="composer-hint" class="composer-hint">
        Enter sends, Shift+Enter begins a new line, Escape stops an answer.
      </p>
    </form>
  );
}

/** What of the settings changes what the next answer looks like. */
function Modes({ conversation }: { conversation: Conversation }): JSX.Element | null {
  const { schemaOn, toolsOn, tools, system } = conversation.settings;
  const names = toolNames(tools);
  const modes = [
    ...(system.trim() === '' ? [] : ['System prompt']),
    ...(schemaOn ? ['JSON schema'] : []),
    ...(toolsOn ? [names.length > 0 ? `Tools: ${names.join(', ')}` : 'Tools'] : []),
  ];
  if (modes.length === 0) return null;
  return (
    <ul class="modes" aria-label="In use">
      {modes.map((mode) => (
        <li key={mode}>
          <button type="button" class="chip" title="Open the settings" onClick={() => (settingsOpen.value = true)}>
            {mode}
          </button>
        </li>
      ))}
    </ul>
  );
}
