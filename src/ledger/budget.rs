//! Budgets, and the book that holds what is spent and held of each: compared and added in one step.
//!
//! Pure: time is passed in, nothing is written down. The book is a fold of the ledger's attempts and never a
//! second truth: whoever owns it fills it from them. What is held counts like what is spent until it is settled,
//! so that many at once cannot take more than there is. Answers made here are nobody's business here.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use chrono_tz::Tz;

use super::money::usd;
use super::window::{Period, Window, Windows};

/// Counters that are told apart; those of further names are counted together.
const MOST_COUNTERS: usize = 65_536;

/// How much a budget holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Nano-USD.
    Nusd(u64),
    /// Tokens, read and written.
    Tokens(u64),
}

impl Limit {
    /// The amount, in its own unit.
    pub fn amount(self) -> u64 {
        match self {
            Self::Nusd(amount) | Self::Tokens(amount) => amount,
        }
    }

    /// How many of the amount's units a US dollar, or a token, is.
    pub fn unit(self) -> f64 {
        match self {
            Self::Nusd(_) => 1e9,
            Self::Tokens(_) => 1.0,
        }
    }

    /// This limit's share of what is spent.
    fn of(self, amount: Amount) -> u64 {
        match self {
            Self::Nusd(_) => amount.nusd,
            Self::Tokens(_) => amount.tokens,
        }
    }
}

/// What becomes of a request for which a hard budget does not suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum OnExceed {
    /// The next target is asked, and at last this machine.
    #[default]
    Next,
    /// This machine answers, whoever else could.
    Local,
    /// The request is refused.
    Refuse,
}

/// What a budget is counted for each of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Each {
    /// Each key.
    Key,
    /// Each tenant.
    Tenant,
    /// Each model, by its name at the upstream.
    Model,
    /// Each provider.
    Provider,
    /// Each upstream.
    Upstream,
}

/// Whose spending a budget bounds; what is none does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Scope {
    /// The key's name; `anonymous` for callers without one.
    pub key: Option<Arc<str>>,
    /// The tenant's name.
    pub tenant: Option<Arc<str>>,
    /// The model's name at the upstream.
    pub model: Option<Arc<str>>,
    /// Who runs it.
    pub provider: Option<Arc<str>>,
    /// The upstream's name.
    pub upstream: Option<Arc<str>>,
}

/// One budget as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Its name in messages, metrics and alerts.
    pub name: Arc<str>,
    /// Whose spending it bounds.
    pub scope: Scope,
    /// What it is counted for each of; none for one sum over all.
    pub each: Option<Each>,
    /// How long it lasts.
    pub period: Period,
    /// How much it holds.
    pub limit: Limit,
    /// Whether it only alerts, and denies nothing.
    pub soft: bool,
    /// What then.
    pub on_exceed: OnExceed,
}

impl Budget {
    /// A hard one over everything, for a day.
    pub fn daily(name: &str, nusd: u64) -> Self {
        Self {
            name: name.into(),
            scope: Scope::default(),
            each: None,
            period: Period::Day,
            limit: Limit::Nusd(nusd),
            soft: false,
            on_exceed: OnExceed::Next,
        }
    }
}

/// Who spends, and where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spender {
    /// The key's name; `anonymous` for callers without one.
    pub key: Arc<str>,
    /// The tenant's name.
    pub tenant: Arc<str>,
    /// The model's name at the upstream.
    pub model: Arc<str>,
    /// Who runs it; none while the upstream may choose anybody.
    pub provider: Option<Arc<str>>,
    /// The upstream's name.
    pub upstream: Arc<str>,
}

/// Money and tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Nano-USD.
    pub nusd: u64,
    /// Tokens, read and written.
    pub tokens: u64,
}

/// One counter's name: the budget's meaning, and whom it is counted for. Servers that share a ledger agree on it
/// whatever they call their budgets.
pub(super) type CounterKey = Arc<str>;

/// A change of one counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delta {
    /// The counter.
    pub(super) counter: CounterKey,
    /// The window's first millisecond.
    pub(super) start_ms: i64,
    /// What is added.
    pub(super) by: i64,
}

impl Delta {
    /// Whether both are of the same counter and window.
    fn is_of(&self, other: &Self) -> bool {
        self.counter == other.counter && self.start_ms == other.start_ms
    }
}

