import { effect, untracked } from '@preact/signals';
import { render } from 'preact';
import { loadServerInfo } from './api.ts';
import { App } from './app.tsx';
import { keyEntries } from './key.ts';
import { load } from './store.ts';
import './style.css';

void load();
effect(() => {
  void keyEntries.value;
  void untracked(loadServerInfo);
});
const root = document.getElementById('app');
if (root) render(<App />, root);
