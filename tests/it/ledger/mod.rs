//! Money over sockets: what is held, spent, refused and found again after the worst has happened.

mod alerts;
mod budgets;
mod complaints;
mod entries;
mod kills;
mod postgres;
mod reading;

use std::path::PathBuf;

use chrono_tz::Tz;
use sconce::ledger::{Dimension, Place, Query, Reader, Report};
use serde_json::Value as Json;
use sqlx::{AnyConnection, Connection, Row};

use crate::hybrid::Setup;
use crate::support::eventually;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

/// Where chats go.
pub const CHAT: &str = "/v1/chat/completions";
/// Nano-USD of a token read and of one written, at [`paid`]'s target.
pub const READ: u64 = 1_000;
pub const WRITTEN: u64 = 2_000;

/// A server without a model before one upstream that is paid by the token, with this day's money in US dollars.
pub fn paid(upstream: &Upstream, day: &str) -> Setup {
    paid_with(upstream, &format!("max_usd_per_day = {day}\n"), "")
}

/// The same with more settings of the upstream and the target.
pub fn paid_with(upstream: &Upstream, of_upstream: &str, of_target: &str) -> Setup {
    Setup::new().add(&paid_tables(upstream, of_upstream, of_target))
}

/// The tables of such an upstream and its target.
pub fn paid_tables(upstream: &Upstream, of_upstream: &str, of_target: &str) -> String {
    format!(
        "[[remote.upstream]]\nname = \"up\"\nkind = \"openai_compat\"\nbase_url = \"{}\"\nbilling = \"tokens\"\n\
         provider = \"lab\"\n{of_upstream}\
         [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"big\"\n\
         price = {{ input = 1.0, output = 2.0 }}\n{of_target}\
         capabilities = {{ tools = true, structured_output = true, seed = true }}\n\
         [egress]\nanonymous = \"any\"\ndefault = \"any\"\n",
        upstream.url()
    )
}

/// Everything goes elsewhere.
pub fn away(setup: Setup) -> Setup {
    setup
        .first("model_id = \"none\"\n")
        .add("[[route.model]]\nname = \"default\"\nlocal = false\ntargets = [\"far\"]\n")
}

/// The chats that an upstream was asked for: it is asked what it is, too.
pub fn chats(upstream: &Upstream) -> usize {
    upstream.requests_for(CHAT).len()
}

/// Where a setup's ledger stands.
pub fn file(setup: &Setup) -> PathBuf {
    setup.audit_log().with_file_name("ledger.db")
}

/// Runs something async to its end.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work)
}

/// Everything that a ledger knows, by key, model and provider.
pub fn report(place: &Place) -> Report {
    block_on(async {
        let mut reader = Reader::open(place, Tz::UTC).await.expect("a ledger");
        let query = Query {
            from_ms: 0,
            to_ms: i64::MAX,
            by: Dimension::ALL[1..].to_vec(),
        };
        reader.report(&query).await.expect("a report")
    })
}

/// The rows of a question to a ledger's file: each value as JSON.
pub fn rows(url: &str, question: &'static str, columns: usize) -> Vec<Vec<Json>> {
    block_on(async {
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(url).await.expect("a ledger");
        let rows = sqlx::query(question).fetch_all(&mut connection).await;
        let value = |row: &sqlx::any::AnyRow, column: usize| {
            let number = row.try_get::<Option<i64>, _>(column);
            match number {
                Ok(number) => Json::from(number),
                Err(_) => Json::from(row.try_get::<Option<String>, _>(column).expect("a text")),
            }
        };
        let rows = rows.expect("rows").into_iter();
        rows.map(|row| (0..columns).map(|column| value(&row, column)).collect())
            .collect()
    })
}

/// The address of a ledger's file.
pub fn url(setup: &Setup) -> String {
    format!("sqlite://{}", file(setup).display())
}

/// Waits until a ledger holds so many closed requests, and nothing that is open.
#[track_caller]
pub fn settled(url: &str, requests: usize) {
    eventually("the ledger is settled", || {
        let open = "SELECT (SELECT COUNT(*) FROM entries WHERE closed_ms IS NOT NULL), \
             (SELECT COUNT(*) FROM entries WHERE closed_ms IS NULL), \
             (SELECT COUNT(*) FROM attempts WHERE settled_ms IS NULL)";
        let counts = &rows(url, open, 3)[0];
        (*counts == [Json::from(requests), 0.into(), 0.into()]).then_some(())
    });
}

/// What `GET /usage` says.
#[track_caller]
pub fn usage(server: &Server, query: &str) -> Json {
    server.get(&format!("/usage{query}")).ok()
}
