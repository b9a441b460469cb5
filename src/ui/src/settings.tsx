/** The panel of one conversation's settings. */
import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { signal } from '@preact/signals';
import { serverInfo } from './api.ts';
import { focusSoon } from './focus.ts';
import type { Conversation, Settings } from './model.ts';
import { DEFAULT_SETTINGS } from './model.ts';
import { schemaProblem, toolsProblem } from './options.ts';
import { IconButton } from './parts.tsx';
import { change } from './store.ts';
import { narrow } from './theme.ts';

export const settingsOpen = signal(false);

export function closeSettings(): void {
  settingsOpen.value = false;
  focusSoon('open-settings');
}

type NumberName = 'temperature' | 'topP' | 'maxTokens' | 'seed' | 'frequencyPenalty' | 'presencePenalty';

interface NumberSetting {
  name: NumberName;
  label: string;
  min: number;
  max: number;
  whole: boolean;
  empty: string;
}

const NUMBERS: NumberSetting[] = [
  { name: 'temperature', label: 'Temperature', min: 0, max: 2, whole: false, empty: 'default' },
  { name: 'topP', label: 'Top p', min: 0, max: 1, whole: false, empty: 'default' },
  { name: 'maxTokens', label: 'Max tokens', min: 1, max: 1e9, whole: true, empty: 'no limit' },
  { name: 'seed', label: 'Seed', min: 0, max: Number.MAX_SAFE_INTEGER, whole: true, empty: 'random' },
  { name: 'frequencyPenalty', label: 'Frequency penalty', min: -2, max: 2, whole: false, empty: '0' },
  { name: 'presencePenalty', label: 'Presence penalty', min: -2, max: 2, whole: false, empty: '0' },
];

export function SettingsPanel({ conversation }: { conversation: Conversation }): JSX.Element {
  const { id, settings } = conversation;
  const panel = useRef<HTMLElement>(null);
  const models = serverInfo.value?.models ?? [];
  const set = (values: Partial<Settings>): void => change(id, (old) => ({ settings: { ...old.settings, ...values } }));

  useEffect(() => {
    if (narrow.value) panel.current?.querySelector<HTMLElement>('button')?.focus();
  }, []);

  return (
    <aside ref={panel} id="settings" class="settings" aria-label="Settings">
      <header class="panel-head">
        <h2>Settings</h2>
        <button type="button" class="text-button push" onClick={() => set(DEFAULT_SETTINGS)}>
          Reset
        </button>
        <IconButton icon="close" label="Close settings" onClick={closeSettings} />
      </header>
      <div class="settings-body">
        {models.length > 1 && (
          <label class="field">
            <span class="field-name">Model</span>
            <select
              value={settings.model ?? models[0] ?? ''}
              onChange={(event) => set({ model: event.currentTarget.value === models[0] ? null : event.currentTarget.value })}
            >
              {models.map((model) => (
                <option key={model} value={model}>
                  {model}
                </option>
              ))}
            </select>
          </label>
        )}
        <TextField
          label="System prompt"
          value={settings.system}
          rows={3}
          placeholder="How the model should behave"
          onValue={(system) => set({ system })}
        />
        <div class="number-fields">
          {NUMBERS.map((setting) => (
            <NumberField
              key={setting.name}
              setting={setting}
              value={settings[setting.name]}
              onValue={(value) => set({ [setting.name]: value })}
            />
          ))}
        </div>
        <TextField
          label="Stop sequences"
          value={settings.stop}
          rows={2}
          placeholder="One a line"
          mono
          onValue={(stop) => set({ stop })}
        />
        <JsonField
          label="JSON schema"
          note="The answer is JSON of this schema."
          field="schema"
          on={settings.schemaOn}
          value={settings.schema}
          problem={schemaProblem}
          placeholder={'{\n  "type": "object",\n  "properties": { … }\n}'}
          onSwitch={(schemaOn) => set({ schemaOn })}
          onValue={(schema) => set({ schema })}
        />
        <JsonField
          label="Tools"
          note="The model may call these; you type in what they answer."
          field="tools"
          on={settings.toolsOn}
          value={settings.tools}
          problem={toolsProblem}
          placeholder={'[\n  {\n    "type": "function",\n    "function": { "name": … }\n  }\n]'}
          onSwitch={(toolsOn) => set({ toolsOn })}
          onValue={(tools) => set({ tools })}
        />
      </div>
    </aside>
  );
}

