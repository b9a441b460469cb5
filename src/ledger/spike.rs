//! Spikes of the money spent in one scope (a key, a model, all of it), and budgets that burn too fast.
//!
//! A limit says how much may go; it says nothing about ten times the usual going at four in the morning. So what
//! was spent is kept by the minute for eight days, and two rules look at it. The rate rule compares the last
//! fifteen minutes with the same time of day on the days before, by medians, so that neither the day's course
//! nor an earlier spike moves the bar. The ramp rule compares a minute with those just before it. Budgets have a
//! rule of their own, which asks whether what remains will last. What a scope is, when somebody looks, and who
//! is told is the caller's business.
//!
//! Pure: money and minutes come in, spikes go out. Nothing here reads a clock, keeps a file or stops a request.

use std::collections::BTreeMap;

/// Minutes that are kept: eight days, so that seven days ago the whole time of day is still there.
pub(super) const KEPT_MINUTES: u64 = 8 * DAY;

const HOUR: u64 = 60;
const DAY: u64 = 24 * HOUR;
/// Minutes in one of the sums that the rate rule compares.
const SUM: u64 = 15;
/// Days whose same time of day is the baseline.
const DAYS: u64 = 7;
/// Days with spending that this takes: with two, one odd day would be half of them.
const DAYS_NEEDED: usize = 3;
/// A median absolute deviation times this estimates a standard deviation.
const MAD_TO_SD: f64 = 1.4826;
/// Minutes before the ramp rule knows what is usual.
const WARM_UP: u64 = 60;
/// What a minute must come to before it can be a ramp, as a multiple of the usual one.
const LEAST_RISE: f64 = 1.5;
/// Minutes back from now for which the rate rule is evaluated. That is far more than the calm it remembers, and
/// so little that a first look at eight days, or one after a long pause, takes milliseconds.
const JUDGED: u64 = 6 * HOUR;
const NUSD_PER_USD: f64 = 1e9;

/// When spending is a spike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpikeConfig {
    /// Nano-USD in fifteen minutes that are never a spike; the ramp rule allows a fifteenth of it to a minute,
    /// on top of what is usual.
    pub floor_nusd: u64,
    /// How many times the usual median fifteen minutes must exceed.
    pub factor: f64,
    /// By how many standard deviations, estimated from the median absolute deviation, they must exceed it.
    pub mads: f64,
    /// How many times the usual peak of that time of day they must exceed; 0 for no such condition. At 1.5 it
    /// is below the other two wherever spending is steady.
    pub peaks: f64,
    /// Minutes in a row for which they must.
    pub minutes: u32,
    /// Standard deviations above the moving average that make a ramp; above 0.
    pub z: f64,
    /// Minutes in a row for which they must be exceeded.
    pub z_minutes: u32,
    /// Weight of one minute in the moving average; above 0, at most 1.
    pub alpha: f64,
    /// Minutes in a row for which a rule's condition must be false before it may report again.
    pub calm_minutes: u32,
}

impl Default for SpikeConfig {
    fn default() -> Self {
        Self {
            floor_nusd: 500_000_000,
            factor: 3.0,
            mads: 6.0,
            peaks: 1.5,
            minutes: 2,
            z: 4.0,
            z_minutes: 3,
            alpha: 0.05,
            calm_minutes: 30,
        }
    }
}

/// What was found, with the numbers for a sentence about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Spike {
    /// An alert: more in fifteen minutes than the time of day explains.
    Rate {
        /// The minute that made it one, since 1970.
        minute: u64,
        /// Nano-USD spent in the fifteen minutes that end with it.
        last_15_nusd: u64,
        /// Nano-USD that would not have been a spike yet.
        bar_nusd: u64,
        /// Nano-USD that are usual: the median.
        baseline_nusd: u64,
    },
    /// A warning: minute after minute far above what was usual just before.
    Ramp {
        /// The minute that made it one, since 1970.
        minute: u64,
        /// Nano-USD spent in that minute.
        spent_nusd: u64,
        /// Nano-USD a minute before: a moving average of logarithms, so closer to the median than to the mean.
        usual_nusd: u64,
        /// By how many standard deviations the minute's logarithm is above that average.
        z: f64,
    },
}

