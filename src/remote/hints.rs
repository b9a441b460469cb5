//! When an upstream wants to be asked again, read from the headers of its answer.
//!
//! Providers say it in half a dozen ways; the most exact one wins. Nothing here trusts a header: whatever
//! cannot be read counts as not said, and what can is cut to an hour.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::NaiveDateTime;

/// The longest wait that a header can ask for.
const LONGEST: Duration = Duration::from_secs(3600);

/// Seconds above which a number of seconds is a moment since 1970 rather than a wait.
const EPOCH_FROM: f64 = 1e9;
/// The same for a moment in milliseconds.
const EPOCH_MS_FROM: f64 = 1e12;

/// The wait that an answer's headers ask for, at most an hour; none when they ask for none.
///
/// In this order: `retry-after-ms`; `retry-after` in seconds or as a date, read against the answer's own
/// `Date` so that a wrong clock does no harm; `ratelimit` and `ratelimit-reset` when nothing remains; the
/// resets of requests and of tokens, the longer of those that are used up.
pub fn retry_after<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    now: SystemTime,
) -> Option<Duration> {
    let headers: Vec<(String, &str)> = headers
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let get = |name: &str| {
        headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| *value)
    };
    let now = get("date").and_then(http_date).unwrap_or(unix_seconds(now));
    let wait = get("retry-after-ms")
        .and_then(number)
        .map(|ms| ms / 1000.0)
        .or_else(|| {
            let text = get("retry-after")?;
            number(text).or_else(|| http_date(text).map(|then| (then - now).max(0.0)))
        })
        .or_else(|| get("ratelimit").and_then(draft_reset))
        .or_else(|| {
            let reset = get("ratelimit-reset").and_then(number)?;
            used_up(get("ratelimit-remaining")).then_some(reset)
        })
        .or_else(|| {
            let waits = ["requests", "tokens"].into_iter().filter_map(|what| {
                let reset = get(&format!("x-ratelimit-reset-{what}"))?;
                used_up(get(&format!("x-ratelimit-remaining-{what}")))
                    .then(|| reset_wait(reset, now))
                    .flatten()
            });
            waits.reduce(f64::max)
        })?;
    Some(Duration::from_secs_f64(
        wait.clamp(0.0, LONGEST.as_secs_f64()),
    ))
}

/// Nothing is left, as far as is said.
fn used_up(remaining: Option<&str>) -> bool {
    remaining.and_then(number).is_none_or(|left| left <= 0.0)
}

/// A plain non-negative decimal number, or a negative one as 0.
fn number(text: &str) -> Option<f64> {
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'-');
    let value: f64 = plain.then(|| text.parse().ok()).flatten()?;
    Some(value.max(0.0))
}

/// A wait from seconds, a duration such as `1m2.5s`, a moment since 1970, or a date.
fn reset_wait(text: &str, now: f64) -> Option<f64> {
    if let Some(value) = number(text) {
        return Some(if value >= EPOCH_MS_FROM {
            (value / 1000.0 - now).max(0.0)
        } else if value >= EPOCH_FROM {
            (value - now).max(0.0)
        } else {
            value
        });
    }
    duration(text).or_else(|| iso_date(text).map(|then| (then - now).max(0.0)))
}

/// `1h2m3.5s`, `250ms`: each unit after its number.
fn duration(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest.get(..digits)?.parse().ok()?;
        let tail = rest.get(digits..)?;
        let letters = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        seconds += value
            * match unit {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return None,
            };
        rest = next;
    }
    (!text.is_empty()).then_some(seconds)
}

/// The IETF draft's `"api";r=0;t=12`, several apart by commas: the longest wait of those with nothing left.
fn draft_reset(text: &str) -> Option<f64> {
    let waits = text.split(',').filter_map(|policy| {
        let parameter = |wanted: &str| {
            policy.split(';').find_map(|part| {
                let (name, value) = part.split_once('=')?;
                (name.trim() == wanted)
                    .then(|| number(value.trim()))
                    .flatten()
            })
        };
        let left = parameter("r").or_else(|| parameter("remaining"))?;
        let wait = parameter("t").or_else(|| parameter("reset"))?;
        (left <= 0.0).then_some(wait)
    });
    waits.reduce(f64::max)
}

/// Seconds since 1970 of an HTTP date in any of its three forms. The weekday is not looked at.
///
/// Source: RFC 9110 §5.6.7.
fn http_date(text: &str) -> Option<f64> {
    let parse = |text: &str, form: &str| NaiveDateTime::parse_from_str(text, form).ok();
    let moment = match text.split_once(',') {
        Some((_, rest)) => {
            let rest = rest.trim();
            parse(rest, "%d %b %Y %H:%M:%S GMT").or_else(|| parse(rest, "%d-%b-%y %H:%M:%S GMT"))
        }
        None => {
            let (_, rest) = text.split_once(' ')?;
            parse(rest.trim(), "%b %e %H:%M:%S %Y")
        }
    };
    moment.map(|moment| moment.and_utc().timestamp() as f64)
}

