//! The ledger as the rest of the house sees it: admit a request, hold money for each time it leaves, say what it
//! came to, and close it; each happens once, on every path.
//!
//! Guards see to that. An attempt that is dropped before it was sent owes nothing, one that is dropped after is
//! counted at its worst case; a request that is dropped is closed as one that was broken off.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono_tz::Tz;
use tokio::sync::{mpsc, oneshot};

use super::budget::{Amount, Book, Budget, Exceeded, Left, Spender, Standing};
use super::entry::{Attempt, AttemptRow, Bill, Closing, EntryRow, Who, now_ms};
use super::store::{Place, Store, StoreError};
use super::usage::Settled;
use super::watch::Alert;
use super::writer::{Bounds, Command, Refused, Writer};

/// Commands on their way beyond which no money is held: the disk does not keep up.
const MOST_WAITING: usize = 16_384;
/// Commands on their way beyond which requests that cost nothing are not written down any more.
const MOST_ENTRIES: usize = 65_536;

/// How long the last rows are waited for when the server ends.
const LAST_ROWS: Duration = Duration::from_secs(10);

/// Where the ledger is, what it counts and how much it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where it is.
    pub place: Place,
    /// What may be spent.
    pub budgets: Vec<Budget>,
    /// The calendar that days and months are counted by.
    pub zone: Tz,
    /// How long rows are kept; those that a running budget counts are kept longer.
    pub keep: Duration,
    /// Bytes above which the oldest rows are dropped.
    pub max_bytes: u64,
}

/// An open ledger. Clones are the same; the last one that is dropped lets it end.
#[derive(Clone)]
pub struct Ledger(Arc<Shared>);

struct Shared {
    to: mpsc::UnboundedSender<Command>,
    book: Arc<Mutex<Book>>,
    next: AtomicI64,
    waiting: Arc<AtomicUsize>,
    place: Place,
    zone: Tz,
    /// Whether entries are being lost, so that it is said once.
    losing: AtomicBool,
}

