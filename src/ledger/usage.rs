//! What the ledger tells: who used what, what it cost, and what answers made here have saved.
//!
//! Reading uses a connection of its own beside the writer's, also from another process, and changes nothing.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::budget::Spender;
use super::store::{self, Place, StoreError};
use super::window::date_of;
use chrono_tz::Tz;

/// Days of every zone begin with one of these: a quarter of an hour, in milliseconds.
const QUARTER_MS: i64 = 900_000;
/// A minute in milliseconds.
const MINUTE_MS: i64 = 60_000;

/// What a report has a line for each of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    /// Each day of the operator's calendar.
    Day,
    /// Each key.
    Key,
    /// Each model.
    Model,
    /// Each provider, or upstream where nobody says who runs the model.
    Provider,
}

impl Dimension {
    /// Every one, in the order of a report's columns.
    pub const ALL: [Self; 4] = [Self::Day, Self::Key, Self::Model, Self::Provider];

    /// The name in questions and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Key => "key",
            Self::Model => "model",
            Self::Provider => "provider",
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The first millisecond since 1970 that counts.
    pub from_ms: i64,
    /// The first that does not count any more.
    pub to_ms: i64,
    /// What there is a line for each of.
    pub by: Vec<Dimension>,
}

/// One line of a report. Money in nano-USD.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line {
    /// The dimensions that were asked for, in their order; `local` is the provider of answers made here.
    pub labels: Vec<String>,
    /// Requests that were answered here.
    pub local: u64,
    /// Requests that were answered elsewhere.
    pub remote: u64,
    /// Requests that nobody answered in the end.
    pub failed: u64,
    /// Times that bytes left, retries included.
    pub attempts: u64,
    /// Tokens read, cached ones among them.
    pub prompt_tokens: u64,
    /// Tokens read that were cached elsewhere.
    pub cached_tokens: u64,
    /// Tokens written, reasoning among them.
    pub output_tokens: u64,
    /// Tokens written that were reasoning.
    pub reasoning_tokens: u64,
    /// What was spent.
    pub cost_nusd: u64,
    /// The part of it that nobody reported: counted at an upper bound, after a crash above all.
    pub bound_nusd: u64,
    /// What is held for attempts that are under way.
    pub held_nusd: u64,
    /// What the answers made here would have cost at the targets they are mapped to.
    pub saved_nusd: u64,
}

impl Line {
    fn add(&mut self, other: &Self) {
        let Self {
            labels: _,
            local,
            remote,
            failed,
            attempts,
            prompt_tokens,
            cached_tokens,
            output_tokens,
            reasoning_tokens,
            cost_nusd,
            bound_nusd,
            held_nusd,
            saved_nusd,
        } = other;
        for (sum, more) in [
            (&mut self.local, local),
            (&mut self.remote, remote),
            (&mut self.failed, failed),
            (&mut self.attempts, attempts),
            (&mut self.prompt_tokens, prompt_tokens),
            (&mut self.cached_tokens, cached_tokens),
            (&mut self.output_tokens, output_tokens),
            (&mut self.reasoning_tokens, reasoning_tokens),
            (&mut self.cost_nusd, cost_nusd),
            (&mut self.bound_nusd, bound_nusd),
            (&mut self.held_nusd, held_nusd),
            (&mut self.saved_nusd, saved_nusd),
        ] {
            *sum = sum.saturating_add(*more);
        }
    }
}

/// What was used, line by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What there is a line for each of.
    pub by: Vec<Dimension>,
    /// The lines, in the order of their labels.
    pub lines: Vec<Line>,
    /// All of them together.
    pub total: Line,
    /// The moment of the oldest entry, in milliseconds since 1970: before it the ledger knows nothing.
    pub oldest_ms: Option<i64>,
}

/// What was spent in one minute by one key at one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minute {
    /// Minutes since 1970.
    pub minute: u64,
    /// The key's name.
    pub key: String,
    /// The target's name.
    pub target: String,
    /// Nano-USD.
    pub nusd: u64,
}

/// One settled attempt, to be compared with a provider's own bill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its row.
    pub id: i64,
    /// When it left.
    pub reserved_ms: i64,
    /// Who spent, and where.
    pub spender: Spender,
    /// The target's name.
    pub target: String,
    /// The upstream's own name for it.
    pub request_id_upstream: Option<String>,
    /// What it came to.
    pub nusd: u64,
    /// Most it could have.
    pub worst_nusd: u64,
    /// Where the price came from.
    pub basis: String,
}

