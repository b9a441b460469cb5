//! Spikes that must be found and spending that must not be, sums and bars against the plainest way to compute
//! them, and how often a simulated service is taken for a spike.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A Monday, 0:00 UTC.
const START: u64 = (4 + 7 * 2900) * DAY;
const USD: f64 = NUSD_PER_USD;

fn config() -> SpikeConfig {
    SpikeConfig::default()
}

/// What is reported while each of these minutes comes to so much, looked at when it is over.
fn run(
    series: &mut Series,
    minutes: std::ops::Range<u64>,
    mut usd: impl FnMut(u64) -> f64,
) -> Vec<Spike> {
    let mut spikes = Vec::new();
    for minute in minutes {
        series.add(minute, (usd(minute) * USD) as u64);
        spikes.extend(series.look(minute + 1, &config()));
    }
    spikes
}

/// A series that was looked at before its first money.
fn watched() -> Series {
    let mut series = Series::new();
    assert_eq!(series.look(START, &config()), []);
    series
}

fn minute_of(spike: &Spike) -> u64 {
    match spike {
        Spike::Rate { minute, .. } | Spike::Ramp { minute, .. } => *minute,
    }
}

fn is_rate(spike: &Spike) -> bool {
    matches!(spike, Spike::Rate { .. })
}

/// Between a fifth and 1.8 times the mean, least at 2:24 in the morning.
fn course(minute: u64) -> f64 {
    let day = (minute % DAY) as f64 / DAY as f64;
    1.0 - 0.8 * (std::f64::consts::TAU * (day - 0.1)).cos()
}

#[test]
fn a_burst_out_of_nothing_is_found_in_its_second_minute_and_told_once() {
    let mut series = watched();
    let burst = START + 3 * DAY;
    let spikes = run(&mut series, START..burst + 5 * DAY, |minute| {
        if minute == burst { 50.0 } else { 0.0 }
    });
    assert_eq!(
        spikes,
        [Spike::Rate {
            minute: burst + 1,
            last_15_nusd: 50_000_000_000,
            bar_nusd: 500_000_000,
            baseline_nusd: 0,
        }]
    );
}

#[test]
fn a_blip_under_the_floor_is_nothing() {
    let mut series = watched();
    let spikes = run(&mut series, START..START + 2 * DAY, |minute| {
        if minute % 400 == 0 { 0.49 } else { 0.0 }
    });
    assert_eq!(spikes, []);
}

#[test]
fn the_same_course_every_day_is_never_a_spike() {
    for usd in [0.001, 0.02, 1.0, 300.0] {
        let mut series = watched();
        let mut spikes = run(&mut series, START..START + 15 * DAY, |minute| {
            usd * course(minute)
        });
        // Whoever starts with more than the floor is reported for that.
        spikes.retain(|spike| minute_of(spike) > START + SUM);
        assert_eq!(spikes, [], "{usd}");
    }
}

#[test]
fn a_scope_that_begins_to_spend_is_told_once_and_then_watched() {
    let mut series = watched();
    let begun = START + 100;
    let burst = begun + 6 * HOUR;
    let usd = |minute| {
        if minute < begun {
            0.0
        } else if (burst..burst + 20).contains(&minute) {
            0.7
        } else {
            0.1
        }
    };
    let spikes = run(&mut series, START..START + 2 * DAY, usd);
    let rates: Vec<_> = spikes.iter().filter(|spike| is_rate(spike)).collect();
    assert_eq!(rates.len(), 2, "{spikes:?}");
    assert_eq!(minute_of(rates[0]), begun + 6);
    assert!((burst..burst + 10).contains(&minute_of(rates[1])));
}