/// What one scope spent by the minute, and what was reported about it.
///
/// Units: minutes since 1970 (UTC), nano-USD. Hours without spending take no memory, eight full days 100 KB.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    /// Hours with spending, each by the minute.
    hours: BTreeMap<u64, Box<[u64; HOUR as usize]>>,
    /// The latest minute seen.
    latest: u64,
    /// The first minute with spending, as long as any is kept.
    begun: Option<u64>,
    /// The first minute not judged yet; none before the first look.
    next: Option<u64>,
    average: Average,
    rate: Edge,
    ramp: Edge,
}

impl Series {
    /// With no money in it.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds money to a minute, whose time has come thereby. It may be an earlier one (a settlement above what
    /// was reserved, history from a database in any order); one that is no longer kept is left out. The rate
    /// rule works with the minutes as they are, the ramp rule as they were when it judged them.
    pub(super) fn add(&mut self, minute: u64, nusd: u64) {
        self.see(minute);
        if nusd == 0 || minute < self.kept_from() {
            return;
        }
        let hour = self.hours.entry(minute / HOUR);
        let hour = hour.or_insert_with(|| Box::new([0; HOUR as usize]));
        let spent = &mut hour[(minute % HOUR) as usize];
        *spent = spent.saturating_add(nusd);
        self.begun = Some(self.begun.map_or(minute, |begun| begun.min(minute)));
    }

    /// Takes money back from the minute it was added to, but no more than is there.
    pub(super) fn take_back(&mut self, minute: u64, nusd: u64) {
        if let Some(hour) = self.hours.get_mut(&(minute / HOUR)) {
            let spent = &mut hour[(minute % HOUR) as usize];
            *spent = spent.saturating_sub(nusd);
        }
    }

    /// Nano-USD spent from one minute up to but not including another, as far as they are kept.
    pub(super) fn sum(&self, from_minute: u64, to_minute: u64) -> u64 {
        let from = from_minute.max(self.kept_from());
        let to = to_minute.min(self.latest.saturating_add(1));
        let mut sum = 0u64;
        self.each(from, to, |spent| sum = sum.saturating_add(spent));
        sum
    }

    /// Judges every minute that is over and has not been judged, and gives what is newly a spike.
    ///
    /// `now` is the minute that it is; it is judged when it is over. To be called once a minute: another call
    /// in the same minute changes nothing, and one after a pause judges the minutes in between.
    ///
    /// The first call takes all that is there for history: it learns from it, notes what must have been
    /// reported already, and reports nothing. So fill the series from the database, look once, and add what is
    /// spent from then on. A series for a scope that only begins to spend is looked at before its first money.
    ///
    /// Each rule reports once, and again only after its condition was false for `calm_minutes` in a row. A ramp
    /// is not reported while a rate is, for it has the same cause. A ramp that becomes a rate is reported as
    /// one, for an alert says more than a warning did.
    ///
    /// What fifteen minutes must exceed depends on the history there is. It begins with the first money: the
    /// zeros before would be the baseline of a scope's first days, and all of these one long spike.
    /// - Nothing: the floor. A scope that begins with more than that is reported, once.
    /// - Less than a day: the floor, the factor, and the peak of what there is. How far one part of a day
    ///   scatters says nothing about another.
    /// - Less than three of the last seven days with spending: the floor, and the factor, the spread and the
    ///   peak of the last 24 hours.
    /// - From then on: the floor, and the factor, the spread and the usual peak of the same time of day, give
    ///   or take an hour, on those days. The peak is what keeps a job that runs for ten minutes every night,
    ///   and so moves no median, from being a spike every night.
    ///
    /// And one minute is no rate. Where requests are few and dear, the dearest one of a day would be a spike
    /// every day, since all fifteen sums that it is in exceed the bar. So of the largest of the fifteen minutes
    /// only that counts by which it exceeds the largest one of the seven days before.
    pub(super) fn look(&mut self, now: u64, config: &SpikeConfig) -> Vec<Spike> {
        self.see(now);
        let now = self.latest;
        let live = self.next.is_some();
        let mut spikes = Vec::new();
        if let Some(begun) = self.begun {
            let begun = begun.max(self.kept_from());
            for minute in self.next.unwrap_or(0).max(begun)..now {
                let spike = self.judge(minute, begun, now, config);
                spikes.extend(spike.filter(|_| live));
            }
        }
        self.next = Some(now);
        spikes
    }

