/** The dashboard: what the server does right now, where answers are made, and what they cost. */
import { useComputed } from '@preact/signals';
import type { JSX } from 'preact';
import { useEffect } from 'preact/hooks';
import { Decisions } from './decisions.tsx';
import { apiKey, keyEntries, keyQuestion } from './key.ts';
import { budgets, connect, connection, disconnect, sample, server, totals, type Budget } from './live.ts';
import { Banner, Meter } from './parts.tsx';
import { Plot, type PlotProps } from './plot.tsx';
import { MenuButton } from './sidebar.tsx';
import { Upstreams } from './upstreams.tsx';
import { amount, dayTime, dollars, duration, milliseconds, outcomeWords, percent, plural, rate, reasonWords, short, whole } from './words.ts';

export function Dashboard(): JSX.Element {
  const { state } = connection.value;
  useEffect(() => {
    document.title = 'Dashboard · sconce';
    const follow = (): void => (document.hidden ? disconnect() : connect());
    follow();
    document.addEventListener('visibilitychange', follow);
    return () => {
      document.removeEventListener('visibilitychange', follow);
      disconnect();
    };
  }, [keyEntries.value]);

  const empty = sample.value === null;
  return (
    <main id="main" class="view" tabIndex={-1}>
      <header class="bar">
        <MenuButton />
        <h1>Dashboard</h1>
        <About />
        <Liveness />
      </header>
      <div class="board-scroll" tabIndex={0} role="region" aria-label="Live data">
        <div class={`board ${state === 'lost' ? 'stale' : ''}`}>
          <Trouble />
          {state !== 'locked' && state !== 'missing' && !(empty && state === 'lost') && (
            <>
              <section class="plots" aria-labelledby="load-title">
                <h2 id="load-title" class="sr-only">
                  Load
                </h2>
                {PLOTS.map((plot) => (
                  <Plot key={plot.title} {...plot} />
                ))}
              </section>
              <div class="columns">
                <Answers />
                <Money />
              </div>
              <Upstreams />
              <Decisions />
            </>
          )}
        </div>
      </div>
    </main>
  );
}

const PERCENTILES: Omit<PlotProps, 'title' | 'lines'> = {
  headline: () => '',
  format: milliseconds,
  leastMax: 10,
};

const PLOTS: PlotProps[] = [
  {
    title: 'Batch',
    lines: [{ name: 'running', colour: 'local', of: (at) => at.running }],
    headline: (at) => whole(at.running),
    note: (at) => `running of ${whole(at.max_running)}`,
    format: short,
    leastMax: 4,
  },
  {
    title: 'Queue',
    lines: [{ name: 'waiting', colour: 'accent', of: (at) => at.waiting }],
    headline: (at) => whole(at.waiting),
    note: () => 'waiting',
    format: short,
    leastMax: 4,
  },
  {
    title: 'KV cache',
    lines: [{ name: 'used', colour: 'local', of: (at) => percent(at.kv_used, at.kv_total) }],
    headline: (at) => `${rate(percent(at.kv_used, at.kv_total))} %`,
    note: (at) => `${short(at.kv_used)} of ${short(at.kv_total)} tokens`,
    format: (value) => `${Math.round(value)} %`,
    max: 100,
    leastMax: 100,
  },
  {
    title: 'Requests',
    lines: [
      { name: 'local', colour: 'local', of: (at) => at.local },
      { name: 'remote', colour: 'remote', dash: [5, 2], of: (at) => at.remote },
      { name: 'failed', colour: 'bad', dash: [2, 2], of: (at) => at.failed },
    ],
    headline: (at) => whole(at.local + at.remote + at.failed),
    note: () => 'ended in a second',
    format: rate,
    leastMax: 2,
    seconds: 10,
  },
  {
    title: 'Decode',
    lines: [{ name: 'decode', colour: 'local', of: (at) => at.decode_tps }],
    headline: (at) => rate(at.decode_tps),
    note: () => 'tokens/s',
    format: short,
    leastMax: 10,
  },
  {
    title: 'Prefill',
    lines: [{ name: 'prefill', colour: 'accent', of: (at) => at.prefill_tps }],
    headline: (at) => rate(at.prefill_tps),
    note: () => 'tokens/s',
    format: short,
    leastMax: 10,
  },
  {
    ...PERCENTILES,
    title: 'Time to first token',
    lines: [
      { name: 'p50', colour: 'local', of: (at) => at.ttft_ms?.p50 ?? null },
      { name: 'p95', colour: 'accent', dash: [5, 2], of: (at) => at.ttft_ms?.p95 ?? null },
      { name: 'p99', colour: 'bad', dash: [2, 2], of: (at) => at.ttft_ms?.p99 ?? null },
    ],
    headline: (at) => (at.ttft_ms ? milliseconds(at.ttft_ms.p50) : '–'),
    note: (at) => (at.ttft_ms ? 'p50 of the last minute' : 'nothing in the last minute'),
  },
  {
    ...PERCENTILES,
    title: 'Time between tokens',
    lines: [
      { name: 'p50', colour: 'local', of: (at) => at.itl_ms?.p50 ?? null },
      { name: 'p95', colour: 'accent', dash: [5, 2], of: (at) => at.itl_ms?.p95 ?? null },
      { name: 'p99', colour: 'bad', dash: [2, 2], of: (at) => at.itl_ms?.p99 ?? null },
    ],
    headline: (at) => (at.itl_ms ? milliseconds(at.itl_ms.p50) : '–'),
    note: (at) => (at.itl_ms ? 'p50 of the last minute' : 'nothing in the last minute'),
  },
];

