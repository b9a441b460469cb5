//! The database behind the ledger: SQLite in a file, or Postgres by address; one code for both, through sqlx.
//!
//! A group of rows is written in one transaction, so that many requests share one sync. Every row is written
//! whole: reserving, settling, opening and closing are the same statement, and writing one again changes
//! nothing. Servers that share a Postgres take turns by an advisory lock, and read what the others have spent
//! before they hold money; a SQLite file belongs to one process at a time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::any::{AnyArguments, AnyConnectOptions, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe, ConnectOptions, Connection, Row};

use super::budget::{Amount, Book, Delta, Spender};
use super::entry::{AttemptRow, EntryRow, now_ms, source_name};
use super::usage::Settled;
use super::watch::Alert;
use crate::telemetry::Secret;

/// Rows of one statement, at most and in all sizes up to the second: a statement costs more than its rows, since each
/// wakes another thread and waits for it, and so many stay prepared.
const MOST_ROWS: usize = 64;
const ROWS: usize = 24;
/// Groups in a row that need not be durable, before commits stop to wait for the disk: changing that is a statement.
const CALM_GROUPS: u32 = 8;
/// Ids of one process: 2^40 rows.
const PROCESS_BITS: u32 = 40;

/// How long one group may take: longer than the other side's own bounds.
const PATIENCE: Duration = Duration::from_secs(15);
/// Rows that are dropped at once, so that nobody waits long for it.
pub(super) const DROPPED: u64 = 10_000;

/// Where a ledger is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A SQLite file.
    File(PathBuf),
    /// A Postgres by its address, which may hold a password.
    Postgres(Secret),
}

/// The ledger cannot be opened, read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the ledger{place}: {problem}")]
pub struct StoreError {
    place: String,
    problem: String,
}

impl StoreError {
    pub(super) fn at(place: &Place, problem: impl ToString) -> Self {
        let (place, problem) = match place {
            Place::File(path) => (format!(" {}", path.display()), problem.to_string()),
            // A driver's words may repeat the address.
            Place::Postgres(address) => {
                let words = problem.to_string().replace(address.expose(), "…");
                (String::new(), words)
            }
        };
        Self { place, problem }
    }
}

/// What one transaction writes.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) attempts: Vec<AttemptRow>,
    pub(super) entries: Vec<EntryRow>,
    pub(super) deltas: Vec<Delta>,
}

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.attempts.is_empty() && self.entries.is_empty() && self.deltas.is_empty()
    }
}

/// A counter as it stands in a shared ledger.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) counter: String,
    pub(super) start_ms: i64,
    pub(super) used: u64,
}

/// An attempt that stands open, and that nobody holds.
#[derive(Debug)]
pub(super) struct Orphan {
    pub(super) id: i64,
    pub(super) reserved_ms: i64,
    pub(super) spender: Spender,
    pub(super) worst: Amount,
}

/// An open ledger, written by this process.
pub(super) struct Store {
    place: Place,
    connection: Option<AnyConnection>,
    /// This process's number among all that ever wrote this ledger.
    process: i64,
    /// Keeps other processes away from a file.
    _lock: Option<File>,
    /// Whether a commit waits for the disk now.
    syncs: bool,
    /// Groups in a row that did not have to.
    calm: u32,
}

impl Store {
    /// Opens or makes a ledger, settles what processes that are gone have left open, and fills the book.
    pub(super) async fn open(place: Place, book: &mut Book) -> Result<Self, StoreError> {
        let lock = match &place {
            Place::File(path) => Some(lock(path).map_err(|e| StoreError::at(&place, e))?),
            Place::Postgres(_) => None,
        };
        let mut store = Self {
            place,
            connection: None,
            process: 0,
            _lock: lock,
            syncs: true,
            calm: 0,
        };
        let shared = store.is_shared();
        let mut connection = connect(&store.place, "rwc").await?;
        // As long as a large ledger takes.
        let opened = async {
            sqlx::migrate!("src/ledger/migrations")
                .run(&mut connection)
                .await?;
            store.process = register(&mut connection, shared).await?;
            let recovered = recover(&mut connection, shared, store.process).await?;
            fill(&mut connection, shared, book).await?;
            bound(&mut connection, shared).await?;
            Ok(recovered)
        };
        let opened: Result<u64, sqlx::Error> = opened.await;
        let recovered = opened.map_err(|e| StoreError::at(&store.place, e))?;
        if recovered > 0 {
            tracing::warn!(
                recovered,
                "a server ended without settling what it had sent: it is counted at its upper bound"
            );
        }
        store.connection = Some(connection);
        Ok(store)
    }