/// Seconds since 1970 of `2026-11-21T12:00:00Z`.
fn iso_date(text: &str) -> Option<f64> {
    let moment = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    Some(moment.timestamp_millis() as f64 / 1000.0)
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the date of the standard's own examples.
    const THEN: u64 = 784_111_777;

    fn read(headers: &[(&str, &str)]) -> Option<f64> {
        let now = UNIX_EPOCH + Duration::from_secs(THEN - 30);
        retry_after(headers.iter().copied(), now).map(|wait| wait.as_secs_f64())
    }

    #[test]
    fn every_form_is_read() {
        type Headers = &'static [(&'static str, &'static str)];
        let table: &[(Headers, Option<f64>)] = &[
            (&[], None),
            (&[("retry-after-ms", "1500")], Some(1.5)),
            (&[("Retry-After", "7")], Some(7.0)),
            (&[("retry-after", " 0.5 ")], Some(0.5)),
            (&[("retry-after", "-3")], Some(0.0)),
            (&[("retry-after", "999999")], Some(3600.0)),
            (
                &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")],
                Some(30.0),
            ),
            (
                &[("retry-after", "Sunday, 06-Nov-94 08:49:37 GMT")],
                Some(30.0),
            ),
            (&[("retry-after", "Sun Nov  6 08:49:37 1994")], Some(30.0)),
            (
                &[("retry-after", "Sat, 05 Nov 1994 08:49:37 GMT")],
                Some(0.0),
            ),
            (
                &[
                    ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
                    ("date", "Sun, 06 Nov 1994 08:49:30 GMT"),
                ],
                Some(7.0),
            ),
            (
                &[("retry-after", "9"), ("retry-after-ms", "250")],
                Some(0.25),
            ),
            (&[("retry-after", "soon")], None),
            (
                &[("retry-after", "soon"), ("ratelimit", "\"api\";r=0;t=12")],
                Some(12.0),
            ),
            (&[("ratelimit", "\"api\";r=4;t=12")], None),
            (
                &[("ratelimit", "\"a\";r=0;t=12, \"b\";r=0;t=40")],
                Some(40.0),
            ),
            (&[("ratelimit-reset", "11")], Some(11.0)),
            (
                &[("ratelimit-reset", "11"), ("ratelimit-remaining", "2")],
                None,
            ),
            (&[("x-ratelimit-reset-requests", "1m2.5s")], Some(62.5)),
            (&[("x-ratelimit-reset-tokens", "120ms")], Some(0.12)),
            (
                &[
                    ("x-ratelimit-reset-requests", "2"),
                    ("x-ratelimit-reset-tokens", "3s"),
                ],
                Some(3.0),
            ),
            (
                &[
                    ("x-ratelimit-reset-requests", "2"),
                    ("x-ratelimit-reset-tokens", "300s"),
                    ("x-ratelimit-remaining-tokens", "4000"),
                ],
                Some(2.0),
            ),
            (&[("x-ratelimit-reset-requests", "784111767")], Some(3600.0)),
            (
                &[("x-ratelimit-reset-requests", "784111767000")],
                Some(3600.0),
            ),
            (&[("x-ratelimit-reset-requests", "1x")], None),
        ];
        for (headers, expected) in table {
            assert_eq!(read(headers), *expected, "{headers:?}");
        }
        let now = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        for moment in ["1790000042", "1790000042000"] {
            let wait = retry_after([("x-ratelimit-reset-requests", moment)], now);
            assert_eq!(wait, Some(Duration::from_secs(42)));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_no_wait_is_longer_than_an_hour(
            name in prop::sample::select(vec![
                "retry-after", "retry-after-ms", "ratelimit", "ratelimit-reset", "date",
                "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens",
            ]),
            value in prop_oneof![any::<String>(), "[0-9a-zA-Z;=,. :\"-]{0,40}", "[0-9]{1,400}(\\.[0-9]*)?(s|ms|m)?"],
            at in any::<u32>(),
        ) {
            let now = UNIX_EPOCH + Duration::from_secs(u64::from(at));
            let wait = retry_after([(name, value.as_str()), ("retry-after", value.as_str())], now);
            prop_assert!(wait.is_none_or(|wait| wait <= LONGEST));
        }

        #[test]
        fn whole_seconds_are_read_exactly(seconds in 0u64..=3600) {
            let text = seconds.to_string();
            let wait = retry_after([("retry-after", text.as_str())], UNIX_EPOCH);
            prop_assert_eq!(wait, Some(Duration::from_secs(seconds)));
        }
    }
}
