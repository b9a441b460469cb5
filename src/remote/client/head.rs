//! What is kept of a response's head: a list of names, and the hints in them read once.
//!
//! Whatever is not on the list is never looked at again, so no upstream can set a cookie, a location or a
//! header that reaches a caller. Hints are read here, beside the clock of the machine that wrote them.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use http::HeaderMap;

/// The longest wait that a hint may ask for.
const LONGEST_HINT: Duration = Duration::from_secs(3600);

/// Longest text that is kept of one header.
const LONGEST_TEXT: usize = 512;

/// A response's head.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// Its status.
    pub status: u16,
    /// `content-type`, in lower case and without parameters.
    pub content_type: Option<String>,
    /// When the upstream wants to be asked again: the first hint of `retry-after-ms`, `retry-after`, an
    /// exhausted `ratelimit`, `x-ratelimit-reset-*`; an hour at most.
    pub retry_after: Option<Duration>,
    /// Until when nothing is left of a limit, said with any status: `ratelimit`, else `x-ratelimit-*`; an hour at
    /// most.
    pub exhausted: Option<Duration>,
    /// `x-inference-provider`: who ran the model.
    pub provider: Option<String>,
    /// The upstream's name for the request: `x-request-id`, else `inference-id`.
    pub request_id: Option<String>,
    /// `etag`.
    pub etag: Option<String>,
}

impl Head {
    /// Keeps what is on the list. `now` is used where the upstream sent no `date` of its own.
    pub fn read(status: u16, headers: &HeaderMap, now: DateTime<Utc>) -> Self {
        let text = |name: &str| {
            let text = headers.get(name)?.to_str().ok()?.trim();
            (!text.is_empty() && text.len() <= LONGEST_TEXT).then(|| text.to_owned())
        };
        let exhausted = exhausted(&text, now);
        Self {
            status,
            content_type: text("content-type").map(|text| {
                let kind = text.split(';').next().unwrap_or_default();
                kind.trim().to_ascii_lowercase()
            }),
            retry_after: asked_for(&text, now)
                .or(exhausted)
                .map(|hint| hint.min(LONGEST_HINT)),
            exhausted: exhausted.map(|hint| hint.min(LONGEST_HINT)),
            provider: text("x-inference-provider"),
            request_id: text("x-request-id").or_else(|| text("inference-id")),
            etag: text("etag"),
        }
    }

    /// Drops every text that holds the secret: an upstream that echoes it must not make callers see it.
    pub(super) fn forget(&mut self, secret: &str) {
        let texts = [
            &mut self.content_type,
            &mut self.provider,
            &mut self.request_id,
            &mut self.etag,
        ];
        for text in texts {
            text.take_if(|text| !secret.is_empty() && text.contains(secret));
        }
    }
}

/// The wait that is asked for in so many words.
fn asked_for(text: &impl Fn(&str) -> Option<String>, now: DateTime<Utc>) -> Option<Duration> {
    let ms = text("retry-after-ms").and_then(|ms| seconds(&ms));
    if let Some(ms) = ms {
        return Some(ms / 1000);
    }
    let hint = text("retry-after")?;
    seconds(&hint).or_else(|| http_date(&hint).map(|date| until(text, now, date)))
}

/// The time until a date, by the clock of the machine that wrote it.
fn until(
    text: &impl Fn(&str) -> Option<String>,
    now: DateTime<Utc>,
    date: DateTime<Utc>,
) -> Duration {
    let now = text("date")
        .and_then(|date| http_date(&date))
        .unwrap_or(now);
    (date - now).to_std().unwrap_or_default()
}

/// The wait until there is something left of every limit of which there is nothing.
fn exhausted(text: &impl Fn(&str) -> Option<String>, now: DateTime<Utc>) -> Option<Duration> {
    if let Some(hint) = text("ratelimit").and_then(|text| exhausted_policy(&text)) {
        return Some(hint);
    }
    ["requests", "tokens"]
        .iter()
        .filter(|what| {
            text(&format!("x-ratelimit-remaining-{what}")).is_some_and(|left| left == "0")
        })
        .filter_map(|what| text(&format!("x-ratelimit-reset-{what}")))
        .filter_map(|reset| match seconds(&reset) {
            // So many seconds are a moment on the calendar, not a wait.
            Some(s) if s.as_secs() > 1_000_000_000 => {
                DateTime::from_timestamp(i64::try_from(s.as_secs()).ok()?, 0)
                    .map(|date| until(text, now, date))
            }
            Some(s) => Some(s),
            None => duration(&reset),
        })
        .max()
}

fn seconds(text: &str) -> Option<Duration> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value: f64 = text.parse().ok().filter(|_| plain)?;
    Duration::try_from_secs_f64(value).ok()
}