    /// Whether other servers may write the same ledger.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.place, Place::Postgres(_))
    }

    /// The first of the ids that are this process's alone.
    pub(super) fn first_id(&self) -> i64 {
        self.process << PROCESS_BITS
    }

    /// Begins a group on a shared ledger: none of the other servers holds money until it is written or given up.
    ///
    /// Returns what all of them have spent since the moment `oldest_ms`, by counter and window.
    pub(super) async fn begin(&mut self, oldest_ms: i64) -> Result<Vec<Counted>, StoreError> {
        self.run(async |connection| {
            begin(connection, true).await?;
            read_counters(connection, oldest_ms).await
        })
        .await
    }

    /// Writes a group; it is durable when this returns, if `durable` says so, and else soon.
    ///
    /// Errors: none of it is written.
    pub(super) async fn commit(&mut self, group: &Group, durable: bool) -> Result<(), StoreError> {
        let shared = self.is_shared();
        self.calm = if durable {
            0
        } else {
            self.calm.saturating_add(1)
        };
        self.sync(durable || self.calm < CALM_GROUPS && self.syncs)
            .await?;
        let single = !shared && group.statements() <= 1;
        self.run(async |connection| {
            if !shared && !single {
                begin(connection, false).await?;
            }
            ATTEMPTS
                .write(connection, &group.attempts, bind_attempt)
                .await?;
            ENTRIES
                .write(connection, &group.entries, bind_entry)
                .await?;
            if shared {
                write_deltas(connection, &group.deltas).await?;
            }
            match single {
                true => Ok(()),
                false => commit(connection).await,
            }
        })
        .await
    }

    /// Says whether a file's commits wait for the disk from now on.
    async fn sync(&mut self, syncs: bool) -> Result<(), StoreError> {
        if self.is_shared() || self.syncs == syncs {
            return Ok(());
        }
        let statement = match syncs {
            true => "PRAGMA synchronous=FULL",
            false => "PRAGMA synchronous=NORMAL",
        };
        self.run(async |connection| {
            sqlx::raw_sql(statement).execute(connection).await?;
            Ok(())
        })
        .await?;
        self.syncs = syncs;
        Ok(())
    }

    /// What all servers have spent since a moment, by counter and window, without keeping anybody from spending.
    pub(super) async fn counters(&mut self, oldest_ms: i64) -> Result<Vec<Counted>, StoreError> {
        self.run(async |connection| read_counters(connection, oldest_ms).await)
            .await
    }

    /// Which of these attempts are written, and whether they are settled; what another server has settled for this
    /// one counts as open.
    pub(super) async fn states(&mut self, ids: &[i64]) -> Result<HashMap<i64, bool>, StoreError> {
        self.run(async |connection| {
            let mut states = HashMap::new();
            for id in ids {
                let row = sqlx::query("SELECT settled_ms, basis FROM attempts WHERE id = $1")
                    .bind(*id)
                    .fetch_optional(&mut *connection)
                    .await?;
                if let Some(row) = row {
                    let settled = row.try_get::<Option<i64>, _>(0)?.is_some();
                    let basis: String = row.try_get(1)?;
                    states.insert(*id, settled && basis != "crash_upper_bound");
                }
            }
            Ok(states)
        })
        .await
    }

    /// Notes that something is told; false where it was told before and is to be quiet about.
    pub(super) async fn claim(&mut self, alert: &Alert) -> Result<bool, StoreError> {
        let shared = self.is_shared();
        self.run(async |connection| {
            begin(connection, shared).await?;
            let last: Option<i64> = sqlx::query_scalar("SELECT at_ms FROM alerts WHERE cause = $1")
                .bind(alert.cause.clone())
                .fetch_optional(&mut *connection)
                .await?;
            let now = now_ms();
            let quiet = match (last, alert.quiet_ms) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(last), Some(quiet_ms)) => now < last.saturating_add(quiet_ms),
            };
            if !quiet {
                sqlx::query(
                    "INSERT INTO alerts (cause, at_ms, text) VALUES ($1, $2, $3) \
                     ON CONFLICT (cause) DO UPDATE SET at_ms = excluded.at_ms, text = excluded.text",
                )
                .bind(alert.cause.clone())
                .bind(now)
                .bind(alert.text.clone())
                .execute(&mut *connection)
                .await?;
            }
            commit(connection).await?;
            Ok(!quiet)
        })
        .await
    }

    /// Gives up what was begun.
    pub(super) async fn roll_back(&mut self) {
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        // Where nothing was begun there is nothing to give up.
        let rolled_back = sqlx::raw_sql("ROLLBACK").execute(connection);
        if in_time(rolled_back).await.is_err() && self.is_shared() {
            self.connection = None;
        }
    }

    /// Attempts of this process that stand open although nobody holds them: a commit whose answer was lost.
    pub(super) async fn orphans(&mut self, held: &HashSet<i64>) -> Result<Vec<Orphan>, StoreError> {
        let (range, shared) = (self.first_id(), self.is_shared());
        self.run(async |connection| {
            if !shared {
                // A commit that nobody waits for any more is made first.
                begin(connection, false).await?;
                commit(connection).await?;
            }
            let rows = sqlx::query(
                "SELECT key_name, tenant, model, provider, upstream, worst_nusd, worst_tokens, id, reserved_ms \
                 FROM attempts WHERE settled_ms IS NULL AND id >= $1 AND id < $2",
            )
            .bind(range)
            .bind(range + (1 << PROCESS_BITS))
            .fetch_all(connection)
            .await?;
            let mut orphans = Vec::new();
            for row in rows {
                let id = row.try_get(7)?;
                if held.contains(&id) {
                    continue;
                }
                let (spender, worst) = spent(&row)?;
                orphans.push(Orphan {
                    id,
                    reserved_ms: row.try_get(8)?,
                    spender,
                    worst,
                });
            }
            Ok(orphans)
        })
        .await
    }

    /// Settles an orphan at nothing, inside of what [`Self::begin`] has begun on a shared ledger.
    pub(super) async fn void(&mut self, id: i64, deltas: &[Delta]) -> Result<(), StoreError> {
        let shared = self.is_shared();
        self.run(async |connection| {
            sqlx::query(
                "UPDATE attempts SET settled_ms = $1, cost_nusd = 0, tokens = 0, basis = 'void', \
                 outcome = 'not_sent' WHERE id = $2",
            )
            .bind(now_ms())
            .bind(id)
            .execute(&mut *connection)
            .await?;
            if shared {
                write_deltas(connection, deltas).await?;
                commit(connection).await?;
            }
            Ok(())
        })
        .await
    }

    /// Changes what attempts came to, inside of what [`Self::begin`] has begun on a shared ledger.
    ///
    /// Errors: none of it is changed.
    pub(super) async fn adjust(
        &mut self,
        rows: &[(Settled, u64)],
        deltas: &[Delta],
    ) -> Result<(), StoreError> {
        let shared = self.is_shared();
        self.run(async |connection| {
            if !shared {
                begin(connection, false).await?;
            }
            for (row, nusd) in rows {
                sqlx::query(
                    "UPDATE attempts SET cost_nusd = $1, basis = 'reconciled' WHERE id = $2",
                )
                .bind(number(*nusd))
                .bind(row.id)
                .execute(&mut *connection)
                .await?;
            }
            if shared {
                write_deltas(connection, deltas).await?;
            }
            commit(connection).await
        })
        .await
    }

    /// Settles what other processes have left open that are gone; only a shared ledger has others.
    pub(super) async fn recover(&mut self) -> Result<u64, StoreError> {
        let (shared, own) = (self.is_shared(), self.process);
        self.run(async |connection| recover(connection, shared, own).await)
            .await
    }

    /// Drops rows that are older than this, and no budget's window needs.
    pub(super) async fn prune(&mut self, before_ms: i64) -> Result<u64, StoreError> {
        self.run(async |connection| {
            let mut rows = 0;
            for statement in [
                "DELETE FROM attempts WHERE id IN (SELECT id FROM attempts \
                 WHERE reserved_ms < $1 AND settled_ms IS NOT NULL LIMIT 10000)",
                "DELETE FROM entries WHERE id IN (SELECT id FROM entries \
                 WHERE opened_ms < $1 AND closed_ms IS NOT NULL LIMIT 10000)",
                "DELETE FROM counters WHERE start_ms < $1",
                "DELETE FROM alerts WHERE at_ms < $1",
            ] {
                let done = sqlx::query(statement)
                    .bind(before_ms)
                    .execute(&mut *connection)
                    .await?;
                rows += done.rows_affected();
            }
            Ok(rows)
        })
        .await
    }

    /// Bytes that the ledger takes on its disk, and the moment of its oldest entry.
    pub(super) async fn size(&mut self) -> Result<(u64, Option<i64>), StoreError> {
        let statement = match self.is_shared() {
            true => {
                "SELECT CAST(pg_total_relation_size('entries') + pg_total_relation_size('attempts') AS BIGINT)"
            }
            false => {
                "SELECT (p.page_count - f.freelist_count) * s.page_size FROM pragma_page_count() p, pragma_freelist_count() f, pragma_page_size() s"
            }
        };
        self.run(async |connection| {
            let bytes: i64 = sqlx::query_scalar(statement)
                .fetch_one(&mut *connection)
                .await?;
            let oldest: Option<i64> = sqlx::query_scalar("SELECT MIN(opened_ms) FROM entries")
                .fetch_one(connection)
                .await?;
            Ok((u64::try_from(bytes).unwrap_or(0), oldest))
        })
        .await
    }

    /// Says that this process is done, so that nobody waits for it; what is open is counted at its worst case.
    pub(super) async fn close(mut self) -> Result<(), StoreError> {
        let (shared, process) = (self.is_shared(), self.process);
        self.run(async |connection| {
            begin(connection, shared).await?;
            settle_for(connection, process).await?;
            commit(connection).await
        })
        .await?;
        let Some(connection) = self.connection.take() else {
            return Ok(());
        };
        let closed = in_time(connection.close()).await;
        closed.map_err(|e| StoreError::at(&self.place, e))
    }

    /// Does a few statements on the connection, which is made anew where it was lost.
    ///
    /// Errors: what was begun is given up, and a connection that may be broken is not used again.
    async fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut AnyConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let connection = self.live().await?;
        let problem = match in_time(work(connection)).await {
            Ok(done) => return Ok(done),
            Err(problem) => problem,
        };
        // A Postgres gives up what a lost connection had begun.
        if !self.is_shared() {
            self.roll_back().await;
        }
        if self.is_shared() || !matches!(problem, sqlx::Error::Database(_)) {
            self.connection = None;
        }
        Err(StoreError::at(&self.place, problem))
    }

    /// The connection, made anew where it was lost.
    async fn live(&mut self) -> Result<&mut AnyConnection, StoreError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect_again().await?,
        };
        Ok(self.connection.insert(connection))
    }

    async fn connect_again(&mut self) -> Result<AnyConnection, StoreError> {
        let mut connection = connect(&self.place, "rwc").await?;
        if self.is_shared() {
            let claimed = async {
                bound(&mut connection, true).await?;
                claim(&mut connection, self.process).await?;
                // Another server may have taken this one for gone.
                sqlx::query("UPDATE processes SET ended_ms = NULL WHERE id = $1")
                    .bind(self.process)
                    .execute(&mut connection)
                    .await
            };
            let claimed = in_time(claimed).await;
            claimed.map_err(|e| StoreError::at(&self.place, e))?;
        }
        self.syncs = true;
        Ok(connection)
    }
}

