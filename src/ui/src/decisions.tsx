/** The last requests: where each was answered, why, and what it took. */
import type { JSX } from 'preact';
import { memo } from './memo.tsx';
import { useSignal } from '@preact/signals';
import { useState } from 'preact/hooks';
import { Icon } from './icons.tsx';
import { decisions, server, type Attempt, type Decision } from './live.ts';
import { dollars, milliseconds, outcomeWords, plural, reasonWords, time, whole } from './words.ts';

const COLUMNS = ['Time', 'Key', 'Path', 'Where', 'Why', 'First token', 'Total', 'Tokens', 'Cost', 'Outcome'];

export function Decisions(): JSX.Element {
  const started = server.value?.started_ms ?? 0;
  /** The list as it was when it was held; null while it is live. A server that starts anew counts anew, and ends it. */
  const kept = useSignal<{ started: number; list: Decision[] } | null>(null);
  const held = kept.value?.started === started ? kept.value.list : null;
  const shown = held ?? decisions.value;
  const since = held ? decisions.value.filter(({ seq }) => seq > (held[0]?.seq ?? -1)).length : 0;
  return (
    <section class="panel decisions" aria-labelledby="decisions-title">
      <header class="section-head">
        <h2 id="decisions-title">Decisions</h2>
        {shown.length > 0 && (
          <button
            type="button"
            class="button small push"
            aria-pressed={held !== null}
            onClick={() => (kept.value = held ? null : { started, list: decisions.value })}
          >
            Hold the list{since > 0 && ` (${whole(since)} new)`}
          </button>
        )}
      </header>
      {shown.length === 0 ? (
        <p class="hint">Nothing has been asked yet.</p>
      ) : (
        <div class="table-scroll" tabIndex={0} role="region" aria-label="Last requests">
          <table role="table">
            <thead role="rowgroup">
              <tr role="row">
                {COLUMNS.map((name, at) => (
                  <th key={name} role="columnheader" scope="col" class={at >= 5 && at <= 8 ? 'number' : ''}>
                    {name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody role="rowgroup">
              {shown.map((decision) => (
                <Row key={`${started} ${decision.seq} ${decision.request_id}`} decision={decision} />
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

const Row = memo(
  ({ decision }: { decision: Decision }): JSX.Element => {
    const [open, setOpen] = useState(false);
    const details = `decision-${decision.seq}`;
    const tokens = `${whole(decision.prompt_tokens)} → ${whole(decision.output_tokens)}`;
    return (
      <>
        <tr role="row" class={decision.ok ? '' : 'failed'}>
          <td role="cell">
            <button
              type="button"
              class="opener"
              aria-expanded={open}
              aria-controls={open ? details : undefined}
              aria-label={`${time(decision.at_ms)}, details of request ${decision.request_id}`}
              onClick={() => setOpen(!open)}
            >
              <Icon name="right" />
              {time(decision.at_ms)}
            </button>
          </td>
          <Cell name="Key">{decision.key ?? '–'}</Cell>
          <Cell name="Path">
            <code>{decision.path}</code>
          </Cell>
          <Cell name="Where">
            <Side decision={decision} />
          </Cell>
          <Cell name="Why">
            <span title={decision.reason ?? decision.outcome}>
              {decision.reason === null ? outcomeWords(decision.outcome) : reasonWords(decision.reason)}
            </span>
          </Cell>
          <Cell name="First token" number>
            {decision.ttft_ms === null ? '–' : milliseconds(decision.ttft_ms)}
          </Cell>
          <Cell name="Total" number>
            {milliseconds(decision.total_ms)}
          </Cell>
          <Cell name="Tokens" number>
            {tokens}
          </Cell>
          <Cell name="Cost" number>
            {decision.cost_usd === null ? '–' : dollars(decision.cost_usd)}
          </Cell>
          <Cell name="Outcome">
            <span class={`outcome ${decision.ok ? 'ok' : 'bad'}`} title={decision.outcome}>
              <Icon name={decision.ok ? 'ok' : 'cross'} />
              {outcomeWords(decision.outcome)}
            </span>
          </Cell>
        </tr>
        {open && (
          <tr role="row" id={details} class="details">
            <td role="cell" colSpan={COLUMNS.length}>
              <Details decision={decision} />
            </td>
          </tr>
        )}
      </>
    );
  },
  (before, after) => before.decision === after.decision,
);

function Cell(props: { name: string; number?: boolean; children: JSX.Element | string }): JSX.Element {
  return (
    <td role="cell" class={props.number ? 'number' : ''} data-name={props.name}>
      {props.children}
    </td>
  );
}

function Side({ decision }: { decision: Decision }): JSX.Element {
  if (decision.side === null) return <span class="quiet">nowhere</span>;
  if (decision.side === 'local') return <span class="where local">this machine</span>;
  return <span class="where remote">{decision.provider ?? decision.upstream ?? decision.target ?? 'an upstream'}</span>;
}

function Details({ decision }: { decision: Decision }): JSX.Element {
  const { explanation, reason, reason_detail: detail, attempts, degraded, saved_usd: saved, model } = decision;
  return (
    <div class="detail-body">
      {explanation.length > 0 && (
        <ol class="explanation">
          {explanation.map((sentence, at) => (
            <li key={at}>{sentence}</li>
          ))}
        </ol>
      )}
      <dl class="facts-list">
        <Fact name="Request" value={decision.request_id} />
        {model !== null && <Fact name="Model" value={model} />}
        {reason !== null && <Fact name="Reason" value={detail === null ? reason : `${reason}: ${detail}`} />}
        <Fact name="Sent as" value={decision.stream ? 'a stream' : 'one answer'} />
        {saved !== null && <Fact name="Saved" value={dollars(saved)} />}
        {degraded.length > 0 && <Fact name="Without" value={degraded.join(', ').replaceAll('_', ' ')} />}
      </dl>
      {attempts.length > 0 && (
        <>
          <h3>{plural(attempts.length, 'attempt')}</h3>
          <ol class="attempts">
            {attempts.map((attempt, at) => (
              <li key={at}>{attemptWords(attempt)}</li>
            ))}
          </ol>
        </>
      )}
    </div>
  );
}

function Fact({ name, value }: { name: string; value: string }): JSX.Element {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function attemptWords({ target, provider, class: failure, status, ttft_ms: ttft, cost_usd: cost }: Attempt): string {
  const where = provider !== null && provider !== target ? `${target} (${provider})` : target;
  const parts = [
    failure === null ? 'answered' : failure.replaceAll('_', ' '),
    status === null ? null : `status ${status}`,
    ttft === null ? null : `first token ${milliseconds(ttft)}`,
    cost === null ? null : dollars(cost),
  ];
  return `${where}: ${parts.filter((part) => part !== null).join(', ')}`;
}