/// A hard budget that does not cover a request's worst case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// The budget's name, and whom it is counted for.
    pub budget: String,
    /// What it holds.
    pub limit: Limit,
    /// What is spent or held of it.
    pub used: u64,
    /// When it begins anew, in milliseconds since 1970.
    pub resets_ms: i64,
    /// How long it lasts.
    pub period: Period,
    /// What is to become of the request.
    pub on_exceed: OnExceed,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reset = chrono::DateTime::from_timestamp_millis(self.resets_ms).unwrap_or_default();
        let reset = reset.format("%Y-%m-%dT%H:%M:%SZ");
        let name = &self.budget;
        let period = self.period.name();
        match self.limit {
            Limit::Nusd(nusd) => write!(
                f,
                "budget `{name}` of {} USD a {period} does not cover this request's worst case; it begins anew at {reset}",
                usd(nusd)
            ),
            Limit::Tokens(tokens) => write!(
                f,
                "budget `{name}` of {tokens} tokens a {period} does not cover this request's worst case; it begins anew at {reset}"
            ),
        }
    }
}

/// How a budget stands in its window of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The budget's name, and whom it is counted for.
    pub name: String,
    /// Its counter.
    pub(super) counter: CounterKey,
    /// What it holds.
    pub limit: Limit,
    /// What is spent or held of it.
    pub used: u64,
    /// Whether it only alerts.
    pub soft: bool,
    /// Its window.
    pub window: Window,
    /// How long it lasts.
    pub period: Period,
}

/// What is left to one spender for one more request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Nano-USD of the tightest hard budget; none without one.
    pub nusd: Option<u64>,
    /// Tokens of the tightest hard budget; none without one.
    pub tokens: Option<u64>,
}

/// Every budget with what is used of it.
#[derive(Debug)]
pub(super) struct Book {
    budgets: Vec<Budget>,
    zone: Tz,
    used: HashMap<(CounterKey, i64), u64>,
    /// The names of counters, which are made once.
    names: HashMap<(usize, Option<Arc<str>>), CounterKey>,
    windows: Windows,
    /// The latest moment that was ever seen: a clock that is set back begins no window anew.
    now_ms: i64,
}

impl Book {
    /// With nothing spent.
    pub(super) fn new(budgets: Vec<Budget>, zone: Tz) -> Self {
        Self {
            budgets,
            zone,
            used: HashMap::new(),
            names: HashMap::new(),
            windows: Windows::default(),
            now_ms: 0,
        }
    }

    /// The budgets.
    pub(super) fn budgets(&self) -> &[Budget] {
        &self.budgets
    }

    /// The zone that days and months are counted in.
    pub(super) fn zone(&self) -> Tz {
        self.zone
    }

    /// The first millisecond of the longest window that is counted in now.
    pub(super) fn oldest_ms(&mut self, now_ms: i64) -> i64 {
        let now_ms = self.at(now_ms);
        let starts = self.budgets.iter();
        let starts = starts.map(|budget| Window::of(budget.period, self.zone, now_ms).start_ms);
        starts.min().unwrap_or(now_ms)
    }

    /// Holds the worst case of one request in every budget that it touches, or in none.
    ///
    /// Returns the changes and the moment that counts, which settling wants back.
    /// Errors: the hard budget that does not cover it; of several, the one that says the most about what then.
    pub(super) fn reserve(
        &mut self,
        spender: &Spender,
        worst: Amount,
        now_ms: i64,
    ) -> Result<(Vec<Delta>, i64), Exceeded> {
        let at_ms = self.at(now_ms);
        let touched = self.touched(spender, at_ms);
        let mut exceeded: Option<Exceeded> = None;
        for (place, key, window) in &touched {
            let budget = &self.budgets[*place];
            let used = self.used_of(key, window.start_ms);
            let wanted = budget.limit.of(worst);
            let fits = used
                .checked_add(wanted)
                .is_some_and(|sum| sum <= budget.limit.amount());
            if budget.soft || wanted == 0 || fits {
                continue;
            }
            let more = exceeded
                .as_ref()
                .is_none_or(|e| budget.on_exceed > e.on_exceed);
            if more {
                exceeded = Some(self.exceeded(*place, key, used, *window));
            }
        }
        if let Some(exceeded) = exceeded {
            return Err(exceeded);
        }
        let deltas = self.deltas(touched, worst, 1);
        self.apply(&deltas);
        Ok((deltas, at_ms))
    }

    /// Replaces what was held for a request by what it came to. `at_ms` is the moment that [`Self::reserve`] gave;
    /// where another provider answered than was expected, its budgets are charged.
    pub(super) fn settle(
        &mut self,
        held: (&Spender, Amount),
        came_to: (&Spender, Amount),
        at_ms: i64,
    ) -> Vec<Delta> {
        let mut deltas: Vec<Delta> = Vec::new();
        for ((spender, amount), sign) in [(held, -1), (came_to, 1)] {
            let touched = self.touched(spender, at_ms);
            for delta in self.deltas(touched, amount, sign) {
                match deltas.iter_mut().find(|known| known.is_of(&delta)) {
                    Some(known) => known.by = known.by.saturating_add(delta.by),
                    None => deltas.push(delta),
                }
            }
        }
        deltas.retain(|delta| delta.by != 0);
        self.apply(&deltas);
        deltas
    }