impl Group {
    fn statements(&self) -> usize {
        let of = |rows: usize| usize::from(rows > 0) * chunks(rows).count();
        of(self.attempts.len()) + of(self.entries.len())
    }
}

/// Opens a ledger for reading alone, beside whoever writes it.
pub(super) async fn reader(place: &Place) -> Result<AnyConnection, StoreError> {
    if let Place::File(path) = place
        && !path.exists()
    {
        return Err(StoreError::at(place, "there is none yet"));
    }
    connect(place, "ro").await
}

/// What went wrong when a ledger was read.
pub(super) fn unread(place: &Place, problem: &sqlx::Error) -> StoreError {
    StoreError::at(place, problem)
}

async fn connect(place: &Place, mode: &str) -> Result<AnyConnection, StoreError> {
    sqlx::any::install_default_drivers();
    let failed = |e: sqlx::Error| StoreError::at(place, e);
    let url = match place {
        Place::File(path) => {
            let mut url = url::Url::parse("sqlite:///").map_err(|e| StoreError::at(place, e))?;
            let path = std::path::absolute(path).map_err(|e| StoreError::at(place, e))?;
            // The one character that is not encoded by itself.
            url.set_path(&path.to_string_lossy().replace('%', "%25"));
            url.set_query(Some(&format!("mode={mode}")));
            url.to_string()
        }
        Place::Postgres(url) => url.expose().to_owned(),
    };
    let options: AnyConnectOptions = url.parse().map_err(failed)?;
    let options = options.disable_statement_logging();
    let connection = in_time(AnyConnection::connect_with(&options)).await;
    let mut connection = connection.map_err(failed)?;
    if matches!(place, Place::File(_)) && mode != "ro" {
        sqlx::raw_sql(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=5000;",
        )
        .execute(&mut connection)
        .await
        .map_err(failed)?;
    }
    Ok(connection)
}

