//! What happens now, for whoever watches: the newest requests with why they went where they did, and a reading
//! of the machine each second.
//!
//! In memory, bounded, and gone with the process: metrics and the ledger are what lasts. It holds numbers and
//! names that are known here, never a text of anybody. Time is passed in, but for the moment at which a request is over.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::generation::{Reason, RouteAsk, Side};
use crate::route::{self, AttemptNote, Decision, LocalView, Need, TargetView, Terms, Told};

/// Readings that are kept: a quarter of an hour.
const SAMPLES: usize = 900;
/// Between two readings.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// Requests that are kept.
const REQUESTS: usize = 256;
/// How far back percentiles look, and how many requests they look at at most.
const RECENT: Duration = Duration::from_secs(60);
const MOST_RECENT: usize = 4096;

/// One request that is over.
#[derive(Debug)]
pub struct Past {
    /// Its place among all of them.
    pub seq: u64,
    /// When it was over, in milliseconds since 1970.
    pub at_ms: u64,
    /// Its name in headers, logs and the ledger.
    pub request_id: Arc<str>,
    /// The name of the caller's key.
    pub key: Option<Arc<str>>,
    /// The route it came in by.
    pub path: Arc<str>,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// The model that was asked for, if that is a name of one; what else a caller may write there is not kept.
    pub model: Option<Arc<str>>,
    /// Where the answer was made; none where nobody made one.
    pub side: Option<Side>,
    /// The target that made it, or was asked last.
    pub target: Option<String>,
    /// Its upstream.
    pub upstream: Option<String>,
    /// Whose machine it was.
    pub provider: Option<String>,
    /// Why there; none where nothing was decided.
    pub reason: Option<Reason>,
    /// How it ended: a finish reason, or what went wrong.
    pub outcome: String,
    /// Whether there was a whole answer.
    pub ok: bool,
    /// Until its first token.
    pub ttft: Option<Duration>,
    /// Until its last.
    pub total: Duration,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub output_tokens: u32,
    /// What it cost, as far as that is known.
    pub cost_nusd: Option<u64>,
    /// What it would have cost elsewhere.
    pub saved_nusd: Option<u64>,
    /// Requests sent to upstreams.
    pub attempts: Vec<AttemptNote>,
    /// What the answer lacked.
    pub degraded: Vec<String>,
    /// What was decided upon; none where there was nothing to decide.
    pub seen: Option<Box<Seen>>,
}

/// What a decision looked at, and the decision.
#[derive(Debug)]
pub struct Seen {
    pub(super) need: Need,
    pub(super) local: LocalView,
    pub(super) targets: Vec<TargetView>,
    pub(super) terms: Terms,
    /// As it was before anybody was asked.
    pub(super) decision: Decision,
}

impl Past {
    /// Of a request that is over now, of which nothing else is known; `model` is the model that was asked for, if it
    /// is known here.
    pub(super) fn of(ask: &RouteAsk, model: Option<Arc<str>>, outcome: String) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            seq: 0,
            at_ms: since_1970.map_or(0, |time| time.as_millis() as u64),
            request_id: Arc::clone(&ask.request_id),
            key: ask.key.clone(),
            path: Arc::clone(&ask.path),
            stream: ask.stream,
            model,
            side: None,
            target: None,
            upstream: None,
            provider: None,
            reason: None,
            outcome,
            ok: false,
            ttft: None,
            total: Duration::ZERO,
            prompt_tokens: 0,
            output_tokens: 0,
            cost_nusd: None,
            saved_nusd: None,
            attempts: Vec::new(),
            degraded: Vec::new(),
            seen: None,
        }
    }

    /// Why it went where it did, in sentences.
    pub fn explanation(&self) -> Vec<String> {
        match (&self.seen, &self.reason) {
            (Some(seen), Some(reason)) => route::explain(&Told {
                decision: &seen.decision,
                need: &seen.need,
                local: &seen.local,
                targets: &seen.targets,
                terms: &seen.terms,
                side: self.side,
                reason,
            }),
            (_, Some(_)) => {
                vec!["There is nowhere else to go: this machine answers everything.".to_owned()]
            }
            (_, None) => vec!["It was refused before anything was decided.".to_owned()],
        }
    }

    /// Where it is counted.
    fn end(&self) -> End {
        match self.side {
            _ if self.outcome == DROPPED => End::Unfinished,
            Some(_) if !self.ok => End::Unfinished,
            Some(Side::Local) => End::Local,
            Some(Side::Remote) => End::Remote,
            None => End::Refused,
        }
    }

    /// By what it is counted there: why it was answered where it was, or why it was not.
    fn code(&self) -> Box<str> {
        match (&self.reason, self.end()) {
            (_, End::Unfinished) | (None, _) => self.outcome.as_str().into(),
            (Some(reason), End::Refused) if *reason == Reason::LocalOk => {
                self.outcome.as_str().into()
            }
            (Some(reason), _) => reason.code().into(),
        }
    }

    /// Milliseconds between two tokens, in the mean; none where the answer may have come in one piece.
    fn itl_ms(&self) -> Option<f64> {
        if self.side == Some(Side::Remote) && !self.stream {
            return None;
        }
        let gaps = self.output_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        let writing = self.total.saturating_sub(self.ttft?);
        Some(writing.as_secs_f64() * 1e3 / f64::from(gaps))
    }
}

