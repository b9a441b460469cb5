/** What stands in an empty conversation: who answers here, and some first questions. */
import type { JSX } from 'preact';
import { serverInfo, serverState, type ServerInfo } from './api.ts';
import { Mark } from './icons.tsx';
import type { Settings } from './model.ts';
import { whole } from './words.ts';

interface Example {
  text: string;
  /** What else it shows, beside the text. */
  note?: string;
  settings?: Partial<Settings>;
}

const WALK_SCHEMA = {
  type: 'object',
  properties: {
    location: { type: 'string' },
    activity: { type: 'string' },
    animals_seen: { type: 'integer', minimum: 1, maximum: 5 },
    animals: { type: 'array', items: { type: 'string' } },
  },
  required: ['location', 'activity', 'animals_seen', 'animals'],
};

const WEATHER_TOOL = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      description: 'Get the current weather',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  },
];

const DEMO_EXAMPLES: Example[] = [
  { text: 'What is the capital of France?' },
  { text: 'What is 12 + 7?' },
  { text: 'Tell me a story about a fox.' },
  { text: 'Tell me a joke.' },
  {
    text: 'I saw a puppy a cat and a raccoon during my bike ride in the park',
    note: 'as JSON of a schema',
    settings: { schemaOn: true, schema: JSON.stringify(WALK_SCHEMA, null, 2) },
  },
  {
    text: 'What is the weather in Paris?',
    note: 'with a tool to call',
    settings: { toolsOn: true, tools: JSON.stringify(WEATHER_TOOL, null, 2) },
  },
];

const EXAMPLES: Example[] = [
  { text: 'Explain how a heat pump works, in three sentences.' },
  { text: 'Write a polite note that moves a meeting from Tuesday to Thursday.' },
  { text: 'What should I look at first when a program uses more and more memory?' },
];

const DEMO_MODEL = 'sconce-demo';

interface Props {
  ask: (text: string, settings: Partial<Settings>) => void;
}

export function Welcome({ ask }: Props): JSX.Element | null {
  const info = serverInfo.value;
  if (info === null) return serverState.value === 'loading' ? null : <div class="welcome" />;
  const demo = info.modelId === DEMO_MODEL;
  return (
    <div class="welcome">
      <Mark />
      <h2>{demo ? 'A very small model' : info.modelId}</h2>
      {demo ? (
        <p>
          This is <b>{DEMO_MODEL}</b>, a model of 5 million parameters that is part of the server and runs anywhere, to try
          the server with. It knows a few hundred facts, adds and subtracts small numbers, tells short stories and jokes,
          turns a sentence into JSON, repeats what it is told and calls tools. Of most other things it will say that it
          does not know them.
        </p>
      ) : (
        <p>{introduction(info)}</p>
      )}
      <ul class="examples" aria-label="Examples">
        {(demo ? DEMO_EXAMPLES : EXAMPLES).map(({ text, note, settings }) => (
          <li key={text}>
            <button type="button" onClick={() => ask(text, settings ?? {})}>
              <span>{text}</span>
              {note && <small>{note}</small>}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

function introduction({ maxTotalTokens }: ServerInfo): string {
  const context = maxTotalTokens === null ? '' : ` Prompt and answer together have room for ${whole(maxTotalTokens)} tokens.`;
  return `Your questions go to this server and nowhere else unless its operator set up upstreams.${context}`;
}