/// Keeps other processes from writing a file's ledger.
fn lock(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Nobody else reads who spends what.
    let private = |path: &Path| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600).open(path)
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = private(Path::new(&name))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(std::io::Error::other(
                "another process writes it; give each server a file of its own as `path` of `[ledger]`, or let them share a Postgres",
            ));
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    drop(private(path)?);
    Ok(file)
}

/// What comes of a few statements, unless the other side is silent for too long.
pub(super) async fn in_time<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let answer = tokio::time::timeout(PATIENCE, work).await;
    answer.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Bounds how long a Postgres waits for this server, and keeps its lock for it, when it is silent.
async fn bound(connection: &mut AnyConnection, shared: bool) -> Result<(), sqlx::Error> {
    if !shared {
        return Ok(());
    }
    sqlx::raw_sql(
        "SET statement_timeout = '10s'; SET lock_timeout = '10s'; \
         SET idle_in_transaction_session_timeout = '10s'; SET tcp_keepalives_idle = 5; \
         SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; SET tcp_user_timeout = '10s'",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The lock that servers sharing a ledger take turns by, until the end of a transaction.
const LOCK: &str = "SELECT CAST(pg_advisory_xact_lock(hashtext(current_schema()), 0) AS TEXT)";

/// Gives this process a number, and says that it lives.
async fn register(connection: &mut AnyConnection, shared: bool) -> Result<i64, sqlx::Error> {
    begin(connection, shared).await?;
    sqlx::query("INSERT INTO processes (id, started_ms, host) SELECT COALESCE(MAX(id), 0) + 1, $1, $2 FROM processes")
        .bind(now_ms())
        .bind(host())
        .execute(&mut *connection)
        .await?;
    let process: i64 = sqlx::query_scalar("SELECT MAX(id) FROM processes")
        .fetch_one(&mut *connection)
        .await?;
    if shared {
        claim(connection, process).await?;
    }
    commit(connection).await?;
    Ok(process)
}

async fn begin(connection: &mut AnyConnection, shared: bool) -> Result<(), sqlx::Error> {
    let statement = if shared { "BEGIN" } else { "BEGIN IMMEDIATE" };
    sqlx::raw_sql(statement).execute(&mut *connection).await?;
    if shared {
        sqlx::query(LOCK).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn commit(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("COMMIT").execute(connection).await?;
    Ok(())
}

/// Holds a lock for as long as the connection lives: whoever can take it knows that the process is gone.
async fn claim(connection: &mut AnyConnection, process: i64) -> Result<(), sqlx::Error> {
    let statement = "SELECT pg_try_advisory_lock(hashtext(current_schema()), CAST($1 AS INTEGER))";
    let mine: bool = sqlx::query_scalar(statement)
        .bind(process)
        .fetch_one(connection)
        .await?;
    if mine {
        return Ok(());
    }
    // An old connection of this very process that the server has not given up yet.
    Err(sqlx::Error::Protocol(
        "this server's own lock is held by a connection that was lost".to_owned(),
    ))
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// Counts what is spent in every window of now.
async fn fill(
    connection: &mut AnyConnection,
    shared: bool,
    book: &mut Book,
) -> Result<(), sqlx::Error> {
    begin(connection, shared).await?;
    book.clear();
    let now = now_ms();
    let periods: BTreeSet<_> = book.budgets().iter().map(|budget| budget.period).collect();
    for period in periods {
        let window = super::window::Window::of(period, book.zone(), now);
        let rows = sqlx::query(
            "SELECT key_name, tenant, model, provider, upstream, \
             CAST(SUM(COALESCE(cost_nusd, worst_nusd)) AS BIGINT), CAST(SUM(COALESCE(tokens, worst_tokens)) AS BIGINT) \
             FROM attempts WHERE reserved_ms >= $1 GROUP BY key_name, tenant, model, provider, upstream",
        )
        .bind(window.start_ms)
        .fetch_all(&mut *connection)
        .await?;
        for row in rows {
            let (spender, amount) = spent(&row)?;
            book.count(&spender, amount, now, period);
        }
    }
    if shared {
        let counters: Vec<(String, i64, i64)> = book
            .counters()
            .map(|(key, start, used)| {
                (
                    key.to_string(),
                    start,
                    i64::try_from(used).unwrap_or(i64::MAX),
                )
            })
            .collect();
        for (key, start, used) in counters {
            sqlx::query("INSERT INTO counters (budget, start_ms, used) VALUES ($1, $2, $3) ON CONFLICT (budget, start_ms) DO UPDATE SET used = excluded.used")
                .bind(key)
                .bind(start)
                .bind(used)
                .execute(&mut *connection)
                .await?;
        }
    }
    commit(connection).await
}

fn spent(row: &AnyRow) -> Result<(Spender, Amount), sqlx::Error> {
    let text = |place: usize| row.try_get::<String, _>(place);
    let amount = |place: usize| {
        let value = row.try_get::<i64, _>(place)?;
        Ok::<u64, sqlx::Error>(u64::try_from(value).unwrap_or(0))
    };
    let spender = Spender {
        key: text(0)?.into(),
        tenant: text(1)?.into(),
        model: text(2)?.into(),
        provider: row.try_get::<Option<String>, _>(3)?.map(Into::into),
        upstream: text(4)?.into(),
    };
    let amount = Amount {
        nusd: amount(5)?,
        tokens: amount(6)?,
    };
    Ok((spender, amount))
}

/// Settles at the upper bound what processes that are gone have left open, and closes their requests.
async fn recover(
    connection: &mut AnyConnection,
    shared: bool,
    own: i64,
) -> Result<u64, sqlx::Error> {
    let open = "SELECT id FROM processes WHERE ended_ms IS NULL AND id <> $1";
    let rows = sqlx::query(open)
        .bind(own)
        .fetch_all(&mut *connection)
        .await?;
    let mut recovered = 0;
    for row in rows {
        let process: i64 = row.try_get(0)?;
        begin(connection, shared).await?;
        if shared && !is_gone(connection, process).await? {
            sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
            continue;
        }
        recovered += settle_for(connection, process).await?;
        commit(connection).await?;
    }
    Ok(recovered)
}

/// Whether a process holds its lock no more. The lock that this takes ends with the transaction.
async fn is_gone(connection: &mut AnyConnection, process: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT pg_try_advisory_xact_lock(hashtext(current_schema()), CAST($1 AS INTEGER))",
    )
    .bind(process)
    .fetch_one(connection)
    .await
}

async fn settle_for(connection: &mut AnyConnection, process: i64) -> Result<u64, sqlx::Error> {
    let (first, end) = (process << PROCESS_BITS, (process + 1) << PROCESS_BITS);
    let now = now_ms();
    let run = async |connection: &mut AnyConnection, statement: &'static str| {
        let query = sqlx::query(statement).bind(now).bind(first).bind(end);
        query
            .execute(connection)
            .await
            .map(|done| done.rows_affected())
    };
    let settled = run(
        connection,
        "UPDATE attempts SET settled_ms = $1, cost_nusd = worst_nusd, tokens = worst_tokens, \
         basis = 'crash_upper_bound', outcome = 'crash' \
         WHERE settled_ms IS NULL AND id >= $2 AND id < $3",
    )
    .await?;
    run(
        connection,
        "UPDATE entries SET closed_ms = $1, outcome = 'crash', \
         attempts = (SELECT COUNT(*) FROM attempts a WHERE a.entry = entries.id) \
         WHERE closed_ms IS NULL AND id >= $2 AND id < $3",
    )
    .await?;
    // What left before its request was written down.
    run(
        connection,
        "INSERT INTO entries (id, opened_ms, closed_ms, request_id, key_name, tenant, path, stream, model, side, \
         target, upstream, provider, reason, attempts, outcome) \
         SELECT a.entry, MIN(a.reserved_ms), CAST($1 AS BIGINT), MIN(a.request_id), MIN(a.key_name), MIN(a.tenant), \
         MIN(a.path), 0, MIN(a.model), 'remote', MIN(a.target), MIN(a.upstream), MIN(a.provider), MIN(a.reason), \
         COUNT(*), 'crash' \
         FROM attempts a WHERE a.id >= $2 AND a.id < $3 \
         AND NOT EXISTS (SELECT 1 FROM entries e WHERE e.id = a.entry) GROUP BY a.entry",
    )
    .await?;
    sqlx::query("UPDATE processes SET ended_ms = $1 WHERE id = $2")
        .bind(now)
        .bind(process)
        .execute(connection)
        .await?;
    Ok(settled)
}

async fn read_counters(
    connection: &mut AnyConnection,
    oldest_ms: i64,
) -> Result<Vec<Counted>, sqlx::Error> {
    let rows = sqlx::query("SELECT budget, start_ms, used FROM counters WHERE start_ms >= $1")
        .bind(oldest_ms)
        .fetch_all(connection)
        .await?;
    let counted = |row: AnyRow| {
        let used: i64 = row.try_get(2)?;
        Ok(Counted {
            counter: row.try_get(0)?,
            start_ms: row.try_get(1)?,
            used: u64::try_from(used).unwrap_or(0),
        })
    };
    rows.into_iter().map(counted).collect()
}

async fn write_deltas(connection: &mut AnyConnection, deltas: &[Delta]) -> Result<(), sqlx::Error> {
    let mut sums: HashMap<(&str, i64), i64> = HashMap::new();
    for delta in deltas {
        *sums.entry((&delta.counter, delta.start_ms)).or_default() += delta.by;
    }
    for ((budget, start), by) in sums {
        sqlx::query("INSERT INTO counters (budget, start_ms, used) VALUES ($1, $2, $3) ON CONFLICT (budget, start_ms) DO UPDATE SET used = counters.used + excluded.used")
            .bind(budget.to_owned())
            .bind(start)
            .bind(by)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

type Bound<'q> = Query<'q, Any, AnyArguments>;

/// Sizes of the statements that write so many rows.
fn chunks(mut rows: usize) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let size = match rows {
            0 => return None,
            rows if rows >= MOST_ROWS => MOST_ROWS,
            rows => rows.min(ROWS),
        };
        rows -= size;
        Some(size)
    })
}

/// A table's columns, and those that may change when a row is written again.
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
    changing: &'static [&'static str],
}