    fn judge(&mut self, minute: u64, begun: u64, now: u64, config: &SpikeConfig) -> Option<Spike> {
        let spent = self.sum(minute, minute + 1);
        let rate = (now - minute <= JUDGED)
            .then(|| self.above_bar(minute, begun, config))
            .flatten();
        let ramp = self
            .average
            .above(spent, config)
            .filter(|_| self.above_usual(minute, begun));
        self.average.learn(spent, config.alpha);
        let calm = config.calm_minutes;
        let new_rate = self.rate.seen(rate.is_some(), config.minutes, calm);
        let new_ramp = self.ramp.seen(ramp.is_some(), config.z_minutes, calm);
        if new_rate {
            rate
        } else {
            ramp.filter(|_| new_ramp && !self.rate.up)
                .map(|(z, usual_nusd)| Spike::Ramp {
                    minute,
                    spent_nusd: spent,
                    usual_nusd,
                    z,
                })
        }
    }

    /// The fifteen minutes that end with this one, if they are above the bar.
    fn above_bar(&self, minute: u64, begun: u64, config: &SpikeConfig) -> Option<Spike> {
        let end = minute + 1;
        let start = end.saturating_sub(SUM);
        let last_15_nusd = self.sum(start, end);
        if last_15_nusd <= config.floor_nusd {
            return None;
        }
        let usual = self.usual(minute, begun);
        let median = usual.median as f64;
        let bar = (config.factor * median)
            .max(median + config.mads * usual.sd)
            .max(config.peaks * usual.peak as f64);
        let bar = config.floor_nusd.max(bar as u64);
        if last_15_nusd <= bar {
            return None;
        }
        let known = self.largest(start.saturating_sub(DAYS * DAY), start);
        let bar_nusd = bar.saturating_add(self.largest(start, end).min(known));
        (last_15_nusd > bar_nusd).then_some(Spike::Rate {
            minute,
            last_15_nusd,
            bar_nusd,
            baseline_nusd: usual.median,
        })
    }

    /// Whether the fifteen minutes that end with this one are more than this time of day often brings. The
    /// moving average knows of no time of day, and would warn of every job that starts by the clock.
    fn above_usual(&self, minute: u64, begun: u64) -> bool {
        let end = minute + 1;
        let usual = self.usual(minute, begun);
        self.sum(end.saturating_sub(SUM), end) > usual.median.max(usual.peak)
    }

    fn usual(&self, minute: u64, begun: u64) -> Usual {
        // The first sum that lies in the history as a whole.
        let first = begun.saturating_add(SUM - 1);
        let mut sums = Vec::with_capacity((DAYS * (2 * HOUR + 1)) as usize);
        let mut peaks = Vec::with_capacity(DAYS as usize);
        for same in (1..=DAYS).map_while(|day| minute.checked_sub(day * DAY)) {
            let from = same.saturating_sub(HOUR).max(first);
            // A day without any spending says that nobody was there, not what is usual.
            let hours = same.saturating_sub(DAY / 2) / HOUR..(same + DAY / 2) / HOUR;
            if from <= same + HOUR && self.hours.range(hours).next().is_some() {
                peaks.push(self.sums(from, same + HOUR, &mut sums));
            }
        }
        if peaks.len() < DAYS_NEEDED {
            sums.clear();
            let from = minute.saturating_sub(DAY).max(first);
            peaks = vec![self.sums(from, minute.saturating_sub(SUM), &mut sums)];
        }
        let peak = median(&mut peaks);
        let middle = median(&mut sums);
        let sd = if minute - begun < DAY {
            0.0
        } else {
            for sum in &mut sums {
                *sum = sum.abs_diff(middle);
            }
            median(&mut sums) as f64 * MAD_TO_SD
        };
        Usual {
            median: middle,
            sd,
            peak,
        }
    }

