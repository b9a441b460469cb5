/** One answer: its text, its reasoning, the tools it calls, and a line about where it was made. */
import type { JSX } from 'preact';
import { memo } from './memo.tsx';
import { useState } from 'preact/hooks';
import { retry, sendResults } from './answering.ts';
import { maySend } from './composer.tsx';
import { focusMessage } from './focus.ts';
import { Icon } from './icons.tsx';
import { server } from './live.ts';
import { Code, Markdown } from './markdown.tsx';
import type { Answer, Piece, ToolMessage } from './model.ts';
import { prettyJson } from './options.ts';
import { CopyButton, IconButton } from './parts.tsx';
import { find } from './store.ts';
import { dollarText, milliseconds, plural, rate, reasonWords } from './words.ts';

interface Props {
  conversation: string;
  answer: Answer;
  /** The results that follow the answer, if it calls tools. */
  results: ToolMessage[];
  last: boolean;
  /** Shades the text by probability. */
  shaded: boolean;
  showModel: boolean;
}

export const AnswerMessage = memo(
  ({ conversation, answer, results, last, shaded, showModel }: Props): JSX.Element => {
    const written = answer.status !== 'streaming';
    const empty = answer.text === '' && answer.reasoning === '' && answer.calls.length === 0;
    return (
      <div class={`answer ${answer.status}`} data-testid="answer" data-id={answer.id} data-status={answer.status} aria-busy={!written}>
        {answer.reasoning !== '' && <Reasoning answer={answer} />}
        <div data-testid="answer-text">
          <Text answer={answer} shaded={shaded} />
        </div>
        {!written && empty && <Waiting />}
        {answer.calls.length > 0 && (
          <Calls conversation={conversation} answer={answer} results={results} open={last && written} />
        )}
        {answer.failure && <FailureCard conversation={conversation} answer={answer} last={last} />}
        {written && !(empty && answer.failure) && (
          <div class="under">
            <div class="actions">
              {answer.text !== '' && <CopyButton text={answer.text} label="Copy" />}
              {last && answer.status !== 'failed' && <RetryButton conversation={conversation} />}
            </div>
            <Facts answer={answer} showModel={showModel} />
          </div>
        )}
      </div>
    );
  },
  (before, after) =>
    before.answer === after.answer &&
    before.last === after.last &&
    before.shaded === after.shaded &&
    before.showModel === after.showModel &&
    before.results.length === after.results.length,
);

function RetryButton({ conversation, text }: { conversation: string; text?: boolean }): JSX.Element {
  const again = (): void => {
    const current = find(conversation);
    if (!current || !maySend(current)) return;
    retry(conversation);
    focusMessage();
  };
  return <IconButton icon="retry" label="Retry" text={text ?? false} onClick={again} />;
}

function Waiting(): JSX.Element {
  return (
    <p class="waiting">
      <span class="sr-only">Waiting for the first token</span>
      <i />
      <i />
      <i />
    </p>
  );
}

function Reasoning({ answer }: { answer: Answer }): JSX.Element {
  const thinking = answer.status === 'streaming' && answer.text === '';
  return (
    <details class="reasoning">
      <summary>
        <Icon name="right" />
        {thinking ? 'Thinking…' : 'Reasoning'}
      </summary>
      <div class="reasoning-text">{answer.reasoning}</div>
    </details>
  );
}

function Text({ answer, shaded }: { answer: Answer; shaded: boolean }): JSX.Element | null {
  if (answer.text === '') return null;
  if (shaded && answer.pieces && answer.pieces.length > 0) return <Shaded pieces={answer.pieces} />;
  if (answer.json) return <Code text={answer.status === 'streaming' ? answer.text : prettyJson(answer.text)} language="json" />;
  return <Markdown text={answer.text} />;
}

const CHUNK = 100;

/** The text in pieces, each marked by how probable it was. */
function Shaded({ pieces }: { pieces: Piece[] }): JSX.Element {
  const chunks: Piece[][] = [];
  for (let at = 0; at < pieces.length; at += CHUNK) chunks.push(pieces.slice(at, at + CHUNK));
  return (
    <p class="shaded" data-testid="shaded">
      {chunks.map((chunk, at) => (
        <ShadedChunk key={at} pieces={chunk} />
      ))}
    </p>
  );
}

/** Tokens only come in at the end, so that a chunk of the same length is the same chunk. */
const ShadedChunk = memo(
  ({ pieces }: { pieces: Piece[] }): JSX.Element => (
    <>
      {pieces.map(([text, logprob], at) => {
        if (logprob === null) return text;
        const probability = Math.exp(logprob);
        return (
          <span key={at} class={sureness(probability)} title={percentText(probability)}>
            {text}
          </span>
        );
      })}
    </>
  ),
  (before, after) => before.pieces.length === after.pieces.length,
);

/** The class of a probability: four steps, told apart by colour and by underline. */
function sureness(probability: number): string {
  if (probability >= 0.9) return 'p4';
  if (probability >= 0.7) return 'p3';
  return probability >= 0.4 ? 'p2' : 'p1';
}

function percentText(probability: number): string {
  const percent = 100 * probability;
  return `${percent >= 99.95 || percent < 10 ? percent.toFixed(1) : percent.toFixed(0)} %`;
}

export function ShadingLegend(): JSX.Element {
  return (
    <p class="legend">
      Probability of each token:
      <span class="p4">over 90 %</span>
      <span class="p3">70 to 90 %</span>
      <span class="p2">40 to 70 %</span>
      <span class="p1">under 40 %</span>
    </p>
  );
}

interface CallsProps {
  conversation: string;
  answer: Answer;
  results: ToolMessage[];
  /** Whether results can be typed in. */
  open: boolean;
}