impl Ledger {
    /// Opens or makes a ledger, settles what an earlier run has left open, and starts its thread.
    ///
    /// Errors: it cannot be reached or written, or another process has its file.
    pub fn open(config: Config) -> Result<Self, StoreError> {
        let Config {
            place,
            budgets,
            zone,
            keep,
            max_bytes,
        } = config;
        let mut book = Book::new(budgets, zone);
        let (to, commands) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let (opened, open) = std::sync::mpsc::channel();
        let (at, waits) = (place.clone(), Arc::clone(&waiting));
        let thread = std::thread::Builder::new().name("ledger".to_owned());
        let failed = |problem: &dyn fmt::Display| StoreError::at(&place, problem);
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(problem) => return drop(opened.send(Err(StoreError::at(&at, problem)))),
            };
            runtime.block_on(async {
                let store = match Store::open(at, &mut book).await {
                    Ok(store) => store,
                    Err(problem) => return drop(opened.send(Err(problem))),
                };
                let book = Arc::new(Mutex::new(book));
                let _ = opened.send(Ok((Arc::clone(&book), store.first_id())));
                let writer = Writer {
                    store,
                    book,
                    commands,
                    waiting: waits,
                    bounds: Bounds { keep, max_bytes },
                    held: Default::default(),
                    unwritten: Default::default(),
                    in_doubt: false,
                };
                writer.run().await;
            });
        };
        thread.spawn(body).map_err(|e| failed(&e))?;
        let (book, first) = open.recv().map_err(|e| failed(&e))??;
        Ok(Self(Arc::new(Shared {
            to,
            book,
            next: AtomicI64::new(first + 1),
            waiting,
            place,
            zone,
            losing: AtomicBool::new(false),
        })))
    }

    /// Takes a request in. Nothing is written before it begins here, leaves, or ends.
    pub fn admit(&self, who: Who) -> Tab {
        Tab {
            ledger: self.clone(),
            id: self.next_id(),
            opened_ms: now_ms(),
            opened: Instant::now(),
            attempts: AtomicU32::new(0),
            written: AtomicBool::new(false),
            closed: false,
            who,
        }
    }

    /// What hard budgets leave to a spender, as it is known now.
    pub fn left(&self, spender: &Spender) -> Left {
        self.book().left(spender, now_ms())
    }

    /// The hard budget that would not cover this worst case now, if there is one; nothing is held.
    pub fn look(&self, spender: &Spender, worst: Amount) -> Option<Exceeded> {
        self.book().look(spender, worst, now_ms())
    }

    /// How every budget stands.
    pub fn standings(&self) -> Vec<Standing> {
        self.book().standings(now_ms())
    }

    /// Counts what a provider's bill says of attempts instead of what was counted for them.
    ///
    /// Errors: it cannot be written, and nothing is changed.
    pub async fn adjust(&self, rows: Vec<(Settled, u64)>) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        self.send(Command::Adjust { rows, reply });
        let closed = |_| StoreError::at(&self.0.place, "its thread has ended");
        done.await.map_err(closed)?
    }

    /// Whether this is told for the first time, here and on every server that shares the ledger; from now on, it was
    /// told.
    ///
    /// Errors: it cannot be written down. Whoever would tell it must choose between twice and never.
    pub async fn claim(&self, alert: Alert) -> Result<bool, StoreError> {
        let (reply, claimed) = oneshot::channel();
        let alert = Box::new(alert);
        self.send(Command::Claim { alert, reply });
        let closed = |_| StoreError::at(&self.0.place, "its thread has ended");
        claimed.await.map_err(closed)?
    }

    /// Waits until everything handed over before is durable, or was reported as not written.
    pub async fn flush(&self) {
        let (reply, done) = oneshot::channel();
        // Whoever no longer waits need not be told.
        self.send(Command::Flush(Box::new(move || {
            let _ = reply.send(());
        })));
        let _ = done.await;
    }

    /// Ends it, from outside of async code, whoever else still has it: what was handed over before is written, and
    /// what is held then is counted at its worst case. Not longer than a disk may take.
    pub fn close(self) {
        let (tell, done) = std::sync::mpsc::channel();
        self.send(Command::End(Box::new(move || {
            let _ = tell.send(());
        })));
        if done.recv_timeout(LAST_ROWS).is_err() {
            tracing::warn!("the ledger's last rows may be missing");
        }
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// The calendar that days are counted by.
    pub fn zone(&self) -> Tz {
        self.0.zone
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_id(&self) -> i64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, command: Command) -> bool {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        self.0.to.send(command).is_ok()
    }

    fn is_behind(&self, most: usize) -> bool {
        self.0.waiting.load(Ordering::Relaxed) >= most
    }

    /// Writes a request down, unless the disk is so far behind that memory would fill up.
    fn write(&self, row: EntryRow) {
        if self.is_behind(MOST_ENTRIES) {
            if !self.0.losing.swap(true, Ordering::Relaxed) {
                tracing::error!("the ledger's disk does not keep up: requests are missing from it");
            }
            return;
        }
        self.0.losing.store(false, Ordering::Relaxed);
        self.send(Command::Entry(Box::new(row)));
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ledger(…)")
    }
}

/// One admitted request, from now until it is closed.
#[derive(Debug)]
pub struct Tab {
    ledger: Ledger,
    id: i64,
    who: Who,
    opened_ms: i64,
    opened: Instant,
    attempts: AtomicU32,
    written: AtomicBool,
    closed: bool,
}

impl Tab {
    /// The request begins here: it is written down, so that it is missed if this server ends before it does.
    pub fn begin(&self) {
        if !self.written.swap(true, Ordering::Relaxed) {
            self.ledger.write(self.row(None, Closing::default()));
        }
    }

    /// Who spends at a place.
    pub fn spender(
        &self,
        model: &Arc<str>,
        provider: Option<&Arc<str>>,
        upstream: &Arc<str>,
    ) -> Spender {
        Spender {
            key: Arc::clone(&self.who.key),
            tenant: Arc::clone(&self.who.tenant),
            model: Arc::clone(model),
            provider: provider.cloned(),
            upstream: Arc::clone(upstream),
        }
    }

    /// The hard budget that would not cover an attempt now, if there is one; nothing is held.
    pub fn look(&self, attempt: &Attempt) -> Option<Exceeded> {
        self.ledger.look(&attempt.spender, attempt.worst)
    }