impl Table {
    /// Writes so many whole rows.
    fn upsert(&self, rows: usize) -> String {
        let width = self.columns.len();
        let values = (0..rows).map(|row| {
            let places = (1..=width).map(|column| format!("${}", row * width + column));
            format!("({})", places.collect::<Vec<_>>().join(","))
        });
        let set = self.changing.iter().map(|c| format!("{c}=excluded.{c}"));
        format!(
            "INSERT INTO {} ({}) VALUES {} ON CONFLICT (id) DO UPDATE SET {}",
            self.name,
            self.columns.join(","),
            values.collect::<Vec<_>>().join(","),
            set.collect::<Vec<_>>().join(",")
        )
    }

    /// Writes rows; `bind` gives each one's columns in their order.
    async fn write<Row>(
        &self,
        connection: &mut AnyConnection,
        mut rows: &[Row],
        bind: impl for<'q> Fn(Bound<'q>, &Row) -> Bound<'q>,
    ) -> Result<(), sqlx::Error> {
        for size in chunks(rows.len()) {
            let (now, rest) = rows.split_at(size);
            let query = sqlx::query(AssertSqlSafe(self.upsert(size)));
            now.iter()
                .fold(query, &bind)
                .execute(&mut *connection)
                .await?;
            rows = rest;
        }
        Ok(())
    }
}