/// Reads a ledger.
pub struct Reader {
    place: Place,
    zone: Tz,
    connection: AnyConnection,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reader(…)")
    }
}

impl Reader {
    /// Opens a ledger for reading.
    ///
    /// Errors: there is none, or it cannot be reached.
    pub async fn open(place: &Place, zone: Tz) -> Result<Self, StoreError> {
        Ok(Self {
            connection: store::reader(place).await?,
            place: place.clone(),
            zone,
        })
    }

    /// What was used.
    ///
    /// Errors: the ledger cannot be read.
    pub async fn report(&mut self, query: &Query) -> Result<Report, StoreError> {
        let read = read(&mut self.connection, query, self.zone).await;
        read.map_err(|e| store::unread(&self.place, &e))
    }

    /// What was spent since a minute, minute by minute. What is only held is not known to be spent.
    ///
    /// Errors: the ledger cannot be read.
    pub async fn minutes(&mut self, since: u64) -> Result<Vec<Minute>, StoreError> {
        let statement = "SELECT reserved_ms / 60000, key_name, target, \
             CAST(SUM(cost_nusd) AS BIGINT) \
             FROM attempts WHERE reserved_ms >= $1 AND settled_ms IS NOT NULL GROUP BY 1, 2, 3 ORDER BY 1";
        let rows = sqlx::query(statement)
            .bind(i64::try_from(since).unwrap_or(0).saturating_mul(MINUTE_MS))
            .fetch_all(&mut self.connection);
        let rows = store::in_time(rows).await;
        let minute = |row: AnyRow| {
            Ok(Minute {
                minute: count(&row, 0)?,
                key: row.try_get(1)?,
                target: row.try_get(2)?,
                nusd: count(&row, 3)?,
            })
        };
        let minutes = rows.and_then(|rows| rows.into_iter().map(minute).collect());
        minutes.map_err(|e| store::unread(&self.place, &e))
    }

    /// Spikes that were told since a moment, here or by another server: when, and in which words.
    ///
    /// Errors: the ledger cannot be read.
    pub async fn spikes_since(&mut self, since_ms: i64) -> Result<Vec<(i64, String)>, StoreError> {
        let rows = sqlx::query(
            "SELECT at_ms, text FROM alerts WHERE cause LIKE 'spike:%' AND at_ms >= $1 ORDER BY at_ms",
        )
        .bind(since_ms)
        .fetch_all(&mut self.connection);
        let rows = store::in_time(rows).await;
        let spike = |row: AnyRow| Ok((row.try_get(0)?, row.try_get(1)?));
        let spikes = rows.and_then(|rows| rows.into_iter().map(spike).collect());
        spikes.map_err(|e| store::unread(&self.place, &e))
    }

    /// Every settled attempt at an upstream, oldest first.
    ///
    /// Errors: the ledger cannot be read.
    pub async fn settled(
        &mut self,
        upstream: &str,
        from_ms: i64,
        to_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        let rows = sqlx::query(
            "SELECT key_name, tenant, model, provider, upstream, cost_nusd, id, reserved_ms, target, \
             request_id_upstream, basis, worst_nusd FROM attempts \
             WHERE upstream = $1 AND reserved_ms >= $2 AND reserved_ms < $3 AND settled_ms IS NOT NULL \
             ORDER BY id",
        )
        .bind(upstream.to_owned())
        .bind(from_ms)
        .bind(to_ms)
        .fetch_all(&mut self.connection)
        .await;
        let settled = |row: AnyRow| {
            let text = |place: usize| row.try_get::<String, _>(place);
            Ok(Settled {
                spender: Spender {
                    key: text(0)?.into(),
                    tenant: text(1)?.into(),
                    model: text(2)?.into(),
                    provider: row.try_get::<Option<String>, _>(3)?.map(Into::into),
                    upstream: text(4)?.into(),
                },
                nusd: count(&row, 5)?,
                id: row.try_get(6)?,
                reserved_ms: row.try_get(7)?,
                target: text(8)?,
                request_id_upstream: row.try_get(9)?,
                basis: text(10)?,
                worst_nusd: count(&row, 11)?,
            })
        };
        let settled = rows.and_then(|rows| rows.into_iter().map(settled).collect());
        settled.map_err(|e| store::unread(&self.place, &e))
    }
}

