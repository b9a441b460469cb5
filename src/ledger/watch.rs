//! What is worth telling an operator about money: spikes, budgets that run out, and targets in trouble.
//!
//! Looked at once a minute, over what the ledger says and not over what this server alone has spent. One cause is
//! told once: a key whose spending rises raises that of its target and of everything, too, and only the key is told
//! of. Pure: minutes, budgets and states come in, alerts go out; who tells whom is the caller's business.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::budget::{CounterKey, Limit, Standing};
use super::money::usd;
use super::spike::{Budget, KEPT_MINUTES, Series, Spike, SpikeConfig};
use super::usage::Minute;

/// Minutes that are read again at each look: what was held in them may have been settled since.
const READ_AGAIN: u64 = 30;
/// A minute in milliseconds.
const MINUTE_MS: i64 = 60_000;

/// What is told, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct WatchConfig {
    /// When spending is a spike.
    pub spikes: SpikeConfig,
    /// Per cent of a budget at which it is told of, in their order.
    pub thresholds: Vec<u8>,
    /// Minutes for which a target's trouble is not told again.
    pub calm_minutes: u64,
}

impl Default for WatchConfig {
    fn default() -> Self {
        let spikes = SpikeConfig::default();
        Self {
            thresholds: vec![50, 80, 100],
            calm_minutes: u64::from(spikes.calm_minutes),
            spikes,
        }
    }
}

/// What sort of thing is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AlertKind {
    /// Spending rose far above what is usual.
    Spike,
    /// Spending rises, and is not yet far above.
    Ramp,
    /// A budget is used up to a threshold.
    Budget,
    /// A budget will be gone long before its window ends.
    Burn,
    /// A target cannot be used.
    Target,
    /// This server keeps everything here for a time.
    Contained,
}

impl AlertKind {
    /// The name in metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spike => "spike",
            Self::Ramp => "ramp",
            Self::Budget => "budget",
            Self::Burn => "burn",
            Self::Target => "target",
            Self::Contained => "contained",
        }
    }
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// What sort.
    pub kind: AlertKind,
    /// What it is about: the same cause has the same name on every server that shares the ledger.
    pub cause: String,
    /// For so long the same cause is not told again; for ever without it.
    pub quiet_ms: Option<i64>,
    /// In words.
    pub text: String,
}

/// Whose spending a series holds, from the narrowest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Scope {
    Key(String),
    Target(String),
    All,
}

impl Scope {
    fn name(&self) -> String {
        match self {
            Self::Key(key) => format!("key `{key}`"),
            Self::Target(target) => format!("target `{target}`"),
            Self::All => "all callers".to_owned(),
        }
    }

    fn cause(&self, kind: AlertKind) -> String {
        let kind = kind.name();
        match self {
            Self::Key(key) => format!("{kind}:key:{key}"),
            Self::Target(target) => format!("{kind}:target:{target}"),
            Self::All => format!("{kind}:all"),
        }
    }
}

/// A budget's counter, and its window's first millisecond.
type Counted = (CounterKey, i64);

/// What was seen so far.
#[derive(Debug)]
pub struct Watch {
    config: WatchConfig,
    series: BTreeMap<Scope, Series>,
    /// What the series hold of the minutes that are read again.
    held: HashMap<(Scope, u64), u64>,
    /// Until which minute a scope's spike, or its ramp, is explained by one that was told.
    explained: HashMap<(Scope, AlertKind), u64>,
    /// Amounts used of each budget's window of now, minute by minute.
    used: HashMap<Counted, VecDeque<(u64, u64)>>,
    /// What was told of each budget's window of now.
    told: HashMap<Counted, HashSet<String>>,
    troubles: HashMap<String, u64>,
}

impl Watch {
    /// With nothing seen.
    pub fn new(config: WatchConfig) -> Self {
        Self {
            config,
            series: BTreeMap::new(),
            held: HashMap::new(),
            explained: HashMap::new(),
            used: HashMap::new(),
            told: HashMap::new(),
            troubles: HashMap::new(),
        }
    }

    /// The first minute that the next look at `minute` wants to know of.
    pub fn since(&self, minute: u64) -> u64 {
        match self.series.is_empty() {
            true => minute.saturating_sub(KEPT_MINUTES),
            false => minute.saturating_sub(READ_AGAIN),
        }
    }

    /// Looks at what was spent up to a minute: `minutes` is everything since [`Self::since`].
    pub fn spending(&mut self, minute: u64, minutes: &[Minute]) -> Vec<Alert> {
        let since = self.since(minute);
        self.take(since, minute, minutes);
        self.spikes(minute, minutes)
    }