#[test]
fn five_times_the_usual_is_found_the_minute_after_it_exceeds_three_times() {
    for hour in 0..24 {
        let mut series = Series::new();
        let burst = START + 9 * DAY + hour * HOUR;
        for minute in START..burst {
            series.add(minute, (0.1 * USD * course(minute)) as u64);
        }
        assert_eq!(series.look(burst, &config()), []);
        let mut crossed = None;
        let mut found = None;
        for minute in burst..burst + 20 {
            let spikes = run(&mut series, minute..minute + 1, |minute| {
                0.5 * course(minute)
            });
            let last = series.sum(minute - 14, minute + 1);
            let usual = series.usual(minute, START + DAY);
            if last > config().floor_nusd.max(3 * usual.median) {
                crossed = crossed.or(Some(minute));
            }
            if spikes.iter().any(is_rate) {
                found = Some(minute);
                break;
            }
        }
        let (Some(crossed), Some(found)) = (crossed, found) else {
            panic!("{hour}: {crossed:?}, {found:?}");
        };
        assert!((1..=2).contains(&(found - crossed)), "{hour}");
    }
}

#[test]
fn a_ramp_is_warned_of_before_it_is_an_alert() {
    let mut series = watched();
    let ramp = START + 8 * DAY + 12 * HOUR;
    let mut random = Random(1);
    let spikes = run(&mut series, START..ramp + 90, |minute| {
        let noise = 1.0 + 0.2 * (random.uniform() - 0.5);
        noise * 1.03f64.powf(minute.saturating_sub(ramp) as f64)
    });
    let spikes: Vec<_> = spikes
        .iter()
        .filter(|spike| minute_of(spike) >= ramp)
        .collect();
    let [
        Spike::Ramp {
            minute: warned, z, ..
        },
        Spike::Rate {
            minute: alerted, ..
        },
    ] = spikes[..]
    else {
        panic!("{spikes:?}");
    };
    assert!((ramp..ramp + 40).contains(warned), "{spikes:?}");
    assert!(*alerted > warned + 10 && *z > 4.0, "{spikes:?}");
}

#[test]
fn a_jump_stays_above_the_average_for_longer_than_the_rule_asks() {
    let mut average = Average::default();
    for minute in 0..200u64 {
        average.learn(1_000_000_000 + minute % 2 * 100_000_000, 0.05);
    }
    let mut minutes = 0;
    while average.above(5_000_000_000, &config()).is_some() {
        average.learn(5_000_000_000, 0.05);
        minutes += 1;
    }
    assert!((10..30).contains(&minutes), "{minutes}");
}

#[test]
fn no_ramp_without_an_hour_of_history_or_of_a_few_cents() {
    let mut series = watched();
    // Constant to the last digit: without a least standard deviation, anything more would be a ramp.
    let spikes = run(&mut series, START..START + DAY, |minute| {
        0.01 + 0.02 * f64::from(u8::from(minute > START + 12 * HOUR))
    });
    assert_eq!(spikes, []);
    let mut series = watched();
    let spikes = run(&mut series, START..START + WARM_UP, |minute| {
        if minute < START + 30 { 0.0001 } else { 0.05 }
    });
    assert!(spikes.iter().all(is_rate), "{spikes:?}");
}

#[test]
fn one_cause_is_told_once_and_another_after_the_calm() {
    let mut series = watched();
    let burst = START + 8 * DAY + 10 * HOUR;
    // A pause of 30 minutes is no calm as long: for the first of them the sum is still above the bar.
    let again = burst + 3 * HOUR + 30;
    let another = again + 3 * HOUR + 90;
    let usd = |minute: u64| {
        let bursts = [burst, again, another];
        let high = bursts
            .iter()
            .any(|at| (*at..at + 3 * HOUR).contains(&minute));
        if high { 1.0 } else { 0.1 }
    };
    let spikes = run(&mut series, START..another + DAY, usd);
    let rates: Vec<u64> = spikes
        .iter()
        .filter(|spike| is_rate(spike))
        .map(minute_of)
        .filter(|minute| *minute > START + DAY)
        .collect();
    assert_eq!(rates.len(), 2, "{spikes:?}");
    assert!((burst..burst + 10).contains(&rates[0]));
    assert!((another..another + 10).contains(&rates[1]));
}