/** The tools that an answer calls, with fields for what they answer. */
function Calls({ conversation, answer, results, open }: CallsProps): JSX.Element {
  const [typed, setTyped] = useState<Record<string, string>>({});
  const asks = open && results.length === 0;
  const complete = answer.calls.every(({ id }) => (typed[id] ?? '').trim() !== '');
  const submit = (event: Event): void => {
    event.preventDefault();
    const current = find(conversation);
    if (!complete || !current || !maySend(current)) return;
    sendResults(conversation, answer.calls.map(({ id }) => ({ callId: id, text: (typed[id] ?? '').trim() })));
    focusMessage();
  };
  return (
    <form class="calls" onSubmit={submit} aria-label="Tool calls">
      {answer.calls.map((call, at) => {
        const result = results.find(({ callId }) => callId === call.id);
        return (
          <section key={at} class="call" aria-label={`Call of ${call.name || 'a tool'}`}>
            <header>
              <Icon name="tool" />
              <code>{call.name || '…'}</code>
              <span class="call-state">{answer.status === 'streaming' ? 'is being called' : 'was called'}</span>
            </header>
            <pre tabIndex={0} aria-label="Arguments">
              {answer.status === 'streaming' ? call.arguments : prettyJson(call.arguments)}
            </pre>
            {result && (
              <div class="call-result">
                <span class="field-name">Result</span>
                <pre tabIndex={0}>{result.text}</pre>
              </div>
            )}
            {asks && (
              <label class="field">
                <span class="field-name">Result of {call.name}</span>
                <textarea
                  class="mono"
                  rows={2}
                  placeholder="What the tool answers"
                  value={typed[call.id] ?? ''}
                  onInput={(event) => {
                    const text = event.currentTarget.value;
                    setTyped((old) => ({ ...old, [call.id]: text }));
                  }}
                  onKeyDown={(event) => {
                    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) submit(event);
                  }}
                />
              </label>
            )}
          </section>
        );
      })}
      {asks && (
        <button type="submit" class="button" disabled={!complete}>
          {answer.calls.length > 1 ? 'Send results' : 'Send result'}
        </button>
      )}
    </form>
  );
}

function FailureCard({ conversation, answer, last }: { conversation: string; answer: Answer; last: boolean }): JSX.Element {
  const { failure } = answer;
  return (
    <div class="failure">
      <Icon name="warn" />
      <div>
        <p>{failure?.message}</p>
        {failure?.retryAfter && <p class="quiet">{retryAfterWords(failure.retryAfter)}</p>}
      </div>
      {last && <RetryButton conversation={conversation} text />}
    </div>
  );
}

function retryAfterWords(value: string): string {
  return /^\d+$/.test(value) ? `The server asks to try again after ${value} s.` : `The server asks to try again after ${value}.`;
}

/** The quiet line below an answer. */
function Facts({ answer, showModel }: { answer: Answer; showModel: boolean }): JSX.Element {
  const { place, status, finish, ttftMs, totalMs, outputTokens, promptTokens } = answer;
  const speed = speedOf(answer);
  const remote = place.target === 'remote';
  return (
    <ul class="facts" aria-label="About this answer" data-testid="facts">
      {status === 'interrupted' && <li class="note">Interrupted: the page was left while this was written</li>}
      {status === 'stopped' && <li class="note">Stopped</li>}
      {finish === 'length' && <li class="note">Cut off at the limit of tokens</li>}
      {finish === 'content_filter' && <li class="note">Withheld by a filter</li>}
      {status !== 'failed' && isPlaceKnown(answer) && (
        <li class={remote ? 'where remote' : 'where local'}>
          {remote ? (place.provider ?? place.upstream ?? 'an upstream') : 'this machine'}
          {place.continued === 'local' && ', then this machine'}
        </li>
      )}
      {place.reason && <li title={place.reason}>{reasonWords(place.reason)}</li>}
      {showModel && place.model && <li>{place.model}</li>}
      {ttftMs !== null && <li title="Time to the first token">first token {milliseconds(ttftMs)}</li>}
      {speed !== null && <li>{rate(speed)} tokens/s</li>}
      {outputTokens !== null && (
        <li title={promptTokens === null ? undefined : `after a prompt of ${plural(promptTokens, 'token')}`}>
          {plural(outputTokens, 'token')}
        </li>
      )}
      {totalMs !== null && outputTokens === null && <li>{milliseconds(totalMs)} in all</li>}
      {place.cost && <li>cost {dollarText(place.cost)}</li>}
      {place.saved && <li>saved {dollarText(place.saved)}</li>}
      {place.degraded && (
        <li title="Not everything that was asked for could be done there">without {place.degraded.replaceAll('_', ' ')}</li>
      )}
    </ul>
  );
}

/** Without a response, only of a server that has no upstreams is it known where the answer was to be made. */
function isPlaceKnown({ place, status, text, reasoning, calls }: Answer): boolean {
  const responded = place.target !== undefined || status === 'done' || text !== '' || reasoning !== '' || calls.length > 0;
  return responded || server.value?.hybrid === false;
}

/** An answer written in less time than this came in a few pieces, whose times say little about its tokens. */
const TELLING_MS = 100;

/** Tokens a second: since the first one, or of a very short answer since it was asked for. */
function speedOf({ outputTokens, writingMs, totalMs }: Answer): number | null {
  if (outputTokens === null || outputTokens < 2 || writingMs === null || totalMs === null) return null;
  return writingMs >= TELLING_MS ? (1000 * (outputTokens - 1)) / writingMs : (1000 * outputTokens) / totalMs;
}
