//! The windows that budgets are counted in: hours, and days and months of the operator's calendar.
//!
//! A window follows from the clock alone: nothing has to run at midnight, and nothing is reset. Windows of one
//! period tile time without gaps, also where clocks are turned forward or back.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

/// Milliseconds of an hour.
const HOUR_MS: i64 = 3_600_000;
/// The largest step by which clocks are turned forward, in quarters of an hour.
const LARGEST_GAP_QUARTERS: i64 = 8 * 24;

/// How long a budget lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Period {
    /// An hour, counted in UTC.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the next.
    Month,
}

impl Period {
    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

/// A stretch of time. Units: milliseconds since 1970 (UTC); the end is no part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first millisecond.
    pub start_ms: i64,
    /// The first millisecond after it.
    pub end_ms: i64,
}

impl Window {
    /// The window of this period that holds a moment.
    pub fn of(period: Period, zone: Tz, now_ms: i64) -> Self {
        let date = date_of(zone, now_ms);
        let (first, next) = match period {
            Period::Hour => {
                let start_ms = now_ms.div_euclid(HOUR_MS) * HOUR_MS;
                return Self {
                    start_ms,
                    end_ms: start_ms + HOUR_MS,
                };
            }
            Period::Day => (date, date.checked_add_days(Days::new(1))),
            Period::Month => {
                let first = date.with_day(1).unwrap_or(date);
                (first, first.checked_add_months(Months::new(1)))
            }
        };
        Self {
            start_ms: midnight_ms(zone, first),
            end_ms: next.map_or(i64::MAX, |next| midnight_ms(zone, next)),
        }
    }
}

/// The windows of one zone that were asked for last: a calendar is slow to ask, and nearly all ask for now.
#[derive(Debug, Default)]
pub(super) struct Windows([Option<Window>; 3]);

impl Windows {
    /// [`Window::of`] it; the zone is the same each time.
    pub(super) fn of(&mut self, period: Period, zone: Tz, now_ms: i64) -> Window {
        let known = &mut self.0[period as usize];
        match known {
            Some(window) if (window.start_ms..window.end_ms).contains(&now_ms) => *window,
            _ => *known.insert(Window::of(period, zone, now_ms)),
        }
    }
}

/// The date that calendars in a zone show at a moment.
pub fn date_of(zone: Tz, now_ms: i64) -> NaiveDate {
    let utc = DateTime::<Utc>::from_timestamp_millis(now_ms).unwrap_or_default();
    utc.with_timezone(&zone).date_naive()
}

/// The first moment of a date in a zone.
pub fn midnight_ms(zone: Tz, date: NaiveDate) -> i64 {
    let midnight = date.and_time(NaiveTime::MIN);
    // A midnight that clocks jump over begins when they have jumped.
    let quarters = 0..=LARGEST_GAP_QUARTERS;
    let mut shown = quarters.filter_map(|quarter| {
        let local = midnight.checked_add_signed(TimeDelta::minutes(15 * quarter))?;
        zone.from_local_datetime(&local).earliest()
    });
    let first = shown.next().map(|moment| moment.timestamp_millis());
    first.unwrap_or_else(|| midnight.and_utc().timestamp_millis())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIODS: [Period; 3] = [Period::Hour, Period::Day, Period::Month];

    fn ms(text: &str) -> i64 {
        let moment = DateTime::parse_from_rfc3339(text).expect("a moment");
        moment.timestamp_millis()
    }

    #[test]
    fn days_begin_at_midnight_where_the_operator_lives() {
        for (zone, now, start, end) in [
            (
                Tz::UTC,
                "2026-03-29T12:00:00Z",
                "2026-03-29T00:00:00Z",
                "2026-03-30T00:00:00Z",
            ),
            // A day of 23 hours.
            (
                Tz::Europe__Berlin,
                "2026-03-29T12:00:00Z",
                "2026-03-28T23:00:00Z",
                "2026-03-29T22:00:00Z",
            ),
            // Midnight itself is jumped over.
            (
                Tz::Africa__Cairo,
                "2026-04-24T12:00:00Z",
                "2026-04-23T22:00:00Z",
                "2026-04-24T21:00:00Z",
            ),
            (
                Tz::Asia__Kolkata,
                "2026-01-01T00:00:00Z",
                "2025-12-31T18:30:00Z",
                "2026-01-01T18:30:00Z",
            ),
        ] {
            let window = Window::of(Period::Day, zone, ms(now));
            assert_eq!(
                (window.start_ms, window.end_ms),
                (ms(start), ms(end)),
                "{zone} {now}"
            );
        }
        let month = Window::of(Period::Month, Tz::UTC, ms("2026-12-31T23:59:59Z"));
        assert_eq!(month.end_ms, ms("2027-01-01T00:00:00Z"));
    }

    proptest! {
        #[test]
        fn windows_tile_time_in_every_zone(
            zone in prop::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
            now in 0i64..4_000_000_000_000,
        ) {
            let mut windows = Windows::default();
            for period in PERIODS {
                let window = Window::of(period, zone, now);
                prop_assert!((window.start_ms..window.end_ms).contains(&now), "{zone} {period:?} {window:?}");
                for inside in [window.start_ms, window.end_ms - 1] {
                    prop_assert_eq!(Window::of(period, zone, inside), window);
                    prop_assert_eq!(windows.of(period, zone, inside), window);
                }
            }
        }
    }
}