    /// Looks at every budget.
    pub fn budgets(&mut self, minute: u64, standings: &[Standing]) -> Vec<Alert> {
        let now: HashSet<Counted> = standings.iter().map(counted).collect();
        self.used.retain(|counted, _| now.contains(counted));
        self.told.retain(|counted, _| now.contains(counted));
        let mut alerts = Vec::new();
        for standing in standings {
            alerts.extend(self.threshold(standing));
            alerts.extend(self.burn(minute, standing));
        }
        alerts
    }

    /// A target stands so, in one word and as a sentence.
    pub fn target(
        &mut self,
        minute: u64,
        target: &str,
        state: &str,
        sentence: &str,
    ) -> Option<Alert> {
        // How full it is, or that it sleeps and wakes, is nobody's trouble.
        const TROUBLES: [&str; 5] = ["open", "quota", "auth_failed", "misconfigured", "paused"];
        if !TROUBLES.contains(&state) {
            return None;
        }
        let cause = format!("target:{target}:{state}");
        let calm = self.config.calm_minutes;
        let last = self.troubles.insert(cause.clone(), minute);
        if last.is_some_and(|last| minute < last + calm) {
            return None;
        }
        Some(Alert {
            kind: AlertKind::Target,
            cause,
            quiet_ms: Some(ms(calm)),
            text: sentence.to_owned(),
        })
    }

    /// Brings the series up to what the ledger says.
    fn take(&mut self, since: u64, minute: u64, minutes: &[Minute]) {
        let mut now: HashMap<(Scope, u64), u64> = HashMap::new();
        for spent in minutes {
            for scope in [
                Scope::All,
                Scope::Key(spent.key.clone()),
                Scope::Target(spent.target.clone()),
            ] {
                *now.entry((scope, spent.minute)).or_default() += spent.nusd;
            }
        }
        self.series.entry(Scope::All).or_default();
        let config = &self.config.spikes;
        for ((scope, at), nusd) in &now {
            let series = self.series.entry(scope.clone()).or_insert_with(|| {
                let mut series = Series::new();
                // What it begins with is new, and not its history, unless all of this is history.
                if since + READ_AGAIN >= minute {
                    series.look(since, config);
                }
                series
            });
            let held = self.held.get(&(scope.clone(), *at)).copied().unwrap_or(0);
            series.add(*at, nusd.saturating_sub(held));
            series.take_back(*at, held.saturating_sub(*nusd));
        }
        // What is read again next time is compared with this.
        let again = minute.saturating_sub(READ_AGAIN);
        now.retain(|(_, at), _| *at >= again);
        self.held = now;
    }

    fn spikes(&mut self, minute: u64, minutes: &[Minute]) -> Vec<Alert> {
        let mut alerts = Vec::new();
        let calm = u64::from(self.config.spikes.calm_minutes);
        let scopes: Vec<Scope> = self.series.keys().cloned().collect();
        for scope in scopes {
            let Some(series) = self.series.get_mut(&scope) else {
                continue;
            };
            let found = series.look(minute, &self.config.spikes);
            // The gravest of what one scope shows at once.
            let rate = found
                .iter()
                .find(|spike| matches!(spike, Spike::Rate { .. }));
            let Some(spike) = rate.or(found.first()) else {
                continue;
            };
            let kind = kind_of(spike);
            let explained = self.explained.get(&(scope.clone(), kind));
            let explained = explained.is_some_and(|until| minute < *until);
            let involved = involved(&scope, minute, minutes);
            for scope in &involved {
                // A spike explains a ramp, too; a ramp may still become a spike.
                for kind in [AlertKind::Ramp, kind] {
                    let until = self.explained.entry((scope.clone(), kind)).or_default();
                    *until = (*until).max(minute + calm);
                }
            }
            if !explained {
                alerts.push(told(&scope, spike, &involved, calm));
            }
        }
        self.explained.retain(|_, until| minute < *until);
        alerts
    }

    fn threshold(&mut self, standing: &Standing) -> Option<Alert> {
        let limit = standing.limit.amount();
        if limit == 0 || limit == u64::MAX {
            return None;
        }
        let share = u128::from(standing.used) * 100 / u128::from(limit);
        let cause = |per_cent: u8| {
            format!(
                "budget:{}:{}:{per_cent}",
                standing.counter, standing.window.start_ms
            )
        };
        let reached = self.config.thresholds.iter().copied();
        let reached: Vec<u8> = reached.filter(|t| u128::from(*t) <= share).collect();
        let highest = *reached.iter().max()?;
        let mut new = false;
        for per_cent in reached {
            let told = self.told.entry(counted(standing)).or_default();
            new |= told.insert(cause(per_cent)) && per_cent == highest;
        }
        new.then(|| Alert {
            kind: AlertKind::Budget,
            cause: cause(highest),
            quiet_ms: None,
            text: format!(
                "budget `{}`: {share} % of {} are spent or held; it begins anew at {}",
                standing.name,
                amount(standing.limit, limit),
                time(standing.window.end_ms)
            ),
        })
    }

