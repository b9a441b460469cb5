//! `GET /usage`: who used what, and what it cost; for those who run this server.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use chrono::{DateTime, Days, NaiveDate, SecondsFormat, Utc};

use super::Api;
use super::error::{ApiError, forbidden};
use super::keys::Caller;
use crate::generation::Error;
use crate::ledger::{self, Dimension, Limit, Line, Report, Standing, date_of, midnight_ms};
use crate::wire::usage::{BudgetStanding, UsageLine, UsageReport};

/// Days that are told of where no first day is named.
const DAYS: u64 = 30;

/// What may be asked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    from: Option<String>,
    to: Option<String>,
    by: Option<String>,
}

impl Asked {
    /// Errors: in words, what is asked that nobody knows.
    fn read(query: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let field = match &*name {
                "from" => &mut asked.from,
                "to" => &mut asked.to,
                "by" => &mut asked.by,
                _ => return Err("`/usage` takes `from`, `to` and `by`".to_owned()),
            };
            *field = Some(value.into_owned());
        }
        Ok(asked)
    }
}

/// `GET /usage`.
pub(super) async fn usage(
    State(api): State<Api>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<UsageReport>, ApiError> {
    if !caller.admin {
        return Err(forbidden());
    }
    let Some(ledger) = api.dispatcher.ledger() else {
        let text = "this server keeps no ledger; `[ledger]` of its settings file begins one";
        return Err(Error::invalid(text).into());
    };
    let asked = Asked::read(uri.query().unwrap_or_default()).map_err(Error::invalid)?;
    let zone = ledger.zone();
    let period = Span::read(asked.from.as_deref(), asked.to.as_deref(), zone);
    let period = period.map_err(Error::invalid)?;
    let by = dimensions(asked.by.as_deref().unwrap_or("day")).map_err(Error::invalid)?;
    let failed = |e: ledger::StoreError| Error::generation(e.to_string());
    // What was handed over before is told, too.
    ledger.flush().await;
    let reader = ledger::Reader::open(ledger.place(), zone).await;
    let report = reader.map_err(failed)?.report(&period.query(by)).await;
    let report = report.map_err(failed)?;
    Ok(Json(told(&period, &report, &api.dispatcher.budgets())))
}

/// Days of a calendar, the last one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    from: NaiveDate,
    to: NaiveDate,
    zone: chrono_tz::Tz,
}

impl Span {
    /// The days from one to another, each as `2026-01-31`; without them, the last 30.
    ///
    /// Errors: in words, what is wrong with them.
    pub fn read(from: Option<&str>, to: Option<&str>, zone: chrono_tz::Tz) -> Result<Self, String> {
        let date = |name: &str, text: Option<&str>| {
            let date = text.map(str::parse::<NaiveDate>).transpose();
            date.map_err(|_| format!("`{name}` must be a day such as 2026-01-31"))
        };
        let today = date_of(zone, ledger::now_ms());
        let to = date("to", to)?.unwrap_or(today);
        let earlier = to.checked_sub_days(Days::new(DAYS - 1)).unwrap_or(to);
        let from = date("from", from)?.unwrap_or(earlier);
        if from > to {
            return Err("`from` must not be later than `to`".to_owned());
        }
        Ok(Self { from, to, zone })
    }

    /// The question about these days.
    pub fn query(&self, by: Vec<Dimension>) -> ledger::Query {
        let after = self.to.checked_add_days(Days::new(1));
        ledger::Query {
            from_ms: midnight_ms(self.zone, self.from),
            to_ms: after.map_or(i64::MAX, |after| midnight_ms(self.zone, after)),
            by,
        }
    }
}

/// What there is to be a line for each of, from `day,key,model,provider`.
///
/// Errors: in words, what is wrong with it.
pub fn dimensions(text: &str) -> Result<Vec<Dimension>, String> {
    let names = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let dimension = |name: &str| {
        let mut all = Dimension::ALL.into_iter();
        all.find(|dimension| dimension.name() == name)
            .ok_or_else(|| "`by` must list any of day, key, model, provider".to_owned())
    };
    let mut by = names.map(dimension).collect::<Result<Vec<_>, _>>()?;
    by.sort_unstable();
    by.dedup();
    Ok(by)
}