interface TextFieldProps {
  label: string;
  value: string;
  rows: number;
  placeholder: string;
  mono?: boolean;
  onValue: (value: string) => void;
}

function TextField({ label, value, rows, placeholder, mono, onValue }: TextFieldProps): JSX.Element {
  return (
    <label class="field">
      <span class="field-name">{label}</span>
      <textarea
        class={mono ? 'mono' : ''}
        rows={rows}
        placeholder={placeholder}
        spellcheck={!mono}
        value={value}
        onInput={(event) => onValue(event.currentTarget.value)}
      />
    </label>
  );
}

interface NumberFieldProps {
  setting: NumberSetting;
  value: number | null;
  onValue: (value: number | null) => void;
}

/** A number that may be left out. What is no such number is said, and not taken. */
function NumberField({ setting, value, onValue }: NumberFieldProps): JSX.Element {
  const [typed, setTyped] = useState<string | null>(null);
  const text = typed ?? (value === null ? '' : String(value));
  const problem = typed === null ? null : numberProblem(typed, setting);
  const problemId = `problem-${setting.name}`;
  useEffect(() => setTyped(null), [value]);
  return (
    <label class="field">
      <span class="field-name">{setting.label}</span>
      <input
        inputMode="decimal"
        autocomplete="off"
        placeholder={setting.empty}
        value={text}
        aria-invalid={problem !== null}
        aria-describedby={problem === null ? undefined : problemId}
        onInput={(event) => {
          const next = event.currentTarget.value;
          setTyped(next);
          if (numberProblem(next, setting) === null) onValue(next.trim() === '' ? null : Number(next));
        }}
        onBlur={() => {
          if (problem === null) setTyped(null);
        }}
      />
      {problem !== null && (
        <span id={problemId} class="problem">
          {problem}
        </span>
      )}
    </label>
  );
}

function numberProblem(text: string, { min, max, whole }: NumberSetting): string | null {
  if (text.trim() === '') return null;
  const value = Number(text);
  if (!Number.isFinite(value)) return 'Not a number';
  if (whole && !Number.isInteger(value)) return 'A whole number';
  if (value < min || value > max) return max >= 1e9 ? `At least ${min}` : `From ${min} to ${max}`;
  return null;
}

interface JsonFieldProps {
  label: string;
  note: string;
  field: 'schema' | 'tools';
  on: boolean;
  value: string;
  placeholder: string;
  problem: (text: string) => string | null;
  onSwitch: (on: boolean) => void;
  onValue: (value: string) => void;
}

/** A switch, and while it is on a text of JSON. */
function JsonField({ label, note, field, on, value, placeholder, problem, onSwitch, onValue }: JsonFieldProps): JSX.Element {
  const found = on ? problem(value) : null;
  return (
    <section class="json-field" aria-label={label}>
      <label class="check">
        <input type="checkbox" checked={on} onChange={(event) => onSwitch(event.currentTarget.checked)} />
        <span>
          {label}
          <small>{note}</small>
        </span>
      </label>
      {on && (
        <>
          <textarea
            id={`setting-${field}`}
            class="mono"
            rows={10}
            aria-label={`${label} as JSON`}
            aria-invalid={found !== null}
            aria-describedby={`problem-${field}`}
            spellcheck={false}
            placeholder={placeholder}
            value={value}
            onInput={(event) => onValue(event.currentTarget.value)}
          />
          <p id={`problem-${field}`} class="problem" role="status">
            {found}
          </p>
        </>
      )}
    </section>
  );
}
