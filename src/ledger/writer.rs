//! The ledger's thread: takes what waits, holds it against the budgets, writes it as one group, tells everybody.
//!
//! No timer makes anybody wait: the more callers there are, the more of them share a sync. Money is promised only
//! once its reservation is written down. What cannot be written is tried again, and until then money stays held:
//! whatever fails, less is left than there might be, and never more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::budget::{Amount, Book, Delta, Exceeded};
use super::entry::{Attempt, AttemptRow, Bill, EntryRow, now_ms};
use super::store::{Counted, DROPPED, Group, Store, StoreError};
use super::usage::Settled;
use super::watch::Alert;
use super::window::{Period, Window};

/// Requests that share a sync at most.
const GROUP: usize = 256;
/// After a failure, when what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is read what other servers have spent, where several share a ledger.
const REFRESH: Duration = Duration::from_secs(1);
/// How often servers that are gone are looked for, where several share a ledger.
const RECOVERY: Duration = Duration::from_secs(30);
/// How often old rows are dropped.
const PRUNING: Duration = Duration::from_secs(3600);
/// Closed requests that wait to be written at most while the disk fails; the oldest are lost then, and reported.
const MOST_UNWRITTEN: usize = 65_536;

/// Why money is not held.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// A budget does not cover it.
    #[error("{0}")]
    Exceeded(Box<Exceeded>),
    /// Nothing can be written down.
    #[error("{0}")]
    Store(StoreError),
    /// More waits to be written than the disk keeps up with.
    #[error("the ledger's disk does not keep up")]
    Behind,
    /// The ledger's thread has ended.
    #[error("the ledger is closed")]
    Closed,
}

/// What the thread is asked for.
pub(super) enum Command {
    /// Hold money. Without a reply nobody waits, and nothing is denied: it costs nothing.
    Reserve {
        row: Box<AttemptRow>,
        reply: Option<oneshot::Sender<Result<i64, Refused>>>,
    },
    /// An attempt came to this.
    Settle(Box<AttemptRow>),
    /// A request was opened or closed.
    Entry(Box<EntryRow>),
    /// Everything before it is to be durable.
    Flush(Box<dyn FnOnce() + Send>),
    /// Everything before it is to be written, and nothing after it.
    End(Box<dyn FnOnce() + Send>),
    /// Whether this is told for the first time.
    Claim {
        alert: Box<Alert>,
        reply: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// What attempts came to by the provider's own bill.
    Adjust {
        rows: Vec<(Settled, u64)>,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// What bounds the ledger's size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) keep: Duration,
    pub(super) max_bytes: u64,
}

/// What the thread owns.
pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    /// Commands on their way.
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) bounds: Bounds,
    /// Attempts that somebody holds.
    pub(super) held: HashSet<i64>,
    /// What could not be written yet.
    pub(super) unwritten: VecDeque<Command>,
    /// Whether a commit has failed of which nobody knows whether it was made.
    pub(super) in_doubt: bool,
}

