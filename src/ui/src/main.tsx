import { render } from 'preact';
import { loadServerInfo } from './api.ts';
import { App } from './app.tsx';
import { load } from './store.ts';
import './style.css';

void load();
void loadServerInfo();
const root = document.getElementById('app');
if (root) render(<App />, root);