/// The three forms of RFC 9110, 5.6.7.
fn http_date(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(date) = DateTime::parse_from_rfc2822(text) {
        return Some(date.with_timezone(&Utc));
    }
    ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
        .map(|date| date.and_utc())
}

/// The wait of a policy of which nothing is left: `"api";r=0;t=55`, several joined by commas. The longest counts.
fn exhausted_policy(text: &str) -> Option<Duration> {
    text.split(',')
        .filter_map(|policy| {
            let field = |name: &str| {
                let mut fields = policy.split(';').map(str::trim);
                fields.find_map(|f| f.strip_prefix(name)?.strip_prefix('='))
            };
            (field("r")? == "0").then(|| field("t").and_then(seconds))?
        })
        .max()
}

/// `1m2.5s`, `6h3m`, `120ms`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        rest = &rest[letters..];
        sum = sum.checked_add(Duration::try_from_secs_f64(value * unit).ok()?)?;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn head(pairs: &[(&'static str, &str)]) -> Head {
        let headers = pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect();
        Head::read(
            429,
            &headers,
            http_date("Sun, 06 Nov 1994 08:49:00 GMT").unwrap(),
        )
    }

    #[test]
    fn hints_in_their_order_and_all_their_forms() {
        let ms = Duration::from_millis;
        type Row<'a> = (&'a [(&'static str, &'a str)], Option<Duration>);
        let rows: &[Row<'_>] = &[
            (&[], None),
            (
                &[("retry-after-ms", "1500"), ("retry-after", "9")],
                Some(ms(1500)),
            ),
            (&[("retry-after", "9")], Some(ms(9000))),
            (&[("retry-after", "0.5")], Some(ms(500))),
            (
                &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")],
                Some(ms(37_000)),
            ),
            (
                &[("retry-after", "Sunday, 06-Nov-94 08:49:37 GMT")],
                Some(ms(37_000)),
            ),
            (
                &[("retry-after", "Sun Nov  6 08:49:37 1994")],
                Some(ms(37_000)),
            ),
            (
                &[("retry-after", "Sun, 06 Nov 1994 08:48:00 GMT")],
                Some(ms(0)),
            ),
            (
                &[
                    ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
                    ("date", "Sun, 06 Nov 1994 08:49:30 GMT"),
                ],
                Some(ms(7000)),
            ),
            (&[("retry-after", "99999999")], Some(ms(3_600_000))),
            (&[("retry-after", "-3")], None),
            (&[("retry-after", "inf")], None),
            (
                &[("retry-after", "soon"), ("ratelimit", "\"api\";r=0;t=55")],
                Some(ms(55_000)),
            ),
            (
                &[("ratelimit", "\"a\";r=3;t=99, \"b\";r=0;t=7")],
                Some(ms(7000)),
            ),
            (&[("ratelimit", "\"api\";r=3;t=55")], None),
            (
                &[
                    ("x-ratelimit-remaining-requests", "0"),
                    ("x-ratelimit-reset-requests", "1m2.5s"),
                ],
                Some(ms(62_500)),
            ),
            (
                &[
                    ("x-ratelimit-remaining-tokens", "0"),
                    ("x-ratelimit-reset-tokens", "784111777"),
                ],
                Some(ms(3_600_000)),
            ),
            (
                &[
                    ("x-ratelimit-remaining-tokens", "5"),
                    ("x-ratelimit-reset-tokens", "7"),
                ],
                None,
            ),
        ];
        for (headers, want) in rows {
            let head = head(headers);
            assert_eq!(head.retry_after, *want, "{headers:?}");
            if headers
                .iter()
                .all(|(name, _)| !name.starts_with("retry-after"))
            {
                assert_eq!(head.exhausted, *want, "{headers:?}");
            }
        }
        let epoch = (Utc::now().timestamp() + 30).to_string();
        let headers = [
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", epoch.as_str()),
        ]
        .into_iter()
        .map(|(n, v)| {
            (
                HeaderName::from_static(n),
                HeaderValue::from_str(v).unwrap(),
            )
        })
        .collect();
        let hint = Head::read(429, &headers, Utc::now()).retry_after.unwrap();
        assert!((28..=30).contains(&hint.as_secs()), "{hint:?}");
    }

    #[test]
    fn only_the_list_is_kept() {
        let head = head(&[
            ("content-type", "Text/Event-Stream; charset=utf-8"),
            ("x-inference-provider", "together"),
            ("inference-id", "abc"),
            ("set-cookie", "SECRET=1"),
            ("location", "http://evil"),
        ]);
        assert_eq!(head.content_type.as_deref(), Some("text/event-stream"));
        assert_eq!(head.request_id.as_deref(), Some("abc"));
        let text = format!("{head:?}");
        assert!(!text.contains("SECRET") && !text.contains("evil"), "{text}");
    }
}