#[test]
fn no_ramp_is_told_beside_a_rate() {
    let mut series = watched();
    let burst = START + 8 * DAY;
    let spikes = run(&mut series, START..burst + DAY, |minute| {
        if (burst..burst + 30).contains(&minute) {
            40.0
        } else {
            0.1
        }
    });
    let since: Vec<_> = spikes
        .iter()
        .filter(|spike| minute_of(spike) >= burst)
        .collect();
    assert!(since.len() == 1 && is_rate(since[0]), "{spikes:?}");
}

#[test]
fn what_was_reserved_and_given_back_within_the_minute_is_no_spike() {
    let mut series = watched();
    let mut spikes = Vec::new();
    for minute in START..START + DAY {
        series.add(minute, 20_000_000_000);
        series.take_back(minute, 20_000_000_000);
        series.add(minute, 1_000_000);
        spikes.extend(series.look(minute + 1, &config()));
    }
    assert_eq!(spikes, []);
    // And a whole reservation that is given back later leaves at most its own minute high.
    series.add(START + DAY, 20_000_000_000);
    assert_eq!(series.look(START + DAY + 1, &config()), []);
    series.take_back(START + DAY, u64::MAX);
    assert_eq!(series.look(START + DAY + 30, &config()), []);
    assert_eq!(series.sum(START + DAY, u64::MAX), 0);
}

#[test]
fn jobs_that_run_by_the_clock_are_told_when_they_are_new_only() {
    // Every so many minutes, for so many, so many USD a minute.
    for (every, long, usd) in [
        (60, 5, 0.2),
        (6 * HOUR, 10, 1.0),
        (DAY, 10, 1.0),
        (DAY, 90, 1.0),
    ] {
        let mut series = watched();
        let mut random = Random(every + long);
        let spikes = run(&mut series, START..START + 21 * DAY, |minute| {
            if minute % every < long {
                usd * (0.8 + 0.4 * random.uniform())
            } else {
                0.0
            }
        });
        let late = |spike: &&Spike| minute_of(spike) >= START + 5 * DAY;
        assert!(spikes.len() <= 6, "{every}, {long}: {spikes:?}");
        assert_eq!(spikes.iter().find(late), None, "{every}, {long}");
    }
}

#[test]
fn one_dear_request_now_and_then_is_told_when_it_is_new_only() {
    let mut series = watched();
    let mut random = Random(7);
    let spikes = run(&mut series, START..START + 21 * DAY, |_| {
        if random.uniform() < 0.005 {
            0.8 + 0.2 * random.uniform()
        } else {
            0.0
        }
    });
    assert!(spikes.len() <= 6, "{spikes:?}");
    // Three of them within fifteen minutes are a rate.
    let from = START + 21 * DAY + 20;
    let spikes = run(&mut series, from..from + 20, |minute| {
        if minute % 3 == 0 { 1.0 } else { 0.0 }
    });
    assert!(spikes.iter().any(is_rate));
}

#[test]
fn days_without_spending_are_not_the_baseline_of_the_others() {
    let mut series = watched();
    // Monday to Friday, 8:00 to 18:00.
    let mut spikes = run(&mut series, START..START + 28 * DAY, |minute| {
        let works = (minute - START) / DAY % 7 < 5 && (8..18).contains(&(minute % DAY / HOUR));
        if works { 0.2 } else { 0.0 }
    });
    spikes.retain(|spike| minute_of(spike) > START + 4 * DAY);
    assert_eq!(spikes, []);
}

