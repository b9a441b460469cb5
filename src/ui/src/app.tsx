/** The page: the sidebar, and one of the two views. */
import type { JSX } from 'preact';
import { useEffect } from 'preact/hooks';
import { ChatView } from './chat.tsx';
import { Dashboard } from './dashboard.tsx';
import { KeyForm } from './keyform.tsx';
import { IconButton } from './parts.tsx';
import { route } from './route.ts';
import { dismiss, notice, spoken } from './say.ts';
import { closeSettings, settingsOpen } from './settings.tsx';
import { closeDrawer, drawerOpen, Sidebar } from './sidebar.tsx';
import { narrow } from './theme.ts';

export function App(): JSX.Element {
  const { view } = route.value;
  const covered = narrow.value && drawerOpen.value;

  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      if (event.key !== 'Escape' || event.defaultPrevented || event.isComposing) return;
      if (drawerOpen.value) closeDrawer();
      else if (narrow.value && settingsOpen.value) closeSettings();
      else return;
      event.preventDefault();
    };
    addEventListener('keydown', onKey, true);
    return () => removeEventListener('keydown', onKey, true);
  }, []);

  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to the content
      </a>
      <div class="shell">
        <Sidebar />
        {covered && <div class="veil" onClick={closeDrawer} />}
        <div class="content" inert={covered}>
          {view === 'chat' ? <ChatView /> : <Dashboard />}
        </div>
      </div>
      <KeyForm />
      <Notice />
      <div class="sr-only" role="status" aria-live="polite" data-testid="spoken">
        {spoken}
      </div>
    </>
  );
}

/** Moves the focus; the address's hash is taken by the views. */
function skip(event: MouseEvent): void {
  event.preventDefault();
  document.getElementById('main')?.focus();
}

function Notice(): JSX.Element {
  const shown = notice.value;
  return (
    <div class="notices" role="status">
      {shown && (
        <div class="notice">
          <span class="cut">{shown.text}</span>
          <button type="button" class="text-button" onClick={shown.run}>
            {shown.action}
          </button>
          <IconButton icon="close" label="Dismiss" onClick={dismiss} />
        </div>
      )}
    </div>
  );
}