    /// Takes changes back that could not be written down.
    pub(super) fn undo(&mut self, deltas: &[Delta]) {
        let back: Vec<Delta> = deltas
            .iter()
            .map(|delta| Delta {
                by: -delta.by,
                ..delta.clone()
            })
            .collect();
        self.apply(&back);
    }

    /// Counts what was spent or held before, when the book is filled.
    pub(super) fn count(&mut self, spender: &Spender, amount: Amount, at_ms: i64, period: Period) {
        let mut touched = self.touched(spender, at_ms);
        touched.retain(|(place, _, _)| self.budgets[*place].period == period);
        let deltas = self.deltas(touched, amount, 1);
        self.apply(&deltas);
    }

    /// Forgets every counter.
    pub(super) fn clear(&mut self) {
        self.used.clear();
    }

    /// Takes these counters instead of its own: what several servers have made of them.
    pub(super) fn replace(&mut self, counters: impl IntoIterator<Item = (CounterKey, i64, u64)>) {
        let counters = counters.into_iter();
        self.used = counters
            .map(|(key, start, used)| ((key, start), used))
            .collect();
    }

    /// Every counter.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&CounterKey, i64, u64)> {
        self.used
            .iter()
            .map(|((key, start), used)| (key, *start, *used))
    }

    /// What is left to a spender, for a look before anything is held.
    pub(super) fn left(&mut self, spender: &Spender, now_ms: i64) -> Left {
        let now_ms = self.at(now_ms);
        let mut left = Left::default();
        for (place, key, window) in self.touched(spender, now_ms) {
            let budget = &self.budgets[place];
            if budget.soft {
                continue;
            }
            let rest = budget
                .limit
                .amount()
                .saturating_sub(self.used_of(&key, window.start_ms));
            let least = match budget.limit {
                Limit::Nusd(_) => &mut left.nusd,
                Limit::Tokens(_) => &mut left.tokens,
            };
            *least = Some(least.map_or(rest, |least| least.min(rest)));
        }
        left
    }

    /// Whether a hard budget does not cover this worst case now; nothing is held.
    pub(super) fn look(
        &mut self,
        spender: &Spender,
        worst: Amount,
        now_ms: i64,
    ) -> Option<Exceeded> {
        match self.reserve(spender, worst, now_ms) {
            Ok((deltas, _)) => {
                self.undo(&deltas);
                None
            }
            Err(exceeded) => Some(exceeded),
        }
    }

    /// Every counter that anything was spent of in its window of now, and every budget over all.
    pub(super) fn standings(&mut self, now_ms: i64) -> Vec<Standing> {
        let now_ms = self.at(now_ms);
        let mut all: Vec<(usize, Option<Arc<str>>)> = self.names.keys().cloned().collect();
        for (place, budget) in self.budgets.iter().enumerate() {
            if budget.each.is_none() && !self.names.contains_key(&(place, None)) {
                all.push((place, None));
            }
        }
        all.sort();
        let standing = |(place, whose): (usize, Option<Arc<str>>)| {
            let counter = self.counter(place, whose);
            let budget = &self.budgets[place];
            let window = Window::of(budget.period, self.zone, now_ms);
            Standing {
                name: self.label(place, &counter),
                used: self.used_of(&counter, window.start_ms),
                counter,
                limit: budget.limit,
                soft: budget.soft,
                window,
                period: budget.period,
            }
        };
        all.into_iter().map(standing).collect()
    }

    /// The moment that counts.
    fn at(&mut self, now_ms: i64) -> i64 {
        if now_ms > self.now_ms {
            self.now_ms = now_ms;
            // Of windows that are over, only what is still held matters, and not for long.
            let zone = self.zone;
            let oldest = Window::of(Period::Month, zone, now_ms).start_ms;
            if self.used.len() > 4096 {
                self.used.retain(|(_, start), _| *start >= oldest);
            }
        }
        self.now_ms
    }

    /// What an amount changes: each counter once, however many budgets are counted by it.
    fn deltas(
        &self,
        touched: Vec<(usize, CounterKey, Window)>,
        amount: Amount,
        sign: i64,
    ) -> Vec<Delta> {
        let mut deltas: Vec<Delta> = Vec::new();
        for (place, counter, window) in touched {
            let delta = Delta {
                counter,
                start_ms: window.start_ms,
                by: sign * signed(self.budgets[place].limit.of(amount)),
            };
            if delta.by != 0 && !deltas.iter().any(|known| known.is_of(&delta)) {
                deltas.push(delta);
            }
        }
        deltas
    }

    fn used_of(&self, counter: &CounterKey, start_ms: i64) -> u64 {
        let used = self.used.get(&(Arc::clone(counter), start_ms));
        used.copied().unwrap_or(0)
    }

    fn apply(&mut self, deltas: &[Delta]) {
        for delta in deltas {
            let used = self
                .used
                .entry((Arc::clone(&delta.counter), delta.start_ms));
            let used = used.or_default();
            *used = used.saturating_add_signed(delta.by);
        }
    }

    fn exceeded(&self, place: usize, key: &CounterKey, used: u64, window: Window) -> Exceeded {
        let budget = &self.budgets[place];
        Exceeded {
            budget: self.label(place, key),
            limit: budget.limit,
            used,
            resets_ms: window.end_ms,
            period: budget.period,
            on_exceed: budget.on_exceed,
        }
    }

    /// A budget's name, with whom it is counted for.
    fn label(&self, place: usize, counter: &CounterKey) -> String {
        let budget = &self.budgets[place];
        let each = budget.each.map(|each| format!("/each {}=", each.name()));
        match each.and_then(|each| counter.split_once(&each)) {
            Some((_, whose)) => format!("{} of {whose}", budget.name),
            None => budget.name.to_string(),
        }
    }

    /// The budgets that a spender's request counts for, with their windows.
    fn touched(&mut self, spender: &Spender, at_ms: i64) -> Vec<(usize, CounterKey, Window)> {
        let mut touched = Vec::new();
        for place in 0..self.budgets.len() {
            let budget = &self.budgets[place];
            if !budget.scope.holds(spender) {
                continue;
            }
            let window = self.windows.of(budget.period, self.zone, at_ms);
            let whose = budget.each.map(|each| each.of(spender));
            // Whoever the upstream will choose is not known yet, and charged when it is.
            if whose == Some(None) {
                continue;
            }
            let key = self.counter(place, whose.flatten());
            touched.push((place, key, window));
        }
        touched
    }

    fn counter(&mut self, place: usize, whose: Option<Arc<str>>) -> CounterKey {
        let mut known = (place, whose);
        if let Some(key) = self.names.get(&known) {
            return Arc::clone(key);
        }
        // Providers give themselves their names.
        if self.names.len() >= MOST_COUNTERS && known.1.is_some() {
            known.1 = Some("other".into());
        }
        let budget = &self.budgets[place];
        let key: CounterKey = budget.meaning(self.zone, known.1.as_deref()).into();
        self.names.insert(known, Arc::clone(&key));
        key
    }
}