#[test]
fn a_clock_set_back_repeats_nothing_and_hides_nothing() {
    let mut series = watched();
    let now = START + 8 * DAY;
    run(&mut series, START..now, |_| 0.1);
    for back in [1, 60, DAY] {
        assert_eq!(series.look(now - back, &config()), []);
    }
    // An hour back: what is spent meanwhile is added to the latest minute, and seen when the clock is past it.
    for clock in now - 60..now {
        let minute = clock.max(now);
        series.add(minute, 100_000_000);
        assert_eq!(series.look(clock, &config()), []);
    }
    let spikes = run(&mut series, now..now + 15, |_| 0.1);
    assert!(matches!(
        spikes[..],
        [Spike::Rate { last_15_nusd, .. }] if last_15_nusd > 6_000_000_000
    ));
}

#[test]
fn what_is_older_than_eight_days_is_gone_and_so_is_what_was_learned() {
    let mut series = watched();
    run(&mut series, START..START + 20 * DAY, |_| 0.1);
    let now = START + 20 * DAY;
    assert!(series.hours.len() <= 8 * 24 + 1);
    assert_eq!(series.sum(0, u64::MAX), series.sum(now - 8 * DAY + 1, now));
    series.add(now - 8 * DAY, 1);
    assert_eq!(series.sum(now - 8 * DAY, now - 8 * DAY + 1), 0);
    series.add(now - 8 * DAY + 1, 1);
    assert_eq!(
        series.sum(now - 8 * DAY, now - 8 * DAY + 2),
        100_000_000 + 1
    );
    let back = now + 9 * DAY;
    assert_eq!(series.look(back, &config()), []);
    assert_eq!((series.hours.len(), series.begun), (0, None));
    let spikes = run(&mut series, back..back + DAY, |_| 0.1);
    assert_eq!(spikes.len(), 1, "as somebody new: {spikes:?}");
}

#[test]
fn a_refilled_series_goes_on_where_the_other_was() {
    let service = Service::new(10.0, 0.05, 1.0);
    let mut random = Random(3);
    let burst = START + 4 * DAY + 9 * HOUR;
    let end = burst + 4 * HOUR;
    let spent: Vec<u64> = (START..end)
        .map(|minute| {
            let high = (burst..burst + 40).contains(&minute);
            service.minute(minute, if high { 10.0 } else { 1.0 }, &mut random)
        })
        .collect();
    let spent = |minute: u64| spent[(minute - START) as usize];
    let mut live = watched();
    let mut all = Vec::new();
    for minute in START..end {
        live.add(minute, spent(minute));
        all.extend(live.look(minute + 1, &config()));
    }
    assert!(all.iter().any(|spike| minute_of(spike) >= burst));
    for restart in (burst - 5..burst + 60).chain([end - 30]) {
        let mut series = Series::new();
        for minute in (START..restart).rev() {
            series.add(minute, spent(minute));
        }
        assert_eq!(series.look(restart, &config()), [], "history");
        let mut after = Vec::new();
        for minute in restart..end {
            series.add(minute, spent(minute));
            after.extend(series.look(minute + 1, &config()));
        }
        let expected: Vec<_> = all
            .iter()
            .copied()
            .filter(|spike| minute_of(spike) >= restart)
            .collect();
        assert_eq!(after, expected, "{}", restart - burst);
    }
}

#[test]
fn a_budget_burns_when_the_hour_and_the_five_minutes_agree() {
    let budget = Budget {
        limit_nusd: 10_000_000_000,
        spent_nusd: 4_000_000_000,
        left_minutes: 600,
    };
    // 6 USD last for less than 150 minutes above 2.4 USD an hour, which is 0.2 USD in five minutes.
    let burn = Burn {
        remaining_nusd: 6_000_000_000,
        lasts_minutes: 144,
        left_minutes: 600,
    };
    assert_eq!(budget.burn(2_500_000_000, 200_000_001), Some(burn));
    assert_eq!(budget.burn(2_500_000_000, 200_000_000), None, "a blip past");
    assert_eq!(budget.burn(2_400_000_000, 900_000_000), None, "a blip now");
    assert_eq!(budget.burn(0, 0), None);
    let gone = Budget {
        spent_nusd: 11_000_000_000,
        ..budget
    };
    let burn = gone.burn(1, 1).map(|burn| burn.lasts_minutes);
    assert_eq!((burn, gone.burn(0, 0)), (Some(0), None));
    let over = Budget {
        left_minutes: 0,
        ..gone
    };
    assert_eq!(over.burn(u64::MAX, u64::MAX), None);
}