    /// Holds the worst case of one attempt; it is durable when this returns. What costs nothing, and no budget
    /// counts, is written down without anybody waiting. Dropping the future holds nothing.
    ///
    /// Errors: a budget does not cover it, or it cannot be written down. Nothing may be sent then.
    pub async fn reserve(&self, attempt: Attempt) -> Result<Held, Refused> {
        let ledger = &self.ledger;
        let counted = {
            let left = ledger.left(&attempt.spender);
            attempt.worst.nusd > 0 || left.tokens.is_some()
        };
        if counted && ledger.is_behind(MOST_WAITING) {
            return Err(Refused::Behind);
        }
        let row = AttemptRow {
            id: ledger.next_id(),
            entry: self.id,
            who: self.who.clone(),
            attempt,
            reserved_ms: now_ms(),
            settled: None,
        };
        let mut held = Held {
            ledger: ledger.clone(),
            row: Some(Box::new(row.clone())),
            sent: false,
        };
        let row = Box::new(row);
        if !counted {
            ledger.send(Command::Reserve { row, reply: None });
            self.attempts.fetch_add(1, Ordering::Relaxed);
            return Ok(held);
        }
        let (reply, answer) = oneshot::channel();
        let reply = Some(reply);
        let mut waits = Unanswered {
            held: Some(&mut held),
            answer,
        };
        if !ledger.send(Command::Reserve { row, reply }) {
            return Err(Refused::Closed);
        }
        let answer = (&mut waits.answer).await;
        let at_ms = answer.unwrap_or(Err(Refused::Closed))?;
        waits.confirm(at_ms);
        self.attempts.fetch_add(1, Ordering::Relaxed);
        Ok(held)
    }

    /// Writes down what became of the request.
    pub fn close(mut self, closing: Closing) {
        self.closed = true;
        self.ledger.write(self.row(Some(now_ms()), closing));
    }

    fn row(&self, closed_ms: Option<i64>, closing: Closing) -> EntryRow {
        EntryRow {
            id: self.id,
            opened_ms: self.opened_ms,
            closed_ms,
            who: self.who.clone(),
            attempts: self.attempts.load(Ordering::Relaxed),
            closing,
        }
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        if !self.closed {
            let closing = Closing {
                total_ms: u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX),
                outcome: "aborted".to_owned(),
                ..Closing::default()
            };
            self.ledger.write(self.row(Some(now_ms()), closing));
        }
    }
}

/// An attempt whose reservation is on its way.
struct Unanswered<'a> {
    /// None once it is confirmed.
    held: Option<&'a mut Held>,
    answer: oneshot::Receiver<Result<i64, Refused>>,
}

impl Unanswered<'_> {
    fn confirm(mut self, at_ms: i64) {
        if let Some(row) = self.held.take().and_then(|held| held.row.as_mut()) {
            row.reserved_ms = at_ms;
        }
    }
}

/// Whoever waited has left. What the ledger finds out by itself it takes back; what it has told already, and nobody
/// has heard, is given back here.
impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else {
            return;
        };
        self.answer.close();
        match (self.answer.try_recv(), held.row.as_mut()) {
            (Ok(Ok(at_ms)), Some(row)) => row.reserved_ms = at_ms,
            _ => held.row = None,
        }
    }
}

/// Money that is held for one attempt.
#[derive(Debug)]
pub struct Held {
    ledger: Ledger,
    /// None once it is settled.
    row: Option<Box<AttemptRow>>,
    sent: bool,
}

impl Held {
    /// Its bytes may have left from now on.
    pub fn sent(&mut self) {
        self.sent = true;
    }

    /// Most that it may come to.
    pub fn worst(&self) -> Amount {
        let row = self.row.as_ref();
        row.map_or_else(Amount::default, |row| row.attempt.worst)
    }

    /// Replaces what was held by what it came to.
    pub fn settle(mut self, bill: Bill) {
        self.settle_once(bill);
    }

    fn settle_once(&mut self, bill: Bill) {
        if let Some(mut row) = self.row.take() {
            if bill.amount.nusd > row.attempt.worst.nusd {
                // Somebody counts other tokens than this machine does, or more than were asked for.
                tracing::warn!(
                    target = %row.attempt.target,
                    nusd = bill.amount.nusd,
                    held = row.attempt.worst.nusd,
                    "an answer has cost more than was held for it"
                );
            }
            row.settled = Some((now_ms(), bill));
            self.ledger.send(Command::Settle(row));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bill = match self.sent {
            false => Bill::void("not_sent"),
            true => Bill {
                amount: self.worst(),
                basis: "upper_bound".into(),
                ..Bill::void("lost")
            },
        };
        self.settle_once(bill);
    }
}