const ATTEMPTS: Table = Table {
    name: "attempts",
    columns: &[
        "id",
        "entry",
        "reserved_ms",
        "settled_ms",
        "request_id",
        "key_name",
        "tenant",
        "path",
        "purpose",
        "reason",
        "target",
        "upstream",
        "model",
        "provider",
        "worst_nusd",
        "worst_tokens",
        "cost_nusd",
        "tokens",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
        "usage_source",
        "basis",
        "ttft_ms",
        "outcome",
        "request_id_upstream",
    ],
    changing: &[
        "settled_ms",
        "provider",
        "cost_nusd",
        "tokens",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
        "usage_source",
        "basis",
        "ttft_ms",
        "outcome",
        "request_id_upstream",
    ],
};

const ENTRIES: Table = Table {
    name: "entries",
    columns: &[
        "id",
        "opened_ms",
        "closed_ms",
        "request_id",
        "key_name",
        "tenant",
        "path",
        "stream",
        "model",
        "side",
        "target",
        "upstream",
        "provider",
        "reason",
        "attempts",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
        "usage_source",
        "saved_nusd",
        "saved_target",
        "ttft_ms",
        "total_ms",
        "outcome",
    ],
    changing: &[
        "closed_ms",
        "model",
        "side",
        "target",
        "upstream",
        "provider",
        "reason",
        "attempts",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
        "usage_source",
        "saved_nusd",
        "saved_target",
        "ttft_ms",
        "total_ms",
        "outcome",
    ],
};