impl Each {
    fn of(self, spender: &Spender) -> Option<Arc<str>> {
        match self {
            Self::Key => Some(Arc::clone(&spender.key)),
            Self::Tenant => Some(Arc::clone(&spender.tenant)),
            Self::Model => Some(Arc::clone(&spender.model)),
            Self::Provider => spender.provider.clone(),
            Self::Upstream => Some(Arc::clone(&spender.upstream)),
        }
    }

    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Tenant => "tenant",
            Self::Model => "model",
            Self::Provider => "provider",
            Self::Upstream => "upstream",
        }
    }
}

impl Scope {
    /// Whether a spender's request counts. A provider that is not known yet counts as each.
    fn holds(&self, spender: &Spender) -> bool {
        let Self {
            key,
            tenant,
            model,
            provider,
            upstream,
        } = self;
        let same = |wanted: &Option<Arc<str>>, is: &Arc<str>| {
            wanted.as_ref().is_none_or(|wanted| wanted == is)
        };
        let by_provider = match (provider, &spender.provider) {
            (Some(wanted), Some(is)) => wanted == is,
            _ => true,
        };
        by_provider
            && same(key, &spender.key)
            && same(tenant, &spender.tenant)
            && same(model, &spender.model)
            && same(upstream, &spender.upstream)
    }
}

impl Budget {
    /// What is counted, in words that are the same wherever the same is counted.
    fn meaning(&self, zone: Tz, whose: Option<&str>) -> String {
        let Scope {
            key,
            tenant,
            model,
            provider,
            upstream,
        } = &self.scope;
        let unit = match self.limit {
            Limit::Nusd(_) => "nusd",
            Limit::Tokens(_) => "tokens",
        };
        let mut text = format!("{unit}/{}/{zone}", self.period.name());
        for (name, value) in [
            ("key", key),
            ("tenant", tenant),
            ("model", model),
            ("provider", provider),
            ("upstream", upstream),
        ] {
            if let Some(value) = value {
                text += &format!("/{name}:{value}");
            }
        }
        if let (Some(each), Some(whose)) = (self.each, whose) {
            text += &format!("/each {}={whose}", each.name());
        }
        text
    }
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