impl Writer {
    /// Runs until it is told to end, or nobody can ask for anything any more.
    pub(super) async fn run(mut self) {
        let mut again: Option<Instant> = None;
        let mut recovery = Instant::now() + RECOVERY;
        let mut pruning = Instant::now() + AGAIN;
        let mut refresh = Instant::now() + REFRESH;
        let mut ended = Vec::new();
        while ended.is_empty() {
            // What is due is done first: under load there is always somebody who asks.
            let now = Instant::now();
            if self.store.is_shared() && now >= refresh {
                refresh = now + REFRESH;
                self.refresh().await;
            }
            if self.store.is_shared() && now >= recovery {
                recovery = now + RECOVERY;
                self.recover().await;
            }
            if now >= pruning {
                let more = self.prune().await;
                pruning = now + if more { AGAIN } else { PRUNING };
            }
            let mut due = pruning.min(again.unwrap_or(pruning));
            if self.store.is_shared() {
                due = due.min(refresh).min(recovery);
            }
            let mut group = Vec::new();
            tokio::select! {
                biased;
                taken = self.commands.recv_many(&mut group, GROUP) => {
                    if taken == 0 {
                        break;
                    }
                    self.waiting.fetch_sub(taken, Ordering::Relaxed);
                }
                () = sleep_until(due) => {
                    if again.is_none_or(|again| Instant::now() < again) {
                        continue;
                    }
                }
            }
            let ends = |command: Command| match command {
                Command::End(tell) => Err(tell),
                command => Ok(command),
            };
            let (taken, tells): (Vec<_>, Vec<_>) =
                group.into_iter().map(ends).partition(Result::is_ok);
            ended.extend(tells.into_iter().filter_map(Result::err));
            let taken = taken.into_iter().filter_map(Result::ok).collect();
            again = match self.take(taken).await {
                true => None,
                false => Some(Instant::now() + AGAIN),
            };
        }
        // The last chance for what could not be written.
        if !self.unwritten.is_empty() && !self.take(Vec::new()).await {
            tracing::error!(
                rows = self.unwritten.len(),
                "the ledger ends without its last entries; what was held is counted at its upper bound"
            );
        } else if let Err(problem) = self.store.close().await {
            tracing::error!(%problem, "the ledger's end");
        }
        for tell in ended {
            tell();
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a group, with what could not be written before. False where something is left to be tried again.
    async fn take(&mut self, commands: Vec<Command>) -> bool {
        let mut all: Vec<Command> = self.unwritten.drain(..).collect();
        all.extend(commands);
        let (mut flushes, mut work) = (Vec::new(), VecDeque::new());
        for command in all {
            match command {
                Command::Flush(tell) => flushes.push(tell),
                Command::Adjust { rows, reply } => {
                    let _ = reply.send(self.adjust(rows).await);
                }
                Command::Claim { alert, reply } => {
                    let _ = reply.send(self.store.claim(&alert).await);
                }
                command => work.push_back(command),
            }
        }
        let mut written = true;
        if self.in_doubt {
            match self.settle_doubts(&mut work).await {
                Ok(()) => self.in_doubt = false,
                Err(problem) => {
                    written = false;
                    self.failed(work.drain(..).collect(), &problem);
                }
            }
        }
        while written && !work.is_empty() {
            let group: Vec<Command> = work.drain(..work.len().min(GROUP)).collect();
            if let Err(problem) = self.write(group, !flushes.is_empty()).await {
                // What comes after it waits for it: rows are written in their order.
                written = false;
                self.failed(work.drain(..).collect(), &problem);
            }
        }
        for tell in flushes {
            tell();
        }
        written && !self.in_doubt && self.unwritten.is_empty()
    }

    /// After a commit whose answer was lost: what it has written after all is not counted a second time, and what
    /// it holds for nobody is given back.
    async fn settle_doubts(&mut self, work: &mut VecDeque<Command>) -> Result<(), StoreError> {
        self.void_orphans(work).await?;
        let ids: Vec<i64> = work.iter().filter_map(row_of).collect();
        let states = self.store.states(&ids).await?;
        let shared = self.store.is_shared();
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let held = &mut self.held;
        work.retain(|command| {
            let state = row_of(command).and_then(|id| states.get(&id));
            // On a shared ledger the counters hold what was written; a book of its own was taken back.
            match (command, state) {
                (Command::Settle(row), Some(true)) => {
                    if !shared {
                        settle(&mut book, row);
                    }
                    held.remove(&row.id);
                    false
                }
                (Command::Reserve { row, reply: None }, Some(settled)) => {
                    if !shared {
                        let Attempt { spender, worst, .. } = &row.attempt;
                        let _ = book.reserve(spender, *worst, row.reserved_ms);
                    }
                    if !settled {
                        held.insert(row.id);
                    }
                    false
                }
                _ => true,
            }
        });
        Ok(())
    }

    /// Writes a group. Errors: it is not written, and what has to be is kept for the next try.
    async fn write(&mut self, commands: Vec<Command>, flush: bool) -> Result<(), StoreError> {
        let money = |c: &Command| matches!(c, Command::Reserve { .. } | Command::Settle(_));
        if let Err(problem) = self.begin(commands.iter().any(money)).await {
            self.failed(commands, &problem);
            return Err(problem);
        }
        let Weighed {
            group,
            promised,
            again,
            durable,
        } = self.weigh(commands);
        if group.is_empty() {
            // Nothing but refusals.
            self.store.roll_back().await;
            return Ok(());
        }
        match self.store.commit(&group, durable || flush).await {
            Ok(()) => {
                for row in &group.attempts {
                    match row.settled {
                        Some(_) => self.held.remove(&row.id),
                        None => self.held.insert(row.id),
                    };
                }
                self.keep_promises(promised);
                Ok(())
            }
            Err(problem) => {
                self.book().undo(&group.deltas);
                self.in_doubt = true;
                let promised = promised.into_iter().map(|Promise { row, reply }| {
                    // Its settling will come, whether anybody waits or not.
                    Command::Reserve { row, reply }
                });
                self.failed(promised.chain(again).collect(), &problem);
                Err(problem)
            }
        }
    }

    /// Begins a group where several servers share the ledger.
    async fn begin(&mut self, compares: bool) -> Result<(), StoreError> {
        if !self.store.is_shared() {
            return Ok(());
        }
        let oldest = match compares {
            true => self.book().oldest_ms(now_ms()),
            // Nothing is compared.
            false => i64::MAX,
        };
        let counters = self.store.begin(oldest).await?;
        if oldest < i64::MAX {
            self.replace(counters);
        }
        Ok(())
    }

    /// Holds every reservation against the budgets, and puts together what is to be written.
    fn weigh(&mut self, commands: Vec<Command>) -> Weighed {
        let mut weighed = Weighed::default();
        let mut entries: HashMap<i64, usize> = HashMap::new();
        let mut attempts: HashMap<i64, usize> = HashMap::new();
        let now = now_ms();
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        for command in commands {
            match command {
                Command::Reserve { mut row, reply } => {
                    // Whoever no longer waits sends nothing either.
                    if reply.as_ref().is_some_and(oneshot::Sender::is_closed) {
                        continue;
                    }
                    // Nobody told whoever does not wait of another moment than their own.
                    let at = if reply.is_some() {
                        now
                    } else {
                        row.reserved_ms
                    };
                    match book.reserve(&row.attempt.spender, row.attempt.worst, at) {
                        Ok((deltas, at_ms)) => {
                            row.reserved_ms = at_ms;
                            weighed.durable |= reply.is_some();
                            weighed.group.deltas.extend(deltas);
                            attempts.insert(row.id, weighed.group.attempts.len());
                            weighed.group.attempts.push(AttemptRow::clone(&row));
                            weighed.promised.push(Promise { row, reply });
                        }
                        Err(exceeded) => {
                            if let Some(reply) = reply {
                                let _ = reply.send(Err(Refused::Exceeded(Box::new(exceeded))));
                            }
                        }
                    }
                }
                Command::Settle(row) => {
                    weighed.group.deltas.extend(settle(&mut book, &row));
                    // What cost nothing is soon enough on the disk with the next that did.
                    let bill = row.settled.as_ref().map(|(_, bill)| bill);
                    weighed.durable |=
                        bill.is_some_and(|bill| bill.amount.nusd > 0) || row.attempt.worst.nusd > 0;
                    // Free ones may be held and settled in one breath.
                    match attempts.get(&row.id) {
                        Some(&place) => weighed.group.attempts[place] = AttemptRow::clone(&row),
                        None => weighed.group.attempts.push(AttemptRow::clone(&row)),
                    }
                    weighed.again.push(Command::Settle(row));
                }
                Command::Entry(row) => {
                    match entries.get(&row.id) {
                        Some(&place) => weighed.group.entries[place] = EntryRow::clone(&row),
                        None => {
                            entries.insert(row.id, weighed.group.entries.len());
                            weighed.group.entries.push(EntryRow::clone(&row));
                        }
                    }
                    weighed.again.push(Command::Entry(row));
                }
                Command::Flush(_)
                | Command::End(_)
                | Command::Adjust { .. }
                | Command::Claim { .. } => {}
            }
        }
        weighed
    }

    /// Tells those who wait that their money is held. Whoever has gone meanwhile has sent nothing.
    fn keep_promises(&mut self, promised: Vec<Promise>) {
        for Promise { mut row, reply } in promised {
            let Some(reply) = reply else { continue };
            if reply.send(Ok(row.reserved_ms)).is_err() {
                row.settled = Some((now_ms(), Bill::void("not_sent")));
                self.unwritten.push_back(Command::Settle(row));
            }
        }
    }

    /// Keeps what could not be written, for the next try.
    fn failed(&mut self, commands: Vec<Command>, problem: &StoreError) {
        tracing::error!(%problem, "the ledger cannot be written: nothing that costs money may leave");
        for command in commands {
            match command {
                Command::Reserve {
                    reply: Some(reply), ..
                } => drop(reply.send(Err(Refused::Store(problem.clone())))),
                command => self.unwritten.push_back(command),
            }
        }
        let entries = |c: &Command| matches!(c, Command::Entry(_));
        let over = self.unwritten.len().saturating_sub(MOST_UNWRITTEN);
        let mut lost = 0;
        // Money that is held is never forgotten.
        self.unwritten.retain(|command| {
            let drops = lost < over && entries(command);
            lost += usize::from(drops);
            !drops
        });
        if lost > 0 {
            tracing::error!(lost, "requests are missing from the ledger");
        }
    }

    /// Settles at nothing what a failed commit has written after all, and nobody was told of.
    async fn void_orphans(&mut self, work: &VecDeque<Command>) -> Result<(), StoreError> {
        let waits = work.iter().filter_map(row_of);
        let held: HashSet<i64> = self.held.iter().copied().chain(waits).collect();
        for orphan in self.store.orphans(&held).await? {
            let mut deltas: Vec<Delta> = Vec::new();
            if self.store.is_shared() {
                self.begin(true).await?;
                let nothing = Amount::default();
                deltas = self.book().settle(
                    (&orphan.spender, orphan.worst),
                    (&orphan.spender, nothing),
                    orphan.reserved_ms,
                );
            }
            self.store.void(orphan.id, &deltas).await?;
        }
        Ok(())
    }

    /// Reads what all servers have spent, so that a look at it is no older than a second.
    async fn refresh(&mut self) {
        let oldest = self.book().oldest_ms(now_ms());
        match self.store.counters(oldest).await {
            Ok(counters) => self.replace(counters),
            Err(problem) => tracing::warn!(%problem, "the ledger"),
        }
    }

    fn replace(&self, counters: Vec<Counted>) {
        let counters = counters.into_iter();
        let counters = counters.map(|c| (c.counter.into(), c.start_ms, c.used));
        self.book().replace(counters);
    }

    /// Counts what a bill says instead of what was counted.
    async fn adjust(&mut self, rows: Vec<(Settled, u64)>) -> Result<(), StoreError> {
        self.begin(true).await?;
        let amount = |nusd| Amount { nusd, tokens: 0 };
        let mut deltas = Vec::new();
        for (row, nusd) in &rows {
            let spender = &row.spender;
            let (was, is) = ((spender, amount(row.nusd)), (spender, amount(*nusd)));
            deltas.extend(self.book().settle(was, is, row.reserved_ms));
        }
        let written = self.store.adjust(&rows, &deltas).await;
        if written.is_err() {
            self.book().undo(&deltas);
        }
        written
    }

    async fn recover(&mut self) {
        match self.store.recover().await {
            Ok(0) => {}
            Ok(rows) => tracing::warn!(
                rows,
                "another server ended without settling what it had sent: it is counted at its upper bound"
            ),
            Err(problem) => tracing::warn!(%problem, "the ledger"),
        }
    }

    /// Drops what is too old, and the oldest where there is too much; never what a budget still counts. True where
    /// there is more of it.
    async fn prune(&mut self) -> bool {
        let now = now_ms();
        let needed = Window::of(Period::Month, self.book().zone(), now).start_ms;
        let keep = i64::try_from(self.bounds.keep.as_millis()).unwrap_or(i64::MAX);
        let mut before = now.saturating_sub(keep);
        let dropped = async {
            let (bytes, oldest) = self.store.size().await?;
            if let Some(oldest) = oldest.filter(|_| bytes > self.bounds.max_bytes) {
                before = before.max(oldest + (now - oldest) / 10);
                if needed <= oldest {
                    tracing::warn!(
                        bytes,
                        "the ledger is larger than `max_bytes`, and this month's budgets need all of it"
                    );
                }
            }
            self.store.prune(before.min(needed)).await
        };
        match dropped.await {
            Ok(0) => false,
            Ok(rows) => {
                tracing::info!(rows, "old rows of the ledger are dropped");
                rows >= DROPPED
            }
            Err(problem) => {
                tracing::warn!(%problem, "the ledger's old rows stay");
                false
            }
        }
    }
}

/// The attempt that a command is about, where nobody waits for an answer.
fn row_of(command: &Command) -> Option<i64> {
    match command {
        Command::Reserve { row, reply: None } | Command::Settle(row) => Some(row.id),
        _ => None,
    }
}

/// A group as it is to be written, and those who wait for it.
#[derive(Default)]
struct Weighed {
    group: Group,
    promised: Vec<Promise>,
    /// What is tried again if it cannot be written.
    again: Vec<Command>,
    durable: bool,
}

/// Money that is held once the group is written.
struct Promise {
    row: Box<AttemptRow>,
    reply: Option<oneshot::Sender<Result<i64, Refused>>>,
}

/// Counts what an attempt came to instead of what was held for it.
fn settle(book: &mut Book, row: &AttemptRow) -> Vec<Delta> {
    let Some((_, bill)) = &row.settled else {
        return Vec::new();
    };
    let held = &row.attempt.spender;
    let mut actual = held.clone();
    if let Some(provider) = &bill.provider {
        actual.provider = Some(Arc::clone(provider));
    }
    let came_to = (&actual, bill.amount);
    book.settle((held, row.attempt.worst), came_to, row.reserved_ms)
}