fn bind_attempt<'q>(query: Bound<'q>, row: &AttemptRow) -> Bound<'q> {
    let AttemptRow {
        id,
        entry,
        who,
        attempt,
        reserved_ms,
        settled,
    } = row;
    let bill = settled.as_ref().map(|(_, bill)| bill);
    let usage = bill.and_then(|bill| bill.usage);
    let tokens =
        |part: fn(&crate::generation::Usage) -> u32| usage.as_ref().map(|u| i64::from(part(u)));
    let provider = bill.and_then(|bill| bill.provider.as_deref());
    let provider = provider.or(attempt.spender.provider.as_deref());
    let basis = bill.map_or(&attempt.basis, |bill| &bill.basis);
    query
        .bind(*id)
        .bind(*entry)
        .bind(*reserved_ms)
        .bind(settled.as_ref().map(|(at, _)| *at))
        .bind(who.request_id.to_string())
        .bind(who.key.to_string())
        .bind(who.tenant.to_string())
        .bind(who.path.to_string())
        .bind(attempt.purpose)
        .bind(attempt.reason.clone())
        .bind(attempt.target.to_string())
        .bind(attempt.spender.upstream.to_string())
        .bind(attempt.spender.model.to_string())
        .bind(provider.map(str::to_owned))
        .bind(number(attempt.worst.nusd))
        .bind(number(attempt.worst.tokens))
        .bind(bill.map(|bill| number(bill.amount.nusd)))
        .bind(bill.map(|bill| number(bill.amount.tokens)))
        .bind(tokens(|u| u.input_tokens))
        .bind(tokens(|u| u.cached_tokens))
        .bind(tokens(|u| u.output_tokens))
        .bind(tokens(|u| u.reasoning_tokens))
        .bind(usage.map(|u| source_name(u.source).to_owned()))
        .bind(basis.to_string())
        .bind(bill.and_then(|bill| bill.ttft_ms).map(number))
        .bind(bill.map(|bill| bill.outcome.clone()))
        .bind(bill.and_then(|bill| bill.request_id_upstream.clone()))
}