    /// Appends the sums of fifteen minutes that end with each minute from the first to the last of these, the
    /// last included, and gives the largest.
    fn sums(&self, first: u64, last: u64, sums: &mut Vec<u64>) -> u64 {
        let from = (first + 1).saturating_sub(SUM);
        let mut minutes = Vec::with_capacity((2 * HOUR + SUM) as usize);
        self.each(from, last + 1, |spent| minutes.push(spent));
        let mut largest = 0;
        // Wide enough to be exact while it slides.
        let mut sum = 0u128;
        for (at, spent) in minutes.iter().enumerate() {
            sum += u128::from(*spent);
            if let Some(gone) = at.checked_sub(SUM as usize) {
                sum -= u128::from(minutes[gone]);
            }
            if from + at as u64 >= first {
                let sum = u64::try_from(sum).unwrap_or(u64::MAX);
                sums.push(sum);
                largest = largest.max(sum);
            }
        }
        largest
    }

    /// The largest minute from one up to but not including another.
    fn largest(&self, from: u64, to: u64) -> u64 {
        let mut largest = 0;
        self.each(from.max(self.kept_from()), to, |spent| {
            largest = largest.max(spent);
        });
        largest
    }

    /// Calls this with each minute's money, from one up to but not including another.
    fn each(&self, from: u64, to: u64, mut call: impl FnMut(u64)) {
        let mut at = from;
        while at < to {
            let end = to.min((at / HOUR + 1).saturating_mul(HOUR));
            let hour = self.hours.get(&(at / HOUR));
            for minute in at..end {
                call(hour.map_or(0, |hour| hour[(minute % HOUR) as usize]));
            }
            at = end;
        }
    }

    /// Time has come to this minute: what is too old is dropped.
    fn see(&mut self, minute: u64) {
        if minute <= self.latest {
            return;
        }
        self.latest = minute;
        let kept = self.kept_from() / HOUR;
        while let Some(oldest) = self.hours.first_entry()
            && *oldest.key() < kept
        {
            oldest.remove();
        }
        if self.hours.is_empty() {
            // Who comes back after eight days is new.
            self.begun = None;
            self.average = Average::default();
            self.rate = Edge::default();
            self.ramp = Edge::default();
        }
    }

    fn kept_from(&self) -> u64 {
        self.latest.saturating_sub(KEPT_MINUTES - 1)
    }
}

/// What sums of fifteen minutes usually come to, in nano-USD.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Usual {
    median: u64,
    /// Their standard deviation, as estimated from the median absolute deviation.
    sd: f64,
    /// The largest one of a day, or the median of several days'.
    peak: u64,
}

/// The exponentially weighted moving average of a minute's `ln(1 + USD)`, and how far chance scatters it.
#[derive(Debug, Clone, Copy, Default)]
struct Average {
    minutes: u64,
    mean: f64,
    /// Half the mean square of the difference between a minute and the one before. The mean square distance
    /// from the mean would take the ramp itself for chance: however steep, it soon comes to a z of 1, and even
    /// a jump is above a z of 4 for no more than two minutes.
    variance: f64,
    last: f64,
}