/// Closed requests, summed up.
const ENTRIES: &str = "SELECT opened_ms / 900000, key_name, model, COALESCE(provider, upstream), side, \
     COUNT(*), CAST(SUM(prompt_tokens) AS BIGINT), CAST(SUM(cached_tokens) AS BIGINT), \
     CAST(SUM(output_tokens) AS BIGINT), CAST(SUM(reasoning_tokens) AS BIGINT), \
     CAST(SUM(saved_nusd) AS BIGINT) \
     FROM entries WHERE opened_ms >= $1 AND opened_ms < $2 AND closed_ms IS NOT NULL \
     GROUP BY 1, 2, 3, 4, 5";

/// Attempts, summed up. Those that were never sent are none.
const ATTEMPTS: &str = "SELECT reserved_ms / 900000, key_name, model, COALESCE(provider, upstream), \
     COUNT(*), CAST(SUM(cost_nusd) AS BIGINT), \
     CAST(SUM(CASE WHEN basis IN ('crash_upper_bound', 'upper_bound') THEN cost_nusd ELSE 0 END) AS BIGINT), \
     CAST(SUM(CASE WHEN settled_ms IS NULL THEN worst_nusd ELSE 0 END) AS BIGINT) \
     FROM attempts WHERE reserved_ms >= $1 AND reserved_ms < $2 AND basis <> 'void' \
     GROUP BY 1, 2, 3, 4";

async fn read(
    connection: &mut AnyConnection,
    query: &Query,
    zone: Tz,
) -> Result<Report, sqlx::Error> {
    let mut lines: BTreeMap<Vec<String>, Line> = BTreeMap::new();
    let mut put = |labels: [String; 4], line: &Line| {
        let labels: Vec<String> = query
            .by
            .iter()
            .map(|dimension| labels[*dimension as usize].clone())
            .collect();
        lines.entry(labels).or_default().add(line);
    };
    for row in rows(connection, ENTRIES, query).await? {
        let (side, requests) = (row.try_get::<Option<String>, _>(4)?, count(&row, 5)?);
        let local = side.as_deref() == Some("local");
        let line = Line {
            local: if local { requests } else { 0 },
            remote: if side.as_deref() == Some("remote") {
                requests
            } else {
                0
            },
            failed: if side.is_none() { requests } else { 0 },
            prompt_tokens: count(&row, 6)?,
            cached_tokens: count(&row, 7)?,
            output_tokens: count(&row, 8)?,
            reasoning_tokens: count(&row, 9)?,
            saved_nusd: count(&row, 10)?,
            ..Line::default()
        };
        put(
            labels(&row, zone, if local { "local" } else { "-" })?,
            &line,
        );
    }
    for row in rows(connection, ATTEMPTS, query).await? {
        let line = Line {
            attempts: count(&row, 4)?,
            cost_nusd: count(&row, 5)?,
            bound_nusd: count(&row, 6)?,
            held_nusd: count(&row, 7)?,
            ..Line::default()
        };
        put(labels(&row, zone, "-")?, &line);
    }
    let oldest_ms = sqlx::query_scalar("SELECT MIN(opened_ms) FROM entries")
        .fetch_one(connection)
        .await?;
    let lines = lines
        .into_iter()
        .map(|(labels, line)| Line { labels, ..line });
    let lines: Vec<Line> = lines.collect();
    let mut total = Line::default();
    lines.iter().for_each(|line| total.add(line));
    Ok(Report {
        by: query.by.clone(),
        lines,
        total,
        oldest_ms,
    })
}

async fn rows(
    connection: &mut AnyConnection,
    statement: &'static str,
    query: &Query,
) -> Result<Vec<AnyRow>, sqlx::Error> {
    sqlx::query(AssertSqlSafe(statement))
        .bind(query.from_ms)
        .bind(query.to_ms)
        .fetch_all(connection)
        .await
}

/// Day, key, model and provider of a row.
fn labels(row: &AnyRow, zone: Tz, nobody: &str) -> Result<[String; 4], sqlx::Error> {
    let quarter: i64 = row.try_get(0)?;
    let provider: Option<String> = row.try_get(3)?;
    Ok([
        date_of(zone, quarter.saturating_mul(QUARTER_MS)).to_string(),
        row.try_get(1)?,
        row.try_get(2)?,
        provider.unwrap_or_else(|| nobody.to_owned()),
    ])
}

/// A sum or a count; a sum over nothing is nothing.
fn count(row: &AnyRow, place: usize) -> Result<u64, sqlx::Error> {
    let value: Option<i64> = row.try_get(place)?;
    Ok(u64::try_from(value.unwrap_or(0)).unwrap_or(0))
}