/** Which server this is, and for how long it runs. */
function About(): JSX.Element | null {
  const about = server.value;
  // Both times are of the server's clock, which may differ from the browser's.
  const up = useComputed(() => duration((sample.value?.t_ms ?? 0) - (server.value?.started_ms ?? 0)));
  if (about === null) return null;
  return (
    <p class="about cut">
      {about.model} · version {about.version} · up {up}
    </p>
  );
}

/** Whether what is shown is of now. */
function Liveness(): JSX.Element | null {
  const { state } = connection.value;
  if (state === 'locked' || state === 'missing') return null;
  const words = { live: 'Live', connecting: 'Connecting', lost: 'Not connected' }[state];
  return (
    <p class={`liveness ${state}`} role="status">
      <span class="dot" aria-hidden="true" />
      {words}
    </p>
  );
}

/** What stands in the way of live data, and what can be done about it. */
function Trouble(): JSX.Element | null {
  const now = connection.value;
  if (now.state === 'lost') {
    const last = sample.value;
    return (
      <Banner tone="error">
        <b>The connection is lost{last ? ' and what is shown is old' : ''}.</b> {now.message}{' '}
        {last && `The last data is of ${dayTime(last.t_ms)}. `}It is being tried again.{' '}
        <button type="button" class="text-button" onClick={connect}>
          Try now
        </button>
      </Banner>
    );
  }
  if (now.state === 'missing') return <p class="empty-board">{now.message}</p>;
  if (now.state !== 'locked') return null;
  return (
    <div class="empty-board" role="alert">
      <h2>{now.admin ? 'The dashboard needs an admin key' : 'The dashboard needs a key'}</h2>
      <p>
        It shows what everybody asks for. An admin key has <code>admin = true</code> in its <code>[[keys]]</code> table of
        the server's settings.{now.admin && apiKey.value !== null && ' The key that this page uses has not; the chat works with it.'}
      </p>
      <button type="button" class="button primary" onClick={() => (keyQuestion.value = 'admin')}>
        {apiKey.value === null ? 'Enter a key' : 'Enter another key'}
      </button>
    </div>
  );
}

type Side = 'local' | 'remote' | 'refused' | 'unfinished';
const SIDES: { side: Side; name: string; words: (code: string) => string }[] = [
  { side: 'local', name: 'This machine', words: reasonWords },
  { side: 'remote', name: 'Upstreams', words: reasonWords },
  { side: 'refused', name: 'Refused', words: reasonWords },
  { side: 'unfinished', name: 'Not finished', words: outcomeWords },
];