impl Average {
    /// The z of a minute with so much money, and what is usual, in nano-USD; none if it is no ramp.
    fn above(&self, spent_nusd: u64, config: &SpikeConfig) -> Option<(f64, u64)> {
        if self.minutes < WARM_UP {
            return None;
        }
        let usual = self.mean.exp_m1();
        let floor = config.floor_nusd as f64 / NUSD_PER_USD / SUM as f64;
        // The least standard deviation: what has never varied would be a ramp with its first cent.
        let rise = (usual + floor).max(usual * LEAST_RISE).ln_1p() - self.mean;
        let sd = self.variance.sqrt().max(rise / config.z);
        let z = (log(spent_nusd) - self.mean) / sd;
        (z > config.z).then_some((z, (usual * NUSD_PER_USD) as u64))
    }

    fn learn(&mut self, spent_nusd: u64, alpha: f64) {
        let x = log(spent_nusd);
        // While there are few, all minutes weigh the same, or the first would outweigh the rest.
        let weight = |minutes: u64| alpha.max(1.0 / minutes as f64);
        if self.minutes > 0 {
            let step = x - self.last;
            self.variance += weight(self.minutes) * (step * step / 2.0 - self.variance);
        }
        self.minutes += 1;
        self.mean += weight(self.minutes) * (x - self.mean);
        self.last = x;
    }
}

/// `ln(1 + USD)`: relative for much money, absolute for little.
fn log(nusd: u64) -> f64 {
    (nusd as f64 / NUSD_PER_USD).ln_1p()
}

/// For how long a rule's condition has been true or false, and whether that was reported.
#[derive(Debug, Clone, Copy, Default)]
struct Edge {
    minutes: u32,
    calm: u32,
    up: bool,
}

impl Edge {
    /// One more minute; true if it is the one to report.
    fn seen(&mut self, holds: bool, minutes: u32, calm_minutes: u32) -> bool {
        if !holds {
            self.minutes = 0;
            self.calm = self.calm.saturating_add(1);
            self.up &= self.calm < calm_minutes;
            return false;
        }
        self.calm = 0;
        self.minutes = self.minutes.saturating_add(1);
        let new = !self.up && self.minutes >= minutes;
        self.up |= new;
        new
    }
}

/// Of an even number the upper one in the middle, of none 0.
fn median(of: &mut [u64]) -> u64 {
    if of.is_empty() {
        return 0;
    }
    let middle = of.len() / 2;
    *of.select_nth_unstable(middle).1
}

/// A budget and how far it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Nano-USD that may be spent in its window.
    pub limit_nusd: u64,
    /// Nano-USD that were.
    pub spent_nusd: u64,
    /// Minutes until the window ends.
    pub left_minutes: u64,
}

/// A budget that will be gone long before its window ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Burn {
    /// Nano-USD that remain.
    pub remaining_nusd: u64,
    /// Whole minutes until they are gone at the rate of the last hour.
    pub lasts_minutes: u64,
    /// Minutes until the window ends.
    pub left_minutes: u64,
}

impl Budget {
    /// Whether what remains is gone within a quarter of the time left, both at the rate of the last hour and at
    /// that of the last five minutes: the hour keeps a blip from counting, the five minutes keep an hour that
    /// is over from counting.
    ///
    /// It is computed, not remembered: whoever tells somebody sees to telling only once.
    ///
    /// * `hour_nusd` - nano-USD spent in the last 60 minutes
    /// * `five_nusd` - nano-USD spent in the last 5 minutes
    pub(super) fn burn(&self, hour_nusd: u64, five_nusd: u64) -> Option<Burn> {
        let remaining_nusd = self.limit_nusd.saturating_sub(self.spent_nusd);
        // remaining / (spent / minutes) < left / 4, without a division.
        let burns = |spent: u64, minutes: u128| {
            4 * minutes * u128::from(remaining_nusd)
                < u128::from(spent) * u128::from(self.left_minutes)
        };
        (burns(hour_nusd, 60) && burns(five_nusd, 5)).then(|| {
            // Less than the minutes left, so it fits; and nothing spent burns nothing.
            let lasts = 60 * u128::from(remaining_nusd) / u128::from(hour_nusd);
            Burn {
                remaining_nusd,
                lasts_minutes: lasts as u64,
                left_minutes: self.left_minutes,
            }
        })
    }
}

#[cfg(test)]
mod tests;