/// What is usual without anything clever: every sum by itself, every list sorted.
fn plain_usual(spent: &BTreeMap<u64, u64>, begun: u64, minute: u64) -> Usual {
    let sum = |from: u64, to: u64| spent.range(from..to).map(|(_, nusd)| nusd).sum::<u64>();
    let middle = |mut of: Vec<u64>| {
        of.sort_unstable();
        of.get(of.len() / 2).copied().unwrap_or(0)
    };
    let ending = |ends: std::ops::RangeInclusive<u64>| -> Vec<u64> {
        ends.filter(|end| end - 14 >= begun)
            .map(|end| sum(end - 14, end + 1))
            .collect()
    };
    let mut sums = Vec::new();
    let mut peaks = Vec::new();
    for day in 1..=7 {
        let same = minute - day * 1440;
        let of_day = ending(same - 60..=same + 60);
        if let Some(peak) = of_day.iter().max()
            && sum((same - 720) / 60 * 60, (same + 720) / 60 * 60) > 0
        {
            peaks.push(*peak);
            sums.extend(of_day);
        }
    }
    if peaks.len() < 3 {
        sums = ending(minute - 1440..=minute - 15);
        peaks = sums.iter().max().into_iter().copied().collect();
    }
    let median = middle(sums.clone());
    let mad = middle(sums.iter().map(|sum| sum.abs_diff(median)).collect());
    Usual {
        median,
        sd: if minute - begun < 1440 {
            0.0
        } else {
            1.4826 * mad as f64
        },
        peak: middle(peaks),
    }
}

/// Stretches of minutes without and with spending, in milli-USD.
fn stretches() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    prop::collection::vec((0u64..2_000, 1u64..200, 0u64..300), 1..30)
}