    fn burn(&mut self, minute: u64, standing: &Standing) -> Option<Alert> {
        let Limit::Nusd(limit_nusd) = standing.limit else {
            return None;
        };
        if limit_nusd == 0 || limit_nusd == u64::MAX {
            return None;
        }
        let seen = self.used.entry(counted(standing)).or_default();
        seen.push_back((minute, standing.used));
        // One that is older than an hour is kept, to be compared with.
        while seen.get(1).is_some_and(|(at, _)| at + 60 <= minute) {
            seen.pop_front();
        }
        let before = |minutes: u64| {
            let then = seen.iter().rev().find(|(at, _)| at + minutes <= minute);
            // Of a window that has just begun, or a server that has, nothing older is known.
            let (_, used) = then.or(seen.front())?;
            Some(standing.used.saturating_sub(*used))
        };
        let left = standing.window.end_ms.saturating_sub(ms(minute)) / MINUTE_MS;
        let budget = Budget {
            limit_nusd,
            spent_nusd: standing.used,
            left_minutes: u64::try_from(left).unwrap_or(0),
        };
        let burn = budget.burn(before(60)?, before(5)?)?;
        let cause = format!("burn:{}:{}", standing.counter, standing.window.start_ms);
        let told = self.told.entry(counted(standing)).or_default();
        told.insert(cause.clone()).then(|| Alert {
            kind: AlertKind::Burn,
            cause,
            quiet_ms: None,
            text: format!(
                "budget `{}` will be gone in {} minutes at the rate of the last hour, {} minutes before it begins anew: \
                 {} USD of {} remain",
                standing.name,
                burn.lasts_minutes,
                burn.left_minutes - burn.lasts_minutes,
                usd(burn.remaining_nusd),
                usd(limit_nusd)
            ),
        })
    }
}

fn counted(standing: &Standing) -> Counted {
    (standing.counter.clone(), standing.window.start_ms)
}

fn kind_of(spike: &Spike) -> AlertKind {
    match spike {
        Spike::Rate { .. } => AlertKind::Spike,
        Spike::Ramp { .. } => AlertKind::Ramp,
    }
}

/// The scopes whose rise one explains: its own, and those of which at least half of what was spent lately is its.
fn involved(scope: &Scope, minute: u64, minutes: &[Minute]) -> Vec<Scope> {
    let mut own: BTreeMap<Scope, u64> = BTreeMap::new();
    let mut all: BTreeMap<Scope, u64> = BTreeMap::new();
    for spent in minutes.iter().filter(|spent| spent.minute + 15 >= minute) {
        let scopes = [
            Scope::Key(spent.key.clone()),
            Scope::Target(spent.target.clone()),
            Scope::All,
        ];
        let is_own = scopes.contains(scope);
        for scope in scopes {
            if is_own {
                *own.entry(scope.clone()).or_default() += spent.nusd;
            }
            *all.entry(scope).or_default() += spent.nusd;
        }
    }
    let whole = own.get(scope).copied().unwrap_or(0);
    let explained = own.into_iter().filter(|(other, nusd)| {
        let sum = all.get(other).copied().unwrap_or(0);
        // Most of it is spent there, and it is most of what is spent there.
        other == scope || (2 * nusd >= whole && 2 * nusd >= sum)
    });
    explained.map(|(scope, _)| scope).collect()
}

fn told(scope: &Scope, spike: &Spike, involved: &[Scope], calm: u64) -> Alert {
    let most = involved
        .iter()
        .filter(|other| *other != scope && **other != Scope::All);
    let most: Vec<String> = most.map(Scope::name).collect();
    let most = match most.is_empty() {
        true => String::new(),
        false => format!("; most of it: {}", most.join(", ")),
    };
    let (kind, what) = match spike {
        Spike::Rate {
            last_15_nusd,
            bar_nusd,
            baseline_nusd,
            ..
        } => (
            AlertKind::Spike,
            format!(
                "{} USD in the last 15 minutes, where {} are usual and {} the bar",
                usd(*last_15_nusd),
                usd(*baseline_nusd),
                usd(*bar_nusd)
            ),
        ),
        Spike::Ramp {
            spent_nusd,
            usual_nusd,
            z,
            ..
        } => (
            AlertKind::Ramp,
            format!(
                "{} USD in a minute, where {} are usual (z = {z:.1})",
                usd(*spent_nusd),
                usd(*usual_nusd)
            ),
        ),
    };
    Alert {
        kind,
        cause: scope.cause(kind),
        quiet_ms: Some(ms(calm)),
        text: format!("spending of {} rose: {what}{most}", scope.name()),
    }
}