/// A report as it travels.
pub fn told(days: &Span, report: &Report, budgets: &[Standing]) -> UsageReport {
    let known = report
        .oldest_ms
        .map(|ms| date_of(days.zone, ms).to_string());
    let line = |line: &Line| usage_line(&report.by, line);
    UsageReport {
        from: days.from.to_string(),
        to: days.to.to_string(),
        time_zone: days.zone.to_string(),
        known_since: known,
        lines: report.lines.iter().map(line).collect(),
        total: usage_line(&[], &report.total),
        budgets: budgets.iter().map(standing).collect(),
    }
}

fn usage_line(by: &[Dimension], line: &Line) -> UsageLine {
    let label = |dimension| {
        let place = by.iter().position(|asked| *asked == dimension)?;
        line.labels.get(place).cloned()
    };
    let usd = |nusd: u64| nusd as f64 / 1e9;
    UsageLine {
        day: label(Dimension::Day),
        key: label(Dimension::Key),
        model: label(Dimension::Model),
        provider: label(Dimension::Provider),
        local: line.local,
        remote: line.remote,
        failed: line.failed,
        attempts: line.attempts,
        prompt_tokens: line.prompt_tokens,
        cached_tokens: line.cached_tokens,
        output_tokens: line.output_tokens,
        reasoning_tokens: line.reasoning_tokens,
        cost_usd: usd(line.cost_nusd),
        bound_usd: usd(line.bound_nusd),
        held_usd: usd(line.held_nusd),
        saved_usd: usd(line.saved_nusd),
    }
}

pub(super) fn standing(standing: &Standing) -> BudgetStanding {
    let resets = DateTime::<Utc>::from_timestamp_millis(standing.window.end_ms);
    let unit = match standing.limit {
        Limit::Nusd(_) => "usd",
        Limit::Tokens(_) => "tokens",
    };
    let per_unit = standing.limit.unit();
    let limit = standing.limit.amount();
    BudgetStanding {
        name: standing.name.clone(),
        period: standing.period.name().to_owned(),
        kind: if standing.soft { "soft" } else { "hard" }.to_owned(),
        unit: unit.to_owned(),
        limit: (limit < u64::MAX).then_some(limit as f64 / per_unit),
        used: standing.used as f64 / per_unit,
        resets: resets
            .unwrap_or_default()
            .to_rfc3339_opts(SecondsFormat::Secs, true),
    }
}

#[cfg(test)]
mod tests {
    use chrono_tz::Tz;

    use super::*;

    #[test]
    fn days_are_read_and_the_last_one_counts() {
        let days = Span::read(Some("2026-03-29"), Some("2026-03-29"), Tz::Europe__Berlin);
        let query = days.expect("a day").query(Vec::new());
        // A day of 23 hours.
        assert_eq!(query.to_ms - query.from_ms, 23 * 3_600_000);
        let usual = Span::read(None, Some("2026-01-31"), Tz::UTC).expect("days");
        assert_eq!(usual.from.to_string(), "2026-01-02");
        for (from, to) in [("x", "2026-01-01"), ("2026-01-02", "2026-01-01")] {
            assert!(Span::read(Some(from), Some(to), Tz::UTC).is_err());
        }
    }

    #[test]
    fn a_question_that_nobody_knows_is_no_question() {
        let asked = Asked::read("by=day%2Ckey&from=2026-01-01").expect("sound");
        assert_eq!(asked.by.as_deref(), Some("day,key"));
        assert_eq!(
            (asked.from.as_deref(), asked.to),
            (Some("2026-01-01"), None)
        );
        assert!(Asked::read("since=2026-01-01").is_err());
    }

    #[test]
    fn what_there_is_a_line_for_is_read_in_any_order() {
        use Dimension::{Day, Model};
        assert_eq!(dimensions("model, day,model"), Ok(vec![Day, Model]));
        assert_eq!(dimensions(""), Ok(Vec::new()));
        assert!(dimensions("hour").is_err());
    }
}