fn bind_entry<'q>(query: Bound<'q>, row: &EntryRow) -> Bound<'q> {
    let EntryRow {
        id,
        opened_ms,
        closed_ms,
        who,
        attempts,
        closing,
    } = row;
    let usage = closing.usage.as_ref();
    let tokens = |part: fn(&crate::generation::Usage) -> u32| usage.map(|u| i64::from(part(u)));
    let model = closing.model.clone();
    query
        .bind(*id)
        .bind(*opened_ms)
        .bind(*closed_ms)
        .bind(who.request_id.to_string())
        .bind(who.key.to_string())
        .bind(who.tenant.to_string())
        .bind(who.path.to_string())
        .bind(i64::from(who.stream))
        .bind(model.unwrap_or_else(|| who.model.to_string()))
        .bind(closing.side.map(|side| side.to_string()))
        .bind(closing.target.clone())
        .bind(closing.upstream.clone())
        .bind(closing.provider.clone())
        .bind(closing.reason.clone())
        .bind(i64::from(*attempts))
        .bind(tokens(|u| u.input_tokens))
        .bind(tokens(|u| u.cached_tokens))
        .bind(tokens(|u| u.output_tokens))
        .bind(tokens(|u| u.reasoning_tokens))
        .bind(usage.map(|u| source_name(u.source).to_owned()))
        .bind(closing.saved.as_ref().map(|(nusd, _)| number(*nusd)))
        .bind(closing.saved.as_ref().map(|(_, target)| target.clone()))
        .bind(closing.ttft_ms.map(number))
        .bind(closed_ms.map(|_| number(closing.total_ms)))
        .bind(closed_ms.map(|_| closing.outcome.clone()))
}

fn number(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}
