/** Asks for an API key. */
import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { ApiError, call } from './api.ts';
import { apiKey, forgetKey, keyQuestion, keyRemembered, setKey, type KeyQuestion } from './key.ts';
import { say } from './say.ts';

const EXPLANATION: Record<KeyQuestion, string> = {
  missing: 'This server answers only callers with a key. Ask its operator for one.',
  unknown: 'The server does not accept the key that was used until now.',
  admin: 'The dashboard shows what everybody asks for, so that it needs the key of an administrator.',
  change: 'The key that this page sends along with every call.',
};

export function KeyForm(): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  const question = keyQuestion.value;
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);

  useEffect(() => {
    if (question !== null && !dialog.current?.open) dialog.current?.showModal();
    if (question === null) {
      dialog.current?.close();
      setProblem(null);
    }
  }, [question]);

  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    if (!(event.currentTarget instanceof HTMLFormElement)) return;
    const form = new FormData(event.currentTarget);
    const key = String(form.get('key') ?? '').trim();
    if (key === '') {
      setProblem('Enter a key.');
      return;
    }
    setBusy(true);
    const found = await problemOf(key, question === 'admin');
    setBusy(false);
    setProblem(found);
    if (found !== null) {
      dialog.current?.querySelector('input')?.focus();
      return;
    }
    setKey(key, form.get('remember') !== null);
    keyQuestion.value = null;
    say('The key is accepted');
  };

  return (
    <dialog ref={dialog} class="dialog" aria-labelledby="key-title" onClose={() => (keyQuestion.value = null)}>
      {question !== null && (
        <form onSubmit={(event) => void submit(event)} noValidate>
          <h2 id="key-title">API key</h2>
          <p>{EXPLANATION[question]}</p>
          <label class="field">
            <span class="field-name">Key</span>
            <input
              name="key"
              type="password"
              autocomplete="off"
              spellcheck={false}
              aria-invalid={problem !== null}
              aria-describedby="key-problem"
            />
          </label>
          <p id="key-problem" class="problem" role="alert">
            {problem}
          </p>
          <label class="check">
            <input type="checkbox" name="remember" defaultChecked={keyRemembered.value} />
            <span>
              Remember on this device
              <small>Otherwise the browser forgets it with this tab.</small>
            </span>
          </label>
          <div class="dialog-actions">
            {apiKey.value !== null && (
              <button
                type="button"
                class="button danger push"
                onClick={() => {
                  forgetKey();
                  keyQuestion.value = null;
                  say('The key is forgotten');
                }}
              >
                Forget key
              </button>
            )}
            <button type="button" class="button" onClick={() => (keyQuestion.value = null)}>
              Not now
            </button>
            <button type="submit" class="button primary" disabled={busy}>
              Use this key
            </button>
          </div>
        </form>
      )}
    </dialog>
  );
}

/**
 * What the server has against a key, or null. It is asked for the live data, as other reads may be open to
 * callers without a key.
 */
async function problemOf(key: string, admin: boolean): Promise<string | null> {
  const enough = new AbortController();
  try {
    await call('ui/events', { key, quiet: true, signal: enough.signal });
    enough.abort();
    return null;
  } catch (error) {
    if (!(error instanceof ApiError)) return String(error);
    if (error.status === 401) return 'The server does not know this key.';
    if (error.status === 403) return admin ? 'The server knows this key, but it is no admin key.' : null;
    return error.status === null ? error.message : null;
  }
}