/// How an answer is said to have ended whose caller left.
pub(super) const DROPPED: &str = "dropped";

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// This machine answered.
    Local,
    /// Somebody else did.
    Remote,
    /// Nobody answered.
    Refused,
    /// The caller left, or the answer broke off.
    Unfinished,
}

/// The machine's numbers as they stand, counters since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    /// Sequences running.
    pub(super) running: usize,
    /// Sequences waiting.
    pub(super) waiting: usize,
    /// Most sequences that run at once.
    pub(super) max_running: usize,
    /// Tokens that the KV cache holds for running sequences.
    pub(super) kv_used: usize,
    /// Tokens that it can hold.
    pub(super) kv_total: usize,
    /// Tokens computed, those of prompts and of answers.
    pub(super) computed_tokens: u64,
    /// Tokens of answers.
    pub(super) generated_tokens: u64,
    /// Calls without a whole answer, those that were refused included.
    pub(super) failures: u64,
}

/// One second.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// When it was over, in milliseconds since 1970.
    pub at_ms: u64,
    /// Sequences running.
    pub running: usize,
    /// Sequences waiting.
    pub waiting: usize,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Tokens that the KV cache holds for running sequences.
    pub kv_used: usize,
    /// Tokens that it can hold.
    pub kv_total: usize,
    /// Tokens of prompts, a second.
    pub prefill_tps: f64,
    /// Tokens of answers, a second.
    pub decode_tps: f64,
    /// Requests that this machine answered in it.
    pub local: u32,
    /// Requests that others did.
    pub remote: u32,
    /// Calls without a whole answer.
    pub failed: u64,
    /// Milliseconds to the first token, over the last minute.
    pub ttft_ms: Option<Percentiles>,
    /// Milliseconds between two tokens, over the last minute.
    pub itl_ms: Option<Percentiles>,
}

/// So many of a hundred are at most this.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percentiles {
    /// 50.
    pub p50: f64,
    /// 95.
    pub p95: f64,
    /// 99.
    pub p99: f64,
}

impl Percentiles {
    /// By the nearest rank; none of nothing.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied()
        };
        Some(Self {
            p50: rank(0.50)?,
            p95: rank(0.95)?,
            p99: rank(0.99)?,
        })
    }
}

/// All requests since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many calls came to what end, and why.
    pub calls: BTreeMap<(End, Box<str>), u64>,
    /// What they cost.
    pub cost_nusd: u64,
    /// What those answered here would have cost elsewhere.
    pub saved_nusd: u64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
}

/// See the file's header.
#[derive(Debug)]
pub struct Pulse {
    state: Mutex<State>,
    beats: watch::Sender<Beat>,
}

/// What a watcher hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// So many readings were taken.
    Taken(u64),
    /// There will be no further one.
    End,
}

#[derive(Debug, Default)]
struct State {
    samples: VecDeque<Sample>,
    requests: VecDeque<Arc<Past>>,
    recent: VecDeque<Timing>,
    totals: Totals,
    next: u64,
    before: Option<(Instant, Reading)>,
    /// Requests of the second that has begun.
    local: u32,
    remote: u32,
}

#[derive(Debug)]
struct Timing {
    at: Instant,
    ttft_ms: Option<f64>,
    itl_ms: Option<f64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            beats: watch::Sender::new(Beat::Taken(0)),
        }
    }
}