proptest! {
    #[test]
    fn sums_are_those_of_all_that_was_added_less_what_was_taken_back(
        steps in prop::collection::vec((0u64..3_000, 0u64..20_000, any::<bool>(), 0u64..1_000), 1..150),
        ranges in prop::collection::vec((0u64..30_000, 0u64..30_000), 20),
    ) {
        let mut series = Series::new();
        let mut plain = BTreeMap::<u64, u64>::new();
        let mut latest = 0;
        for (on, back, take, nusd) in steps {
            let minute = (START + on).max(latest + on / 10).saturating_sub(back);
            if take {
                series.take_back(minute, nusd);
                if let Some(spent) = plain.get_mut(&minute) {
                    *spent = spent.saturating_sub(nusd);
                }
            } else {
                latest = latest.max(minute);
                series.add(minute, nusd);
                if minute + KEPT_MINUTES > latest {
                    *plain.entry(minute).or_default() += nusd;
                }
            }
            plain.retain(|minute, _| minute + KEPT_MINUTES > latest);
        }
        prop_assert_eq!(series.sum(0, u64::MAX), plain.values().sum::<u64>());
        for (back, long) in ranges {
            let from = latest.saturating_sub(back);
            let sum: u64 = plain.range(from..from + long).map(|(_, nusd)| nusd).sum();
            prop_assert_eq!(series.sum(from, from + long), sum);
        }
        prop_assert!(series.hours.len() <= 8 * 24 + 1);
    }

    #[test]
    fn bars_are_those_of_the_plain_way(stretches in stretches(), burst in 1u64..20_000) {
        let mut series = Series::new();
        let mut plain = BTreeMap::new();
        let mut minute = START;
        for (idle, long, milli) in stretches {
            minute += idle;
            for _ in 0..long {
                let nusd = (milli + minute % 7) * 1_000_000;
                series.add(minute, nusd);
                plain.insert(minute, nusd);
                minute += 1;
            }
        }
        series.add(minute, burst * 1_000_000);
        plain.insert(minute, burst * 1_000_000);
        plain.retain(|then, nusd| then + KEPT_MINUTES > minute && *nusd > 0);
        let begun = series.begun.unwrap_or(minute).max(series.kept_from());
        for minute in [minute, (minute - 100).max(begun), (minute - 360).max(begun)] {
            let usual = series.usual(minute, begun);
            prop_assert_eq!(usual, plain_usual(&plain, begun, minute));
            let sum: u64 = plain.range(minute - 14..=minute).map(|(_, nusd)| nusd).sum();
            let largest = |from: u64, to: u64| plain.range(from..to).map(|(_, n)| *n).max().unwrap_or(0);
            let lone = largest(minute - 14, minute + 1).min(largest(minute - 14 - 7 * 1440, minute - 14));
            let bar = [3 * usual.median, usual.median + (6.0 * usual.sd) as u64, usual.peak + usual.peak / 2]
                .into_iter()
                .fold(500_000_000, u64::max) + lone;
            // A nano-USD may be lost to rounding.
            match series.above_bar(minute, begun, &config()) {
                Some(Spike::Rate { last_15_nusd, bar_nusd, baseline_nusd, .. }) => {
                    prop_assert_eq!((last_15_nusd, baseline_nusd), (sum, usual.median));
                    prop_assert!(bar_nusd.abs_diff(bar) <= 1 && sum >= bar);
                }
                other => {
                    prop_assert_eq!(other, None);
                    prop_assert!(sum <= bar + 1);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn looking_seldom_finds_what_looking_every_minute_does(
        stretches in stretches(),
        pauses in prop::collection::vec(1u64..300, 1..20),
    ) {
        let (mut often, mut seldom) = (watched(), watched());
        let (mut all, mut some) = (Vec::new(), Vec::new());
        let mut pauses = pauses.iter().cycle();
        let mut minute = START;
        let mut due = START;
        for (idle, long, milli) in stretches {
            for at in 0..idle + long {
                let nusd = if at < idle { 0 } else { milli * 1_000_000 };
                often.add(minute, nusd);
                seldom.add(minute, nusd);
                minute += 1;
                all.extend(often.look(minute, &config()));
                prop_assert_eq!(often.look(minute, &config()), []);
                if minute >= due {
                    some.extend(seldom.look(minute, &config()));
                    due = minute + pauses.next().copied().unwrap_or(1);
                }
            }
        }
        some.extend(seldom.look(minute, &config()));
        prop_assert_eq!(all, some);
    }
}

proptest! {
    #[test]
    fn no_minutes_and_no_money_are_too_much(
        steps in prop::collection::vec((any::<u64>(), any::<u64>(), 0u8..4), 1..20),
    ) {
        let mut series = Series::new();
        let mut minute = 0;
        for (number, nusd, what) in steps {
            match what {
                0 => minute = number,
                1 => minute = minute.saturating_add(number % 2_000),
                2 => series.take_back(number, nusd),
                _ => {
                    series.sum(number, nusd);
                }
            }
            series.add(minute, nusd);
            series.look(minute, &config());
        }
    }

    #[test]
    fn a_budget_burns_by_the_formula(
        limit in 0u64..1_000_000, spent in 0u64..1_000_000, left in 0u64..50_000,
        hour in 0u64..1_000_000, five in 0u64..100_000,
    ) {
        let budget = Budget { limit_nusd: limit, spent_nusd: spent, left_minutes: left };
        let remaining = limit.saturating_sub(spent) as f64;
        let lasts = |spent: u64, minutes: f64| remaining / (spent as f64 / minutes);
        let quarter = left as f64 / 4.0;
        // At the very bar floating point cannot tell.
        prop_assume!((lasts(hour, 60.0) - quarter).abs() > 1e-6 && (lasts(five, 5.0) - quarter).abs() > 1e-6);
        let burns = lasts(hour, 60.0) < quarter && lasts(five, 5.0) < quarter;
        prop_assert_eq!(budget.burn(hour, five).is_some(), burns);
    }
}

/// `SplitMix64`: seeded, so that a failure repeats.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn poisson(&mut self, mean: f64) -> u64 {
        let bar = (-mean).exp();
        let mut count = 0;
        let mut product = self.uniform();
        while product > bar {
            product *= self.uniform();
            count += 1;
        }
        count
    }
}

/// Requests at random, most by day and on weekdays, at log-normal costs.
#[derive(Debug, Clone, Copy)]
struct Service {
    per_minute: f64,
    usd: f64,
    /// Standard deviation of the cost's logarithm.
    sigma: f64,
}

impl Service {
    fn new(per_minute: f64, usd: f64, sigma: f64) -> Self {
        Self {
            per_minute,
            usd,
            sigma,
        }
    }

    /// Nano-USD that it comes to in a minute with so many times the usual requests.
    fn minute(&self, minute: u64, times: f64, random: &mut Random) -> u64 {
        let weekend = (minute - START) / DAY % 7 >= 5;
        let share = if weekend { 0.4 } else { 1.0 };
        let count = random.poisson(self.per_minute * share * course(minute) * times);
        let mu = -self.sigma * self.sigma / 2.0;
        let usd: f64 = (0..count)
            .map(|_| self.usd * (mu + self.sigma * random.normal()).exp())
            .sum();
        (usd * USD) as u64
    }
}

/// What 28 days after a warm-up of 8 came to.
#[derive(Debug, Default)]
struct Found {
    weeks: f64,
    rates: f64,
    ramps: f64,
    /// Reported on the first day, and on the seven after it.
    warm_up: [f64; 2],
    /// For each of [`TIMES`], on weekdays and on weekends.
    injected: [[Injected; 2]; TIMES.len()],
}

/// Spikes that were injected.
#[derive(Debug, Default)]
struct Injected {
    all: f64,
    by_rate: f64,
    by_either: f64,
    /// Minutes it took each rate to be reported.
    delays: Vec<u64>,
}

/// How many times the usual requests are injected.
const TIMES: [f64; 3] = [3.0, 5.0, 10.0];

impl Found {
    /// Simulates a service, and now and then, on the side, one that gets so many times the requests for 20
    /// minutes.
    fn add(&mut self, service: &Service, seed: u64, inject: bool) {
        let mut random = Random(seed);
        let mut series = watched();
        for minute in START..START + 36 * DAY {
            series.add(minute, service.minute(minute, 1.0, &mut random));
            for spike in series.look(minute + 1, &config()) {
                match ((minute - START) / DAY, spike) {
                    (0, _) => self.warm_up[0] += 1.0,
                    (1..8, _) => self.warm_up[1] += 1.0,
                    (_, Spike::Rate { .. }) => self.rates += 1.0,
                    (_, Spike::Ramp { .. }) => self.ramps += 1.0,
                }
            }
            let since = (minute - START).saturating_sub(8 * DAY);
            // A time that shares no factor with the day comes to all times of day.
            if inject && since % 797 == 796 {
                for (at, times) in TIMES.iter().enumerate() {
                    self.inject(at, *times, service, &series, minute + 1);
                }
            }
        }
        self.weeks += 4.0;
    }

    fn inject(&mut self, at: usize, times: f64, service: &Service, series: &Series, from: u64) {
        let mut series = series.clone();
        let mut random = Random(from);
        let weekend = usize::from((from - START) / DAY % 7 >= 5);
        let injected = &mut self.injected[at][weekend];
        let mut spikes = Vec::new();
        for minute in from..from + 20 {
            series.add(minute, service.minute(minute, times, &mut random));
            spikes.extend(series.look(minute + 1, &config()));
        }
        injected.all += 1.0;
        injected.by_either += f64::from(u8::from(!spikes.is_empty()));
        if let Some(spike) = spikes.iter().find(|spike| is_rate(spike)) {
            injected.by_rate += 1.0;
            injected.delays.push(minute_of(spike) + 1 - from);
        }
    }
}

/// Requests a minute, USD each, standard deviation of its logarithm.
const SERVICES: [(f64, f64, f64); 11] = [
    (0.01, 0.05, 1.0),
    (0.05, 0.02, 1.0),
    (0.01, 0.5, 1.0),
    (0.05, 0.2, 1.0),
    (0.05, 1.0, 1.0),
    (0.2, 0.2, 1.0),
    (0.2, 0.2, 1.5),
    (1.0, 0.05, 1.0),
    (1.0, 0.05, 1.5),
    (10.0, 0.05, 1.0),
    (100.0, 0.01, 1.0),
];

#[test]
fn a_service_as_usual_is_rarely_a_spike_at_any_volume() {
    let mut all = 0.0;
    for (at, (per_minute, usd, sigma)) in SERVICES.into_iter().enumerate() {
        // The largest takes longest, and is the steadiest.
        if per_minute > 10.0 {
            continue;
        }
        let service = Service::new(per_minute, usd, sigma);
        let mut found = Found::default();
        found.add(&service, 1 + at as u64, false);
        let week = (found.rates + found.ramps) / found.weeks;
        assert!(week <= 3.0, "{service:?}: {found:?}");
        assert!(found.warm_up[0] <= 4.0, "{service:?}: {found:?}");
        all += week;
    }
    assert!(all / 10.0 <= 1.0, "{all}");
}

#[test]
fn a_busy_service_has_no_false_alarm_and_no_spike_missed_on_weekdays() {
    let service = Service::new(10.0, 0.05, 1.0);
    let mut found = Found::default();
    found.add(&service, 5, true);
    assert_eq!((found.rates, found.ramps), (0.0, 0.0));
    for (times, slowest) in [(1, 18), (2, 12)] {
        let injected = &found.injected[times][0];
        assert!(injected.by_rate / injected.all >= 0.9, "{found:?}");
        let late = injected.delays.iter().find(|delay| **delay > slowest);
        assert_eq!(late, None, "{found:?}");
    }
}

#[test]
#[ignore = "takes a minute and prints: for every volume, how often what is found"]
fn how_often_what_is_found() {
    for (per_minute, usd, sigma) in SERVICES {
        let service = Service::new(per_minute, usd, sigma);
        let mut found = Found::default();
        for seed in 0..5 {
            found.add(&service, 1 + 7919 * seed, true);
        }
        let seeds = found.weeks / 4.0;
        eprint!(
            "{per_minute:>6}/min at {usd:.2} USD, sigma {sigma}: a week {:.2} rates, {:.2} ramps; \
             first day {:.1}, next seven {:.1}",
            found.rates / found.weeks,
            found.ramps / found.weeks,
            found.warm_up[0] / seeds,
            found.warm_up[1] / seeds,
        );
        for (times, days) in TIMES.iter().zip(&mut found.injected) {
            for (day, injected) in ["weekdays", "weekends"].iter().zip(days) {
                injected.delays.sort_unstable();
                let delays = &injected.delays;
                let at = |share: f64| delays.get((delays.len() as f64 * share) as usize);
                eprint!(
                    "; x{times} on {day} {:.2} by a rate (median {:?}, 9 of 10 {:?} min), \
                     {:.2} by either",
                    injected.by_rate / injected.all,
                    at(0.5),
                    at(0.9),
                    injected.by_either / injected.all,
                );
            }
        }
        eprintln!();
    }
}
