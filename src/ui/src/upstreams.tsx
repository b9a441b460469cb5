/** The upstreams: how each is, in the server's own words, and what it took so far. */
import type { JSX } from 'preact';
import { memo } from './memo.tsx';
import { Icon, type IconName } from './icons.tsx';
import { targets, type Target } from './live.ts';
import { amount, dollars, duration, milliseconds, whole } from './words.ts';

interface StateLook {
  word: string;
  tone: 'ok' | 'warn' | 'bad' | 'idle';
}

const STATES: Record<string, StateLook> = {
  closed: { word: 'Ready', tone: 'ok' },
  half_open: { word: 'Being tried', tone: 'warn' },
  open: { word: 'Failing', tone: 'bad' },
  parked: { word: 'Parked', tone: 'warn' },
  saturated: { word: 'Full', tone: 'warn' },
  waking: { word: 'Waking up', tone: 'warn' },
  auth_failed: { word: 'Credentials refused', tone: 'bad' },
  quota: { word: 'Quota used up', tone: 'bad' },
  misconfigured: { word: 'Misconfigured', tone: 'bad' },
  paused: { word: 'Paused', tone: 'idle' },
  disabled: { word: 'Switched off', tone: 'idle' },
};

const TONE_ICONS: Record<StateLook['tone'], IconName> = { ok: 'ok', warn: 'clock', bad: 'cross', idle: 'pause' };

function lookOf(state: string): StateLook {
  const words = state.replaceAll('_', ' ');
  return STATES[state] ?? { word: words.charAt(0).toUpperCase() + words.slice(1), tone: 'idle' };
}

export function Upstreams(): JSX.Element {
  const known = targets.value;
  return (
    <section aria-labelledby="upstreams-title" class="upstreams">
      <header class="section-head">
        <h2 id="upstreams-title">Upstreams</h2>
      </header>
      {known?.length === 0 && (
        <p class="hint panel">
          No upstreams are configured: every answer is made on this machine. <code>docs/hybrid-settings.md</code> says how to
          add one.
        </p>
      )}
      <ul class="cards">{known?.map((target) => <Card key={target.target} target={target} />)}</ul>
    </section>
  );
}

const Card = memo(
  ({ target }: { target: Target }): JSX.Element => {
    const { word, tone } = lookOf(target.state);
    const { inflight, limit, ttft_ms: ttft, spent_today_usd: spent, max_usd_per_day: most } = target;
    return (
      <li class="panel upstream">
        <header>
          <h3>{target.target}</h3>
          <span class={`state ${tone}`} title={target.state}>
            <Icon name={TONE_ICONS[tone]} />
            {word}
          </span>
        </header>
        {target.provider !== null && target.provider !== target.target && <p class="quiet">by {target.provider}</p>}
        {target.sentence !== '' && <p class="sentence">{target.sentence}</p>}
        <dl class="facts-list">
          <div>
            <dt>In flight</dt>
            <dd>
              {whole(inflight)} of {whole(limit)}
            </dd>
          </div>
          <div>
            <dt>First token</dt>
            <dd>{ttft ? `p50 ${milliseconds(ttft.p50)}, p95 ${milliseconds(ttft.p95)}` : 'not measured yet'}</dd>
          </div>
          <div>
            <dt>Spent today</dt>
            <dd>
              {most === null ? dollars(spent) : `${amount(spent)} of ${dollars(most)}`}
            </dd>
          </div>
          {target.retry_after_s !== null && (
            <div>
              <dt>Next try</dt>
              <dd>in {target.retry_after_s < 120 ? `${whole(target.retry_after_s)} s` : duration(1000 * target.retry_after_s)}</dd>
            </div>
          )}
          {target.catalog_day !== null && (
            <div>
              <dt>Prices of</dt>
              <dd>{target.catalog_day}</dd>
            </div>
          )}
        </dl>
      </li>
    );
  },
  (before, after) => JSON.stringify(before.target) === JSON.stringify(after.target),
);