fn amount(limit: Limit, amount: u64) -> String {
    match limit {
        Limit::Nusd(_) => format!("{} USD", usd(amount)),
        Limit::Tokens(_) => format!("{amount} tokens"),
    }
}

fn time(ms: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(ms).unwrap_or_default();
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn ms(minutes: u64) -> i64 {
    i64::try_from(minutes)
        .unwrap_or(i64::MAX)
        .saturating_mul(MINUTE_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Period, Window};

    const USD: u64 = 1_000_000_000;
    const DAY: u64 = 24 * 60;

    fn spent(minute: u64, key: &str, target: &str, nusd: u64) -> Minute {
        Minute {
            minute,
            key: key.to_owned(),
            target: target.to_owned(),
            nusd,
        }
    }

    fn standing(used: u64, limit: u64) -> Standing {
        Standing {
            name: "team".to_owned(),
            counter: "nusd/day/UTC".into(),
            limit: Limit::Nusd(limit),
            used,
            soft: false,
            window: Window {
                start_ms: 0,
                end_ms: 24 * 60 * MINUTE_MS,
            },
            period: Period::Day,
        }
    }

    /// Everything that is told while a history is lived through, minute by minute.
    fn live(watch: &mut Watch, history: &[Minute], from: u64, to: u64) -> Vec<(u64, Alert)> {
        let mut alerts = Vec::new();
        for minute in from..to {
            let since = watch.since(minute);
            let known = |spent: &&Minute| (since..=minute).contains(&spent.minute);
            let known: Vec<Minute> = history.iter().filter(known).cloned().collect();
            let found = watch.spending(minute, &known);
            alerts.extend(found.into_iter().map(|alert| (minute, alert)));
        }
        alerts
    }

    #[test]
    fn one_cause_is_told_once_and_by_its_narrowest_name() {
        let begin = 100 * DAY;
        let mut history = Vec::new();
        for minute in begin - 8 * DAY..begin + 240 {
            history.push(spent(minute, "alice", "far", USD / 20));
            history.push(spent(minute, "bob", "near", USD / 20));
            if (begin + 60..begin + 90).contains(&minute) {
                history.push(spent(minute, "alice", "far", 2 * USD));
            }
            if (begin + 180..begin + 200).contains(&minute) {
                history.push(spent(minute, "bob", "near", 2 * USD));
            }
        }
        let mut watch = Watch::new(WatchConfig::default());
        let alerts = live(&mut watch, &history, begin, begin + 240);
        let told: Vec<(u64, &str)> = alerts
            .iter()
            .map(|(minute, alert)| (minute - begin, &*alert.cause))
            .collect();
        assert_eq!(told.len(), 2, "{alerts:?}");
        assert!(
            (61..70).contains(&told[0].0) && told[0].1 == "spike:key:alice",
            "{told:?}"
        );
        assert!(
            (181..190).contains(&told[1].0) && told[1].1 == "spike:key:bob",
            "{told:?}"
        );
        let text = &alerts[0].1.text;
        assert!(text.starts_with("spending of key `alice` rose: "), "{text}");
        assert!(text.ends_with("most of it: target `far`"), "{text}");
    }

    #[test]
    fn one_key_does_not_hide_what_many_others_do() {
        let begin = 100 * DAY;
        let mut history = Vec::new();
        for minute in begin - 8 * DAY..begin + 90 {
            history.push(spent(minute, "alice", "far", USD / 20));
            history.push(spent(minute, "many", "near", USD / 20));
            if minute >= begin + 30 {
                history.push(spent(minute, "alice", "far", USD / 4));
                for key in 0..20 {
                    history.push(spent(minute, &format!("k{key}"), "near", USD / 50));
                }
            }
        }
        let mut watch = Watch::new(WatchConfig::default());
        let alerts = live(&mut watch, &history, begin, begin + 90);
        let spikes = alerts
            .iter()
            .filter(|(_, alert)| alert.kind == AlertKind::Spike);
        let causes: Vec<&str> = spikes.map(|(_, alert)| &*alert.cause).collect();
        assert!(causes.contains(&"spike:key:alice"), "{causes:?}");
        let others = ["spike:target:near", "spike:all"];
        assert!(
            others.iter().any(|other| causes.contains(other)),
            "{causes:?}"
        );
    }

    #[test]
    fn a_ramp_does_not_hide_the_spike_that_it_becomes() {
        let begin = 100 * DAY;
        let mut history = Vec::new();
        for minute in begin - 8 * DAY..begin + 90 {
            let rise = if minute >= begin + 30 { 4 } else { 1 };
            history.push(spent(minute, "alice", "far", rise * USD / 10));
        }
        let mut watch = Watch::new(WatchConfig::default());
        let alerts = live(&mut watch, &history, begin, begin + 90);
        let kinds: Vec<AlertKind> = alerts.iter().map(|(_, alert)| alert.kind).collect();
        assert_eq!(kinds, [AlertKind::Ramp, AlertKind::Spike], "{alerts:?}");
    }

    #[test]
    fn a_restart_tells_nothing_of_what_is_over() {
        let begin = 100 * DAY;
        let mut history: Vec<Minute> = (begin - 8 * DAY..begin)
            .map(|minute| spent(minute, "alice", "far", USD / 20))
            .collect();
        history.extend((begin - 120..begin - 90).map(|m| spent(m, "alice", "far", 3 * USD)));
        let mut watch = Watch::new(WatchConfig::default());
        assert_eq!(live(&mut watch, &history, begin, begin + 60), []);
    }

    #[test]
    fn a_key_that_was_never_seen_is_told_of_when_it_begins_with_a_lot() {
        let begin = 100 * DAY;
        let history: Vec<Minute> = (begin + 10..begin + 40)
            .map(|minute| spent(minute, "new", "far", USD))
            .collect();
        let mut watch = Watch::new(WatchConfig::default());
        let alerts = live(&mut watch, &history, begin, begin + 60);
        assert_eq!(alerts.len(), 1, "{alerts:?}");
        assert_eq!(alerts[0].1.cause, "spike:key:new");
    }

    #[test]
    fn budgets_are_told_of_at_each_threshold_once() {
        let mut watch = Watch::new(WatchConfig::default());
        let mut look = |minute, used| {
            let alerts = watch.budgets(minute, &[standing(used, 100 * USD)]);
            let budgets = alerts.into_iter().filter(|a| a.kind == AlertKind::Budget);
            budgets.map(|alert| alert.cause).collect::<Vec<_>>()
        };
        assert_eq!(look(1, 49 * USD), [""; 0]);
        assert_eq!(look(2, 50 * USD), ["budget:nusd/day/UTC:0:50"]);
        assert_eq!(look(3, 60 * USD), [""; 0]);
        assert_eq!(
            look(4, 100 * USD),
            ["budget:nusd/day/UTC:0:100"],
            "80 was passed unseen"
        );
        assert_eq!(look(5, 70 * USD), [""; 0]);
        assert_eq!(look(6, 100 * USD), [""; 0]);
    }

    #[test]
    fn a_budget_that_burns_is_told_of_before_it_is_gone() {
        let mut watch = Watch::new(WatchConfig {
            thresholds: Vec::new(),
            ..WatchConfig::default()
        });
        let mut alerts = Vec::new();
        for minute in 0..180 {
            // A cent a minute at first, then half a dollar.
            let used = match minute {
                0..=60 => minute * USD / 100,
                _ => 60 * USD / 100 + (minute - 60) * USD / 2,
            };
            for alert in watch.budgets(minute, &[standing(used, 50 * USD)]) {
                alerts.push((minute, alert));
            }
        }
        assert_eq!(alerts.len(), 1, "{alerts:?}");
        let (minute, alert) = &alerts[0];
        assert_eq!(alert.kind, AlertKind::Burn);
        assert!((61..120).contains(minute), "{minute}: {}", alert.text);
    }

    #[test]
    fn a_target_in_trouble_is_told_of_once_in_a_while() {
        let mut watch = Watch::new(WatchConfig::default());
        assert_eq!(watch.target(0, "far", "saturated", "busy"), None);
        let open = watch.target(1, "far", "open", "target `far` has failed");
        assert_eq!(
            open.map(|alert| alert.cause).as_deref(),
            Some("target:far:open")
        );
        assert_eq!(watch.target(20, "far", "open", "again"), None);
        assert_eq!(watch.target(45, "far", "open", "still"), None, "it flaps");
        assert!(watch.target(80, "far", "open", "anew").is_some());
    }
}
