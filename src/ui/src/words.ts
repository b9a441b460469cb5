/** The server's codes in plain words, and numbers as people read them. */

const REASONS: Record<string, string> = {
  local_ok: 'nothing spoke against this machine',
  policy_local: 'the policy prefers this machine',
  policy_remote: 'the policy prefers an upstream',
  rule_local: 'a rule keeps it on this machine',
  rule_remote: 'a rule sends it to an upstream',
  egress_denied: 'it must not leave this machine',
  unsupported_local: 'this machine cannot do what was asked',
  context_overflow: 'too long for the local model',
  queue_overflow: 'the local queue was too long',
  kv_overflow: 'the local cache had no room in time',
  deadline: 'this machine would have been too late',
  hard_pre: 'the prompt looked hard',
  hard_probe: 'the first tokens looked unsure',
  hard_post: 'the local answer looked wrong',
  budget_exhausted: 'the budget for upstreams is used up',
  price_unknown: 'no price is known for the upstream',
  not_eligible: 'no upstream can do what was asked',
  sticky: 'the conversation stays where it was',
  local_failure: 'this machine failed first',
  remote_unavailable: 'no upstream could answer',
};

/** A reason in plain words, or how a call ended that nothing was decided about; what stands after a colon is what it is about. */
export function reasonWords(reason: string): string {
  const [code = '', ...about] = reason.split(':');
  const words = REASONS[code] ?? outcomeWords(code);
  return about.length > 0 ? `${words} (${about.join(':')})` : words;
}

const count = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const one = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const oneAlways = new Intl.NumberFormat('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const money = new Intl.NumberFormat('en', { maximumSignificantDigits: 2, maximumFractionDigits: 8 });
const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const dayAndClock = new Intl.DateTimeFormat('en-GB', {
  day: 'numeric',
  month: 'short',
  hour: '2-digit',
  minute: '2-digit',
});

export const whole = (value: number): string => count.format(value);

/** `131k` for 131072. */
export const short = (value: number): string => (value < 1000 ? count.format(value) : compact.format(value).toLowerCase());

/** A rate: one digit after the point below 100. */
export const rate = (value: number): string => (value >= 100 ? count.format(value) : one.format(value));

export function milliseconds(value: number): string {
  if (value < 10) return `${one.format(value)} ms`;
  if (value < 1000) return `${count.format(value)} ms`;
  return `${oneAlways.format(value / 1000)} s`;
}

/** An amount with as many digits as it needs to be told from zero. */
export function amount(value: number): string {
  if (value === 0) return '0';
  return Math.abs(value) >= 0.1 ? value.toFixed(2) : money.format(value);
}

export const dollars = (value: number): string => `${amount(value)} USD`;

/** An amount as the server wrote it: `~` marks an estimate. */
export function dollarText(text: string): string {
  const value = Number(text.replace('~', ''));
  const words = Number.isFinite(value) ? dollars(value) : `${text} USD`;
  return text.startsWith('~') ? `about ${words}` : words;
}

export const percent = (part: number, of: number): number => (of > 0 ? (100 * part) / of : 0);

export const time = (ms: number): string => clock.format(ms);
export const dayTime = (ms: number): string => dayAndClock.format(ms);

/** `3 h 12 min`, `4 min`, `12 s`. */
export function duration(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} days`;
}

export const plural = (number: number, singular: string, several = `${singular}s`): string =>
  `${whole(number)} ${number === 1 ? singular : several}`;

/** How calls end, by the server's words; what is not listed speaks for itself. */
const OUTCOMES: Record<string, string> = {
  eostoken: 'done',
  stopsequence: 'stop word',
  length: 'cut at its limit',
  dropped: 'the caller left',
  invalid: 'the request was wrong',
  too_long: 'too long for the context',
  template: 'the chat template refused it',
  tool: 'the tools were wrong',
  model_not_found: 'no such model',
  overloaded: 'no room was left',
  generation: 'the model failed',
  no_target: 'nobody could serve it',
  budget: 'the budget is used up',
  deadline: 'the deadline passed',
  deadline_exceeded: 'the deadline passed',
  incomplete: 'the answer broke off',
  unhealthy: 'the server is not well',
  unauthorized: 'without a known key',
  forbidden: 'the key may not do this',
};

export function outcomeWords(outcome: string): string {
  return OUTCOMES[outcome.toLowerCase()] ?? outcome.replaceAll('_', ' ');
}