impl Pulse {
    /// A request is over. One that does not stand for its call, but for a further answer of it, is no call of its
    /// own.
    pub(super) fn note(&self, mut past: Past, stands_for_call: bool, now: Instant) {
        let mut state = self.lock();
        let totals = &mut state.totals;
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut totals.cost_nusd, past.cost_nusd.unwrap_or(0));
        add(&mut totals.saved_nusd, past.saved_nusd.unwrap_or(0));
        add(&mut totals.prompt_tokens, past.prompt_tokens.into());
        add(&mut totals.output_tokens, past.output_tokens.into());
        if !stands_for_call {
            return;
        }
        *totals.calls.entry((past.end(), past.code())).or_default() += 1;
        match past.end() {
            End::Local => state.local += 1,
            End::Remote => state.remote += 1,
            End::Refused | End::Unfinished => {}
        }
        past.seq = state.next;
        state.next += 1;
        if past.ttft.is_some() {
            let timing = Timing {
                at: now,
                ttft_ms: past.ttft.map(|ttft| ttft.as_secs_f64() * 1e3),
                itl_ms: past.itl_ms(),
            };
            push(&mut state.recent, timing, MOST_RECENT);
        }
        push(&mut state.requests, Arc::new(past), REQUESTS);
    }

    /// A call was refused before it became a request, for a reason of this name.
    pub(super) fn refused(&self, outcome: &str) {
        let mut state = self.lock();
        let counted = (End::Refused, outcome.into());
        *state.totals.calls.entry(counted).or_default() += 1;
    }

    /// Nothing more will be told: whoever watches may go.
    pub fn end(&self) {
        self.beats.send_replace(Beat::End);
    }

    /// Takes a reading; `at_ms` is the time of day in milliseconds since 1970.
    pub(super) fn beat(&self, reading: Reading, now: Instant, at_ms: u64) {
        let mut state = self.lock();
        let (since, before) = state
            .before
            .replace((now, reading))
            .unwrap_or((now, reading));
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        let a_second = |tokens: u64| {
            if seconds > 0.0 {
                tokens as f64 / seconds
            } else {
                0.0
            }
        };
        let generated = reading.generated_tokens - before.generated_tokens;
        let computed = reading.computed_tokens - before.computed_tokens;
        while let Some(oldest) = state.recent.front()
            && now.saturating_duration_since(oldest.at) > RECENT
        {
            state.recent.pop_front();
        }
        let percentiles = |of: fn(&Timing) -> Option<f64>| {
            Percentiles::of(state.recent.iter().filter_map(of).collect())
        };
        let sample = Sample {
            at_ms,
            running: reading.running,
            waiting: reading.waiting,
            max_running: reading.max_running,
            kv_used: reading.kv_used,
            kv_total: reading.kv_total,
            // The first token of an answer comes of the prompt's last.
            prefill_tps: a_second(computed.saturating_sub(generated)),
            decode_tps: a_second(generated),
            local: state.local,
            remote: state.remote,
            failed: reading.failures - before.failures,
            ttft_ms: percentiles(|timing| timing.ttft_ms),
            itl_ms: percentiles(|timing| timing.itl_ms),
        };
        (state.local, state.remote) = (0, 0);
        push(&mut state.samples, sample, SAMPLES);
        drop(state);
        self.beats.send_if_modified(|beat| match beat {
            Beat::Taken(beats) => {
                *beats += 1;
                true
            }
            Beat::End => false,
        });
    }

    /// Changes with each reading.
    pub fn watch(&self) -> watch::Receiver<Beat> {
        self.beats.subscribe()
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        self.beats.receiver_count()
    }

    /// Every reading that is kept, oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.lock().samples.iter().cloned().collect()
    }

    /// The newest reading.
    pub fn latest(&self) -> Option<Sample> {
        self.lock().samples.back().cloned()
    }

    /// Requests from this one on that are kept, oldest first.
    pub fn requests_from(&self, seq: u64) -> Vec<Arc<Past>> {
        let state = self.lock();
        let from = state.requests.partition_point(|past| past.seq < seq);
        state.requests.range(from..).cloned().collect()
    }

    /// All requests since the start.
    pub fn totals(&self) -> Totals {
        self.lock().totals.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push<T>(line: &mut VecDeque<T>, item: T, most: usize) {
    if line.len() >= most {
        line.pop_front();
    }
    line.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(side: Option<Side>, ttft_ms: u64) -> Past {
        let ask = RouteAsk {
            stream: true,
            ..RouteAsk::default()
        };
        Past {
            side,
            ok: side.is_some(),
            reason: Some(Reason::LocalOk),
            ttft: Some(Duration::from_millis(ttft_ms)),
            total: Duration::from_millis(ttft_ms + 90),
            output_tokens: 10,
            cost_nusd: Some(5),
            ..Past::of(&ask, None, "length".to_owned())
        }
    }

    fn reading(computed: u64, generated: u64) -> Reading {
        Reading {
            computed_tokens: computed,
            generated_tokens: generated,
            failures: computed / 400,
            ..Reading::default()
        }
    }

    #[test]
    fn a_second_is_what_came_since_the_last_one() {
        let (pulse, start) = (Pulse::default(), Instant::now());
        pulse.beat(reading(100, 10), start, 1_000);
        pulse.note(past(Some(Side::Local), 10), true, start);
        pulse.note(past(Some(Side::Remote), 20), true, start);
        pulse.note(past(None, 30), true, start);
        pulse.beat(reading(400, 30), start + Duration::from_secs(2), 3_000);
        let first = &pulse.samples()[0];
        assert_eq!((first.decode_tps, first.prefill_tps), (0.0, 0.0));
        let latest = pulse.latest().expect("a reading");
        assert_eq!(latest.at_ms, 3_000);
        assert_eq!((latest.local, latest.remote, latest.failed), (1, 1, 1));
        assert_eq!((latest.decode_tps, latest.prefill_tps), (10.0, 140.0));
        let ttft = latest.ttft_ms.expect("three requests");
        assert_eq!((ttft.p50, ttft.p95, ttft.p99), (20.0, 30.0, 30.0));
        assert_eq!(latest.itl_ms.map(|itl| itl.p50), Some(10.0));
        pulse.beat(reading(400, 30), start + Duration::from_secs(3), 4_000);
        let latest = pulse.latest().expect("a reading");
        assert_eq!((latest.local, latest.decode_tps), (0, 0.0));
        assert!(latest.ttft_ms.is_some(), "percentiles look back further");
        pulse.beat(reading(400, 30), start + RECENT * 2, 5_000);
        assert_eq!(pulse.latest().and_then(|latest| latest.ttft_ms), None);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_counted_is_not() {
        let (pulse, now) = (Pulse::default(), Instant::now());
        let many = 3 * REQUESTS as u64;
        for _ in 0..many {
            pulse.note(past(Some(Side::Local), 1), true, now);
        }
        let kept = pulse.requests_from(0);
        assert_eq!(kept.len(), REQUESTS);
        assert_eq!(kept[0].seq, many - REQUESTS as u64);
        assert_eq!(pulse.requests_from(many - 2).len(), 2);
        assert!(pulse.requests_from(many).is_empty());
        let totals = pulse.totals();
        assert_eq!(totals.calls[&(End::Local, "local_ok".into())], many);
        assert_eq!(totals.cost_nusd, 5 * many);
        for second in 0..2 * SAMPLES as u64 {
            pulse.beat(Reading::default(), now, second);
        }
        assert_eq!(pulse.samples().len(), SAMPLES);
    }

    #[test]
    fn calls_are_counted_once_and_by_what_became_of_them() {
        let (pulse, now) = (Pulse::default(), Instant::now());
        pulse.note(past(Some(Side::Local), 1), true, now);
        pulse.note(past(Some(Side::Local), 1), false, now);
        let left = |side| Past {
            ok: false,
            outcome: DROPPED.to_owned(),
            ..past(side, 1)
        };
        pulse.note(left(None), true, now);
        pulse.note(left(Some(Side::Remote)), true, now);
        let denied = Past {
            reason: Some(Reason::BudgetExhausted),
            ..past(None, 1)
        };
        pulse.note(denied, true, now);
        let wrong = Past {
            reason: None,
            outcome: "invalid".to_owned(),
            ..past(None, 1)
        };
        pulse.note(wrong, true, now);
        pulse.refused("overloaded");
        let totals = pulse.totals();
        let counted = totals.calls.iter();
        let counted: Vec<_> = counted
            .map(|((end, code), count)| (*end, &**code, *count))
            .collect();
        assert_eq!(
            counted,
            [
                (End::Local, "local_ok", 1),
                (End::Refused, "budget_exhausted", 1),
                (End::Refused, "invalid", 1),
                (End::Refused, "overloaded", 1),
                (End::Unfinished, DROPPED, 2),
            ]
        );
        assert_eq!(totals.output_tokens, 60, "further answers have tokens, too");
        assert_eq!(pulse.requests_from(0).len(), 5);
    }

    #[test]
    fn an_answer_that_may_have_come_in_one_piece_has_no_gaps_between_its_tokens() {
        let whole = Past {
            stream: false,
            ..past(Some(Side::Remote), 1)
        };
        assert_eq!(whole.itl_ms(), None);
        assert_eq!(past(Some(Side::Remote), 1).itl_ms(), Some(10.0));
    }

    #[test]
    fn whoever_watches_hears_of_each_reading() {
        let pulse = Pulse::default();
        let mut watcher = pulse.watch();
        assert_eq!(pulse.watchers(), 1);
        assert!(!watcher.has_changed().expect("a pulse"));
        pulse.beat(Reading::default(), Instant::now(), 0);
        assert!(watcher.has_changed().expect("a pulse"));
        watcher.mark_unchanged();
        assert!(!watcher.has_changed().expect("a pulse"));
        pulse.end();
        pulse.beat(Reading::default(), Instant::now(), 0);
        assert_eq!(*watcher.borrow_and_update(), Beat::End);
    }
}