/** How many calls were answered where, and why there. */
function Answers(): JSX.Element {
  const counts = totals.value;
  const parts = SIDES.map(({ side, name, words }) => {
    const codes = Object.entries(counts?.[side] ?? {}).filter(([, count]) => count > 0);
    return { side, name, words, codes, sum: codes.reduce((all, [, count]) => all + count, 0) };
  });
  const all = parts.reduce((before, { sum }) => before + sum, 0);
  const rows = parts
    .flatMap(({ side, name, words, codes }) => codes.map(([code, count]) => ({ side, name, words: words(code), code, count })))
    .sort((a, b) => b.count - a.count);
  return (
    <section class="panel" aria-labelledby="answers-title">
      <header class="section-head">
        <h2 id="answers-title">Where answers are made</h2>
        <p class="quiet push">since the start</p>
      </header>
      {counts === null || all === 0 ? (
        <p class="hint">Nothing has been asked yet.</p>
      ) : (
        <>
          <div class="shares" aria-hidden="true">
            {parts.map(({ side, sum }) => sum > 0 && <span key={side} class={side} style={{ width: `${percent(sum, all)}%` }} />)}
          </div>
          <ul class="share-key">
            {parts.map(({ side, name, sum }) => (
              <li key={side}>
                <span class={`where ${side}`}>{name}</span> <b>{percent(sum, all).toFixed(1)} %</b>{' '}
                <span class="quiet">{whole(sum)}</span>
              </li>
            ))}
          </ul>
          <table class="reasons">
            <thead>
              <tr>
                <th scope="col">Reason</th>
                <th scope="col">Where</th>
                <th scope="col" class="number">
                  Calls
                </th>
              </tr>
            </thead>
            <tbody>
              {rows.map(({ side, name, words, code, count }) => (
                <tr key={`${side} ${code}`}>
                  <td title={code}>{capital(words)}</td>
                  <td>
                    <span class={`where ${side}`}>{name}</span>
                  </td>
                  <td class="number">{whole(count)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </>
      )}
    </section>
  );
}

const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);

/** What upstreams cost, what this machine saved, and what may still be spent. */
function Money(): JSX.Element {
  const counts = totals.value;
  return (
    <section class="panel" aria-labelledby="money-title">
      <header class="section-head">
        <h2 id="money-title">Cost and budgets</h2>
        <p class="quiet push">since the start</p>
      </header>
      <dl class="figures">
        <div>
          <dt>Cost</dt>
          <dd>{counts ? dollars(counts.cost_usd) : '–'}</dd>
        </div>
        <div>
          <dt>Saved</dt>
          <dd>{counts ? dollars(counts.saved_usd) : '–'}</dd>
        </div>
        <div>
          <dt>Prompt tokens</dt>
          <dd>{counts ? short(counts.prompt_tokens) : '–'}</dd>
        </div>
        <div>
          <dt>Output tokens</dt>
          <dd>{counts ? short(counts.output_tokens) : '–'}</dd>
        </div>
      </dl>
      <h3>Budgets</h3>
      {budgets.value.length === 0 ? (
        <p class="hint">No budgets are set.</p>
      ) : (
        <ul class="budgets">
          {budgets.value.map((budget) => (
            <BudgetLine key={`${budget.name} ${budget.period} ${budget.kind} ${budget.unit}`} budget={budget} />
          ))}
        </ul>
      )}
    </section>
  );
}

function BudgetLine({ budget }: { budget: Budget }): JSX.Element {
  const { name, period, kind, unit, limit, used, resets } = budget;
  const [bare, full] = unit === 'usd' ? [amount, dollars] : [whole, (value: number) => plural(value, 'token')];
  const share = limit === null ? 0 : percent(used, limit);
  const tone = share >= 100 ? 'bad' : share >= 80 ? 'warn' : undefined;
  const over = share >= 100 ? ', used up' : '';
  return (
    <li>
      <p>
        <b>{name}</b>
        <span class="quiet">
          {' '}
          a {period}, {kind === 'hard' ? 'hard: nothing is spent beyond it' : 'soft: a warning only'}
        </span>
      </p>
      {limit !== null && <Meter share={share} {...(tone ? { tone } : {})} />}
      <p class="budget-words">
        <span>
          {limit === null
            ? `${full(used)} used, without a limit`
            : `${bare(used)} of ${full(limit)} (${share > 0 && share < 0.1 ? 'under 0.1' : rate(share)} %${over})`}
        </span>
        <span class="quiet push">resets {dayTime(Date.parse(resets))}</span>
      </p>
    </li>
  );
}
